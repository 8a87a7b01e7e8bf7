"""The 110 M model of the speed benchmarks: large enough that weights, and not Python, take the time."""

from rhea.models.config import TransformerConfig
from rhea.tokenizers.vocabulary import Vocabulary, VocabularyConfig


def medium(vocabulary: VocabularyConfig, max_seq_len: int) -> TransformerConfig:
    """Return its sizes: 75 M weights in the layers' products, and two tables of the vocabulary's rows."""
    return TransformerConfig(
        vocab_size=Vocabulary(vocabulary).size,
        dim=768,
        num_layers=12,
        num_heads=12,
        num_kv_heads=4,
        head_dim=64,
        ffn_dim=2048,
        max_seq_len=max_seq_len,
    )

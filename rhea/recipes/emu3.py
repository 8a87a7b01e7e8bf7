"""The sizes of the released Emu3 (arXiv:2409.18869 and its published configs), as configs to build on.

Pinned by a test on the meta device: 8,492,011,520 parameters in the transformer, 270,740,287 in the vision tokenizer.
"""

from rhea.models.config import TransformerConfig
from rhea.models.vision.config import VisionTokenizerConfig
from rhea.tokenizers.vocabulary import EMU3_VOCABULARY, Vocabulary


def emu3_transformer(max_seq_len: int = 131_072) -> TransformerConfig:
    """Return the 8 B language model: 131,072 positions in Emu3-Chat, 9,216 in Emu3-Gen."""
    vocabulary = Vocabulary(EMU3_VOCABULARY)
    return TransformerConfig(
        vocab_size=vocabulary.size,
        dim=4096,
        num_layers=32,
        num_heads=32,
        num_kv_heads=8,
        head_dim=128,
        ffn_dim=14_336,
        max_seq_len=max_seq_len,
        rope_theta=1e6,
        norm_eps=1e-5,
        dropout=0.1,
        pad_id=vocabulary.pad,
    )


def emu3_vision_tokenizer() -> VisionTokenizerConfig:
    """Return the released vision tokenizer: 32,768 codes of 4 numbers, 8 x 8 pixels and 4 frames to a code."""
    return VisionTokenizerConfig(
        base_channels=256,
        channel_multipliers=(1, 2, 2, 4),
        num_res_blocks=2,
        attention_levels=(3,),
        latent_channels=4,
        embed_dim=4,
        codebook_size=32_768,
        temporal_downsample=4,
    )

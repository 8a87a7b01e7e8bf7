"""Sizes of a transformer that is large enough to be wrong and small enough for any test."""

from rhea.models.config import TransformerConfig

SMALL = TransformerConfig(
    vocab_size=40,
    dim=24,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    ffn_dim=48,
    max_seq_len=64,
    qk_norm=True,
    init_std=0.2,
)

"""The sizes of the one transformer; ``recipes`` hold the values, ``transformer.py`` builds from them."""

from dataclasses import dataclass

from rhea.errors import InputError


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """Sizes and constants of the transformer."""

    vocab_size: int
    """Rows of the embedding and of the head."""
    dim: int
    """Channels of the residual stream."""
    num_layers: int
    """Decoder layers."""
    num_heads: int
    """Query heads."""
    num_kv_heads: int
    """Key-value heads; divides num_heads."""
    head_dim: int
    """Channels of one head; even."""
    ffn_dim: int
    """Channels inside the feed-forward."""
    max_seq_len: int
    """Longest context that the model was made for; the model itself does not enforce it."""
    rope_theta: float = 1e6
    """Base of the rotary frequencies."""
    norm_eps: float = 1e-5
    """Epsilon of every RMSNorm."""
    dropout: float = 0.0
    """Emu3 trains with 0.1: on the embedding's output, the attention probabilities and both residual branches."""
    qk_norm: bool = False
    """RMSNorm on queries and keys of each head; off in Emu3."""
    init_std: float = 0.02
    """Standard deviation of every matrix at initialisation."""
    pad_id: int | None = None
    """This row of the embedding starts as zeros and is never trained."""

    def __post_init__(self) -> None:
        if self.num_heads % self.num_kv_heads:
            raise InputError(f"num_kv_heads {self.num_kv_heads} does not divide num_heads {self.num_heads}")
        if self.head_dim % 2:
            raise InputError(f"head_dim {self.head_dim} is odd; rotary positions need an even one")

"""The attention layer: projections, optional QK-norm, rotary positions; whom it attends the cache or a mask decides.

GQA: arXiv 2305.13245; QK-norm: 2405.09818 (Chameleon), off in Emu3.

Shapes: B rows, T query tokens, H heads, G key-value heads, K channels of one head, D = model channels.
"""

import torch
from torch import Tensor, nn

from rhea.models.attend import attend
from rhea.models.cache import Cache
from rhea.models.config import TransformerConfig
from rhea.models.layers import RMSNorm, Rotary, rotate
from rhea.models.packed import PackedLinear, Product, can_pack, release
from rhea.models.visibility import Visibility


class Attention(nn.Module):
    """Projections, optional QK-norm, rotary positions and the attention itself."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        self.num_heads, self.num_kv_heads = config.num_heads, config.num_kv_heads
        self.dropout = config.dropout
        query_dim, key_dim = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        self.q_proj = nn.Linear(config.dim, query_dim, bias=False)
        self.k_proj = nn.Linear(config.dim, key_dim, bias=False)
        self.v_proj = nn.Linear(config.dim, key_dim, bias=False)
        self.o_proj = nn.Linear(query_dim, config.dim, bias=False)
        self.q_norm = RMSNorm(config.head_dim, config.norm_eps) if config.qk_norm else None
        self.k_norm = RMSNorm(config.head_dim, config.norm_eps) if config.qk_norm else None

        self.packed: tuple[Product, Product] | None = None

    def pack(self, *, alone: bool = False) -> None:
        """Fuse the three input projections, and prepack all, for inference; ``alone``: without the originals."""
        inward, outward = (self.q_proj, self.k_proj, self.v_proj), (self.o_proj,)
        if can_pack(self.q_proj):
            self.packed = PackedLinear(inward), PackedLinear(outward)
            if alone:
                release(inward + outward, self.packed)

    def forward(
        self, x_BTD: Tensor, rotation: Rotary, visibility: Visibility, cache: Cache | None = None, layer: int = 0
    ) -> Tensor:
        """Attend from x to itself, and to what ``cache`` holds for this ``layer``."""
        packed = None if torch.is_grad_enabled() else self.packed
        queries, keys, values = self._project(x_BTD, packed)
        if self.q_norm is not None and self.k_norm is not None:
            queries, keys = self.q_norm(queries), self.k_norm(keys)
        queries, keys = rotate(queries, rotation), rotate(keys, rotation)
        if cache is None:
            attended = attend(queries, keys, values, visibility, self.dropout if self.training else 0.0)
        else:
            attended = cache.attend(layer, queries, keys, values, visibility)
        output = self.o_proj if packed is None else packed[1]
        return output(attended.flatten(2))

    def _project(self, x_BTD: Tensor, packed: tuple[Product, Product] | None) -> tuple[Tensor, ...]:
        """Return queries [B, T, H, K], keys and values [B, T, G, K]."""
        if packed is None:
            projections = (self.q_proj, self.k_proj, self.v_proj)
            return tuple(projection(x_BTD).unflatten(-1, (-1, self.head_dim)) for projection in projections)
        heads = (self.num_heads, self.num_kv_heads, self.num_kv_heads)
        return packed[0](x_BTD).unflatten(-1, (-1, self.head_dim)).split(heads, 2)

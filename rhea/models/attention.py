"""Causal grouped-query attention over whole rows, packed documents or a cache, through torch's fused kernels.

The decision that is not obvious: on CPU packed documents are attended one kernel call per document (exact, and several
times faster than a dense mask); on other devices one dense mask serves all. Tests hold the two equal.
GQA: arXiv 2305.13245; QK-norm: 2405.09818 (Chameleon), off in Emu3.

Shapes: B rows, T query tokens, S key tokens, H heads, G key-value heads, K channels of one head, D = model channels.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rhea.models.blocked_attention import blocked_causal_attention
from rhea.models.config import TransformerConfig
from rhea.models.kv_cache import KVCache
from rhea.models.layers import RMSNorm, Rotary, rotate
from rhea.models.packed import PackedLinear, can_pack
from rhea.models.visibility import Visibility


def attend(
    queries_BTHK: Tensor, keys_BSGK: Tensor, values_BSGK: Tensor, visibility: Visibility, dropout: float = 0.0
) -> Tensor:
    """Return softmax(q k / sqrt(K)) v, [B, T, H, K]; ``dropout`` falls on the attention probabilities."""
    if visibility.documents is None:
        return _attend(queries_BTHK, keys_BSGK, values_BSGK, visibility, dropout)
    pieces = [x.flatten(0, 1)[None].split(visibility.documents, 1) for x in (queries_BTHK, keys_BSGK, values_BSGK)]
    within = Visibility(causal=True)
    outputs = [_attend(queries, keys, values, within, dropout) for queries, keys, values in zip(*pieces, strict=True)]
    return torch.cat(outputs, 1).view_as(queries_BTHK)


def _attend(queries: Tensor, keys: Tensor, values: Tensor, visibility: Visibility, dropout: float) -> Tensor:
    causal = visibility.causal and visibility.mask_B1TS is None
    trains_on_cpu = queries.device.type == "cpu" and queries.requires_grad
    if trains_on_cpu and causal and not dropout and queries.dtype == torch.bfloat16:
        return blocked_causal_attention(queries, keys, values)
    if queries.device.type == "cpu" and queries.dtype == torch.bfloat16 and torch.is_grad_enabled():
        # The kernel's backward is two to three times slower in bfloat16 than in float32 on documents of a few hundred.
        with torch.autocast("cpu", enabled=False):
            wide = _attend(queries.float(), keys.float(), values.float(), visibility, dropout)
        return wide.to(queries.dtype)
    output = F.scaled_dot_product_attention(
        queries.transpose(1, 2),
        keys.transpose(1, 2),
        values.transpose(1, 2),
        attn_mask=visibility.mask_B1TS,
        dropout_p=dropout,
        is_causal=causal,
        enable_gqa=keys.shape[2] != queries.shape[2],
    )
    return output.transpose(1, 2)


def attend_cached(queries_BTHK: Tensor, keys_BGSK: Tensor, values_BGSK: Tensor, visibility: Visibility) -> Tensor:
    """Attend to a cache: the query heads of one group become rows of one product, so that it is read only once."""
    B, T, H, K = queries_BTHK.shape
    G = keys_BGSK.shape[1]
    grouped = queries_BTHK.view(B, T, G, H // G, K).permute(0, 2, 3, 1, 4).reshape(B, G, -1, K)
    mask = visibility.mask_B1TS
    if mask is not None:
        mask = mask.repeat(1, 1, H // G, 1)
    output = F.scaled_dot_product_attention(grouped, keys_BGSK, values_BGSK, attn_mask=mask)
    return output.view(B, G, H // G, T, K).permute(0, 3, 1, 2, 4).reshape(B, T, H, K)


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

        self.packed: tuple[PackedLinear, PackedLinear] | None = None

    def pack(self) -> None:
        """Fuse the three input projections, and prepack all, for inference."""
        if can_pack(self.q_proj):
            self.packed = PackedLinear((self.q_proj, self.k_proj, self.v_proj)), PackedLinear((self.o_proj,))

    def forward(
        self, x_BTD: Tensor, rotation: Rotary, visibility: Visibility, cache: KVCache | None = None, layer: int = 0
    ) -> Tensor:
        """Attend from x to itself, and to what ``cache`` holds for this ``layer``."""
        packed = None if torch.is_grad_enabled() else self.packed
        queries, keys, values = self._project(x_BTD, packed)
        if self.q_norm is not None and self.k_norm is not None:
            queries, keys = self.q_norm(queries), self.k_norm(keys)
        queries, keys = rotate(queries, rotation), rotate(keys, rotation)
        if cache is None or cache.is_empty:
            dropout = self.dropout if self.training else 0.0
            attended = attend(queries, keys, values, visibility, dropout)
        if cache is not None:
            everything = cache.extend(layer, keys, values)
            if not cache.is_empty:
                attended = attend_cached(queries, *everything, visibility)
        output = self.o_proj if packed is None else packed[1]
        return output(attended.flatten(2))

    def _project(self, x_BTD: Tensor, packed: tuple[PackedLinear, PackedLinear] | None) -> tuple[Tensor, ...]:
        """Return queries [B, T, H, K], keys and values [B, T, G, K]."""
        if packed is None:
            projections = (self.q_proj, self.k_proj, self.v_proj)
            return tuple(projection(x_BTD).unflatten(-1, (-1, self.head_dim)) for projection in projections)
        heads = (self.num_heads, self.num_kv_heads, self.num_kv_heads)
        return packed[0](x_BTD).unflatten(-1, (-1, self.head_dim)).split(heads, 2)

"""Causal grouped-query attention over whole rows, packed documents or cached keys, through torch's fused kernels.

The decision that is not obvious: on CPU packed documents are attended one kernel call per document (exact, and several
times faster than a dense mask); on other devices one dense mask serves all. Tests hold the two equal.

Shapes: B rows, T query tokens, S key tokens, H heads, G key-value heads, K channels of one head.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from rhea.models.blocked_attention import blocked_causal_attention
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
    if mask is not None and T > 1:
        mask = mask.repeat(1, 1, H // G, 1)
    output = F.scaled_dot_product_attention(grouped, keys_BGSK, values_BGSK, attn_mask=mask)
    return output.view(B, G, H // G, T, K).permute(0, 3, 1, 2, 4).reshape(B, T, H, K)

"""From logits to a token, as pure functions: guidance, temperature, top-k, top-p, and a draw by the Gumbel-max rule.

The decision that is not obvious: noise does not come from a generator with a state, it is a hash (SplitMix64, Steele,
Lea and Flood 2014) of (seed, sample index, position, token id). So a sample is the same alone or in a batch, whichever
part of the vocabulary was computed, and a later decoder that drafts several positions at once can be held to the very
same tokens.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from rhea.errors import InputError
from rhea.models.native import operators
from rhea.models.native.trust import available

# SplitMix64's constants, as signed 64-bit integers because torch has no unsigned arithmetic (it wraps the same).
_GOLDEN, _MIX_1, _MIX_2 = -0x61C8864680B583EB, -0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15
_MASK = (1 << 64) - 1


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    temperature: float = 1.0
    """Divides the logits; 0 takes the most probable token (greedy)."""
    top_k: int = 0
    """Keep only that many most probable tokens; 0 keeps all."""
    top_p: float = 1.0
    """Keep the smallest set of most probable tokens that holds this mass; 1 keeps all."""
    guidance_scale: float = 1.0
    """Classifier-free guidance: 1 is off, 3 is Emu3's choice for pictures."""

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise InputError(f"temperature {self.temperature} must be 0 (greedy) or a positive number")
        if self.top_k < 0:
            raise InputError(f"top_k {self.top_k} must be 0 (keep all) or a positive number of tokens")
        if not 0 < self.top_p <= 1:
            raise InputError(f"top_p {self.top_p} must be above 0 and at most 1")
        if not 0 <= self.guidance_scale < float("inf"):
            raise InputError(f"guidance_scale {self.guidance_scale} must be 0 or more (1 is no guidance)")


def guided_logits(conditional: Tensor, unconditional: Tensor, guidance_scale: float) -> Tensor:
    """Return u + g (c - u) on raw logits of any slice of the vocabulary.

    Emu3 guides log-softmaxes over the whole vocabulary; the difference is one constant per row, which softmax, top-k
    and argmax ignore, so the rows of the head that are not legal next need not be computed.
    """
    return torch.lerp(unconditional, conditional, guidance_scale)


def top_candidates(logits_BV: Tensor, *, top_k: int = 0, top_p: float = 1.0) -> tuple[Tensor, Tensor | None]:
    """Return the logits that survive top-k, then top-p, and their columns (None: all columns, in order).

    Columns dropped by top-p stay in place at minus infinity; the most probable token always survives.
    """
    width = logits_BV.shape[-1]
    if top_p >= 1 and not 0 < top_k < width:
        return logits_BV, None
    kept = min(top_k, width) if top_k else width
    values_BK, columns_BK = torch.topk(logits_BV, kept, dim=-1, sorted=top_p < 1)
    if top_p < 1:
        probabilities_BK = values_BK.softmax(dim=-1)
        mass_before_BK = probabilities_BK.cumsum(dim=-1) - probabilities_BK
        mass_before_BK[..., 0] = 0.0
        values_BK = values_BK.masked_fill(mass_before_BK >= top_p, float("-inf"))
    return values_BK, columns_BK


def noise_key(seed: int, sample_index: int, position: int) -> int:
    """Return the signed 64-bit key of one draw: the ``position``-th token of sample ``sample_index`` under ``seed``."""
    key = 0
    for part in (seed, sample_index, position):
        key = (key ^ (part & _MASK)) + (_GOLDEN & _MASK)
        key = ((key ^ ((key & _MASK) >> 30)) * _MIX_1) & _MASK
        key = ((key ^ (key >> 27)) * _MIX_2) & _MASK
        key ^= key >> 31
    return key - (1 << 64) if key >> 63 else key


def uniform_noise(keys_B: Tensor, token_ids: Tensor) -> Tensor:
    """Return uniform noise in (0, 1), float32 [B, K], a pure function of each row's key and each token id.

    keys_B: int64 [B] of ``noise_key``; token_ids: int64 [K] or [B, K], from -1. The same bits on every device.
    """
    if keys_B.device.type == "cpu" and available(torch.float32) and _plain(keys_B, token_ids):
        return operators.uniform(keys_B, token_ids)
    z = keys_B[:, None] + (token_ids + 1) * _GOLDEN
    z = (z ^ ((z >> 30) & 0x3FFFFFFFF)) * _MIX_1
    z = (z ^ ((z >> 27) & 0x1FFFFFFFFF)) * _MIX_2
    bits = ((z ^ ((z >> 31) & 0x1FFFFFFFF)) >> 32) & 0xFFFFFFFF
    # Finest near 0: that is where the largest Gumbel noise comes from.
    return (bits.float() + 0.5).mul_(2.0**-32).clamp_(max=1.0 - 2.0**-24)


def _plain(keys_B: Tensor, token_ids: Tensor) -> bool:
    """Tell whether keys and ids have the shapes and the dtype that the operator knows."""
    known = keys_B.dtype == token_ids.dtype == torch.int64 and keys_B.ndim == 1
    return known and (token_ids.ndim == 1 or token_ids.shape[:-1] == keys_B.shape)


def gumbel_noise(keys_B: Tensor, token_ids: Tensor) -> Tensor:
    """Return standard Gumbel noise, float32 [B, K]; see ``uniform_noise``."""
    return uniform_noise(keys_B, token_ids).neg_().log1p_().neg_().log_().neg_()


def final_probabilities(logits_BV: Tensor, sampling: SamplingConfig) -> Tensor:
    """Return the law that ``draw`` draws from at a temperature above 0, [B, V]."""
    values_BK, columns_BK = top_candidates(logits_BV / sampling.temperature, top_k=sampling.top_k, top_p=sampling.top_p)
    chances_BK = values_BK.softmax(dim=-1)
    if columns_BK is None:
        return chances_BK
    return torch.zeros_like(logits_BV).scatter_(-1, columns_BK, chances_BK)


def draw(logits_BV: Tensor, token_ids_V: Tensor, keys_B: Tensor, sampling: SamplingConfig) -> Tensor:
    """Draw one token id for each row, int64 [B].

    logits_BV: float32, guided already, for the tokens ``token_ids_V``; keys_B: one ``noise_key`` per row.
    """
    if sampling.temperature == 0:
        return token_ids_V[logits_BV.argmax(dim=-1)]
    values_BK, columns_BK = top_candidates(logits_BV / sampling.temperature, top_k=sampling.top_k, top_p=sampling.top_p)
    candidates = token_ids_V if columns_BK is None else token_ids_V[columns_BK]
    best_B1 = (values_BK + gumbel_noise(keys_B, candidates)).argmax(dim=-1, keepdim=True)
    return candidates.expand_as(values_BK).gather(-1, best_B1)[:, 0]

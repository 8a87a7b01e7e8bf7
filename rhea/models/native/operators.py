"""Operators for few rows on a CPU: products with matrices in panels, and all decoder layers over a cache.

The layers are one call instead of a thousand of torch's: the weights that pass by empty the processor's caches, so
whatever code runs between two layers is slow each time. Every row's result is the same, to the last bit, in whatever
batch and on however many threads it is computed. What is rounded where follows torch: norms, gates and residuals of
bfloat16 are rounded as its operators round them; softmax and sums are float32.

Shapes: B rows, T tokens, N = B T, D channels, V outputs, K channels of one head.
"""

import ctypes
from collections.abc import Iterable, Sequence
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from rhea.models.native.binding import BatchStruct, LayerStruct, MatrixStruct, library

_LARGEST_HEAD, _MOST_SHARED = 256, 96
"""As in the source: channels of a head, and query heads of one key-value head."""


class Panels:
    """A matrix [V, D] laid out for its products; ``gated``: its halves are a gate and what it multiplies."""

    def __init__(self, weights: Iterable[Tensor], *, gated: bool = False) -> None:
        """``weights``: the matrix in pieces of rows, of one dtype; they are copied."""
        found = library()
        assert found is not None
        pieces = [weight.detach().contiguous() for weight in weights]
        self.dtype, self.inputs = pieces[0].dtype, pieces[0].shape[1]
        rows, narrow = sum(len(piece) for piece in pieces), self.dtype == torch.bfloat16
        self.outputs = rows // 2 if gated else rows
        size = found.rhea_panel_bytes(self.inputs, rows, narrow, gated) // self.dtype.itemsize
        self.memory = torch.zeros(size, dtype=self.dtype)
        found.rhea_large_pages(self.memory.data_ptr(), self.memory.nbytes)
        self._struct = MatrixStruct(self.memory.data_ptr(), self.inputs, rows, narrow, gated)
        self.address = ctypes.addressof(self._struct)
        at = 0
        for piece in pieces:
            found.rhea_pack(self.address, piece.data_ptr(), at, len(piece))
            at += len(piece)
        self._product = found.rhea_product

    def fits(self, x: Tensor) -> bool:
        """Tell whether the product can take these rows."""
        return x.dtype == self.dtype and x.device.type == "cpu" and type(x) in (Tensor, torch.nn.Parameter)

    def product(self, x: Tensor, start: int = 0, stop: int | None = None, *, wide: bool = False) -> Tensor:
        """Return x times the transposed outputs [start, stop), [..., V], in float32 if ``wide``.

        A gated matrix gives silu(gate) times the rest.
        """
        stop = self.outputs if stop is None else stop
        x = x.contiguous()
        output = torch.empty((*x.shape[:-1], stop - start), dtype=torch.float32 if wide else self.dtype)
        rows, threads = x.numel() // self.inputs, torch.get_num_threads()
        if self._product(self.address, x.data_ptr(), output.data_ptr(), rows, start, stop, wide, threads):
            raise MemoryError("no memory for the rows of a product")
        return output


class LayerParts(NamedTuple):
    """What one decoder layer is made of."""

    matrices: Sequence[Panels]
    """Of queries, keys and values; of attention's output; gate and up; down."""
    norms: Sequence[tuple[Tensor, float] | None]
    """Weights and epsilon: before attention and feed-forward, and of single queries and keys if these have a norm."""


class FusedLayers:
    """All decoder layers over a cache in which each token sees its slot up to its own position."""

    def __init__(self, heads: int, groups: int, channels: int) -> None:
        self._sizes = (heads, groups, channels)
        self._made_of: list[tuple[float, ...]] = []
        self._structs: ctypes.Array[LayerStruct] | None = None

    def __reduce__(self) -> tuple[type["FusedLayers"], tuple[int, ...]]:
        """A copy begins anew, for addresses can't be copied."""
        return FusedLayers, self._sizes

    @staticmethod
    def serves(heads: int, groups: int, channels: int) -> bool:
        """Tell whether attention with heads like these is possible."""
        return channels <= _LARGEST_HEAD and heads // groups <= _MOST_SHARED

    def __call__(
        self,
        x_BTD: Tensor,
        layers: Sequence[LayerParts],
        rotation: tuple[Tensor, Tensor],
        blocks: Sequence[Tensor],
        slots_N: Tensor,
        positions_N: Tensor,
    ) -> Tensor:
        """Return the residual stream after the layers; the tokens' keys and values are kept.

        ``rotation``: cosines and signed sines, [N, K] each. ``blocks``: keys and values of each layer; see the cache.
        """
        found = library()
        assert found is not None
        made_of = [_described(parts, self._sizes) for parts in layers]
        if self._structs is None or made_of != self._made_of:
            self._structs = (LayerStruct * len(layers))(*(LayerStruct(*each) for each in made_of))
            self._made_of = made_of
        x_BTD = x_BTD.contiguous()
        output = torch.empty_like(x_BTD)
        cosines, sines = rotation
        batch = BatchStruct(
            cosines.data_ptr(), sines.data_ptr(), slots_N.data_ptr(), positions_N.data_ptr(), slots_N.numel()
        )
        if found.rhea_layers(
            ctypes.addressof(self._structs),
            len(layers),
            ctypes.addressof(batch),
            x_BTD.data_ptr(),
            output.data_ptr(),
            (ctypes.c_void_p * len(layers))(*(block.data_ptr() for block in blocks)),
            blocks[0].shape[3],
            torch.get_num_threads(),
        ):
            raise MemoryError("no memory for a layer's activations")
        return output


def _described(parts: LayerParts, sizes: tuple[int, int, int]) -> tuple[float, ...]:
    """Return the fields of a layer's struct."""
    scales = [0 if norm is None else norm[0].data_ptr() for norm in parts.norms]
    epsilons = [0.0 if norm is None else norm[1] for norm in parts.norms[:3]]
    return (*[matrix.address for matrix in parts.matrices], *scales, *sizes, *epsilons)


def norm(x: Tensor, scale: Tensor, eps: float) -> Tensor:
    """Return x over its root mean square, times ``scale``."""
    found = library()
    assert found is not None
    x = x.contiguous()
    output, width = torch.empty_like(x), x.shape[-1]
    found.rhea_norm(
        x.data_ptr(),
        scale.data_ptr(),
        eps,
        output.data_ptr(),
        x.numel() // width,
        width,
        x.dtype == torch.bfloat16,
    )
    return output


def rotary(positions_BT: Tensor, channels: int, theta: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return cosines and signed sines [B, T, 1, K] of int64 positions."""
    found = library()
    assert found is not None
    positions_BT, frequencies = positions_BT.contiguous(), _frequencies(channels, theta)
    shape = (*positions_BT.shape, 1, channels)
    cosines, sines = torch.empty(shape, dtype=dtype), torch.empty(shape, dtype=dtype)
    found.rhea_rotary(
        positions_BT.data_ptr(),
        positions_BT.numel(),
        frequencies.data_ptr(),
        channels,
        cosines.data_ptr(),
        sines.data_ptr(),
        dtype == torch.bfloat16,
    )
    return cosines, sines


def uniform(keys_B: Tensor, token_ids: Tensor) -> Tensor:
    """Return SplitMix64 of int64 keys and token ids, [V] or [B, V], as float32 in (0, 1), [B, V]."""
    found = library()
    assert found is not None
    keys_B, token_ids = keys_B.contiguous(), token_ids.contiguous()
    rows, columns, apart = len(keys_B), token_ids.shape[-1], token_ids.ndim > 1
    output = torch.empty(rows, columns)
    found.rhea_uniform(keys_B.data_ptr(), rows, token_ids.data_ptr(), columns, apart, output.data_ptr())
    return output


@cache
def _frequencies(channels: int, theta: float) -> Tensor:
    """As float32 whatever the model is cast to; made by torch, so that angles are its angles."""
    return 1.0 / theta ** (torch.arange(0, channels, 2, dtype=torch.float32) / channels)

"""Operators of a decoder layer for few rows on a CPU: products with matrices in panels, and attention to a cache.

A layer is some five calls instead of a hundred of torch's, and every row's result is the same, to the last bit, in
whatever batch and on however many threads it is computed. What is rounded where follows torch: norms, gates and
residuals of bfloat16 are rounded as its operators round them.

Shapes: N rows, D inputs, V outputs, K channels of one head.
"""

import ctypes
from collections.abc import Iterable

import torch
from torch import Tensor

from rhea.models.native.library import AttentionStruct, MatrixStruct, library

_DTYPES = (torch.float32, torch.bfloat16)
_LARGEST_HEAD, _MOST_SHARED = 256, 96
"""As in the source: channels of a head, and query heads of one key-value head."""


def available(dtype: torch.dtype) -> bool:
    """Tell whether there are operators for this dtype here."""
    return dtype in _DTYPES and library() is not None


class Panels:
    """A matrix [V, D] laid out for its products; ``gated``: its halves are a gate and what it multiplies."""

    def __init__(self, weights: Iterable[Tensor], *, gated: bool = False) -> None:
        """``weights``: the matrix in pieces of rows, of one dtype; they are copied."""
        found = library()
        assert found is not None
        pieces = [weight.detach().contiguous() for weight in weights]
        self.dtype, self.inputs = pieces[0].dtype, pieces[0].shape[1]
        self.rows = sum(len(piece) for piece in pieces)
        self.outputs = self.rows // 2 if gated else self.rows
        self._library, wide = found, self.dtype == torch.float32
        size = found.rhea_panel_bytes(self.inputs, self.rows, not wide, gated) // self.dtype.itemsize
        self.memory = torch.zeros(size, dtype=self.dtype)
        self._matrix = MatrixStruct(self.memory.data_ptr(), self.inputs, self.rows, not wide, gated)
        self._address = ctypes.addressof(self._matrix)
        at = 0
        for piece in pieces:
            found.rhea_pack(self._address, piece.data_ptr(), at, len(piece), 0)
            at += len(piece)

    def fits(self, x: Tensor) -> bool:
        """Tell whether the product can take these rows."""
        return x.dtype == self.dtype and x.device.type == "cpu" and type(x) in (Tensor, torch.nn.Parameter)

    def product(
        self,
        x: Tensor,
        *,
        scale: Tensor | None = None,
        eps: float = 0.0,
        residual: Tensor | None = None,
        start: int = 0,
        stop: int | None = None,
        wide: bool = False,
    ) -> Tensor:
        """Return x times the transposed outputs [start, stop), [..., V]; a gated matrix gives silu(gate) times the rest.

        ``scale`` and ``eps``: x is first normalised, by its root mean square. ``residual`` is added. ``wide``: in
        float32.
        """
        stop = self.outputs if stop is None else stop
        x = x.contiguous()
        output = torch.empty((*x.shape[:-1], stop - start), dtype=torch.float32 if wide else self.dtype)
        failed = self._library.rhea_product(
            self._address,
            x.data_ptr(),
            None if scale is None else scale.data_ptr(),
            eps,
            None if residual is None else residual.data_ptr(),
            output.data_ptr(),
            x.numel() // self.inputs,
            start,
            stop,
            wide,
            torch.get_num_threads(),
        )
        if failed:
            raise MemoryError("no memory for the rows of a product")
        return output


def can_attend(heads: int, groups: int, channels: int) -> bool:
    """Tell whether the attention serves heads like these."""
    return channels <= _LARGEST_HEAD and heads // groups <= _MOST_SHARED


class PlacedAttention:
    """Rotary attention of one layer's heads to a cache in which each token sees its slot up to its own position."""

    def __init__(self, heads: int, groups: int, channels: int) -> None:
        assert can_attend(heads, groups, channels)
        self._heads, self._groups, self._channels = heads, groups, channels

    def __call__(
        self,
        projected: Tensor,
        rotation: tuple[Tensor, Tensor],
        norms: tuple[Tensor, Tensor, float] | None,
        block: Tensor,
        slots_N: Tensor,
        positions_N: Tensor,
    ) -> Tensor:
        """Keep the tokens' keys and values and return what they attend to, [..., heads times K].

        projected: queries, keys and values side by side. ``rotation``: cosines and signed sines, [N, K]. ``norms``: the
        weights of the queries' and the keys' norm, and epsilon. ``block``: [slots, 2, groups, L, K] of a layer.
        """
        found = library()
        assert found is not None
        width = self._heads * self._channels
        output = torch.empty((*projected.shape[:-1], width), dtype=projected.dtype)
        call = AttentionStruct(
            projected.data_ptr(),
            rotation[0].data_ptr(),
            rotation[1].data_ptr(),
            None if norms is None else norms[0].data_ptr(),
            None if norms is None else norms[1].data_ptr(),
            block.data_ptr(),
            slots_N.data_ptr(),
            positions_N.data_ptr(),
            output.data_ptr(),
            slots_N.numel(),
            self._heads,
            self._groups,
            self._channels,
            block.shape[3],
            0.0 if norms is None else norms[2],
            projected.dtype == torch.bfloat16,
        )
        if found.rhea_attend(ctypes.byref(call), torch.get_num_threads()):
            raise MemoryError("no memory for the queries of an attention")
        return output

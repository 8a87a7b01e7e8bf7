"""Linear layers prepacked for CPU inference: several matrices fused into one, in the layout the processor likes.

A decoding step multiplies every weight by two to sixteen rows, so it should run at the speed of memory. Plain CPU
matrix products stay far below that; oneDNN with a weight reordered once comes near it. Its kernels for one to three
rows are slower than the one for four, so fewer rows are padded to four. The packed copy doubles the memory of the
weights, and is remade by itself when they change. Where packing is unknown (CUDA, other dtypes) nothing changes.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Product = Callable[[Tensor], Tensor]
"""What replaces linear layers in a forward without gradients: packed here, or quantized."""
_FEWEST_ROWS = 4


def can_pack(linear: nn.Linear) -> bool:
    """Tell whether this layer's device and dtype have a packed kernel."""
    weight = linear.weight
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    if weight.dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return weight.dtype == torch.float32


class PackedLinear:
    """The stacked rows [start, stop) of bias-free linear layers with one input, as one packed matrix; no gradients."""

    def __init__(self, linears: Sequence[nn.Linear], start: int = 0, stop: int | None = None) -> None:
        self._linears = tuple(linears)
        self._rows = slice(start, stop)
        self._packed: Tensor | None = None
        self._packed_from: list[tuple[int, int]] = []

    def _stamp(self) -> list[tuple[int, int]]:
        """Return what changes when the weights do."""
        weights = [linear.weight for linear in self._linears]
        return [(weight.data_ptr(), 0 if weight.is_inference() else weight._version) for weight in weights]

    @torch.no_grad()
    def _stacked(self) -> Tensor:
        weights = [linear.weight for linear in self._linears]
        return (weights[0] if len(weights) == 1 else torch.cat(weights))[self._rows].detach()

    def _refresh(self) -> None:
        stamp = self._stamp()
        if stamp != self._packed_from:
            self._packed_from, self._packed = stamp, None
            if can_pack(self._linears[0]):
                self._packed = torch.ops.mkldnn._reorder_linear_weight(self._stacked().contiguous(), None)

    def __call__(self, x: Tensor) -> Tensor:
        """Return x times the transposed matrix, [..., rows]."""
        self._refresh()
        if self._packed is None:
            return F.linear(x, self._stacked())
        rows_ND = x.reshape(-1, x.shape[-1])
        count = rows_ND.shape[0]
        if count < _FEWEST_ROWS:
            rows_ND = F.pad(rows_ND, (0, 0, 0, _FEWEST_ROWS - count))
        output = torch.ops.mkldnn._linear_pointwise(rows_ND, self._packed, None, "none", [], "")
        return output[:count].view(*x.shape[:-1], output.shape[-1])

"""Linear layers prepacked for CPU inference: several matrices fused into one, in the layout the processor likes.

A decoding step multiplies every weight by two to sixteen rows, so it should run at the speed of memory. Plain CPU
matrix products stay far below that; operators of our own (``native``), where they can be compiled, come near it, and
fuse what surrounds a product. Elsewhere oneDNN serves, with a weight reordered once. Its kernels for one to three rows
are slower than the one for four, so fewer rows are padded to four. It compiles a kernel for each number of rows, half a
megabyte and most of a millisecond each, so these numbers are rounded up to a few. The packed copy doubles the memory of
the weights and is remade by itself when they change, unless they are released: then it is the only one, and nothing can
be trained or saved. Where packing is unknown (CUDA, other dtypes) nothing changes.
"""

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rhea.models.native.operators import Panels
from rhea.models.native.trust import available

Product = Callable[[Tensor], Tensor]
"""What replaces linear layers in a forward without gradients: packed here, or quantized."""
_FEWEST_ROWS = 4


def padded_rows(count: int) -> int:
    """Return the number of rows that ``count`` of them are padded to.

    One of four in every octave from four up to 128, beyond that a multiple of 32, which large prefills hardly notice.
    """
    step = 1 << min(max((count - 1).bit_length() - 3, 0), 5)
    return max(-(-count // step) * step, _FEWEST_ROWS)


def can_pack(linear: nn.Linear) -> bool:
    """Tell whether this layer's device and dtype have a packed kernel."""
    weight = linear.weight
    if weight.device.type != "cpu":
        return False
    return available(weight.dtype) or _can_reorder(weight)


def _can_reorder(weight: Tensor) -> bool:
    """Tell whether oneDNN has a kernel for it."""
    if not torch.backends.mkldnn.is_available():
        return False
    if weight.dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return weight.dtype == torch.float32


class PackedLinear:
    """The stacked rows [start, stop) of bias-free linear layers with one input, as one packed matrix; no gradients."""

    def __init__(
        self, linears: Sequence[nn.Linear], start: int = 0, stop: int | None = None, *, gated: bool = False
    ) -> None:
        """``gated``: where operators of our own serve, two linears give silu(first) times second."""
        self._linears = tuple(linears)
        self._rows, self._gated = slice(start, stop), gated
        self._packed: Tensor | Panels | None = None
        self._packed_from: list[tuple[int, int]] = []
        self._released = False

    def _stamp(self) -> list[tuple[int, int]]:
        """Return what changes when the weights do."""
        weights = [linear.weight for linear in self._linears]
        return [(weight.data_ptr(), 0 if weight.is_inference() else weight._version) for weight in weights]

    @torch.no_grad()
    def _stacked(self) -> Tensor:
        weights = [linear.weight for linear in self._linears]
        return (weights[0] if len(weights) == 1 else torch.cat(weights))[self._rows].detach()

    def refresh(self) -> None:
        """Pack the weights, if they are not released and changed since."""
        self._released = self._linears[0].weight.is_meta
        if self._released:
            return
        stamp = self._stamp()
        if stamp != self._packed_from:
            self._packed_from, self._packed = stamp, None
            weight = self._linears[0].weight
            if weight.device.type == "cpu" and available(weight.dtype):
                pieces = [linear.weight for linear in self._linears]
                self._packed = Panels(pieces if len(pieces) > 1 else [pieces[0][self._rows]], gated=self._gated)
            elif can_pack(self._linears[0]):
                self._packed = torch.ops.mkldnn._reorder_linear_weight(self._stacked().contiguous(), None)

    def panels(self, x: Tensor) -> Panels | None:
        """Return the matrix for operators of our own, if they can serve x."""
        if not self._released:
            self.refresh()
        return self._packed if isinstance(self._packed, Panels) and self._packed.fits(x) else None

    def __call__(self, x: Tensor) -> Tensor:
        """Return x times the transposed matrix, [..., rows]."""
        if (panels := self.panels(x)) is not None:
            return panels.product(x)
        if not isinstance(self._packed, Tensor):
            return F.linear(x, self._stacked())
        rows_ND = x.reshape(-1, x.shape[-1])
        count = rows_ND.shape[0]
        if padding := padded_rows(count) - count:
            rows_ND = F.pad(rows_ND, (0, 0, 0, padding))
        output = torch.ops.mkldnn._linear_pointwise.default(rows_ND, self._packed, None, "none", [], "")
        return (output[:count] if padding else output).view(*x.shape[:-1], output.shape[-1])


class PackedHead:
    """The rows of an output head in packed pieces, so that a caller pays for the pieces that it asks for."""

    def __init__(self, head: nn.Linear, boundaries: Iterable[int] = ()) -> None:
        """``boundaries``: the rows where pieces meet."""
        edges = sorted({0, *boundaries, head.out_features})
        self.pieces = {(start, stop): PackedLinear((head,), start, stop) for start, stop in pairwise(edges)}

    def __call__(self, x: Tensor, start: int, stop: int) -> Tensor:
        """Return x times the transposed rows [start, stop), float32."""
        products = [
            _rows_of(product, x, max(start - first, 0), min(stop, last) - first)
            for (first, last), product in self.pieces.items()
            if first < stop and start < last
        ]
        return products[0] if len(products) == 1 else torch.cat(products, dim=-1)


def _rows_of(product: PackedLinear, x: Tensor, start: int, stop: int) -> Tensor:
    if (panels := product.panels(x)) is not None:
        return panels.product(x, start=start, stop=stop, wide=True)
    return product(x)[..., start:stop].float()


def release(linears: Iterable[nn.Linear], products: Iterable[PackedLinear]) -> None:
    """Pack now and let go of the layers' weights; on the meta device they keep their names and shapes."""
    for product in products:
        product.refresh()
    for linear in linears:
        linear.weight = nn.Parameter(torch.empty_like(linear.weight, device="meta"), requires_grad=False)

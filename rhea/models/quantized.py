"""Decoder layers with matrices of eight bits: half the memory of bfloat16, on CPUs a quarter, as no copy is packed.

What it saves on CPUs is memory, not time: prepacked bfloat16 needs less of that at 110 M weights.

int8 is symmetric, one scale per output row, rounded to nearest. On CPUs with integer dot products each row of
activations is written as two int8 digits, sixteen bits in all, so both factors stay as small as they are stored and the
sums are exact: what a row gives depends on no other row of the batch, to the last bit. torch's own product of
int8 weights is a little faster for one row, three times slower from sixteen on, and far slower in float32. Elsewhere
the matrix is widened for its product, one at a time. fp8 is e4m3 by rows, through torchao, on GPUs.

Embeddings, head and norms stay as they are, for guidance multiplies whatever is wrong with the logits.

Shapes: N output rows, D channels, R rows of activations.
"""

from functools import cache
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rhea.errors import InputError
from rhea.models.attention import Attention
from rhea.models.layers import FeedForward
from rhea.models.rounding import LARGEST, to_int8
from rhea.models.transformer import Transformer

WeightFormat = Literal["int8", "fp8"]
_DIGIT = 2 * LARGEST
"""The second digit counts in parts of this many of the first: what rounding leaves is at most half of one."""


class QuantizedLinear(nn.Module):
    """A bias-free linear layer of int8 rows (buffers ``weight`` [N, D] and ``scale`` [N]); for inference only."""

    weight: Tensor
    scale: Tensor

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        assert linear.bias is None
        codes_ND, scale_N1 = to_int8(linear.weight.detach())
        self.register_buffer("weight", codes_ND)
        self.register_buffer("scale", scale_N1[:, 0].contiguous())

    def forward(self, x: Tensor) -> Tensor:
        """Return x times the transposed matrix, [..., N], in x's dtype."""
        if x.requires_grad and torch.is_grad_enabled():
            raise InputError("a model with quantized weights cannot be trained: load it without weights=...")
        return int8_linear(x, self.weight, self.scale)

    def extra_repr(self) -> str:
        return f"in_features={self.weight.shape[1]}, out_features={self.weight.shape[0]}, int8"


class FusedQuantized:
    """Quantized layers with one input as one product; they become views of the fused matrix, so it takes no memory.

    A move or cast of the model parts them; the next call fuses them anew.
    """

    def __init__(self, *linears: QuantizedLinear) -> None:
        self._linears = linears
        self._fuse()

    def __call__(self, x: Tensor) -> Tensor:
        """Return all their outputs side by side."""
        if self._addresses() != self._views:
            self._fuse()
        return int8_linear(x, self._weight, self._scale)

    def _addresses(self) -> list[int]:
        return [tensor.data_ptr() for linear in self._linears for tensor in (linear.weight, linear.scale)]

    def _fuse(self) -> None:
        with torch.inference_mode(False):
            self._weight = torch.cat([linear.weight for linear in self._linears])
            self._scale = torch.cat([linear.scale for linear in self._linears])
            rows = [len(linear.scale) for linear in self._linears]
            for linear, weight, scale in zip(
                self._linears, self._weight.split(rows), self._scale.split(rows), strict=True
            ):
                linear.weight, linear.scale = weight, scale
        self._views = self._addresses()


def int8_linear(x: Tensor, weight_ND: Tensor, scale_N: Tensor) -> Tensor:
    """Return x times the transposed int8 matrix, each output row times its scale, [..., N] in x's dtype."""
    if x.device.type == "cpu" and _has_integer_products():
        return _by_digits(x, weight_ND, scale_N)
    if x.dtype == torch.float16:  # sums of unscaled codes would overflow it
        return F.linear(x, weight_ND.to(x.dtype) * scale_N[:, None].to(x.dtype))
    return F.linear(x, weight_ND.to(x.dtype)) * scale_N.to(x.dtype)


def _by_digits(x: Tensor, weight_ND: Tensor, scale_N: Tensor) -> Tensor:
    rows_RD = x.reshape(-1, x.shape[-1]).float()
    step_R1 = (rows_RD.abs().amax(-1, keepdim=True) / LARGEST).clamp_min_(torch.finfo(torch.float32).tiny)
    rows_RD = rows_RD / step_R1
    high_RD = rows_RD.round()
    low_RD = rows_RD.sub_(high_RD).mul_(_DIGIT).round_()
    digits = torch.cat((high_RD, low_RD)).to(torch.int8)
    high_RN, low_RN = torch._int_mm(digits, weight_ND.T).float().chunk(2)
    output_RN = high_RN.add_(low_RN, alpha=1 / _DIGIT).mul_(step_R1).mul_(scale_N)
    return output_RN.to(x.dtype).view(*x.shape[:-1], -1)


@cache
def _has_integer_products() -> bool:
    """Tell whether this CPU multiplies int8 at full width (without VNNI the sums could saturate)."""
    return torch.backends.mkldnn.is_available() and torch.cpu._is_vnni_supported()


def quantize(model: Transformer, weights: WeightFormat) -> Transformer:
    """Store the matrices of the decoder layers in eight bits, in place; return the model, no longer trainable.

    ``weights``: "int8" on any device, "fp8" on a GPU of compute capability 8.9 or more in bfloat16, with torchao.
    """
    if weights not in ("int8", "fp8"):
        raise InputError(f"weights {weights!r} is not one of int8, fp8")
    if weights == "fp8":
        _quantize_fp8(model)
    for module in model.modules():
        if isinstance(module, Attention | FeedForward):
            module.packed = None
            if weights == "int8":
                _quantize_int8(module)
    return model.requires_grad_(False)


def _quantize_int8(block: Attention | FeedForward) -> None:
    made = {name: QuantizedLinear(child) for name, child in block.named_children() if isinstance(child, nn.Linear)}
    for name, linear in made.items():
        setattr(block, name, linear)
    *together, last = made.values()
    if last.weight.device.type == "cpu" and together:
        block.packed = FusedQuantized(*together), last


def _quantize_fp8(model: Transformer) -> None:
    parameter = next(model.parameters())
    _check_gpu(parameter.device)
    if parameter.dtype != torch.bfloat16:
        raise InputError(f"fp8 weights need a model in bfloat16, not {str(parameter.dtype).removeprefix('torch.')}")
    try:
        from torchao.quantization import Float8DynamicActivationFloat8WeightConfig, PerRow, quantize_
    except ImportError:
        raise InputError("fp8 weights need torchao: pip install torchao") from None
    matrices = {child for layer in model.layers for child in layer.modules() if isinstance(child, nn.Linear)}

    def chosen(module: nn.Module, *_: Any) -> bool:
        return module in matrices

    quantize_(model, Float8DynamicActivationFloat8WeightConfig(granularity=PerRow()), filter_fn=chosen)


def _check_gpu(device: torch.device) -> None:
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 9):
        raise InputError("fp8 weights need a GPU of compute capability 8.9 or more (Ada, Hopper); int8 runs anywhere")

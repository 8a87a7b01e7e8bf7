"""The two networks that pictures are compared by, for weights that the user brings: Inception for FID, LPIPS.

Both are published as pickles, which Rhea never opens: ``CONVERT`` is how a person turns one into safetensors. Layers
have their published names, so a converted file fits as it is.

Inception v3 is the one of the original FID (Heusel et al., 2017) in the port of pytorch-fid and torch-fidelity: average
pools leave out the padding, the last block pools by maximum, and pictures are resized as TensorFlow 1 did. LPIPS (Zhang
et al., 2018) weighs differences of AlexNet's or VGG-16's activations, each of unit length.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from rhea.errors import InputError

CONVERT = (
    'python -c "import sys, torch; from safetensors.torch import save_file; files = [torch.load(f, weights_only=True) '
    'for f in sys.argv[2:]]; save_file({k: v.contiguous() for f in files for k, v in f.items()}, sys.argv[1])"'
)
"""A command: the new file's name, then the published files."""
_INCEPTION_FILE = (
    "download pt_inception-2015-12-05-6726825d.pth from the releases of github.com/mseitzer/pytorch-fid, and convert it"
)
_LPIPS_FILES = (
    "download alexnet-owt-7be5be79.pth or vgg16-397923af.pth from download.pytorch.org/models, and convert it together "
    "with alex.pth or vgg.pth from github.com/richzhang/PerceptualSimilarity (lpips/weights/v0.1)"
)
_SIDE = 299


class _Conv(nn.Module):
    def __init__(
        self, inner: int, outer: int, kernel: int | tuple[int, int], stride: int = 1, padding: Any = 0
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inner, outer, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(outer, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


class _Mixed(nn.Module):
    """Branches side by side; a branch is layers one after the other, a tuple in it two layers side by side."""

    def __init__(self, layers: dict[str, _Conv], branches: list[list[str | tuple[str, str]]]) -> None:
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)
        self._branches = branches

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self._branch(x, branch) for branch in self._branches], dim=1)

    def _branch(self, x: Tensor, branch: list[str | tuple[str, str]]) -> Tensor:
        for step in branch:
            if isinstance(step, tuple):
                x = torch.cat([self.get_submodule(name)(x) for name in step], dim=1)
            elif step == "average":
                x = F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)
            elif step == "maximum":
                x = F.max_pool2d(x, 3, stride=1, padding=1)
            elif step == "halve":
                x = F.max_pool2d(x, 3, stride=2)
            else:
                x = self.get_submodule(step)(x)
        return x


_WIDE: dict[str, Any] = {"kernel": (1, 7), "padding": (0, 3)}
_HIGH: dict[str, Any] = {"kernel": (7, 1), "padding": (3, 0)}


def _block_a(inner: int, pooled: int) -> _Mixed:
    layers = {
        "branch1x1": _Conv(inner, 64, 1),
        "branch5x5_1": _Conv(inner, 48, 1),
        "branch5x5_2": _Conv(48, 64, 5, padding=2),
        "branch3x3dbl_1": _Conv(inner, 64, 1),
        "branch3x3dbl_2": _Conv(64, 96, 3, padding=1),
        "branch3x3dbl_3": _Conv(96, 96, 3, padding=1),
        "branch_pool": _Conv(inner, pooled, 1),
    }
    doubled: list[str | tuple[str, str]] = ["branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3"]
    return _Mixed(layers, [["branch1x1"], ["branch5x5_1", "branch5x5_2"], doubled, ["average", "branch_pool"]])


def _block_b(inner: int) -> _Mixed:
    layers = {
        "branch3x3": _Conv(inner, 384, 3, stride=2),
        "branch3x3dbl_1": _Conv(inner, 64, 1),
        "branch3x3dbl_2": _Conv(64, 96, 3, padding=1),
        "branch3x3dbl_3": _Conv(96, 96, 3, stride=2),
    }
    return _Mixed(layers, [["branch3x3"], ["branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3"], ["halve"]])


def _block_c(inner: int, width: int) -> _Mixed:
    layers = {
        "branch1x1": _Conv(inner, 192, 1),
        "branch7x7_1": _Conv(inner, width, 1),
        "branch7x7_2": _Conv(width, width, **_WIDE),
        "branch7x7_3": _Conv(width, 192, **_HIGH),
        "branch7x7dbl_1": _Conv(inner, width, 1),
        "branch7x7dbl_2": _Conv(width, width, **_HIGH),
        "branch7x7dbl_3": _Conv(width, width, **_WIDE),
        "branch7x7dbl_4": _Conv(width, width, **_HIGH),
        "branch7x7dbl_5": _Conv(width, 192, **_WIDE),
        "branch_pool": _Conv(inner, 192, 1),
    }
    single: list[str | tuple[str, str]] = [f"branch7x7_{number}" for number in range(1, 4)]
    doubled: list[str | tuple[str, str]] = [f"branch7x7dbl_{number}" for number in range(1, 6)]
    return _Mixed(layers, [["branch1x1"], single, doubled, ["average", "branch_pool"]])


def _block_d(inner: int) -> _Mixed:
    layers = {
        "branch3x3_1": _Conv(inner, 192, 1),
        "branch3x3_2": _Conv(192, 320, 3, stride=2),
        "branch7x7x3_1": _Conv(inner, 192, 1),
        "branch7x7x3_2": _Conv(192, 192, **_WIDE),
        "branch7x7x3_3": _Conv(192, 192, **_HIGH),
        "branch7x7x3_4": _Conv(192, 192, 3, stride=2),
    }
    long: list[str | tuple[str, str]] = [f"branch7x7x3_{number}" for number in range(1, 5)]
    return _Mixed(layers, [["branch3x3_1", "branch3x3_2"], long, ["halve"]])


def _block_e(inner: int, pool: str) -> _Mixed:
    wide, high = {"kernel": (1, 3), "padding": (0, 1)}, {"kernel": (3, 1), "padding": (1, 0)}
    layers = {
        "branch1x1": _Conv(inner, 320, 1),
        "branch3x3_1": _Conv(inner, 384, 1),
        "branch3x3_2a": _Conv(384, 384, **wide),  # type: ignore[arg-type]
        "branch3x3_2b": _Conv(384, 384, **high),  # type: ignore[arg-type]
        "branch3x3dbl_1": _Conv(inner, 448, 1),
        "branch3x3dbl_2": _Conv(448, 384, 3, padding=1),
        "branch3x3dbl_3a": _Conv(384, 384, **wide),  # type: ignore[arg-type]
        "branch3x3dbl_3b": _Conv(384, 384, **high),  # type: ignore[arg-type]
        "branch_pool": _Conv(inner, 192, 1),
    }
    single: list[str | tuple[str, str]] = ["branch3x3_1", ("branch3x3_2a", "branch3x3_2b")]
    doubled: list[str | tuple[str, str]] = ["branch3x3dbl_1", "branch3x3dbl_2", ("branch3x3dbl_3a", "branch3x3dbl_3b")]
    return _Mixed(layers, [["branch1x1"], single, doubled, [pool, "branch_pool"]])


class Inception(nn.Module):
    """Pictures uint8 [N, 3, H, W] of any size to features float32 [N, 2048]."""

    num_features = 2048

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = _Conv(3, 32, 3, stride=2)
        self.Conv2d_2a_3x3 = _Conv(32, 32, 3)
        self.Conv2d_2b_3x3 = _Conv(32, 64, 3, padding=1)
        self.Conv2d_3b_1x1 = _Conv(64, 80, 1)
        self.Conv2d_4a_3x3 = _Conv(80, 192, 3)
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = _block_a(192, 32), _block_a(256, 64), _block_a(288, 64)
        self.Mixed_6a = _block_b(288)
        self.Mixed_6b, self.Mixed_6c = _block_c(768, 128), _block_c(768, 160)
        self.Mixed_6d, self.Mixed_6e = _block_c(768, 160), _block_c(768, 192)
        self.Mixed_7a = _block_d(768)
        self.Mixed_7b, self.Mixed_7c = _block_e(1280, "average"), _block_e(2048, "maximum")

    @torch.no_grad()
    def forward(self, x_N3HW: Tensor) -> Tensor:
        x = (resize_as_tensorflow(x_N3HW.float(), _SIDE) - 128) / 128
        for name, layer in self.named_children():
            if name in ("Conv2d_3b_1x1", "Mixed_5b"):
                x = F.max_pool2d(x, 3, stride=2)
            x = layer(x)
        return x.mean((2, 3))


def resize_as_tensorflow(x_NCHW: Tensor, side: int) -> Tensor:
    """Return pictures [N, C, side, side], bilinear as TensorFlow 1: corners fall on corners, nothing is smoothed."""
    for dim in (2, 3):
        length = x_NCHW.shape[dim]
        place = torch.arange(side, device=x_NCHW.device) * (length / side)
        low = place.floor().long()
        weight = (place - low).to(x_NCHW.dtype).view([-1 if each == dim else 1 for each in range(4)])
        first, second = x_NCHW.index_select(dim, low), x_NCHW.index_select(dim, (low + 1).clamp(max=length - 1))
        x_NCHW = first + weight * (second - first)
    return x_NCHW


class Lpips(nn.Module):
    """The distance of two pictures, float [N, 3, H, W] in [-1, 1] each: [N]."""

    def __init__(self, backbone: str) -> None:
        super().__init__()
        self.backbone = backbone
        self.features = _alex() if backbone == "alex" else _vgg()
        self._taps = {"alex": (1, 4, 7, 9, 11), "vgg": (3, 8, 15, 22, 29)}[backbone]
        for number, width in enumerate({"alex": (64, 192, 384, 256, 256), "vgg": (64, 128, 256, 512, 512)}[backbone]):
            self.add_module(
                f"lin{number}", nn.ModuleDict({"model": nn.ModuleDict({"1": nn.Conv2d(width, 1, 1, bias=False)})})
            )
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188]).view(3, 1, 1), persistent=False)
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450]).view(3, 1, 1), persistent=False)

    @torch.no_grad()
    def forward(self, first_N3HW: Tensor, second_N3HW: Tensor) -> Tensor:
        total = torch.zeros(len(first_N3HW), device=first_N3HW.device)
        for number, (one, other) in enumerate(zip(self._seen(first_N3HW), self._seen(second_N3HW), strict=True)):
            weights = self.get_parameter(f"lin{number}.model.1.weight")
            total += F.conv2d((one - other).square(), weights).mean((1, 2, 3))
        return total

    def _seen(self, x: Tensor) -> Iterable[Tensor]:
        x = (x - self.get_buffer("shift")) / self.get_buffer("scale")
        for index, layer in enumerate(self.features):
            x = layer(x)
            if index in self._taps:
                yield x / (x.square().sum(1, keepdim=True) + 1e-8).sqrt()


def _alex() -> nn.Sequential:
    """Return AlexNet's convolutions, numbered as published."""
    shapes = [(3, 64, 11, 4, 2), (64, 192, 5, 1, 2), (192, 384, 3, 1, 1), (384, 256, 3, 1, 1), (256, 256, 3, 1, 1)]
    layers: list[nn.Module] = []
    for number, shape in enumerate(shapes):
        layers += [nn.MaxPool2d(3, 2)] if number in (1, 2) else []
        layers += [nn.Conv2d(*shape), nn.ReLU()]
    return nn.Sequential(*layers)


def _vgg() -> nn.Sequential:
    """Return VGG-16's convolutions, numbered as published."""
    layers: list[nn.Module] = []
    inner = 3
    for number, (width, repeats) in enumerate(((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))):
        layers += [nn.MaxPool2d(2, 2)] if number else []
        for _ in range(repeats):
            layers += [nn.Conv2d(inner, width, 3, padding=1), nn.ReLU()]
            inner = width
    return nn.Sequential(*layers)


def load_inception(path: Path, device: torch.device | str = "cpu") -> Inception:
    """Return the network with weights from a safetensors file; InputError says how to get one."""
    network = Inception()
    _fill(network, _read(path, _INCEPTION_FILE), path, _INCEPTION_FILE)
    return network.to(device).eval()


def load_lpips(path: Path, device: torch.device | str = "cpu") -> Lpips:
    """Return LPIPS on AlexNet or VGG-16, whichever the file holds; InputError says how to get one."""
    state = _read(path, _LPIPS_FILES)
    network = Lpips("vgg" if "features.28.weight" in state else "alex")
    _fill(network, state, path, _LPIPS_FILES)
    return network.to(device).eval()


def _read(path: Path, advice: str) -> dict[str, Tensor]:
    if not path.is_file():
        raise InputError(f"no such file: {path}; {advice}: {CONVERT}")
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is no safetensors file ({error}); {advice}: {CONVERT}") from None


def _fill(network: nn.Module, state: dict[str, Tensor], path: Path, advice: str) -> None:
    """Load what the network has; a file may hold more (a classifier's head)."""
    own = {name: tensor for name, tensor in network.state_dict().items() if not name.endswith("num_batches_tracked")}
    wrong = [name for name, tensor in own.items() if name not in state or state[name].shape != tensor.shape]
    if wrong:
        raise InputError(
            f"{path} does not hold {wrong[0]} and {len(wrong) - 1} others as expected; {advice}: {CONVERT}"
        )
    network.load_state_dict({name: state[name] for name in own}, strict=False)

"""Scores of drawn pictures by networks that the user brings: CLIP score, FID, LPIPS, through torchmetrics.

CLIP score (Hessel et al., 2021) is 100 times the cosine of a picture's and its prompt's embeddings, at least 0. FID
(Heusel et al., 2017) compares two sets of pictures by mean and covariance of Inception's features; with fewer than some
thousands it says little.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rhea.errors import InputError
from rhea.evaluation.networks import load_inception, load_lpips
from rhea.evaluation.report import Figure, Report
from rhea.evaluation.runner import machine
from rhea.evaluation.suites import SUITES, read_order
from rhea.io import read_json
from rhea.media import read_picture

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".avif")


def pictures_in(folder: Path) -> list[Path]:
    """Return all pictures of a folder and the folders in it, in order."""
    found = sorted(each for each in folder.rglob("*") if each.suffix.lower() in PICTURES)
    if not found:
        raise InputError(f"{folder} holds no pictures ({' '.join(PICTURES)})")
    return found


def fid(real: Path, drawn: Path, weights: Path, device: torch.device | str = "cpu") -> float:
    """Return the Fréchet inception distance of two folders of pictures, of any sizes; at least two in each."""
    try:
        from torchmetrics.image.fid import FrechetInceptionDistance
    except ImportError as error:
        raise _missing(error) from None
    sides = {True: pictures_in(real), False: pictures_in(drawn)}
    if min(len(side) for side in sides.values()) < 2:
        raise InputError(f"FID compares two sets: {real} and {drawn} need at least two pictures each")
    metric = FrechetInceptionDistance(feature=load_inception(weights, device)).to(device)
    for is_real, files in sides.items():
        for file in files:
            metric.update(_tensor(read_picture(file))[None].to(device), real=is_real)
    return metric.compute().item()


def clip_score(
    files: Sequence[Path], prompts: Sequence[str], checkpoint: str, device: torch.device | str = "cpu"
) -> list[float]:
    """Return the CLIP score of each picture and its prompt; ``checkpoint`` is a folder or hub id (safetensors)."""
    try:
        from torchmetrics.functional.multimodal import clip_score as score
    except ImportError as error:
        raise _missing(error) from None
    loaded = _load_clip(checkpoint)
    pairs = zip(files, prompts, strict=True)
    found = [score(_tensor(read_picture(file)).to(device), prompt, loaded) for file, prompt in pairs]
    return [each.item() for each in found]


def lpips(weights: Path, device: torch.device | str = "cpu") -> tuple[str, Callable[[np.ndarray, np.ndarray], float]]:
    """Return the name and the function of LPIPS of two pictures uint8 [H, W, 3]; NaN for sides under 32 pixels."""
    network = load_lpips(weights, device)

    def distance(first: np.ndarray, second: np.ndarray) -> float:
        if min(first.shape[:2]) < 32:
            return float("nan")  # nothing would be left of it after the pools
        one, other = (_tensor(each)[None].to(device) / 127.5 - 1 for each in (first, second))
        return network(one, other).item()

    return f"LPIPS ({network.backbone})", distance


def score_folder(
    folder: Path,
    *,
    reference: Path | None = None,
    fid_weights: Path | None = None,
    clip: str | None = None,
    suite: str | None = None,
    prompts: Path | None = None,
    device: torch.device | str = "cpu",
) -> Report:
    """Score what was drawn: FID with ``reference`` and ``fid_weights``, CLIP score with ``clip``, suite and prompts.

    The checkpoint is the one that ``draw_suite`` wrote down beside the folder, if it drew it.
    """
    if (reference is None) != (fid_weights is None) or (reference is None and clip is None):
        raise InputError("say what to measure: --reference and --fid-weights for FID, --clip for the CLIP score")
    start, figures = time.perf_counter(), []
    if reference is not None and fid_weights is not None:
        value = fid(reference, folder, fid_weights, device)
        figures.append(Figure(group="pictures", name="FID", value=value, count=len(pictures_in(folder)), unit=""))
    if clip is not None:
        if suite is None or prompts is None:
            raise InputError("the CLIP score needs prompts: give --suite and --prompts, as they were drawn")
        files, texts = _drawn(folder, suite, prompts)
        value = float(np.mean(clip_score(files, texts, clip, device)))
        figures.append(Figure(group="pictures", name="CLIP score", value=value, count=len(files), unit=""))
    manifest = folder.with_name(folder.name + ".json")
    told = read_json(manifest) if manifest.is_file() else {}
    settings = {"folder": folder, "reference": reference, "clip": clip, "suite": suite, "prompts": prompts}
    return Report(
        benchmark="pictures",
        settings={name: None if value is None else str(value) for name, value in settings.items()},
        checkpoint_hash=str(told.get("checkpoint", "")),
        trained_on="",
        figures=tuple(figures),
        seconds=time.perf_counter() - start,
        machine=machine(),
    )


def _drawn(folder: Path, suite: str, prompts: Path) -> tuple[list[Path], list[str]]:
    """Return the pictures of a suite that are in a folder, and their prompts."""
    if suite in SUITES and (SUITES[suite].films or SUITES[suite].sheets):
        raise InputError(f"the CLIP score is of single pictures, and {suite} has none")
    samples = read_json(folder.with_name(folder.name + ".json")).get("samples")
    found = [each for each in read_order(suite, prompts, samples).wanted if (folder / each.path).is_file()]
    if not found:
        raise InputError(f"{folder} holds none of the pictures that {prompts} asks for")
    return [folder / each.path for each in found], [each.prompt for each in found]


def _load_clip(checkpoint: str) -> Callable[[], tuple[Any, Any]]:
    """Return what torchmetrics calls for a model and a processor."""
    try:
        from transformers import CLIPModel, CLIPProcessor

        model = CLIPModel.from_pretrained(checkpoint, use_safetensors=True).eval()
        processor = CLIPProcessor.from_pretrained(checkpoint)
    except ImportError as error:
        raise _missing(error) from None
    except (OSError, ValueError) as error:
        reason = (str(error).splitlines() or [""])[0]
        raise InputError(
            f"no CLIP in {checkpoint}: download model.safetensors and the JSON files of "
            f"openai/clip-vit-base-patch16 from the Hugging Face hub into a folder ({reason})"
        ) from None
    return lambda: (_Embedder(model), processor)


class _Embedder:
    """A CLIP whose features are tensors, as torchmetrics expects them (transformers 5 wraps them)."""

    def __init__(self, model: Any) -> None:
        self._model, self.config = model, model.config

    def to(self, device: Any) -> "_Embedder":
        self._model.to(device)
        return self

    def get_image_features(self, *inputs: torch.Tensor) -> torch.Tensor:
        return _bare(self._model.get_image_features(*inputs))

    def get_text_features(self, *inputs: torch.Tensor) -> torch.Tensor:
        return _bare(self._model.get_text_features(*inputs))


def _bare(features: Any) -> torch.Tensor:
    return (features if isinstance(features, torch.Tensor) else features.pooler_output).detach()


def _tensor(pixels: np.ndarray) -> torch.Tensor:
    """Return pixels [H, W, 3] as [3, H, W]."""
    return torch.tensor(pixels).movedim(-1, 0).contiguous()


def _missing(error: ImportError) -> InputError:
    return InputError(f"{error.name} is missing: pip install -e '.[metrics]'")

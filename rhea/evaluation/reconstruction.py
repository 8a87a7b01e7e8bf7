"""What a vision tokenizer keeps of a folder of pictures and films: PSNR, SSIM, LPIPS, and how its codebook is used.

Both sides are pictures at the tokenizer's own size: what its policy makes of the file, and what comes back from the
codes. PSNR and SSIM (Wang et al., 2004: a Gaussian window of 11, of 8-bit RGB) are means over pictures, or over the
frames of films and then over films. Files that cannot be read are left out, counted and named in the records.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rhea import media
from rhea.errors import InputError
from rhea.evaluation.page import Film, Page, Picture
from rhea.evaluation.report import Figure, files_hash
from rhea.evaluation.task import Record
from rhea.generation.model import Rhea
from rhea.generation.results import read_visual
from rhea.logging import logger
from rhea.media import write_picture

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".avif")
FILMS = (".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi", ".gif")
MAX_PSNR = 100.0
"""What two equal pictures get; the true value would be infinite."""
_SHOWN = 4
"""Pairs of each kind on the page."""
_SMALLEST_WINDOW = 11

Distance = Callable[[np.ndarray, np.ndarray], float]
"""How far two pictures, uint8 [H, W, 3] each, are from each other."""


@dataclass(frozen=True, kw_only=True)
class ReconstructionConfig:
    folder: Path
    """Searched with all folders in it."""
    max_frames: int | None = None
    """Of a film; by default all."""
    keep: Path | None = None
    """A folder for the pictures that come back, and beside them what they are compared with."""


class ReconstructionTask:
    """Every picture and film of a folder, through the tokenizer and back."""

    name, batch = "reconstruction", 16

    def __init__(
        self,
        model: Rhea,
        config: ReconstructionConfig,
        *,
        distances: dict[str, Distance] | None = None,
        fid: Callable[[Path, Path], float] | None = None,
    ) -> None:
        """``distances``: further measures by name, e.g. {"LPIPS": ...}. ``fid``: of two folders, for what is kept."""
        if fid is not None and config.keep is None:
            raise InputError("FID is of folders: name one for the pictures with --keep")
        if not config.folder.is_dir():
            raise InputError(f"{config.folder} is not a folder of pictures or films")
        self.files = sorted(each for each in config.folder.rglob("*") if each.suffix.lower() in (*PICTURES, *FILMS))
        if not self.files:
            raise InputError(
                f"{config.folder} holds no pictures ({' '.join(PICTURES)}) and no films ({' '.join(FILMS)})"
            )
        self.codec, self._model, self._config, self._fid = model.prompts.codec, model, config, fid
        self._measures: dict[str, Distance] = {"PSNR": psnr, "SSIM": ssim(), **(distances or {})}

    @property
    def settings(self) -> dict[str, Any]:
        """Return what was measured on which files, known by their names and sizes."""
        return {
            "files": files_hash(self.files, self._config.folder),
            "max_frames": self._config.max_frames,
            "measures": list(self._measures),
            "kept": self._config.keep is not None,
            "fid": self._fid is not None,
        }

    def __len__(self) -> int:
        return len(self.files)

    def title(self, file: Path) -> str:
        """Return a file's name inside the folder."""
        return file.relative_to(self._config.folder).as_posix()

    def grade(self, indices: Sequence[int]) -> list[Record]:
        """Measure these files; pictures of one size go through the tokenizer together."""
        records: dict[int, Record] = {}
        pictures: dict[int, np.ndarray] = {}
        for index in indices:
            try:
                source = self._read(self.files[index])
            except InputError as error:
                logger.warning("%s", error)
                records[index] = {"file": self.title(self.files[index]), "refused": str(error)}
                continue
            if source.ndim == 3:
                pictures[index] = source
            else:
                codes = self.codec.encode_film(source)
                records[index] = self._record(index, codes, source, self.codec.decode_film(codes, len(source)))
        grids = self.codec.encode_pictures(list(pictures.values()))
        back = self.codec.decode_pictures(grids)
        for (index, source), codes, result in zip(pictures.items(), grids, back, strict=True):
            records[index] = self._record(index, codes, source, result)
        return [records[index] for index in indices]

    def pair(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Return a file as the tokenizer sees it, and what comes back: [H, W, 3] or [T, H, W, 3] each."""
        source = self._read(self.files[index])
        if source.ndim == 3:
            return self._seen(source), self.codec.decode_picture(self.codec.encode_picture(source))
        return self._seen(source), self.codec.decode_film(self.codec.encode_film(source), len(source))

    def figures(self, records: Sequence[Record]) -> list[Figure]:
        """Return the measures of pictures and of films, and how the codebook is used by all."""
        figures = []
        for group in ("pictures", "films"):
            found = [each for each in records if each.get("kind") == group]
            for name in self._measures:
                values = [each[name] for each in found if each[name] is not None]
                if values:
                    unit = "dB" if name == "PSNR" else ""
                    figures.append(
                        Figure(group=group, name=name, value=float(np.mean(values)), count=len(values), unit=unit)
                    )
        if self._fid is not None and self._config.keep is not None:
            value = self._fid(self._config.keep / "before", self._config.keep / "after")
            count = sum(each.get("kind") == "pictures" for each in records)
            figures.append(Figure(group="pictures", name="rFID", value=value, count=count, unit=""))
        counts: Counter[str] = Counter()
        for each in records:
            counts.update(each.get("codes", {}))
        read = sum("refused" not in each for each in records)
        if counts:
            share = np.array(list(counts.values())) / counts.total()
            use, perplexity = (
                len(counts) / self.codec.model.config.codebook_size,
                np.exp(-(share * np.log(share)).sum()),
            )
            figures += [
                Figure(group="codebook", name="use", value=use, count=read),
                Figure(group="codebook", name="perplexity", value=float(perplexity), count=read, unit=""),
            ]
        refused = len(records) - read
        return [*figures, Figure(group="files", name="left out", value=refused, count=len(records), unit="")]

    def _read(self, file: Path) -> np.ndarray:
        """Return a file's pixels, uint8 [H, W, 3] or [T, H, W, 3]."""
        longest, source = self._config.max_frames, None
        if longest is not None and media.is_film(file):
            source = media.read_film(file, max_frames=longest)
        visual = read_visual(source or file, self._model.defaults.fps, self.codec.policy)
        return visual.frames if isinstance(visual, media.Film) else visual

    def _seen(self, pixels: np.ndarray) -> np.ndarray:
        """Return pixels at the size that the tokenizer gives them, once: resizing twice may give another one."""
        policy = self.codec.policy
        return policy.resize(pixels) if pixels.ndim == 3 else policy.resize_film(pixels)

    def _record(self, index: int, codes: np.ndarray, source: np.ndarray, back: np.ndarray) -> Record:
        title, film, source = self.title(self.files[index]), source.ndim == 4, self._seen(source)
        pairs = list(zip(source, back, strict=True)) if film else [(source, back)]
        used, counts = np.unique(codes, return_counts=True)
        if self._config.keep is not None and not film:
            for side, pixels in (("before", source), ("after", back)):
                write_picture(self._config.keep / side / f"{title}.png", pixels)
        return {
            "file": title,
            "kind": "films" if film else "pictures",
            "size": list(source.shape[:-1]),
            **{name: _mean([measure(*pair) for pair in pairs]) for name, measure in self._measures.items()},
            "codes": {str(code): int(count) for code, count in zip(used, counts, strict=True)},
        }


def psnr(first: np.ndarray, second: np.ndarray) -> float:
    """Return the peak signal-to-noise ratio of two pictures uint8 [H, W, 3], in dB."""
    error = np.square(first.astype(np.float64) - second).mean()
    return MAX_PSNR if error == 0 else min(MAX_PSNR, 10 * float(np.log10(255**2 / error)))


def ssim() -> Distance:
    """Return the structural similarity of two pictures uint8 [H, W, 3] as a function; NaN for sides under 11 pixels."""
    try:
        from torchmetrics.functional.image import structural_similarity_index_measure
    except ImportError as error:
        raise InputError(f"{error.name} is missing, which measures SSIM: pip install -e '.[metrics]'") from None

    def similarity(first: np.ndarray, second: np.ndarray) -> float:
        if min(first.shape[:2]) < _SMALLEST_WINDOW:
            return float("nan")
        one, other = (torch.tensor(each).movedim(-1, 0)[None].double() / 255 for each in (first, second))
        value = structural_similarity_index_measure(one, other, data_range=1.0)
        assert isinstance(value, torch.Tensor)
        return value.item()

    return similarity


def _mean(values: list[float]) -> float | None:
    mean = float(np.mean(values))
    return None if np.isnan(mean) else mean


def pairs_page(task: ReconstructionTask, records: Sequence[Record], model: Rhea) -> Page:
    """Show the best, the typical and the worst pairs by PSNR, each beside what it is compared with."""
    page = Page(
        title="Reconstruction",
        trained_on=model.trained_on,
        about="Pictures as the vision tokenizer sees them, and what comes back from codes; of films the middle frame.",
    )
    graded = sorted(
        (index for index, each in enumerate(records) if "PSNR" in each), key=lambda index: -records[index]["PSNR"]
    )
    middle = max(0, (len(graded) - _SHOWN) // 2)
    for title, chosen in (
        ("Best", graded[:_SHOWN]),
        ("Typical", graded[middle : middle + _SHOWN]),
        ("Worst", graded[::-1][:_SHOWN]),
    ):
        shown: list[Picture | Film] = []
        for index in chosen:
            before, after = (each if each.ndim == 3 else each[len(each) // 2] for each in task.pair(index))
            record = records[index]
            measured = ", ".join(f"{name} {record[name]:.2f}" for name in task.settings["measures"] if record[name])
            shown += [
                Picture(pixels=before, caption=record["file"]),
                Picture(pixels=after, caption="", answer=measured),
            ]
        page.add(title, f"rhea reconstruct {records[chosen[0]]['file']}" if chosen else "", shown)
    return page

"""What one model draws as documents for another: captions of the shapes world with right pictures that it chose.

Of all pictures that a caption allows a trained model draws few, those that it finds easy; as documents they are sooner
learned than scenes at random (sequence-level distillation, arXiv 1606.07947). Wrong ones are left out, and right ones
are rendered anew from what the grader reads in them, so that the tokenizers of the two may differ.
"""

import io
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from rhea.config import to_dict
from rhea.documents.shards import record_shards
from rhea.generation.model import Rhea
from rhea.worlds.shapes.grader import read_picture
from rhea.worlds.shapes.language import Caption, Style, caption
from rhea.worlds.shapes.render import render
from rhea.worlds.shapes.scene import CANVAS, Scene, sample_scene

_DRAWINGS = 20261201
"""First word of the seeds, so that no other draw has them."""


@dataclass(frozen=True, kw_only=True)
class DrawingsConfig:
    tries: int = 10_000
    """Captions, each drawn once."""
    seed: int = 0
    objects: tuple[int, ...] = (1, 2, 2, 3, 3, 3, 3, 4)
    """How many objects a captioned scene has, drawn uniformly."""
    captions: tuple[Style, ...] = ("placed", "placed", "plain", "sizeless", "ordered", "ordered")
    """Styles of the captions, drawn uniformly from those that the scene allows."""
    english: float = 0.6
    temperature: float = 0.8
    guidance_scale: float = 1.0
    tries_per_shard: int = 1024


def record_drawings(
    model: Rhea, config: DrawingsConfig, folder: str | Path, progress: Callable[[int], None] | None = None
) -> list[Path]:
    """Draw into a folder of shards and return their paths; shards that are there already are kept.

    ``progress`` is told how many captions were tried. InputError for a folder with drawings of other settings.
    """
    return record_shards(
        folder,
        "drawings",
        to_dict(config),
        config.tries,
        config.tries_per_shard,
        lambda numbers: _samples(model, config, numbers),
        progress,
    )


def _samples(model: Rhea, config: DrawingsConfig, numbers: Sequence[int]) -> Iterator[tuple[str, dict[str, bytes]]]:
    told = [_caption(config, number) for number in numbers]
    drawn: list[Any] = model.generate(
        [each.text for each in told],
        size=(CANVAS, CANVAS),
        seed=config.seed + numbers[0],
        temperature=config.temperature,
        guidance_scale=config.guidance_scale,
        revise=False,
    )
    for number, each, picture in zip(numbers, told, drawn, strict=True):
        objects = read_picture(picture.pixels)
        if each.satisfied_by(objects):
            clean = render(Scene(objects=objects))
            record = json.dumps({"caption": each.text}, ensure_ascii=False)
            yield f"{number:07d}", {".webp": _webp(clean), ".json": record.encode()}


def _caption(config: DrawingsConfig, number: int) -> Caption:
    rng = np.random.default_rng([_DRAWINGS, config.seed, number])
    scene = sample_scene(rng, num_objects=int(rng.choice(config.objects)))
    return caption(rng, scene, "en" if rng.random() < config.english else "zh", config.captions)


def _webp(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "WEBP", lossless=True)
    return buffer.getvalue()

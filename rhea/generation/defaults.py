"""What a checkpoint prefers when the caller does not say: sizes, guidance and sampling, kept in its config.json.

The released Emu3 folders say nothing of the kind; their values are those of the official demo (top-k 2048, guidance
3.0, 720 x 720, the prompt's suffix and the negative prompt). Answers are greedy there, as every default answer is here.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

from rhea.checkpoints.configs import CheckpointConfig
from rhea.config import from_dict, to_dict
from rhea.documents.document import MAX_FPS
from rhea.errors import InputError
from rhea.generation.sampling import SamplingConfig
from rhea.tokenizers.vocabulary import EMU3_VOCABULARY


def check_fps(fps: float) -> None:
    """Raise InputError for a frame rate that a film cannot be made at."""
    if not 1 <= fps <= MAX_FPS:
        raise InputError(f"fps is {fps}; it must be between 1 and {MAX_FPS:g} frames per second")


@dataclass(frozen=True, kw_only=True)
class GenerationDefaults:
    """Defaults of the five things that a model can be asked for."""

    height: int = 64
    """Of a picture or film, in pixels."""
    width: int = 64
    num_frames: int = 16
    """Length of a film; a longer one is made in windows of this length."""
    fps: float = 8.0
    given_frames: int = 4
    """How many of a film's last frames are looked back on when it is extended; a multiple of the clip length."""
    temperature: float = 1.0
    film_temperature: float = 1.0
    """Of films made from text."""
    edit_temperature: float = 1.0
    extend_temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    film_top_p: float = 1.0
    """Of films made from text; without guidance a smaller one cuts where objects begin, unlikely in any one place."""
    guidance_scale: float = 3.0
    """Of pictures made from text."""
    film_guidance_scale: float = 3.0
    """Of films made from text."""
    edit_guidance_scale: float = 1.0
    extend_guidance_scale: float = 1.0
    negative_prompt: str = ""
    """Text of the unconditional branch."""
    prompt_suffix: str = ""
    """Appended to every prompt for a picture."""
    revise: bool = False
    """Whether the model puts the text of a picture first in words that it draws more surely, as it was trained to."""
    answer_temperature: float = 0.0
    max_answer_tokens: int = 1024

    def __post_init__(self) -> None:
        SamplingConfig(top_k=self.top_k, top_p=self.top_p)  # checks both
        if not 0 < self.film_top_p <= 1:
            raise InputError(f"film_top_p is {self.film_top_p}; it must be above 0 and at most 1")
        for name in ("height", "width", "num_frames", "given_frames", "max_answer_tokens"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; it must be at least 1")
        for name in (field.name for field in fields(self) if field.name.endswith(("temperature", "guidance_scale"))):
            if not 0 <= getattr(self, name) < math.inf:
                raise InputError(f"{name} is {getattr(self, name)}; it must be 0 or a positive number")
        check_fps(self.fps)
        if self.given_frames >= self.num_frames:
            raise InputError(f"given_frames is {self.given_frames}; it must be less than num_frames, {self.num_frames}")


EMU3_DEFAULTS = GenerationDefaults(
    height=720,
    width=720,
    num_frames=48,
    fps=24.0,
    given_frames=24,
    top_k=2048,
    negative_prompt=(
        "lowres, bad anatomy, bad hands, text, error, missing fingers, extra digit, fewer digits, cropped, "
        "worst quality, low quality, normal quality, jpeg artifacts, signature, watermark, username, blurry."
    ),
    prompt_suffix=" masterpiece, film grained, best quality.",
)


def defaults_of(config: CheckpointConfig) -> GenerationDefaults:
    """Return what config.json says, over the values of the released Emu3 where the vocabulary is Emu3's."""
    base = EMU3_DEFAULTS if config.vocabulary == EMU3_VOCABULARY else GenerationDefaults()
    said = dict(config.generation)
    area = said.pop("image_area", None)  # how a released config names the size that its model was tuned for
    if area is not None and (type(area) is not int or area < 1):
        raise InputError(f"config.generation.image_area is {area!r}; it must be a positive number of pixels")
    if area is not None and config.pixels is not None:
        side = max(round(math.sqrt(area) / config.pixels.factor), 1) * config.pixels.factor
        base = replace(base, height=side, width=side)
    defaults = from_dict(GenerationDefaults, {**to_dict(base), **said}, "config.generation")
    if (vision := config.vision_tokenizer) is not None:
        units = {"height": vision.spatial_factor, "width": vision.spatial_factor}
        for name, unit in (units | {"given_frames": vision.temporal_downsample}).items():
            if name in said and said[name] % unit:
                raise InputError(f"config.generation.{name} is {said[name]}; it must be a multiple of {unit}")
    return defaults


def pixel_size(
    size: str | Sequence[int] | None, defaults: GenerationDefaults, factor: int, max_aspect_ratio: float = 5.0
) -> tuple[int, int]:
    """Return (height, width) in pixels, both multiples of ``factor``.

    ``size``: "WIDTHxHEIGHT" ("640x480"), an aspect ratio "16:9" at the default area, (height, width), or None for the
    default. A side that is no multiple of ``factor`` is an InputError that names the nearest sizes; so is an aspect
    ratio over ``max_aspect_ratio``, which could not be read back.
    """
    if size is None:
        return defaults.height, defaults.width
    if isinstance(size, str):
        if match := re.fullmatch(r"\s*(\d{1,5}):(\d{1,5})\s*", size):
            _check_ratio(int(match[2]), int(match[1]), size, max_aspect_ratio)
            return _at_area(int(match[2]), int(match[1]), defaults.height * defaults.width, factor, max_aspect_ratio)
        match = re.fullmatch(r"\s*(\d{1,6})\s*[x×*]\s*(\d{1,6})\s*", size)
        if match is None:
            raise InputError(f'size {size!r} is not understood: write "WIDTHxHEIGHT" in pixels ("640x480") or "16:9"')
        height, width = int(match[2]), int(match[1])
    else:
        if len(size) != 2:
            raise InputError(f"size {tuple(size)} must be (height, width)")
        height, width = size
    if height % factor or width % factor or height < 1 or width < 1:
        near = sorted({f"{w}x{h}" for h in _multiples(height, factor) for w in _multiples(width, factor)})
        raise InputError(
            f"size {width}x{height} (width x height): both sides must be positive multiples of {factor}; "
            f"near are {', '.join(near)}"
        )
    _check_ratio(height, width, f"{width}x{height}", max_aspect_ratio)
    return height, width


def _check_ratio(height: int, width: int, size: str, limit: float) -> None:
    if not height or not width:
        raise InputError(f"aspect ratio {size.strip()} must have two positive sides")
    if max(height, width) > limit * min(height, width):
        raise InputError(f"size {size.strip()}: its aspect ratio is over {limit:g}")


def _multiples(side: int, factor: int) -> set[int]:
    return {max(side // factor, 1) * factor, max(math.ceil(side / factor), 1) * factor}


def _at_area(ratio_height: int, ratio_width: int, area: int, factor: int, limit: float) -> tuple[int, int]:
    """Return the size of that aspect ratio at that area, by the rule of Emu3's demo; rounding stays in the limit."""
    scale = math.sqrt(area / (ratio_height * ratio_width))
    height, width = (max(round(side * scale / factor), 1) * factor for side in (ratio_height, ratio_width))
    longest = int(limit * min(height, width)) // factor * factor
    return min(height, longest), min(width, longest)

"""Something like a Rhea, whose codec loses nothing and whose completions a test writes itself."""

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
from tiny_model import TRAINED_ON, tiny_checkpoint

from rhea.generation.completion import Completion, Prompt
from rhea.generation.defaults import GenerationDefaults
from rhea.generation.model import Rhea
from rhea.generation.prompts import PromptWriter
from rhea.tokenizers.vision import PixelPolicy, VisionCodec

DEFAULTS = GenerationDefaults(num_frames=16, given_frames=4)


class LosslessCodec:
    """A codec that keeps what it is given: every code of a grid is the number of the picture or clip."""

    spatial_factor, clip_frames = 8, 4
    policy = PixelPolicy(min_pixels=64, max_pixels=4096)

    def __init__(self) -> None:
        self.kept: list[np.ndarray] = []

    def encode_pictures(self, pictures: Sequence[np.ndarray]) -> list[np.ndarray]:
        self.kept += list(pictures)
        return [np.full((8, 8), len(self.kept) - len(pictures) + index) for index in range(len(pictures))]

    def decode_pictures(self, grids: Sequence[np.ndarray]) -> list[np.ndarray]:
        return [self.kept[int(grid[0, 0])] for grid in grids]

    def decode_picture(self, grid: np.ndarray) -> np.ndarray:
        return self.decode_pictures([grid])[0]

    def encode_film(self, frames: np.ndarray) -> np.ndarray:
        return np.stack(self.encode_pictures(list(frames.reshape(-1, 4, *frames.shape[1:]))))

    def decode_film(self, codes: np.ndarray, num_frames: int | None = None) -> np.ndarray:
        return np.concatenate(self.decode_pictures(list(codes)))[:num_frames]


def model_that(complete: Callable[[LosslessCodec, Prompt], Completion]) -> Rhea:
    """Return something like a Rhea whose completions are made by ``complete``."""
    codec = LosslessCodec()

    def complete_all(prompts: list[Prompt], **_: Any) -> list[Completion]:
        return [complete(codec, prompt) for prompt in prompts]

    return cast(
        Rhea,
        SimpleNamespace(
            codec=codec,
            prompts=PromptWriter(DEFAULTS, cast(VisionCodec, codec)),
            completer=SimpleNamespace(complete=complete_all),
            defaults=DEFAULTS,
            checkpoint=tiny_checkpoint(),
            trained_on=TRAINED_ON,
        ),
    )

"""Grade a model on films that nobody here drew: how long what it imagines stays close to what really happens.

Each film's first frames are given, without its controls, and sixteen more are predicted. Two measures: PSNR after so
many frames, and a frozen linear reader that tells the car's yaw rate and its distance from the centre line from
averaged pixels of three frames in a row; it is fitted on true frames of films that are not predicted.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F

from rhea.config import from_dict, to_dict
from rhea.documents.shards import Shards, find_shards
from rhea.errors import InputError
from rhea.evaluation.page import Film, Picture
from rhea.evaluation.reconstruction import psnr
from rhea.evaluation.report import Figure, files_hash
from rhea.evaluation.task import EVALUATION, Record
from rhea.generation.model import Rhea
from rhea.generation.request import Progress
from rhea.media import Film as PlainFilm
from rhea.worlds.driving.recording import Recording

HORIZONS = (1, 4, 8, 16)
"""After how many predicted frames PSNR is told."""
READ = {"yaw rate": "rad/s", "distance from the centre line": "units"}
"""What the reader tells; the road is 13.3 units wide."""
GUESSES = ("copy last", "typical")
"""The last given frame, and its true state, held; the mean state of the films that the reader was fitted on."""
READER_FILMS = 100
_CELLS = 8
_BEFORE = 2
"""The reader looks at a frame and at what it changed since each of so many frames before."""
_RIDGE = 0.01
"""Penalty of the reader, in mean squares of its inputs."""


@dataclass(frozen=True, kw_only=True)
class DrivingBenchmark:
    shards: str
    """A folder that ``rhea record driving`` wrote, with a seed that the model was not trained on."""
    films: int = 100
    """Predicted; at most half of those in the shards, since the reader is fitted on others."""
    seed: int = 0
    batch: int = 16
    """Films that are predicted together."""


class Reader:
    """Linear from averaged pixels to yaw rate and distance from the centre line."""

    def __init__(self, films: Sequence[tuple[np.ndarray, np.ndarray]]) -> None:
        """Fit on films uint8 [T, H, W, 3] with the truth [T, 2] of every frame."""
        x = np.concatenate([_inputs(frames) for frames, _ in films])
        y = np.concatenate([truth[_BEFORE:] for _, truth in films])
        self._mean, self.typical = x.mean(axis=0), y.mean(axis=0)
        x = x - self._mean
        penalty = max(_RIDGE * len(x) * float(np.square(x).mean()), 1e-6) * np.eye(x.shape[1])
        self._weights = np.linalg.solve(x.T @ x + penalty, x.T @ (y - self.typical))

    def read(self, frames: np.ndarray) -> np.ndarray:
        """Return [T - 2, 2] of frames uint8 [T, H, W, 3], without the first two, which only begin a motion."""
        return (_inputs(frames) - self._mean) @ self._weights + self.typical


def _inputs(frames: np.ndarray) -> np.ndarray:
    """Return float64 [T - 2, 576]: mean colours of 8 x 8 cells, and what they changed since one and two frames ago."""
    values = torch.tensor(frames).movedim(-1, 1).double() / 255
    cells = F.adaptive_avg_pool2d(values, _CELLS).flatten(1).numpy()
    now = cells[_BEFORE:]
    return np.concatenate([now, *(now - cells[_BEFORE - ago : -ago] for ago in range(1, _BEFORE + 1))], axis=1)


class DrivingTask:
    """The benchmark as a task; see the module."""

    name = "driving"

    def __init__(
        self, model: Rhea, config: DrivingBenchmark, progress: Callable[[Progress], None] | None = None
    ) -> None:
        """Index the shards and fit the reader; ``progress`` is told of every step of each batch."""
        self._shards = Shards(find_shards(config.shards))
        self._count = min(config.films, len(self._shards) // 2)
        if self._count < 1:
            raise InputError(f"{config.shards}: at least two films are needed, and one must be asked for")
        self.batch, self._model, self._config, self._progress = config.batch, model, config, progress
        self._codec, defaults = model.prompts.codec, model.defaults
        self._given = defaults.given_frames // self._codec.clip_frames * self._codec.clip_frames
        self.settings = to_dict(config) | {
            "shards": files_hash(self._shards.paths),
            "given": self._given,
            "generation": to_dict(defaults),
        }
        others = range(self._count, min(len(self._shards), self._count + READER_FILMS))
        self._reader = Reader([(self._seen(self._film(number)), self._truth(number)) for number in others])

    def __len__(self) -> int:
        return self._count

    def grade(self, indices: Sequence[int]) -> list[Record]:
        """Predict these films together, window by window."""
        films = [self._film(index) for index in indices]
        growing = [
            self._model.prompts.extend(
                PlainFilm(frames=film.frames[: self._given], fps=film.fps), HORIZONS[-1], seed=self._seed(index)
            )
            for index, film in zip(indices, films, strict=True)
        ]
        while waiting := [each for each in growing if not each.done]:
            prompts = [each.prompt() for each in waiting]
            written = self._model.completer.complete(prompts, max_requests=self.batch, progress=self._progress)
            for each, completion in zip(waiting, written, strict=True):
                each.add(completion)
        clip = self._codec.clip_frames
        latents = self._given // clip
        return [
            self._record(index, film, each.film().codes[latents : latents + -(-HORIZONS[-1] // clip)])
            for index, film, each in zip(indices, films, growing, strict=True)
        ]

    def figures(self, records: Sequence[Record]) -> list[Figure]:
        """Return PSNR beside that of the last given frame, and how far off the reader is on imagined frames."""
        figures = [
            Figure(
                group="driving",
                name=name,
                value=_mean(records, "predicted", name),
                count=len(records),
                ceiling=_mean(records, "round trip", name),
                unskilled={guess: _mean(records, guess, name) for guess in GUESSES if name in records[0][guess]},
                unit=READ.get(name, "dB"),
            )
            for name in records[0]["predicted"]
        ]
        return figures + [
            Figure(
                group="driving, the reader on true frames",
                name=name,
                value=_mean(records, "true frames", name),
                count=len(records),
                unskilled={"typical": _mean(records, "typical", name)},
                unit=unit,
            )
            for name, unit in READ.items()
        ]

    def standing(self, index: int, record: Record) -> tuple[str, float]:
        """Return the group that an item is shown in, and how well it was done."""
        return self.name, float(np.mean([record["predicted"][_psnr_name(frame)] for frame in HORIZONS]))

    def show(self, index: int, record: Record) -> tuple[str, list[Picture | Film]]:
        """Return the command that does the same as an item, and what was predicted above what really happens."""
        film = self._film(index)
        true = self._seen(film)[: self._given + HORIZONS[-1]]
        imagined = self._codec.decode_film(np.array(record["codes"]))[: HORIZONS[-1]]
        told = {"predicted": np.concatenate([true[: self._given], imagined]), "what really happens": true}
        return f"rhea extend FILM --num-frames {HORIZONS[-1]} --seed {self._seed(index)}", [
            Film(frames=frames, fps=film.fps, caption=caption, given=self._given) for caption, frames in told.items()
        ]

    def _seed(self, index: int) -> int:
        return int(np.random.SeedSequence([EVALUATION, self._config.seed, 60, index]).generate_state(1)[0])

    def _film(self, number: int) -> PlainFilm:
        film = self._shards.film(number)
        least = self._given + HORIZONS[-1]
        if len(film.frames) < least:
            raise InputError(f"{self._shards.name(number)} has {len(film.frames)} frames; {least} are needed")
        return film

    def _seen(self, film: PlainFilm) -> np.ndarray:
        """Return frames at the size at which the model sees them; once, for resizing twice may give another one."""
        return self._codec.policy.resize_film(film.frames)

    def _truth(self, number: int) -> np.ndarray:
        """Return float64 [T, 2]: what the reader should tell of each frame."""
        told = from_dict(Recording, self._shards.record(number), self._shards.name(number))
        return np.stack([told.yaw_rate, told.offset], axis=1)

    def _record(self, index: int, film: PlainFilm, codes: np.ndarray) -> Record:
        """Compare what was predicted, ``codes`` [t, h, w], and what could be at best, with what really happens."""
        given, end, frames = self._given, self._given + HORIZONS[-1], self._seen(film)
        before, true, truth = frames[:given], frames[given:end], self._truth(index)
        shown = {
            "predicted": self._codec.decode_film(codes)[: len(true)],
            "round trip": self._codec.decode_film(self._codec.encode_film(film.frames[given:end]))[: len(true)],
            "copy last": np.repeat(before[-1:], len(true), axis=0),
        }
        near = {
            side: {_psnr_name(frame): psnr(seen[frame - 1], true[frame - 1]) for frame in HORIZONS}
            for side, seen in shown.items()
        }
        context = before[-_BEFORE:]
        told = {
            side: self._reader.read(np.concatenate([context, seen]))
            for side, seen in {**shown, "true frames": true}.items()
        }
        told |= {"copy last": truth[given - 1 : given], "typical": self._reader.typical[None]}
        errors = {
            side: dict(zip(READ, np.abs(said - truth[given:end]).mean(axis=0).tolist(), strict=True))
            for side, said in told.items()
        }
        return {"codes": codes.tolist(), **{side: near.get(side, {}) | errors[side] for side in errors}}


def _psnr_name(frame: int) -> str:
    return f"PSNR of predicted frame {frame}"


def _mean(records: Sequence[Record], side: str, name: str) -> float:
    return float(np.mean([each[side][name] for each in records]))

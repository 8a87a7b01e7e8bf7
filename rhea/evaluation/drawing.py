"""Draw what a public suite's prompt file asks for, in batches; files that exist are not drawn again.

A file beside the folder (``DIR.json``, never inside: scorers read all that is there) tells whose the pictures are, so
that a folder is never filled by two checkpoints or with two settings.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rhea.config import to_dict
from rhea.documents.document import ImageSize
from rhea.errors import InputError
from rhea.evaluation.report import checkpoint_hash
from rhea.evaluation.runner import Shard
from rhea.evaluation.suites import SUITES, Wanted, read_order
from rhea.generation.completion import Prompt
from rhea.generation.model import Rhea
from rhea.generation.results import Film, Picture
from rhea.io import atomic_file, claim
from rhea.media import write_film, write_picture

_BATCH = 16
"""Files drawn together: an interruption loses at most as many."""


def draw_suite(
    model: Rhea,
    suite: str,
    file: Path,
    output: Path,
    *,
    samples: int | None = None,
    shard: Shard | None = None,
    told: Callable[[int, int], None] | None = None,
    **settings: Any,
) -> int:
    """Draw the files of a shard (by default all) that do not exist yet; return how many were drawn.

    ``settings``: as of ``Rhea.generate``; ``samples``: by default as many as the suite's scorers expect. Draws depend
    on the seed, the prompt and the number of the sample only. ``told(done, total)`` is called after each batch.
    """
    order, shard = read_order(suite, file, samples), shard or Shard()
    if output.resolve() == file.resolve() or output.is_file():
        raise InputError(f"{output} is a file, or the prompts themselves: name a folder for what is drawn")

    def prompts(wanted: Wanted) -> list[Prompt]:
        films = SUITES[suite].films
        return [
            model.prompts.draw(wanted.prompt, video=films, sample_index=sample, **settings) for sample in wanted.samples
        ]

    size = prompts(order.wanted[0])[0].next
    if SUITES[suite].sheets and isinstance(size, ImageSize) and size.height != size.width:
        raise InputError(f"{suite} wants squares: give a --size of equal sides")
    _claim(output, model, {"suite": suite, "samples": samples or SUITES[suite].samples, "settings": settings})
    for path, text in order.texts:
        with atomic_file(output / path) as temporary:
            temporary.write_text(text + "\n", encoding="utf-8")
    mine = order.wanted[shard.index :: shard.count]
    missing = [each for each in mine if not (output / each.path).exists()]
    for start in range(0, len(missing), _BATCH):
        batch = missing[start : start + _BATCH]
        _draw(model, output, batch, [prompts(each) for each in batch])
        if told is not None:
            told(len(mine) - len(missing) + start + len(batch), len(mine))
    return len(missing)


def _claim(output: Path, model: Rhea, settings: dict[str, Any]) -> None:
    """Write down whose pictures the folder holds; raise InputError if they are others'."""
    manifest = output.with_name(output.name + ".json")
    told = settings | {"checkpoint": checkpoint_hash(model.checkpoint), "generation": to_dict(model.defaults)}
    if not manifest.exists() and output.is_dir() and any(output.iterdir()):
        raise InputError(f"{output} is not empty, and {manifest} does not tell what is in it: name another folder")
    claim(output, manifest, told)


def _draw(model: Rhea, output: Path, wanted: Sequence[Wanted], prompts: Sequence[Sequence[Prompt]]) -> None:
    together = [prompt for each in prompts for prompt in each]
    made = iter(model.results(together, model.completer.complete(together)))
    for each, own in zip(wanted, prompts, strict=True):
        _write(output / each.path, [next(made) for _ in own])


def _write(path: Path, made: Sequence[Picture | Film]) -> None:
    """Write under a short name first: one beside a name of 255 bytes has to be shorter than that."""
    short = path.with_name(f".drawing{path.suffix}")
    if isinstance(made[0], Film):
        write_film(short, made[0].frames, made[0].fps)
    else:
        write_picture(short, _sheet([each.pixels for each in made if isinstance(each, Picture)]))
    short.replace(path)


def _sheet(pictures: Sequence[np.ndarray]) -> np.ndarray:
    """Return one picture as it is, or up to four in two rows without a gap, uint8 [2 H, 2 W, 3]."""
    if len(pictures) == 1:
        return pictures[0]
    height, width = pictures[0].shape[:2]
    sheet = np.zeros((2 * height, 2 * width, 3), np.uint8)
    for place, pixels in enumerate(pictures):
        top, left = place // 2 * height, place % 2 * width
        sheet[top : top + height, left : left + width] = pixels
    return sheet

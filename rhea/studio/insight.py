"""What is being looked at: a piece as the model drew it, or would have drawn it, or as it reads and answers.

Three questions, one ``Inspection``: a drawn piece without other words is seen by the very law that it was drawn from;
any piece with words, or an upload, as if it had been drawn after them (after nothing: the unconditional law); and read,
it stands before a question, which the model answers, or captions it where there is none.
"""

from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from rhea import media
from rhea.documents import formats
from rhea.documents.document import Image, Video
from rhea.generation import inspection
from rhea.generation.completion import Prompt
from rhea.generation.inspection import Commits, Inspection
from rhea.generation.model import Rhea
from rhea.generation.sampling import SamplingConfig
from rhea.serving.backend import Draw, Edit
from rhea.studio.shelf import Piece

Way = Literal["as_drawn", "as_read"]
WAYS: tuple[Way, ...] = ("as_drawn", "as_read")
MEAN = -1
"""Stands for all layers or all heads."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Insight:
    """A piece with all that is known about its tokens."""

    pixels: np.ndarray
    """uint8 [t, H, W, 3]: what each latent frame's grid is laid over, the first of its frames; a picture has t = 1."""
    title: str
    seen: Inspection
    commits: Commits | None = None
    """Only of what the model drew."""
    answer: str = ""
    """Only of what it read."""
    clip_frames: int = 1
    """Frames of a latent one; 1 for a picture."""

    @property
    def grid(self) -> tuple[int, int, int]:
        """Latent frames (1 for a picture), rows, columns."""
        frames, rows, columns = self.in_frames(self.seen.places).shape
        return frames, rows, columns

    @staticmethod
    def in_frames(values: np.ndarray) -> np.ndarray:
        """Return values of a grid as [t, h, w]."""
        return values.reshape(-1, *values.shape[-2:])


@dataclass
class Look:
    """What one visitor looks at, and how; changed in place."""

    insight: Insight | None = None
    view: str = "tokens"
    layer: int = MEAN
    head: int = MEAN
    latent: int = 0
    word: int | None = None
    place: int | None = None
    """In row-major order, through all latent frames."""
    touched: str = ""
    """What was touched last: "word", "place" or "latent"; it keeps the keyboard's focus."""
    maps: dict[str, tuple[np.ndarray, ...]] = field(default_factory=dict)
    """Attention of the touched word or place: [layers, heads, ...]."""

    def averaged(self, name: str, index: int = 0) -> np.ndarray:
        """Return one of the maps for the chosen layer and head, or their means."""
        weights = self.maps[name][index]
        layers = weights if self.layer == MEAN else weights[self.layer : self.layer + 1]
        heads = layers if self.head == MEAN else layers[:, self.head : self.head + 1]
        return heads.mean((0, 1))


def look_into(model: Rhea, piece: Piece, way: Way, words: str) -> Insight:
    """Compute everything about a piece; InputError for what the model cannot take."""
    words = words.strip()
    if way == "as_read":
        prompt = _question(model, piece, words)
        completion = model.completer.complete([prompt])[0]
        seen = inspection.inspect(model.completer, prompt, completion.token_ids)
        return replace(_insight(model, piece, seen), answer=completion.text)
    done = piece.done if isinstance(piece.task, Draw | Edit) else None
    if done is not None and not words:
        prompt = prompt_of(model, piece)
        seen = inspection.inspect(model.completer, prompt, done.token_ids)
        return _insight(model, piece, seen, inspection.commits(model.completer, prompt))
    segment = _segment(piece, None if done is None else done.codes)
    prompt, token_ids = inspection.as_drawn(model.completer, segment, words)
    return _insight(model, piece, inspection.inspect(model.completer, prompt, token_ids))


def touch(look: Look, model: Rhea, touched: dict[str, Any]) -> None:
    """Take what was touched: a word, a place in the grid, or a latent frame; what is not there is ignored."""
    insight, transformer = look.insight, model.completer.transformer
    if insight is None or len(touched) != 1:
        return
    ((name, number),) = ((name, int(number)) for name, number in touched.items())
    seen, latents = insight.seen, insight.grid[0]
    if name == "latent" and 0 <= number < latents:
        look.latent, look.touched = number, name
    elif name == "word" and 0 <= number < len(seen.words):
        look.word, look.place, look.touched, look.view = number, None, name, "attention"
        look.maps["word"] = (inspection.word_attention(transformer, seen, seen.words[number]),)
        strongest = insight.in_frames(look.averaged("word"))
        look.latent = int(strongest.max((1, 2)).argmax())
    elif name == "place" and 0 <= number < seen.places.size:
        look.word, look.place, look.touched, look.view = None, number, name, "attention"
        look.maps["place"] = inspection.code_attention(transformer, seen, number)


def prompt_of(model: Rhea, piece: Piece) -> Prompt:
    """Return the prompt that a picture or film was drawn from."""
    task = piece.task
    assert isinstance(task, Draw | Edit)
    sampling = task.sampling
    settings: dict[str, Any] = {
        "size": task.size,
        "guidance_scale": sampling.guidance_scale,
        "temperature": sampling.temperature,
        "top_k": sampling.top_k,
        "top_p": sampling.top_p,
        "negative_prompt": sampling.negative_prompt,
        "seed": sampling.seed,
        "sample_index": sampling.sample_index,
    }
    if isinstance(task, Edit):
        return model.prompts.edit(task.images, task.instruction, **settings)
    if task.num_frames is not None:
        settings |= {"video": True, "num_frames": task.num_frames, "fps": task.fps}
    return model.prompts.draw(task.prompt, revise=False, **settings)


def _question(model: Rhea, piece: Piece, words: str) -> Prompt:
    """Return the prompt for an answer about a piece, or for its caption if nothing is asked."""
    if words:
        film = media.Film(frames=piece.pixels, fps=piece.fps or 1.0) if piece.is_film else piece.pixels
        return model.prompts.answer(film, [(words, None)])
    defaults = model.defaults
    return Prompt(
        document=formats.captioning(_segment(piece)),
        sampling=SamplingConfig(temperature=defaults.answer_temperature),
        max_new_tokens=defaults.max_answer_tokens,
    )


def _segment(piece: Piece, codes: np.ndarray | None = None) -> Image | Video:
    if piece.is_film:
        return Video(frames=piece.pixels, codes=codes, fps=piece.fps or 1.0)
    return Image(pixels=piece.pixels, codes=codes)


def _insight(model: Rhea, piece: Piece, seen: Inspection, commits: Commits | None = None) -> Insight:
    """Put pixels and grid together: pixels as the codec takes them, unless they have the grid's shape already."""
    codec = model.prompts.codec
    clip = codec.clip_frames if piece.is_film else 1
    frames = piece.pixels[::clip] if piece.is_film else piece.pixels[None]
    if frames.shape[1:3] != tuple(side * codec.spatial_factor for side in seen.places.shape[-2:]):
        frames = codec.policy.resize_film(frames) if piece.is_film else codec.policy.resize(frames[0])[None]
    return Insight(pixels=frames, title=piece.title, seen=seen, commits=commits, clip_frames=clip)

"""From prompt documents to completed ones, in batches: what all of the model's abilities have in common.

A prompt is a document without its target and says what comes next: a picture of a size, a film, or text. Its pixels are
encoded, it is written by the grammar, continued under the constraint that belongs to it, and read back.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from rhea.documents import formats
from rhea.documents.constraint import Constraint
from rhea.documents.document import Document, Image, ImageSize, Text, Video, VideoSize, encode_documents
from rhea.documents.grammar import Grammar
from rhea.errors import InputError
from rhea.generation.choosing import agreements
from rhea.generation.engine import Engine, EngineConfig
from rhea.generation.preview import Follower, Preview
from rhea.generation.request import Progress, Request
from rhea.generation.sampling import SamplingConfig
from rhea.generation.statistics import Statistics
from rhea.generation.tuning import WindowTuner
from rhea.generation.zipar import zip_rows
from rhea.models.transformer import Transformer
from rhea.tokenizers.vision import VisionCodec

_MARKS_AFTER_GRID = 2
"""Image-end and EOS."""
_REVISION = SamplingConfig(temperature=0.5)
"""Samples of one prompt differ in where things are, and few words slip."""
_LONGEST_REVISION = 128
"""Tokens. A revision that is cut off is drawn as far as it goes."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Prompt:
    """A document to be completed."""

    document: Document
    next: ImageSize | VideoSize | None = None
    """The picture or film to be written; None asks for text."""
    negative: Document | None = None
    """The unconditional branch of guidance; None turns guidance off."""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    seed: int = 0
    sample_index: int = 0
    max_new_tokens: int = 1024
    """Limit for text; a picture or film takes what it takes."""
    best_of: int = 1
    """Of a picture from text: draw so many, keep the one that agrees best with the text (``choosing.py``)."""
    revise: bool = False
    """Of a picture from text: let the model put the text first in words that it draws more surely."""

    def __post_init__(self) -> None:
        if self.best_of < 1:
            raise InputError(f"best_of is {self.best_of}; it must be at least 1")
        if self.best_of > 1 and not (isinstance(self.next, ImageSize) and self.text):
            raise InputError("best_of is for pictures from text: the text is what it judges them by")
        if self.revise and not (isinstance(self.next, ImageSize) and self.text):
            raise InputError("revise is for pictures from text: the text is what is revised")

    @property
    def text(self) -> str | None:
        """The text, if the document is nothing else."""
        segments = self.document.segments
        return segments[0].text if len(segments) == 1 and isinstance(segments[0], Text) else None

    def revision(self) -> "Prompt":
        """Return the prompt that asks for other words."""
        return Prompt(
            document=formats.prompt_revision(self.text or ""),
            sampling=_REVISION,
            seed=self.seed,
            sample_index=self.sample_index,
            max_new_tokens=_LONGEST_REVISION,
        )

    def revised(self, answer: str) -> "Prompt":
        """Return the prompt with the words that ``revision`` was answered with; its own if those are fine.

        An answer in another script (English to Chinese words, or the reverse) is a slip and changes nothing.
        """
        text = self.text or ""
        if not answer or answer.startswith(formats.KEPT) or answer.isascii() != text.isascii():
            return replace(self, revise=False)
        return replace(self, document=formats.text_to_image(answer), revise=False)

    def candidates(self) -> list["Prompt"]:
        """Return a prompt for each of the pictures that the best is chosen of, as if they were samples of their own."""
        first = self.sample_index * self.best_of
        return [replace(self, best_of=1, sample_index=first + number) for number in range(self.best_of)]


@dataclass(frozen=True, kw_only=True, eq=False)
class Completion:
    """What was written after a prompt."""

    token_ids: list[int]
    text: str = ""
    codes: np.ndarray | None = None
    """Of the picture [h, w] or film [t, h, w], the film's given latent frames included."""
    pixels: np.ndarray | None = None
    """What the last preview showed, if there were previews: codes decoded already."""
    revised_prompt: str | None = None
    """The words that a picture was drawn from instead of those that were asked for."""


class Completer:
    """A transformer, the grammar of its documents, and (unless all is text) a codec for their pixels."""

    def __init__(
        self, transformer: Transformer, grammar: Grammar, codec: VisionCodec | None, engine: EngineConfig | None = None
    ) -> None:
        """``engine``: how its engines work; how much they reserve is computed for every call."""
        self.transformer, self.grammar, self.codec = transformer, grammar, codec
        self.engine = engine or EngineConfig()
        self.statistics = Statistics()
        self._tuner = WindowTuner()
        self._visual, self._text = Constraint(grammar, "visual"), Constraint(grammar, "text")

    def complete(
        self,
        prompts: Sequence[Prompt],
        *,
        max_requests: int = 64,
        progress: Callable[[Progress], None] | None = None,
        preview: Callable[[int, Preview], None] | None = None,
        every_rows: int | None = None,
        zipar: int | None = None,
    ) -> list[Completion]:
        """Complete each prompt, at most ``max_requests`` at a time.

        The draws depend on each prompt's seed and sample index only. What does not fit the context: InputError.
        ``preview`` is told the number of a prompt and what can be seen of its picture or film, each time that
        ``every_rows`` further rows or another latent frame are written (see ``Follower``); the writing waits for it.
        ``zipar``: draw rows of grids side by side, each that many codes behind the one above (lossy; ``zipar.py``).
        """
        if any(prompt.revise for prompt in prompts):
            revised = self._revised(prompts, max_requests)
            same = {"max_requests": max_requests, "progress": progress, "every_rows": every_rows, "zipar": zipar}
            made = self.complete(revised, preview=preview, **same)  # type: ignore[arg-type]
            return [_told(*each) for each in zip(prompts, revised, made, strict=True)]
        if any(prompt.best_of > 1 for prompt in prompts):
            if preview is not None:
                raise InputError("with best_of there are no previews: which picture is kept is known at the end")
            return self._best(prompts, max_requests, progress, zipar)
        requests = self.requests(prompts)
        followers, pixels = dict[int, Follower](), dict[int, np.ndarray]()
        if preview is not None:
            pairs = enumerate(zip(prompts, requests, strict=True))
            followers = {i: self.follower(*pair, every_rows) for i, pair in pairs if pair[0].next is not None}

        def watch(number: int, token_ids: list[int]) -> None:
            follower = followers.get(number)
            with self.statistics.decoding_pixels():
                seen = follower.follow(token_ids[follower.taken :]) if follower is not None else None
            if seen is not None:
                assert preview is not None
                if seen.final:
                    pixels[number] = seen.pixels
                preview(number, seen)

        if zipar is not None:
            if followers:
                raise InputError("rows that are drawn side by side (zipar) have no previews")
            written = zip_rows(
                self.transformer,
                requests,
                zipar,
                max_requests=max_requests,
                statistics=self.statistics,
                progress=progress,
            )
        else:
            written = self._engine(requests, max_requests).run(requests, progress, watch if followers else None)
        return [
            replace(self.completion(prompt, request, token_ids), pixels=pixels.get(number))
            for number, (prompt, request, token_ids) in enumerate(zip(prompts, requests, written, strict=True))
        ]

    def _revised(self, prompts: Sequence[Prompt], max_requests: int) -> list[Prompt]:
        """Return the prompts with the model's own words where they want them."""
        asked = [prompt.revision() for prompt in prompts if prompt.revise]
        answers = iter(self.complete(asked, max_requests=max_requests))
        return [prompt.revised(next(answers).text) if prompt.revise else prompt for prompt in prompts]

    def _best(
        self,
        prompts: Sequence[Prompt],
        max_requests: int,
        progress: Callable[[Progress], None] | None,
        zipar: int | None,
    ) -> list[Completion]:
        """Complete prompts of which some want the best of several candidates."""
        asked = [candidate for prompt in prompts for candidate in prompt.candidates()]
        made = self.complete(asked, max_requests=max_requests, progress=progress, zipar=zipar)
        owners = [number for number, prompt in enumerate(prompts) for _ in range(prompt.best_of)]
        judged = [index for index, owner in enumerate(owners) if prompts[owner].best_of > 1]
        found = dict.fromkeys(range(len(made)), 0.0)
        agreed = self.agreements([asked[index] for index in judged], [made[index] for index in judged])
        found |= zip(judged, agreed, strict=True)
        best: dict[int, int] = {}
        for index, owner in enumerate(owners):
            if owner not in best or found[index] > found[best[owner]]:
                best[owner] = index
        return [made[best[number]] for number in range(len(prompts))]

    def agreements(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[float]:
        """Return how well each picture goes with its text, in nats (``choosing.py``)."""
        texts = [prompt.text or "" for prompt in prompts]
        grids = [each.codes for each in completions if each.codes is not None]
        return agreements(self.transformer, self.grammar, texts, grids)

    def requests(self, prompts: Sequence[Prompt]) -> list[Request]:
        """Write each prompt as the engine takes it; pixels of all prompts are encoded together."""
        if any(prompt.best_of > 1 for prompt in prompts):
            raise InputError("one request draws one picture: only complete() chooses the best of several")
        if any(prompt.revise for prompt in prompts):
            raise InputError("a prompt to revise takes two requests: only complete() sends both")
        documents = self._encoded([prompt.document for prompt in prompts])
        negatives = iter(self._encoded([prompt.negative for prompt in prompts if prompt.negative is not None]))
        return [
            self._request(prompt, document, next(negatives) if prompt.negative is not None else None)
            for prompt, document in zip(prompts, documents, strict=True)
        ]

    def follower(self, prompt: Prompt, request: Request, every_rows: int | None = None) -> Follower:
        """Return what tells, from the tokens of a prompt's request, what can be seen of its picture or film."""
        if prompt.next is None:
            raise InputError("the prompt asks for text: only pictures and films have previews")
        if self.codec is None:
            raise InputError("this checkpoint has no vision tokenizer to show previews with: load one beside it")
        return Follower(request, prompt.next, self.codec, every_rows)

    def completion(self, prompt: Prompt, request: Request, token_ids: list[int]) -> Completion:
        """Read what was written after a prompt's request."""
        if prompt.next is None:
            text_ids = [token_id for token_id in token_ids if token_id in self.grammar.vocabulary.text]
            return Completion(token_ids=token_ids, text=self.grammar.text_tokenizer.decode(text_ids).strip())
        last = self.grammar.parse([*request.prompt, *token_ids]).segments[-1]
        assert isinstance(last, Image | Video), last
        return Completion(token_ids=token_ids, codes=last.codes)

    def _engine(self, requests: Sequence[Request], max_requests: int) -> Engine:
        """Return an engine that reserves what these requests need, and knows the best window so far."""
        rows = sorted((2 if request.guided else 1 for request in requests), reverse=True)[:max_requests]
        lengths = (
            max(len(request.prompt), len(request.negative_prompt or ())) + request.max_new_tokens
            for request in requests
        )
        config = replace(self.engine, slots=max(sum(rows), 1), max_len=max(lengths, default=1))
        return Engine(self.transformer, config, self._tuner, self.statistics)

    def _encoded(self, documents: Sequence[Document]) -> list[Document]:
        segments = [segment for document in documents for segment in document.segments]
        pixels = any(not isinstance(segment, Text) and segment.codes is None for segment in segments)
        if not pixels:
            return list(documents)
        if self.codec is None:
            raise InputError("this checkpoint has no vision tokenizer to read pictures with: load one beside it")
        return encode_documents(documents, self.codec)

    def _request(self, prompt: Prompt, document: Document, negative: Document | None) -> Request:
        ids = self.grammar.render_prompt(document, prompt.next)
        constraint = (self._text if prompt.next is None else self._visual).copy().start(ids)
        if prompt.next is None:
            context = self.transformer.config.max_seq_len
            if len(ids) >= context:
                raise InputError(f"a prompt of {len(ids)} tokens does not fit the context of {context} tokens")
            max_new_tokens = min(prompt.max_new_tokens, context - len(ids))
        else:
            max_new_tokens = constraint.remaining_grid_tokens + _MARKS_AFTER_GRID
        return Request(
            prompt=ids.tolist(),
            constraint=constraint,
            max_new_tokens=max_new_tokens,
            negative_prompt=None if negative is None else self.grammar.render_prompt(negative, prompt.next).tolist(),
            sampling=prompt.sampling,
            seed=prompt.seed,
            sample_index=prompt.sample_index,
        )


def _told(asked: Prompt, drawn: Prompt, completion: Completion) -> Completion:
    """Return a completion that tells the words it was drawn from, if they are others."""
    return completion if drawn.text == asked.text else replace(completion, revised_prompt=drawn.text)

"""The model in this process: one engine that never rests, and tasks turned into its requests as ``Rhea``'s methods do.

Pixels are coded and decoded in one thread of their own, so that neither the event loop nor the engine waits for them;
``previews`` names the one exception.
Whatever breaks while a task is worked on is a ``BackendDiedError`` for that task alone.
"""

import asyncio
import contextlib
import sys
import threading
from collections.abc import AsyncGenerator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from typing import Any, TypeVar

import torch

from rhea import media
from rhea.errors import BusyError, InputError
from rhea.generation.background import BackgroundEngine
from rhea.generation.completion import Completion, Prompt
from rhea.generation.engine import Engine
from rhea.generation.model import Rhea
from rhea.generation.preview import Preview
from rhea.generation.prompts import Continuation
from rhea.generation.request import Request, check_fits
from rhea.generation.results import Film, Picture
from rhea.logging import logger
from rhea.serving.backend import (
    Answer,
    BackendDiedError,
    Clip,
    Done,
    Draw,
    Edit,
    Event,
    Extend,
    ModelInfo,
    Partial,
    Task,
    TextDelta,
)
from rhea.serving.limits import Bounds
from rhea.serving.previews import Decoder, Previews
from rhea.serving.rows import Rows
from rhea.tokenizers.text import TextTokenizer

T = TypeVar("T")

_SWITCH_SECONDS = 5e-4
"""How long a thread of pixels or HTTP may keep the interpreter from the engine, which asks for it after every operation
of torch. Python's own 5 ms cost more than all else that a server adds."""
_KEPT_FOR_TEXTS = 8
"""One row of so many is kept from pictures and films; with fewer, none."""
_UNFINISHED = "\ufffd"
"""What the bytes of half a character are decoded to."""


class LocalBackend:
    """A ``Backend`` while its ``async with`` block runs."""

    def __init__(self, model: Rhea, *, name: str = "rhea", bounds: Bounds | None = None) -> None:
        """The model's own ``EngineConfig`` (``Completer.engine``) bounds the engine."""
        self.model, self.completer, self.bounds = model, model.completer, bounds or Bounds()
        config = replace(self.completer.engine, max_waiting=max(self.bounds.max_requests, 1))
        self.engine = Engine(self.completer.transformer, config, statistics=self.completer.statistics)
        self._background = BackgroundEngine(self.engine)
        self._pixels = ThreadPoolExecutor(max_workers=1, thread_name_prefix="pixels")
        self._decoder = Decoder(self.completer)
        self._coded = threading.Event()
        """Whether what the thread of pixels took up last is done."""
        self._coded.set()
        slots = self.engine.config.slots
        self._for_drawing = Rows(slots - slots // _KEPT_FOR_TEXTS)
        self._requests = self._tokens = 0
        self._open = False
        defaults, codec = model.defaults, self.completer.codec
        looks: dict[str, Any] = {}
        if codec is not None:
            looks = {"min_side": codec.policy.factor, "max_aspect_ratio": codec.policy.max_aspect_ratio}
        self._info = ModelInfo(
            name=name,
            trained_on=model.trained_on,
            height=defaults.height,
            width=defaults.width,
            num_frames=defaults.num_frames,
            fps=defaults.fps,
            max_tokens=self.engine.max_len,
            **looks,
        )

    async def __aenter__(self) -> "LocalBackend":
        self._switch_seconds = sys.getswitchinterval()
        sys.setswitchinterval(_SWITCH_SECONDS)
        threads = torch.get_num_threads()
        # Each thread has a team of its own: with two whole ones, both wait for cores. Later threads get all again.
        self._pixels.submit(torch.set_num_threads, max(threads // 2, 1)).result()
        torch.set_num_threads(threads)
        self._background.__enter__()
        self._open = True
        return self

    async def __aexit__(self, *error: object) -> None:
        self._open = False
        await asyncio.to_thread(self._background.__exit__)
        self._pixels.shutdown(wait=False, cancel_futures=True)
        sys.setswitchinterval(self._switch_seconds)

    @property
    def ready(self) -> bool:
        return self._open

    @property
    def info(self) -> ModelInfo:
        return self._info

    async def counters(self) -> dict[str, float]:
        """Return the engine's statistics and load, and the requests and tokens that are under way."""
        load = self.engine.load
        return {
            **asdict(self.completer.statistics),
            **load,
            "waiting": load["waiting"] + self._for_drawing.waiting,
            "slots": self.engine.config.slots,
            "requests": self._requests,
            "tokens": self._tokens,
        }

    async def pulse(self) -> None:
        """Return once the engine has ended its step, and the thread of pixels what it is at now.

        However much waits for them, that is soon, unless one of them hangs.
        """
        await asyncio.gather(self._background.pulse(), asyncio.to_thread(self._coded.wait))

    async def run(self, task: Task, *, partials: int | None = None) -> AsyncGenerator[Event, None]:
        if self._requests >= self.bounds.max_requests:
            raise BusyError(f"{self._requests} requests are under way already: try again later")
        self._requests += 1
        try:
            async with contextlib.aclosing(self._events(task, partials)) as events:
                async for event in events:
                    yield event
        except (InputError, BusyError, BackendDiedError):
            raise
        except Exception as error:  # out of memory, say
            logger.exception("a task broke down")
            raise BackendDiedError("the engine broke down while it worked on this") from error
        finally:
            self._requests -= 1

    async def _events(self, task: Task, partials: int | None) -> AsyncGenerator[Event, None]:
        prompt = await self._prompt(task)
        if isinstance(prompt, Prompt) and prompt.revise:
            events = self._revised(prompt, partials)
        else:
            events = self._work(prompt, partials)
        async with contextlib.aclosing(events):
            async for event in events:
                yield event

    async def _work(self, prompt: Prompt | Continuation, partials: int | None) -> AsyncGenerator[Event, None]:
        if isinstance(prompt, Continuation):
            events = self._windows(prompt, partials)
        elif prompt.next is None:
            events = self._answer(prompt)
        elif prompt.best_of > 1:
            events = self._best(prompt)
        else:
            events = self._drawing(prompt, partials)
        async with contextlib.aclosing(events):
            async for event in events:
                yield event

    async def _revised(self, prompt: Prompt, partials: int | None) -> AsyncGenerator[Event, None]:
        """Let the model put the prompt in its own words, and draw from these."""
        async with contextlib.aclosing(self._answer(prompt.revision())) as answer:
            (asked,) = [event async for event in answer if isinstance(event, Done)]
        revised = prompt.revised(asked.text)
        async with contextlib.aclosing(self._work(revised, partials)) as events:
            async for event in events:
                if isinstance(event, Done):
                    event = replace(
                        event,
                        prompt_tokens=asked.prompt_tokens + event.prompt_tokens,
                        new_tokens=asked.new_tokens + event.new_tokens,
                        revised_prompt=None if revised.text == prompt.text else revised.text,
                    )
                yield event

    async def _prompt(self, task: Task) -> Prompt | Continuation:
        """Write a task's prompt, pixels and all, away from the event loop."""
        write = self.model.prompts
        match task:
            case Draw():
                video = task.num_frames is not None
                film: dict[str, Any] = {"num_frames": task.num_frames, "fps": task.fps} if video else {}
                settings = asdict(task.sampling) | {"best_of": task.best_of, "revise": task.revise}
                return write.draw(task.prompt, size=task.size, video=video, **film, **settings)
            case Edit():
                return await self._in_thread(
                    lambda: write.edit(task.images, task.instruction, size=task.size, **asdict(task.sampling))
                )
            case Extend():
                settings = asdict(task.sampling)
                settings.pop("sample_index")
                film_ = media.Film(frames=task.film.frames, fps=task.film.fps)
                return await self._in_thread(
                    lambda: write.extend(film_, task.num_frames, caption=task.caption, **settings)
                )
            case Answer():
                settings = asdict(task.sampling)
                del settings["guidance_scale"], settings["negative_prompt"]
                visual = task.visual
                source = media.Film(frames=visual.frames, fps=visual.fps) if isinstance(visual, Clip) else visual
                settings["max_new_tokens"] = task.max_new_tokens
                if source is None:
                    return write.answer(None, task.turns, **settings)
                return await self._in_thread(lambda: write.answer(source, task.turns, **settings))

    async def _answer(self, prompt: Prompt) -> AsyncGenerator[Event, None]:
        request, vocabulary = await self._request(prompt), self.completer.grammar.vocabulary
        text, token_ids = TextStream(self.completer.grammar.text_tokenizer), list[int]()
        with self._under_way(request):
            async with contextlib.aclosing(self._background.stream(request)) as stream:
                async for tokens in stream:
                    token_ids += tokens
                    if delta := text.take([token for token in tokens if token in vocabulary.text]):
                        yield TextDelta(text=delta)
        whole = self.completer.completion(prompt, request, token_ids).text
        if rest := text.rest(whole):
            yield TextDelta(text=rest)
        cut = len(token_ids) == request.max_new_tokens and token_ids[-1] != vocabulary.eos
        yield _done(request, token_ids, text=whole, finish_reason="length" if cut else "stop")

    async def _drawing(self, prompt: Prompt, partials: int | None) -> AsyncGenerator[Event, None]:
        request, completion = await self._request(prompt), None
        with self._under_way(request):
            async with contextlib.aclosing(self._written(prompt, request, partials)) as events:
                async for event in events:
                    if isinstance(event, Completion):
                        completion = event
                    elif not event.final:
                        yield _partial(event)
        assert completion is not None
        made = (await self._in_thread(self.model.results, [prompt], [completion]))[0]
        yield _seen(request, made, completion.token_ids)

    async def _best(self, prompt: Prompt) -> AsyncGenerator[Event, None]:
        """Draw all candidates side by side; yield the one that the model finds best, and what all of them took."""
        prompts = prompt.candidates()
        requests = [await self._request(candidate) for candidate in prompts]
        with self._under_way(*requests):
            running = [asyncio.create_task(self._whole(*pair)) for pair in zip(prompts, requests, strict=True)]
            try:
                completions = await asyncio.gather(*running)
            finally:
                for each in running:
                    each.cancel()
                await asyncio.gather(*running, return_exceptions=True)
        found = await self._in_thread(self.completer.agreements, prompts, completions)
        best = found.index(max(found))
        made = (await self._in_thread(self.model.results, [prompts[best]], [completions[best]]))[0]
        yield replace(
            _seen(requests[best], made, completions[best].token_ids),
            prompt_tokens=sum(len(request.prompt) for request in requests),
            new_tokens=sum(len(completion.token_ids) for completion in completions),
            sample_index=prompts[best].sample_index,
        )

    async def _whole(self, prompt: Prompt, request: Request) -> Completion:
        async with contextlib.aclosing(self._written(prompt, request, 0)) as events:
            return [event async for event in events if isinstance(event, Completion)][-1]

    async def _windows(self, longer: Continuation, partials: int | None) -> AsyncGenerator[Event, None]:
        prompt_tokens = 0
        while not longer.done:
            prompt = longer.prompt()
            request = await self._request(prompt)
            prompt_tokens += len(request.prompt)
            with self._under_way(request):
                async with contextlib.aclosing(self._written(prompt, request, partials)) as events:
                    async for event in events:
                        if isinstance(event, Completion):
                            await self._in_thread(longer.add, event)
                        elif (seen := longer.shown(event)) is not None and not seen.final:
                            yield _partial(seen)
        film = longer.film()
        yield replace(_seen(request, film, film.token_ids), prompt_tokens=prompt_tokens)

    async def _written(
        self, prompt: Prompt, request: Request, partials: int | None
    ) -> AsyncGenerator[Preview | Completion, None]:
        """Yield previews, that of the whole included, and at last what was written."""
        token_ids, pixels = list[int](), None
        previews = Previews(self.completer, prompt, request, partials, self._decoder, lambda: self._requests == 1)
        async with (
            self._for_drawing.taken(2 if request.guided else 1),
            contextlib.aclosing(self._background.stream(request, previews.watch)) as stream,
        ):
            async for tokens in stream:
                token_ids += tokens
                if previews.take(tokens):
                    if (seen := previews.early()) is None:
                        seen = await self._in_thread(previews.decoded)
                    pixels = seen.pixels if seen.final else None
                    yield seen
        yield replace(self.completer.completion(prompt, request, token_ids), pixels=pixels)

    async def _request(self, prompt: Prompt) -> Request:
        request = (await asyncio.to_thread(self.completer.requests, [prompt]))[0]
        check_fits(request, self.engine.max_len)  # before anything is reserved for its pixels
        return request

    @contextlib.contextmanager
    def _under_way(self, *requests: Request) -> Iterator[None]:
        """Count the tokens of a task's requests while the block runs; BusyError if that is more than may be."""
        tokens = sum((len(each.prompt) + each.max_new_tokens) * (2 if each.guided else 1) for each in requests)
        if self._tokens and self._tokens + tokens > self.bounds.max_tokens:
            raise BusyError(f"{self._tokens} tokens are under way already: try again later")
        self._tokens += tokens
        try:
            yield
        finally:
            self._tokens -= tokens

    async def _in_thread(self, function: Callable[..., T], *arguments: Any) -> T:
        def work() -> T:
            self._coded = coded = threading.Event()
            try:
                return function(*arguments)
            finally:
                coded.set()

        return await asyncio.get_running_loop().run_in_executor(self._pixels, work)


class TextStream:
    """Turns tokens of a text into pieces that joined are the text; half a character waits for its other half.

    White space at either end is no part of an answer, so it waits as well.
    """

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self._tokenizer = tokenizer
        self._pending: list[int] = []
        self._space = ""
        self.told = ""
        """All pieces so far."""

    def take(self, token_ids: list[int]) -> str:
        """Return what further tokens add."""
        self._pending += token_ids
        text = self._tokenizer.decode(self._pending)
        if text.endswith(_UNFINISHED):
            return ""
        self._pending = []
        text = self._space + text
        if not self.told:
            text = text.lstrip()
        solid = text.rstrip()
        self._space = text[len(solid) :]
        self.told += solid
        return solid

    def rest(self, whole: str) -> str:
        """Return what is left of the whole text at its end."""
        assert whole.startswith(self.told), (whole, self.told)
        return whole[len(self.told) :]


def _partial(seen: Preview) -> Partial:
    return Partial(pixels=seen.pixels, rows_done=seen.rows_done, rows=seen.rows)


def _done(request: Request, token_ids: list[int], **result: Any) -> Done:
    return Done(token_ids=tuple(token_ids), prompt_tokens=len(request.prompt), new_tokens=len(token_ids), **result)


def _seen(request: Request, made: Picture | Film, token_ids: list[int]) -> Done:
    if isinstance(made, Picture):
        return _done(request, token_ids, pixels=made.pixels, codes=made.codes)
    return _done(request, token_ids, pixels=made.frames, fps=made.fps, codes=made.codes)

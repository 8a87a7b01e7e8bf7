"""The model as people meet it: load a checkpoint, then generate, ask, extend, edit or reconstruct.

Every method asks ``PromptWriter`` for prompts and leaves the rest to ``Completer``: a new ability is a new document.
Parts that a checkpoint lacks (the released Emu3 comes as separate folders) are missed only by methods that need them.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from rhea import media
from rhea.checkpoints.load import Checkpoint
from rhea.documents.document import ImageSize
from rhea.documents.grammar import Grammar
from rhea.errors import InputError
from rhea.generation.arguments import checked
from rhea.generation.completion import Completer, Completion, Prompt
from rhea.generation.defaults import defaults_of
from rhea.generation.engine import EngineConfig
from rhea.generation.preview import Preview
from rhea.generation.prompts import PromptWriter, Size
from rhea.generation.request import Progress
from rhea.generation.results import Film, Picture, Visual, read_visual
from rhea.tokenizers.vision import VisionCodec

Report = Callable[[Progress], None] | None
Watch = Callable[[int, Preview], None] | None
"""Is told which of the results a preview belongs to."""


class Rhea:
    """A loaded model. Sampling settings left at None are the checkpoint's own defaults (``defaults``)."""

    def __init__(self, checkpoint: Checkpoint, tile: int | None = None, engine: EngineConfig | None = None) -> None:
        """``tile``: see ``VisionCodec``. ``engine``: see ``Completer``."""
        self.checkpoint = checkpoint
        self.defaults = defaults_of(checkpoint.config)
        self.codec: VisionCodec | None = None
        if checkpoint.vision_tokenizer is not None and checkpoint.policy is not None:
            self.codec = VisionCodec(checkpoint.vision_tokenizer, checkpoint.policy, tile)
        self.prompts = PromptWriter(self.defaults, self.codec)
        self._completer: Completer | None = None
        if checkpoint.transformer is not None and checkpoint.text_tokenizer is not None:
            assert checkpoint.vocabulary is not None
            clip_frames = self.codec.clip_frames if self.codec else 4
            grammar = Grammar(checkpoint.vocabulary, checkpoint.text_tokenizer, temporal_factor=clip_frames)
            self._completer = Completer(checkpoint.transformer, grammar, self.codec, engine)

    @property
    def trained_on(self) -> str:
        """One line on the data that the model has seen, as its config.json tells it."""
        return self.checkpoint.config.trained_on

    @property
    def completer(self) -> Completer:
        """What completes prompt documents of any kind; InputError if transformer or text tokenizer are missing."""
        if self._completer is None:
            missing = "transformer" if self.checkpoint.transformer is None else "text tokenizer"
            raise InputError(f"this checkpoint has no {missing}: it can only reconstruct pictures and films")
        return self._completer

    @checked
    def generate(
        self,
        prompt: str | Sequence[str],
        *,
        size: Size = None,
        video: bool = False,
        num_frames: int | None = None,
        fps: float | None = None,
        samples: int = 1,
        guidance_scale: float | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        negative_prompt: str | None = None,
        seed: int = 0,
        best_of: int = 1,
        revise: bool | None = None,
        zipar: int | None = None,
        progress: Report = None,
        preview: Watch = None,
        every_rows: int | None = None,
    ) -> list[Picture] | list[Film]:
        """Make pictures (or films with ``video``) from text: ``samples`` of each prompt, in order.

        ``size``: "WIDTHxHEIGHT" or (height, width) in pixels, or a ratio "16:9". The same seed gives the same pictures,
        whatever else is in the batch. ``preview(number, seen)`` is called while result ``number`` is written, with each
        ``every_rows`` rows of codes of a picture (by default an eighth of it) and each latent frame of a film; the last
        one shows the result. ``best_of``: draw each picture so many times and keep the one that agrees best with its
        text as the model itself reads it (``choosing.py``; no previews). ``revise``: whether the model first puts the
        text in words that it draws more surely, if it learned to; a picture tells them. ``zipar`` draws rows of codes
        side by side, each that many codes behind the one above: in fewer forwards, and worse, for a code does not see
        what is above it on the right. Raises InputError for an empty prompt, a size that is no multiple of the
        tokenizer's factor, or what does not fit the context.
        """
        texts = [prompt] if isinstance(prompt, str) else list(prompt)
        if samples < 1:
            raise InputError(f"samples is {samples}; it must be at least 1")
        wanted = [(text, index) for text in texts or [""] for index in range(samples)]
        prompts = [
            self.prompts.draw(
                text,
                size=size,
                video=video,
                num_frames=num_frames,
                fps=fps,
                guidance_scale=guidance_scale,
                temperature=temperature,
                top_k=top_k,
                top_p=top_p,
                negative_prompt=negative_prompt,
                seed=seed,
                sample_index=index,
                best_of=best_of,
                revise=revise,
            )
            for text, index in wanted
        ]
        completions = self.completer.complete(
            prompts, progress=progress, preview=preview, every_rows=every_rows, zipar=zipar
        )
        made = self.results(prompts, completions)
        return [replace(each, prompt=text) for each, (text, _) in zip(made, wanted, strict=True)]  # type: ignore[return-value]

    @checked
    def ask(
        self,
        source: Visual | None,
        question: str,
        *,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        max_new_tokens: int | None = None,
        seed: int = 0,
        progress: Report = None,
    ) -> str:
        """Answer a question about a picture or film (a path, pixels or a result), or about nothing (None)."""
        prompt = self.prompts.answer(
            source,
            [(question, None)],
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            max_new_tokens=max_new_tokens,
            seed=seed,
        )
        return self.completer.complete([prompt], progress=progress)[0].text

    @checked
    def extend(
        self,
        film: Visual,
        num_frames: int | None = None,
        *,
        caption: str = "",
        guidance_scale: float | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int = 0,
        progress: Report = None,
        preview: Watch = None,
    ) -> Film:
        """Continue a film by ``num_frames`` frames; return it whole, at the model's frame size.

        How far the model looks back, and what it writes at once: see ``Continuation``. ``preview`` is called with the
        film so far (as result 0) for each further latent frame.
        """
        longer = self.prompts.extend(
            film,
            num_frames,
            caption=caption,
            guidance_scale=guidance_scale,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            seed=seed,
        )

        def show(_: int, seen: Preview) -> None:
            if preview is not None and (whole := longer.shown(seen)) is not None:
                preview(0, whole)

        while not longer.done:
            prompt = longer.prompt()
            longer.add(self.completer.complete([prompt], progress=progress, preview=show if preview else None)[0])
        return longer.film()

    @checked
    def edit(
        self,
        source: Visual | Sequence[Visual],
        instruction: str,
        *,
        size: Size = None,
        guidance_scale: float | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        negative_prompt: str | None = None,
        seed: int = 0,
        progress: Report = None,
        preview: Watch = None,
        every_rows: int | None = None,
    ) -> Picture:
        """Make a picture from one or several pictures and an instruction; of the first one's size unless given.

        ``preview`` and ``every_rows``: see ``generate``.
        """
        prompt = self.prompts.edit(
            list(source) if isinstance(source, Sequence) and not isinstance(source, str) else [source],
            instruction,
            size=size,
            guidance_scale=guidance_scale,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            negative_prompt=negative_prompt,
            seed=seed,
        )
        completions = self.completer.complete([prompt], progress=progress, preview=preview, every_rows=every_rows)
        made = self.results([prompt], completions)[0]
        assert isinstance(made, Picture)
        return replace(made, prompt=instruction)

    def reconstruct(self, source: Visual) -> Picture | Film:
        """Return what remains of a picture or film after the vision tokenizer: pixels to codes and back."""
        codec = self.prompts.codec
        visual = read_visual(source, self.defaults.fps, codec.policy)
        if isinstance(visual, media.Film):
            codes = codec.encode_film(visual.frames)
            return Film(frames=codec.decode_film(codes, len(visual.frames)), fps=visual.fps, codes=codes)
        codes = codec.encode_picture(visual)
        return Picture(pixels=codec.decode_picture(codes), codes=codes)

    def results(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[Picture | Film]:
        """Decode what was written after prompts for pictures and films; those of one size are decoded together."""
        pictures = [
            each.codes
            for prompt, each in zip(prompts, completions, strict=True)
            if isinstance(prompt.next, ImageSize) and each.pixels is None and each.codes is not None
        ]
        with self.completer.statistics.decoding_pixels():
            decoded = iter(self.prompts.codec.decode_pictures(pictures))
            return [self._result(prompt, each, decoded) for prompt, each in zip(prompts, completions, strict=True)]

    def _result(self, prompt: Prompt, completion: Completion, decoded: Iterator[np.ndarray]) -> Picture | Film:
        codes, pixels = completion.codes, completion.pixels
        assert codes is not None, "a text answer has no codes"
        origin: dict[str, Any] = {
            "codes": codes,
            "token_ids": completion.token_ids,
            "seed": prompt.seed,
            "sample_index": prompt.sample_index,
        }
        if isinstance(prompt.next, ImageSize):
            origin["revised_prompt"] = completion.revised_prompt
            return Picture(pixels=next(decoded) if pixels is None else pixels, **origin)
        assert prompt.next is not None, "a text answer has no pixels"
        frames = self.prompts.codec.decode_film(codes, prompt.next.num_frames) if pixels is None else pixels
        return Film(frames=frames, fps=prompt.next.fps, **origin)

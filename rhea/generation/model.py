"""The model as people meet it: load a checkpoint, then generate, ask, extend, edit or reconstruct.

Every method builds prompt documents and leaves the rest to ``Completer``, so a new ability is a new document. Parts
that a checkpoint lacks (the released Emu3 comes as separate folders) are missed only by the methods that need them.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from rhea import media
from rhea.checkpoints.load import Checkpoint
from rhea.documents import formats
from rhea.documents.document import Image, ImageSize, Video, VideoSize
from rhea.documents.grammar import Grammar
from rhea.errors import InputError
from rhea.generation.arguments import checked
from rhea.generation.completion import Completer, Completion, Prompt
from rhea.generation.defaults import check_fps, defaults_of, pixel_size
from rhea.generation.engine import EngineConfig
from rhea.generation.preview import Preview
from rhea.generation.request import Progress
from rhea.generation.results import Film, Picture, Visual, read_film, read_picture, read_visual
from rhea.generation.sampling import SamplingConfig
from rhea.tokenizers.vision import VisionCodec

Size = str | Sequence[int] | None
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
        zipar: int | None = None,
        progress: Report = None,
        preview: Watch = None,
        every_rows: int | None = None,
    ) -> list[Picture] | list[Film]:
        """Make pictures (or films with ``video``) from text: ``samples`` of each prompt, in order.

        ``size``: "WIDTHxHEIGHT" or (height, width) in pixels, or a ratio "16:9". The same seed gives the same pictures,
        whatever else is in the batch. ``preview(number, seen)`` is called while result ``number`` is written, with each
        ``every_rows`` rows of codes of a picture (by default an eighth of it) and each latent frame of a film; the last
        one shows the result. ``zipar`` draws rows of codes side by side, each that many codes behind the one above: in
        fewer forwards, and worse, for a code does not see what is above it on the right. Raises InputError for an empty
        prompt, a size that is no multiple of the tokenizer's factor, or what does not fit the context.
        """
        if not video and (num_frames is not None or fps is not None):
            raise InputError("num_frames and fps are for films: a picture has neither (video=True makes a film)")
        texts = [prompt] if isinstance(prompt, str) else list(prompt)
        if not texts or not all(text.strip() for text in texts):
            raise InputError("the prompt is empty: say what is to be seen")
        if samples < 1:
            raise InputError(f"samples is {samples}; it must be at least 1")
        scale = self.defaults.guidance_scale if guidance_scale is None else guidance_scale
        unwanted = self.defaults.negative_prompt if negative_prompt is None else negative_prompt
        target = self._film_size(size, num_frames, fps) if video else self._picture_size(size)
        form, suffix = (formats.text_to_video, "") if video else (formats.text_to_image, self.defaults.prompt_suffix)
        template = Prompt(
            document=form(""),
            next=target,
            negative=form(unwanted) if scale != 1 else None,
            sampling=self._sampling(scale, temperature, top_k, top_p),
            seed=seed,
        )
        wanted = [(text, index) for text in texts for index in range(samples)]
        prompts = [replace(template, document=form(text + suffix), sample_index=index) for text, index in wanted]
        completions = self.completer.complete(
            prompts, progress=progress, preview=preview, every_rows=every_rows, zipar=zipar
        )
        made: list[Any] = self._films(completions, target) if video else self._pictures(completions)
        return [
            replace(each, prompt=text, seed=seed, sample_index=index)
            for each, (text, index) in zip(made, wanted, strict=True)
        ]

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
        question = _bare(question)
        if not question:
            raise InputError("the question is empty")
        chosen = self.defaults.answer_temperature if temperature is None else temperature
        limit = self.defaults.max_answer_tokens if max_new_tokens is None else max_new_tokens
        if limit < 1:
            raise InputError(f"max_new_tokens is {limit}; it must be at least 1")
        prompt = Prompt(
            document=formats.question_answering(None if source is None else self._segment(source), question),
            sampling=self._sampling(1.0, chosen, top_k, top_p),
            seed=seed,
            max_new_tokens=limit,
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

        The model looks back on the last ``defaults.given_frames`` frames and writes windows of ``defaults.num_frames``;
        a longer continuation is made window by window, each looking back on the one before. ``preview`` is called with
        the film so far (as result 0) for each further latent frame.
        """
        codec = self._needed_codec()
        source = read_film(film, self.defaults.fps, codec.policy)
        clip, window = codec.clip_frames, self.defaults.num_frames
        given = min(self.defaults.given_frames, len(source.frames)) // clip
        wanted = window - given * clip if num_frames is None else num_frames
        if not given:
            raise InputError(f"a film of {len(source.frames)} frames is too short to extend: {clip} are needed")
        if wanted < 1:
            raise InputError(f"num_frames is {wanted}; it must be at least 1")
        codes, token_ids = codec.encode_film(source.frames[-given * clip :]), list[int]()
        scale = self.defaults.extend_guidance_scale if guidance_scale is None else guidance_scale
        chosen = self.defaults.extend_temperature if temperature is None else temperature
        template = Prompt(
            document=formats.text_to_video(""),
            next=VideoSize(height=codes.shape[1], width=codes.shape[2], num_frames=window, fps=source.fps),
            sampling=self._sampling(scale, chosen, top_k, top_p),
            seed=seed,
        )
        old = frames = np.stack([codec.policy.resize(frame) for frame in source.frames])
        height, length = codes.shape[1], len(old) + wanted
        rows = -(-wanted // clip) * height

        def show(_: int, seen: Preview) -> None:
            done = (len(codes) - 2 * given) * height + seen.rows_done
            if preview is not None and done <= rows:
                pixels = np.concatenate([frames, seen.pixels[given * clip :]])[:length]
                preview(0, replace(seen, pixels=pixels, rows_done=done, rows=rows))

        while (len(codes) - given) * clip < wanted:
            last = Video(codes=codes[-given:], fps=source.fps)
            prompt = replace(
                template,
                document=formats.video_prediction(last, given, caption),
                negative=formats.video_prediction(last, given, self.defaults.negative_prompt) if scale != 1 else None,
                sample_index=len(codes),
            )
            completion = self.completer.complete([prompt], progress=progress, preview=show if preview else None)[0]
            new = _codes(completion)[given:]
            codes, frames = np.concatenate([codes, new]), np.concatenate([frames, codec.decode_film(new)])
            token_ids += completion.token_ids
        return Film(frames=frames[:length], fps=source.fps, codes=codes, token_ids=token_ids, prompt=caption, seed=seed)

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
        if not instruction.strip():
            raise InputError("the instruction is empty: say what is to be changed")
        if isinstance(source, Sequence) and not isinstance(source, str) and not source:
            raise InputError("no picture to edit was given")
        several = list(source) if isinstance(source, Sequence) and not isinstance(source, str) else [source]
        codec = self._needed_codec()
        grids = codec.encode_pictures([read_picture(each, codec.policy) for each in several])
        images = [Image(codes=codes) for codes in grids]
        scale = self.defaults.edit_guidance_scale if guidance_scale is None else guidance_scale
        chosen = self.defaults.edit_temperature if temperature is None else temperature
        unwanted = self.defaults.negative_prompt if negative_prompt is None else negative_prompt
        prompt = Prompt(
            document=formats.editing(images, instruction),
            next=ImageSize(height=len(grids[0]), width=grids[0].shape[1]) if size is None else self._picture_size(size),
            negative=formats.editing(images, unwanted) if scale != 1 else None,
            sampling=self._sampling(scale, chosen, top_k, top_p),
            seed=seed,
        )
        completions = self.completer.complete([prompt], progress=progress, preview=preview, every_rows=every_rows)
        return replace(self._pictures(completions)[0], prompt=instruction, seed=seed)

    def reconstruct(self, source: Visual) -> Picture | Film:
        """Return what remains of a picture or film after the vision tokenizer: pixels to codes and back."""
        codec = self._needed_codec()
        visual = read_visual(source, self.defaults.fps, codec.policy)
        if isinstance(visual, media.Film):
            codes = codec.encode_film(visual.frames)
            return Film(frames=codec.decode_film(codes, len(visual.frames)), fps=visual.fps, codes=codes)
        codes = codec.encode_picture(visual)
        return Picture(pixels=codec.decode_picture(codes), codes=codes)

    def _sampling(
        self, guidance_scale: float, temperature: float | None, top_k: int | None, top_p: float | None
    ) -> SamplingConfig:
        defaults = self.defaults
        return SamplingConfig(
            temperature=defaults.temperature if temperature is None else temperature,
            top_k=defaults.top_k if top_k is None else top_k,
            top_p=defaults.top_p if top_p is None else top_p,
            guidance_scale=guidance_scale,
        )

    def _needed_codec(self) -> VisionCodec:
        if self.codec is None:
            raise InputError(
                "this checkpoint has no vision tokenizer: give its folder or hub id as well "
                '(vision_tokenizer="BAAI/Emu3-VisionTokenizer" for Emu3)'
            )
        return self.codec

    def _picture_size(self, size: Size) -> ImageSize:
        factor, policy = self._needed_codec().spatial_factor, self._needed_codec().policy
        height, width = pixel_size(size, self.defaults, factor, policy.max_aspect_ratio)
        return ImageSize(height=height // factor, width=width // factor)

    def _film_size(self, size: Size, num_frames: int | None, fps: float | None) -> VideoSize:
        grid = self._picture_size(size)
        length = self.defaults.num_frames if num_frames is None else num_frames
        if length < 1:
            raise InputError(f"num_frames is {length}; it must be at least 1")
        rate = self.defaults.fps if fps is None else fps
        check_fps(rate)
        return VideoSize(height=grid.height, width=grid.width, num_frames=length, fps=rate)

    def _segment(self, source: Visual) -> Image | Video:
        codec = self._needed_codec()
        visual = read_visual(source, self.defaults.fps, codec.policy)
        if isinstance(visual, media.Film):
            return Video(codes=codec.encode_film(visual.frames), fps=visual.fps, num_frames=len(visual.frames))
        return Image(codes=codec.encode_picture(visual))

    def _pictures(self, completions: Sequence[Completion]) -> list[Picture]:
        grids = [_codes(completion) for completion in completions]
        missing = [codes for codes, each in zip(grids, completions, strict=True) if each.pixels is None]
        with self.completer.statistics.decoding_pixels():
            decoded = iter(self._needed_codec().decode_pictures(missing))
        return [
            Picture(
                pixels=next(decoded) if completion.pixels is None else completion.pixels,
                codes=codes,
                token_ids=completion.token_ids,
            )
            for codes, completion in zip(grids, completions, strict=True)
        ]

    def _films(self, completions: Sequence[Completion], size: ImageSize | VideoSize) -> list[Film]:
        assert isinstance(size, VideoSize)
        films, codec = list[Film](), self._needed_codec()
        for each in completions:
            codes, frames = _codes(each), each.pixels
            if frames is None:
                with self.completer.statistics.decoding_pixels():
                    frames = codec.decode_film(codes, size.num_frames)
            films.append(Film(frames=frames, fps=size.fps, codes=codes, token_ids=each.token_ids))
        return films


def _codes(completion: Completion) -> np.ndarray:
    assert completion.codes is not None, "a text answer has no codes"
    return completion.codes


def _bare(question: str) -> str:
    """Drop a full stop at the end: the chat template writes its own after every question."""
    return question.strip().removesuffix(".").rstrip()

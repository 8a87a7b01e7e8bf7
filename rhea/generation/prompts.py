"""What a person asks of a model, as prompts: the rules and defaults that Python, command line and server share.

A continued film is several prompts, one window after the other, so ``Continuation`` hands them out and takes what was
written; everything else is one prompt.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from rhea import media
from rhea.documents import formats
from rhea.documents.document import Image, ImageSize, Video, VideoSize
from rhea.errors import InputError
from rhea.generation.completion import Completion, Prompt
from rhea.generation.defaults import GenerationDefaults, check_fps, pixel_size
from rhea.generation.preview import Preview
from rhea.generation.results import Film, Visual, read_film, read_picture, read_visual
from rhea.generation.sampling import SamplingConfig
from rhea.logging import logger
from rhea.tokenizers.vision import VisionCodec

Size = str | Sequence[int] | None


class PromptWriter:
    """Writes prompts for one checkpoint. Settings left at None are its defaults; refusals are InputErrors."""

    def __init__(self, defaults: GenerationDefaults, codec: VisionCodec | None) -> None:
        self.defaults, self._codec = defaults, codec
        self._told_large = False

    @property
    def codec(self) -> VisionCodec:
        """The codec, or an InputError that says how to get one."""
        if self._codec is None:
            raise InputError(
                "this checkpoint has no vision tokenizer: give its folder or hub id as well "
                '(vision_tokenizer="BAAI/Emu3-VisionTokenizer" for Emu3)'
            )
        return self._codec

    def draw(
        self,
        text: str,
        *,
        size: Size = None,
        video: bool = False,
        num_frames: int | None = None,
        fps: float | None = None,
        guidance_scale: float | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        negative_prompt: str | None = None,
        seed: int = 0,
        sample_index: int = 0,
        best_of: int = 1,
        revise: bool | None = None,
    ) -> Prompt:
        """Ask for a picture, or a film with ``video``, of what a text says; see ``Rhea.generate``."""
        if not video and (num_frames is not None or fps is not None):
            raise InputError("num_frames and fps are for films: a picture has neither (video=True makes a film)")
        if not text.strip():
            raise InputError("the prompt is empty: say what is to be seen")
        usual = self.defaults.film_guidance_scale if video else self.defaults.guidance_scale
        scale = usual if guidance_scale is None else guidance_scale
        if video:
            temperature = self.defaults.film_temperature if temperature is None else temperature
            top_p = self.defaults.film_top_p if top_p is None else top_p
        unwanted = self.defaults.negative_prompt if negative_prompt is None else negative_prompt
        if video and revise:
            raise InputError("revise is for pictures: nothing was learned of films in other words")
        form, suffix = (formats.text_to_video, "") if video else (formats.text_to_image, self.defaults.prompt_suffix)
        return Prompt(
            document=form(text + suffix),
            next=self._film_size(size, num_frames, fps) if video else self._picture_size(size),
            negative=form(unwanted) if scale != 1 else None,
            sampling=self._sampling(scale, temperature, top_k, top_p),
            seed=seed,
            sample_index=sample_index,
            best_of=best_of,
            revise=not video and (self.defaults.revise if revise is None else revise),
        )

    def answer(
        self,
        source: Visual | None,
        turns: Sequence[tuple[str, str | None]],
        *,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        max_new_tokens: int | None = None,
        seed: int = 0,
        sample_index: int = 0,
    ) -> Prompt:
        """Ask the last of several questions, the earlier ones with their answers, about a picture, film or nothing."""
        bare = [(_bare(question), answer) for question, answer in turns]
        if not bare or not all(question for question, _ in bare):
            raise InputError("the question is empty")
        if any(answer is None for _, answer in bare[:-1]) or bare[-1][1] is not None:
            raise InputError("every question but the last one needs its answer, and the last one none")
        chosen = self.defaults.answer_temperature if temperature is None else temperature
        limit = self.defaults.max_answer_tokens if max_new_tokens is None else max_new_tokens
        if limit < 1:
            raise InputError(f"max_new_tokens is {limit}; it must be at least 1")
        return Prompt(
            document=formats.question_answering(None if source is None else self._segment(source), bare),
            sampling=self._sampling(1.0, chosen, top_k, top_p),
            seed=seed,
            sample_index=sample_index,
            max_new_tokens=limit,
        )

    def edit(
        self,
        sources: Sequence[Visual],
        instruction: str,
        *,
        size: Size = None,
        guidance_scale: float | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        negative_prompt: str | None = None,
        seed: int = 0,
        sample_index: int = 0,
    ) -> Prompt:
        """Ask for a picture from pictures and an instruction, of the first one's size unless another is given."""
        if not instruction.strip():
            raise InputError("the instruction is empty: say what is to be changed")
        if not sources:
            raise InputError("no picture to edit was given")
        codec = self.codec
        grids = codec.encode_pictures([read_picture(each, codec.policy) for each in sources])
        images = [Image(codes=codes) for codes in grids]
        scale = self.defaults.edit_guidance_scale if guidance_scale is None else guidance_scale
        chosen = self.defaults.edit_temperature if temperature is None else temperature
        unwanted = self.defaults.negative_prompt if negative_prompt is None else negative_prompt
        return Prompt(
            document=formats.editing(images, instruction),
            next=ImageSize(height=len(grids[0]), width=grids[0].shape[1]) if size is None else self._picture_size(size),
            negative=formats.editing(images, unwanted) if scale != 1 else None,
            sampling=self._sampling(scale, chosen, top_k, top_p),
            seed=seed,
            sample_index=sample_index,
        )

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
        negative_prompt: str | None = None,
        seed: int = 0,
    ) -> "Continuation":
        """Ask for the frames that follow a film's last ones."""
        codec = self.codec
        source = read_film(film, self.defaults.fps, codec.policy)
        scale = self.defaults.extend_guidance_scale if guidance_scale is None else guidance_scale
        chosen = self.defaults.extend_temperature if temperature is None else temperature
        unwanted = self.defaults.negative_prompt if negative_prompt is None else negative_prompt
        return Continuation(
            source,
            num_frames,
            defaults=self.defaults,
            codec=codec,
            caption=caption,
            unwanted=unwanted if scale != 1 else None,
            sampling=self._sampling(scale, chosen, top_k, top_p),
            seed=seed,
        )

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

    def _picture_size(self, size: Size) -> ImageSize:
        factor, policy = self.codec.spatial_factor, self.codec.policy
        height, width = pixel_size(size, self.defaults, factor, policy.max_aspect_ratio)
        larger = (height - factor) * (width - factor) > policy.max_pixels  # a ratio at the default area is rounded up
        if larger and not self._told_large:
            self._told_large = True
            most = math.isqrt(policy.max_pixels)
            logger.warning(
                f"this model learned pictures of up to {most}x{most} pixels; one of {width}x{height} may come out empty"
            )
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
        codec = self.codec
        visual = read_visual(source, self.defaults.fps, codec.policy)
        if isinstance(visual, media.Film):
            return Video(codes=codec.encode_film(visual.frames), fps=visual.fps, num_frames=len(visual.frames))
        return Image(codes=codec.encode_picture(visual))


class Continuation:
    """A film on its way to being longer: take ``prompt``, complete it, ``add`` what was written, until ``done``.

    The model looks back on the film's last ``defaults.given_frames`` frames and writes windows of
    ``defaults.num_frames``; each further window looks back on the one before.
    """

    def __init__(
        self,
        source: media.Film,
        num_frames: int | None,
        *,
        defaults: GenerationDefaults,
        codec: VisionCodec,
        caption: str,
        unwanted: str | None,
        sampling: SamplingConfig,
        seed: int,
    ) -> None:
        clip = codec.clip_frames
        given = min(defaults.given_frames, len(source.frames)) // clip
        wanted = defaults.num_frames - given * clip if num_frames is None else num_frames
        if not given:
            raise InputError(f"a film of {len(source.frames)} frames is too short to extend: {clip} are needed")
        if wanted < 1:
            raise InputError(f"num_frames is {wanted}; it must be at least 1")
        self._codec, self._given, self._wanted = codec, given, wanted
        self._caption, self._unwanted, self._fps = caption, unwanted, source.fps
        self._codes, self._token_ids = codec.encode_film(source.frames[-given * clip :]), list[int]()
        self._frames = codec.policy.resize_film(source.frames)
        self._length = len(self._frames) + wanted
        height, width = self._codes.shape[1:]
        self._template = Prompt(
            document=formats.text_to_video(""),
            next=VideoSize(height=height, width=width, num_frames=defaults.num_frames, fps=source.fps),
            sampling=sampling,
            seed=seed,
        )

    @property
    def done(self) -> bool:
        """Whether there are as many frames as were asked for."""
        return (len(self._codes) - self._given) * self._codec.clip_frames >= self._wanted

    def prompt(self) -> Prompt:
        """Return the prompt for the next window."""
        last, given = Video(codes=self._codes[-self._given :], fps=self._fps), self._given
        negative = None if self._unwanted is None else formats.video_prediction(last, given, self._unwanted)
        document = formats.video_prediction(last, given, self._caption)
        return replace(self._template, document=document, negative=negative, sample_index=len(self._codes))

    def shown(self, seen: Preview) -> Preview | None:
        """Return a preview of the present window as one of the whole film; None beyond its end."""
        clip, height = self._codec.clip_frames, self._codes.shape[1]
        rows, done = -(-self._wanted // clip) * height, (len(self._codes) - 2 * self._given) * height + seen.rows_done
        if done > rows:
            return None
        pixels = np.concatenate([self._frames, seen.pixels[self._given * clip :]])[: self._length]
        return replace(seen, pixels=pixels, rows_done=done, rows=rows)

    def add(self, completion: Completion) -> None:
        """Take what was written after the last prompt."""
        assert completion.codes is not None, "a film has codes"
        new = completion.codes[self._given :]
        self._codes = np.concatenate([self._codes, new])
        self._frames = np.concatenate([self._frames, self._codec.decode_film(new)])
        self._token_ids += completion.token_ids

    def film(self) -> Film:
        """Return the whole film, old frames and new, at the model's frame size."""
        return Film(
            frames=self._frames[: self._length],
            fps=self._fps,
            codes=self._codes,
            token_ids=self._token_ids,
            prompt=self._caption,
            seed=self._template.seed,
        )


def _bare(question: str) -> str:
    """Drop a full stop at the end: the chat template writes its own after every question."""
    return question.strip().removesuffix(".").rstrip()

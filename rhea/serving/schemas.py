"""What clients send: OpenAI's bodies, with a few fields more (seed, negative_prompt, guidance_scale, on_bad_media).

Fields that we do not know are ignored, as clients send more each month; those that we know and cannot honour are
refused rather than passed over in silence.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Prompt = Annotated[str, Field(min_length=1, max_length=32_000)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Scale = Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)]
Size = Annotated[str, Field(max_length=20, examples=["auto", "64x64", "16:9"])]
ImageFormat = Literal["png", "jpeg", "webp"]
OnBadMedia = Literal["error", "skip"]
_MAX_URL = 2**25


class _Body(BaseModel):
    """A request; those of its fields in ``_refused`` may only have the values listed there."""

    model_config = ConfigDict(extra="allow", json_schema_extra={"additionalProperties": True})
    model: Annotated[str | None, Field(max_length=200)] = None

    @model_validator(mode="after")
    def _honest(self) -> "_Body":
        for name, allowed in self._refused().items():
            if (value := getattr(self, name, None)) is not None and value not in allowed:
                raise ValueError(f"{name} is not supported here: leave it out")
        return self

    def _refused(self) -> dict[str, tuple[Any, ...]]:
        return {}


class _Sampled(_Body):
    temperature: Annotated[float | None, Field(ge=0, le=100, allow_inf_nan=False)] = None
    top_p: Annotated[float | None, Field(gt=0, le=1, allow_inf_nan=False)] = None
    top_k: Annotated[int | None, Field(ge=0, le=2**31)] = None
    seed: Seed | None = None


class TextPart(BaseModel):
    type: Literal["text"]
    text: Annotated[str, Field(max_length=200_000)]


class Url(BaseModel):
    url: Annotated[str, Field(min_length=1, max_length=_MAX_URL, examples=["data:image/png;base64,iVBORw0KGgo="])]


class ImagePart(BaseModel):
    type: Literal["image_url"]
    image_url: Url


class VideoPart(BaseModel):
    type: Literal["video_url"]
    video_url: Url


Part = Annotated[TextPart | ImagePart | VideoPart, Field(discriminator="type")]


class Message(BaseModel):
    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[str, Field(max_length=200_000)] | Annotated[list[Part], Field(max_length=64)] | None = None


class StreamOptions(BaseModel):
    include_usage: bool = False


class ChatBody(_Sampled):
    """``POST /v1/chat/completions``."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=256)]
    modalities: list[Literal["text", "image"]] | None = None
    """With "image" the last message is drawn, or the pictures in it are edited by it."""
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[int | None, Field(ge=1, le=2**31)] = None
    max_completion_tokens: Annotated[int | None, Field(ge=1, le=2**31)] = None
    size: Size | None = None
    negative_prompt: Annotated[str | None, Field(max_length=32_000)] = None
    guidance_scale: Scale | None = None
    on_bad_media: OnBadMedia = "error"

    def _refused(self) -> dict[str, tuple[Any, ...]]:
        return {
            "n": (1,),
            "stop": ([],),
            "tools": ([],),
            "functions": ([],),
            "logprobs": (False,),
            "logit_bias": ({},),
            "audio": (),
            "frequency_penalty": (0,),
            "presence_penalty": (0,),
            "response_format": ({"type": "text"},),
        }


class _Pictures(_Sampled):
    prompt: Prompt
    n: Annotated[int | None, Field(ge=1, le=10)] = 1
    size: Size | None = None
    response_format: Literal["b64_json", "url"] | None = None
    """ "url" gives data: URLs; nothing is kept on the server."""
    output_format: ImageFormat | None = None
    output_compression: Annotated[int | None, Field(ge=0, le=100)] = None
    """Quality of JPEG and WebP, 95 if not given."""
    negative_prompt: Annotated[str | None, Field(max_length=32_000)] = None
    guidance_scale: Scale | None = None
    stream: bool | None = False
    partial_images: Annotated[int | None, Field(ge=0, le=3)] = None

    def _refused(self) -> dict[str, tuple[Any, ...]]:
        return {"background": ("auto", "opaque"), "mask": ()}

    @model_validator(mode="after")
    def _one_stream(self) -> "_Pictures":
        if self.stream and (self.n or 1) > 1:
            raise ValueError("n: a stream is of one picture; send one request for each")
        if self.partial_images and not self.stream:
            raise ValueError("partial_images: partial pictures come in a stream only; set stream to true")
        return self


class GenerationBody(_Pictures):
    """``POST /v1/images/generations``."""

    best_of: Annotated[int | None, Field(ge=1, le=8)] = None
    """Draw each picture so many times and keep the one that the model itself finds nearest to the prompt."""
    revise: bool | None = None
    """Whether the model first puts the prompt in words that it draws more surely; by default as it prefers."""

    @model_validator(mode="after")
    def _known_at_the_end(self) -> "GenerationBody":
        if self.partial_images and (self.best_of or 1) > 1:
            raise ValueError("partial_images: with best_of there are none; which picture is kept is known at the end")
        return self


class EditFields(_Pictures):
    """The fields of the form for ``POST /v1/images/edits``, beside its files ``image`` or ``image[]``."""

    on_bad_media: OnBadMedia = "error"

    def _refused(self) -> dict[str, tuple[Any, ...]]:
        return super()._refused() | {"best_of": (1, "1"), "revise": (False, "false")}

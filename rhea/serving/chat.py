"""``POST /v1/chat/completions``: answers about a picture, a film or nothing, and pictures where they are asked for.

The model's chat has one place for a picture or film, before the first question, so one is taken, wherever it stands. It
knows no system messages: they are written before the first question.
"""

import contextlib
import time
import uuid
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from rhea.serving.backend import Answer, Clip, Done, Draw, Edit, Sampling, Task, TextDelta
from rhea.serving.errors import ApiError
from rhea.serving.images import fresh_seed, sampling_of, wanted_size
from rhea.serving.pictures import data_url, encoded
from rhea.serving.schemas import ChatBody, Message, TextPart, VideoPart
from rhea.serving.service import EventStream, Service


@dataclass(kw_only=True)
class _Conversation:
    """Messages as the model knows them."""

    turns: list[tuple[str, str | None]] = field(default_factory=list)
    visuals: list[np.ndarray | Clip] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def router(service: Service) -> APIRouter:
    """Return the endpoint."""
    routes = APIRouter(tags=["chat"])

    @routes.post("/v1/chat/completions")
    async def complete(body: ChatBody, request: Request) -> Response:
        """Answer, or draw if ``modalities`` has "image"."""
        service.check_model(body.model)
        return await service.unless_gone(request, _answer(service, body))

    return routes


async def _answer(service: Service, body: ChatBody) -> Response:
    conversation = await _read(service, body)
    task, head = _task(body, conversation), _head(service, conversation.warnings)
    if body.stream:
        return await EventStream.begin(service, _chunks(service, body, task, head), last="[DONE]")
    done = await service.done(task)
    message = {"role": "assistant", "content": await _content(done), "refusal": None}
    choice = {"index": 0, "message": message, "finish_reason": done.finish_reason, "logprobs": None}
    return JSONResponse({**head, "object": "chat.completion", "choices": [choice], "usage": _usage(done)})


def _head(service: Service, warnings: list[str]) -> dict[str, Any]:
    head = {
        "id": f"chatcmpl-{uuid.uuid4().hex}",
        "created": int(time.time()),
        "model": service.backend.info.name,
    }
    return head | ({"warnings": warnings} if warnings else {})


async def _content(done: Done) -> str | list[dict[str, Any]]:
    if done.pixels is None:
        return done.text
    url = data_url(await encoded(done.pixels))
    return [{"type": "image_url", "image_url": {"url": url}}]


async def _chunks(
    service: Service, body: ChatBody, task: Task, head: dict[str, Any]
) -> AsyncGenerator[dict[str, Any], None]:
    def chunk(delta: dict[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "finish_reason": finish_reason, "logprobs": None}
        return {**head, "object": "chat.completion.chunk", "choices": [choice]}

    role = {"role": "assistant"}
    async with contextlib.aclosing(service.run(task)) as events:
        async for event in events:
            if isinstance(event, TextDelta):
                yield chunk({**role, "content": event.text})
                role = {}
            elif isinstance(event, Done):
                if event.pixels is not None:
                    yield chunk({**role, "content": await _content(event)})
                    role = {}
                yield chunk({**role}, event.finish_reason)
                if body.stream_options is not None and body.stream_options.include_usage:
                    yield {**head, "object": "chat.completion.chunk", "choices": [], "usage": _usage(event)}


def _usage(done: Done) -> dict[str, int]:
    total = done.prompt_tokens + done.new_tokens
    return {"prompt_tokens": done.prompt_tokens, "completion_tokens": done.new_tokens, "total_tokens": total}


def _task(body: ChatBody, conversation: _Conversation) -> Task:
    turns, visuals = conversation.turns, conversation.visuals
    if "image" in (body.modalities or []):
        body.seed = fresh_seed() if body.seed is None else body.seed
        text, pictures = turns[-1][0], tuple(each for each in visuals if not isinstance(each, Clip))
        if len(pictures) < len(visuals):
            raise ApiError(400, "a picture is drawn from a text and pictures, not from films", code="unsupported")
        sampling = sampling_of(body)
        if pictures:
            return Edit(images=pictures, instruction=text, size=wanted_size(body.size), sampling=sampling)
        return Draw(prompt=text, size=wanted_size(body.size), sampling=sampling)
    if len(visuals) > 1:
        message = "the model looks at one picture or film in a conversation: send the one that is asked about"
        raise ApiError(400, message, code="too_many_media", param="messages")
    return Answer(
        turns=tuple(turns),
        visual=visuals[0] if visuals else None,
        max_new_tokens=body.max_completion_tokens or body.max_tokens,
        sampling=Sampling(
            temperature=body.temperature,
            top_k=body.top_k,
            top_p=body.top_p,
            seed=fresh_seed() if body.seed is None else body.seed,
        ),
    )


async def _read(service: Service, body: ChatBody) -> _Conversation:
    """Turn messages into questions with answers, and their media into pixels."""
    found, asked, system = _Conversation(), list[str](), list[str]()
    for number, message in enumerate(body.messages):
        text = await _text(service, body, message, number, found)
        if message.role in ("system", "developer"):
            system.append(text)
        elif message.role == "user":
            asked.append(text)
        elif not asked:
            raise ApiError(400, "an answer needs a question before it", code="invalid_messages", param="messages")
        else:
            found.turns.append(("\n".join(asked), text))
            asked = []
    question = "\n".join(asked)
    if not question.strip():
        raise ApiError(
            400, "the last message must be the user's and have text", code="invalid_messages", param="messages"
        )
    found.turns.append((question, None))
    if system:
        found.turns[0] = ("\n".join([*system, found.turns[0][0]]), found.turns[0][1])
    return found


async def _text(service: Service, body: ChatBody, message: Message, number: int, found: _Conversation) -> str:
    """Return a message's text; decode its media into ``found``."""
    if not isinstance(message.content, list):
        return message.content or ""
    texts = []
    for place, part in enumerate(message.content):
        if isinstance(part, TextPart):
            texts.append(part.text)
            continue
        if message.role != "user":
            raise ApiError(400, "pictures and films come from the user", code="invalid_messages", param="messages")
        where = f"messages.{number}.content.{place}"
        try:
            if isinstance(part, VideoPart):
                data = await service.guard.load(part.video_url.url, param=where)
                found.visuals.append(await service.film(data, param=where))
            else:
                data = await service.guard.load(part.image_url.url, param=where)
                found.visuals.append(await service.picture(data, param=where))
        except ApiError as error:
            if body.on_bad_media != "skip" or error.status >= 500:
                raise
            found.warnings.append(f"{where} was left out: {error.message}")
    return "\n".join(texts)

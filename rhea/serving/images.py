"""``POST /v1/images/generations`` and ``/v1/images/edits``: pictures, and partial ones while they are drawn.

Without a seed each request draws another picture; the seed that was taken is in the answer, to have it again.
"""

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncGenerator
from dataclasses import replace
from typing import Any

import numpy as np
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException

from rhea.serving.backend import Done, Draw, Edit, Partial, Sampling
from rhea.serving.errors import ApiError
from rhea.serving.pictures import data_url, encoded, size_of
from rhea.serving.schemas import EditFields, GenerationBody, _Pictures
from rhea.serving.service import EventStream, Service

_MOST_FILES = 16


def _form_schema() -> dict[str, Any]:
    """Describe the form of an edit: it is read by hand, because files may come under two names."""
    schema = EditFields.model_json_schema()
    files = {"type": "array", "items": {"type": "string", "format": "binary"}, "minItems": 1, "maxItems": _MOST_FILES}
    schema["properties"] |= {"image": files}
    schema["required"] = [*schema["required"], "image"]
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}}}


def sampling_of(body: Any, *, sample_index: int = 0) -> Sampling:
    """Return how a body wants its tokens drawn; its seed must be set."""
    return Sampling(
        temperature=body.temperature,
        top_k=body.top_k,
        top_p=body.top_p,
        guidance_scale=body.guidance_scale,
        negative_prompt=body.negative_prompt,
        seed=body.seed,
        sample_index=sample_index,
    )


def wanted_size(size: str | None) -> str | None:
    """Return a size for the backend; None lets the model choose."""
    return None if size in (None, "auto") else size


def fresh_seed() -> int:
    """Return a seed that nobody can foresee, exact in JavaScript."""
    return secrets.randbelow(2**31)


def router(service: Service) -> APIRouter:
    """Return the two endpoints."""
    routes = APIRouter(tags=["images"])

    @routes.post("/v1/images/generations")
    async def generate(body: GenerationBody, request: Request) -> Response:
        """Draw pictures from a text."""
        service.check_model(body.model)
        body.seed = fresh_seed() if body.seed is None else body.seed
        task = Draw(
            prompt=body.prompt,
            size=wanted_size(body.size),
            best_of=body.best_of or 1,
            revise=body.revise,
            sampling=sampling_of(body),
        )
        return await service.unless_gone(request, _answer(service, body, task, [], "image_generation"))

    @routes.post("/v1/images/edits", openapi_extra=_form_schema())
    async def edit(request: Request) -> Response:
        """Change pictures by an instruction."""
        async with contextlib.AsyncExitStack() as stack:
            form = await _form(request)
            stack.push_async_callback(form.close)
            given = {name: value for name, value in form.multi_items() if isinstance(value, str) and value}
            body = EditFields.model_validate(given)
            files = [each for name, each in form.multi_items() if name in ("image", "image[]")]
            service.check_model(body.model)
            body.seed = fresh_seed() if body.seed is None else body.seed
            work = _edited(service, body, files)
            return await service.unless_gone(request, work)

    return routes


async def _form(request: Request) -> FormData:
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        raise ApiError(400, "send a form (multipart/form-data) with prompt and image", code="invalid_form")
    try:
        return await request.form(max_files=_MOST_FILES, max_fields=64)
    except Exception as error:  # the parser raises several kinds, in its own words
        if isinstance(error, MultiPartException) or getattr(error, "status_code", 400) == 400:
            raise ApiError(400, f"the form is damaged, or has over {_MOST_FILES} files", code="invalid_form") from None
        raise


async def _edited(service: Service, body: EditFields, files: list[Any]) -> Response:
    images, warnings = list[np.ndarray](), list[str]()
    for file in files:
        if not isinstance(file, UploadFile):
            raise ApiError(400, "image must be a file", code="invalid_form", param="image")
        try:
            images.append(await service.picture(await file.read(), param="image"))
        except ApiError as error:
            if body.on_bad_media != "skip" or error.status >= 500:
                raise
            warnings.append(f"image {len(images) + len(warnings) + 1} was left out: {error.message}")
    if not images:
        said = "no picture to edit was given" if not warnings else "none of the pictures could be read"
        raise ApiError(400, said, code="no_image", param="image")
    task = Edit(images=tuple(images), instruction=body.prompt, size=wanted_size(body.size), sampling=sampling_of(body))
    return await _answer(service, body, task, warnings, "image_edit")


async def _answer(service: Service, body: _Pictures, task: Draw | Edit, warnings: list[str], kind: str) -> Response:
    if body.stream:
        return await EventStream.begin(service, _events(service, body, task, warnings, kind))
    async with asyncio.TaskGroup() as group:
        work = [
            group.create_task(service.done(replace(task, sampling=sampling_of(body, sample_index=index))))
            for index in range(body.n or 1)
        ]
    results = [each.result() for each in work]
    output = body.output_format or "png"
    data = []
    for done in results:
        assert done.pixels is not None, "a picture was drawn"
        b64 = await encoded(done.pixels, output, body.output_compression)
        picture = {"url": data_url(b64, output)} if body.response_format == "url" else {"b64_json": b64}
        data.append(picture | _revised(done))
    answer = {
        "created": int(time.time()),
        "data": data,
        "size": size_of(results[0].pixels),  # type: ignore[arg-type]
        "output_format": output,
        "background": "opaque",
        "usage": _usage(results),
        "seed": body.seed,
    }
    return JSONResponse(answer | ({"warnings": warnings} if warnings else {}))


async def _events(
    service: Service, body: _Pictures, task: Draw | Edit, warnings: list[str], kind: str
) -> AsyncGenerator[dict[str, Any], None]:
    """Yield partial pictures at even distances and the whole one, as OpenAI's events."""
    output, sent = body.output_format or "png", 0

    async def event(name: str, pixels: np.ndarray, **more: Any) -> dict[str, Any]:
        return {
            "type": f"{kind}.{name}",
            "b64_json": await encoded(pixels, output, body.output_compression),
            "created_at": int(time.time()),
            "size": size_of(pixels),
            "quality": "auto",
            "background": "opaque",
            "output_format": output,
            **more,
        }

    async with contextlib.aclosing(service.run(task, partials=body.partial_images or 0)) as events:
        async for each in events:
            if isinstance(each, Partial):
                yield await event("partial_image", each.pixels, partial_image_index=sent)
                sent += 1
            elif isinstance(each, Done):
                assert each.pixels is not None, "a picture was drawn"
                more = ({"warnings": warnings} if warnings else {}) | _revised(each)
                yield await event("completed", each.pixels, usage=_usage([each]), seed=body.seed, **more)


def _revised(done: Done) -> dict[str, str]:
    return {} if done.revised_prompt is None else {"revised_prompt": done.revised_prompt}


def _usage(results: list[Done]) -> dict[str, Any]:
    read, written = sum(done.prompt_tokens for done in results), sum(done.new_tokens for done in results)
    return {
        "input_tokens": read,
        "output_tokens": written,
        "total_tokens": read + written,
        "input_tokens_details": {"text_tokens": read, "image_tokens": 0},
    }

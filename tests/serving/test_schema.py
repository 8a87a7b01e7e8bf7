"""Requests made up from the app's own OpenAPI document: whatever comes, it answers in order, never with a 5xx."""

import contextlib
import tempfile
from collections.abc import AsyncGenerator
from typing import Any

import hypothesis
import numpy as np
import schemathesis
from served import PICTURE, FakeBackend, TrustingGuard, drawn

from rhea.serving.app import create_app
from rhea.serving.backend import Answer, Done, Draw, Event, Extend, Task, TextDelta
from rhea.serving.jobs import JobStore
from rhea.serving.videos import videos_router


async def plays(task: Task) -> AsyncGenerator[Event, None]:
    if isinstance(task, Answer):
        yield TextDelta(text="two")
        yield Done(text="two")
    elif isinstance(task, Extend) or (isinstance(task, Draw) and task.num_frames):
        yield Done(pixels=np.stack([PICTURE] * 2), fps=8.0)
    else:
        async for event in drawn(task):
            yield event


class LenientGuard(TrustingGuard):
    """Sees a picture in everything, so that what is made up gets further."""

    async def picture(self, data: bytes, *, param: str | None = None) -> np.ndarray:
        return PICTURE

    async def load(self, url: str, *, param: str | None = None) -> bytes:
        return b""


BACKEND, GUARD, FOLDER = FakeBackend(plays), LenientGuard(), tempfile.TemporaryDirectory()
APP = create_app(BACKEND, guard=GUARD)
APP.include_router(videos_router(BACKEND, GUARD, JobStore(FOLDER.name)))
schema = schemathesis.openapi.from_asgi("/openapi.json", APP)


@schema.parametrize()
@hypothesis.settings(
    max_examples=10,
    derandomize=True,
    deadline=None,
    phases=[hypothesis.Phase.explicit, hypothesis.Phase.generate],
    suppress_health_check=list(hypothesis.HealthCheck),
)
def test_every_answer_is_in_order(case: Any) -> None:
    if case.path.endswith("completions") and isinstance(case.body, dict):
        with contextlib.suppress(AttributeError, KeyError):  # most conversations that are made up end with no question
            case.body["messages"].append({"role": "user", "content": "two"})
    answer = case.call()
    assert answer.status_code < 500, answer.text
    if answer.status_code >= 400:
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


def test_the_document_names_every_endpoint() -> None:
    paths = set(APP.openapi()["paths"])
    assert paths >= {"/v1/chat/completions", "/v1/images/generations", "/v1/images/edits", "/v1/models"}
    assert paths >= {"/v1/videos", "/v1/videos/extensions", "/v1/videos/{video_id}", "/v1/videos/{video_id}/content"}
    assert paths >= {"/health", "/ready", "/metrics"}

"""The OpenAI-compatible app over a backend: models, health, metrics, chat and pictures.

    app = create_app(backend, ServerSettings(api_keys=("secret",)))

The backend is started by who calls (``serve.py``); the app only asks it.
"""

from typing import Any

from fastapi import FastAPI
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.types import ASGIApp, Receive, Scope, Send

import rhea
from rhea.serving import chat, errors, images
from rhea.serving.backend import Backend
from rhea.serving.limits import Door, ServerSettings
from rhea.serving.service import Guard, Service
from rhea.serving.untrusted import MediaGuard

_DESCRIPTION = "Pictures, films and answers by next-token prediction, as OpenAI's clients ask for them."


def create_app(backend: Backend, settings: ServerSettings | None = None, guard: Guard | None = None) -> FastAPI:
    """Return the app. ``app.state.service`` is what its endpoints share: backend, guard, settings, metrics."""
    settings = settings or ServerSettings()
    service = Service(backend, settings, guard or MediaGuard())
    app = FastAPI(title="Rhea", version=rhea.__version__, description=_DESCRIPTION)
    app.state.service = service
    errors.install(app, service.refused)
    app.include_router(chat.router(service))
    app.include_router(images.router(service))
    _operate(app, service)
    metrics = service.metrics
    app.add_middleware(_Counted, service=service)
    app.add_middleware(
        Door,
        settings=settings,
        refused=lambda code: metrics.refusals.labels(code).inc(),
        inside=metrics.open.set,
    )
    return app


def _operate(app: FastAPI, service: Service) -> None:
    """Add what operators and clients ask about the server itself."""
    backend = service.backend

    @app.get("/health", tags=["server"])
    async def health() -> Response:
        """Tell whether the engine is alive; 503 while it is not. Needs no key."""
        return JSONResponse({"status": "alive"}) if backend.ready else _down("the engine is down")

    @app.get("/ready", tags=["server"])
    async def ready() -> Response:
        """Tell whether requests are taken now."""
        return JSONResponse({"status": "ready"}) if backend.ready else _down("the engine is down")

    @app.get("/metrics", tags=["server"])
    async def metrics() -> Response:
        """Tell all counters in Prometheus' text format."""
        text = service.metrics.render(await backend.counters(), backend.ready)
        return Response(text, media_type=CONTENT_TYPE_LATEST)

    @app.get("/v1/models", tags=["models"])
    async def models() -> dict[str, Any]:
        """List the one model."""
        return {"object": "list", "data": [_model(service)]}

    @app.get("/v1/models/{model:path}", tags=["models"])
    async def model(model: str) -> dict[str, Any]:
        """Describe the model."""
        service.check_model(model)
        return _model(service)


def _down(message: str) -> Response:
    return errors.ApiError(503, message, code="engine_down", headers={"Retry-After": "5"}).response()


def _model(service: Service) -> dict[str, Any]:
    info = service.backend.info
    return {
        "id": info.name,
        "object": "model",
        "created": service.created,
        "owned_by": "rhea",
        "trained_on": info.trained_on,
        "max_model_len": info.max_tokens,
        "default_size": f"{info.width}x{info.height}",
    }


class _Counted:
    """ASGI middleware that counts answers by endpoint and status."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app, self._service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def counted(message: Any) -> None:
            if message["type"] == "http.response.start":
                route = scope.get("route")
                endpoint = getattr(route, "path", "other")
                self._service.metrics.requests.labels(endpoint, str(message["status"])).inc()
            await send(message)

        await self._app(scope, receive, counted if scope["type"] == "http" else send)

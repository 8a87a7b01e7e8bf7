"""One shape for every error that a client sees: OpenAI's ``{"error": {"message", "type", "param", "code"}}``.

Messages are written here or are InputErrors, which are written for users; whatever else is raised becomes a sentence
that tells nothing. So no stack trace, path or decoder's message ever leaves the server.
"""

from collections.abc import Callable
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import ValidationError
from starlette.exceptions import HTTPException

from rhea.errors import BusyError, InputError
from rhea.serving.backend import BackendDiedError

_KINDS = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
_CODES = {400: "bad_request", 404: "not_found", 405: "method_not_allowed", 413: "request_too_large"}
_HTTP = {
    400: "the request could not be read",
    404: "there is nothing at this address",
    405: "this address does not take this method",
    413: "the request is too large",
}


class ApiError(Exception):
    """What a client is told: a status and one sentence that says what to do."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str,
        kind: str | None = None,
        param: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param, self.headers = status, message, code, param, headers or {}
        self.kind = kind or _KINDS.get(status, "invalid_request_error" if status < 500 else "server_error")

    @property
    def body(self) -> dict[str, Any]:
        """The error object."""
        message = self.message.encode("utf-8", "replace").decode()  # a lone surrogate from a request has no UTF-8
        return {"error": {"message": message, "type": self.kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        """Return the answer that says so."""
        return JSONResponse(self.body, self.status, self.headers)


def api_error(error: BaseException) -> ApiError:
    """Return what a client is told of any error."""
    if isinstance(error, ExceptionGroup):  # several pictures of one request: the first that failed
        return api_error(error.exceptions[0])
    if isinstance(error, ApiError):
        return error
    if isinstance(error, InputError):
        return ApiError(400, str(error), code="invalid_input")
    if isinstance(error, BusyError):
        return ApiError(429, str(error), code="busy", headers={"Retry-After": "1"})
    if isinstance(error, BackendDiedError):
        message = str(error) or "the engine broke down while it worked on this: try again"
        return ApiError(503, message, code="engine_down", headers={"Retry-After": "5"})
    if isinstance(error, TimeoutError):
        return ApiError(504, "the model did not finish in time: ask for less", code="deadline_exceeded")
    if isinstance(error, RequestValidationError | ValidationError):
        return _invalid(error)
    if isinstance(error, HTTPException):
        message = _HTTP.get(error.status_code, "the request was refused")
        code, headers = _CODES.get(error.status_code, "refused"), dict(error.headers or {})
        return ApiError(error.status_code, message, code=code, headers=headers)
    return ApiError(500, "something broke inside the server; its log tells what", code="internal_error")


def _invalid(error: RequestValidationError | ValidationError) -> ApiError:
    """Tell the first thing that is wrong with a request, and where; never what was sent."""
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        return ApiError(400, "the body is not valid JSON", code="invalid_json")
    path = ".".join(str(part) for part in first["loc"] if part not in ("body", "query", "path"))[:100] or None
    said = first["msg"].removeprefix("Value error, ")
    return ApiError(400, f"{path}: {said}" if path else said, code="invalid_value", param=path)


def install(app: FastAPI, refused: Callable[[BaseException], ApiError] = api_error) -> None:
    """Let an app answer every error in this shape; ``refused`` may count them."""

    async def answer(_: Request, error: Exception) -> JSONResponse:
        return refused(error).response()

    for kind in (ApiError, InputError, BusyError, BackendDiedError, TimeoutError, ExceptionGroup):
        app.add_exception_handler(kind, answer)
    for ours in (RequestValidationError, ValidationError, HTTPException, Exception):
        app.add_exception_handler(ours, answer)

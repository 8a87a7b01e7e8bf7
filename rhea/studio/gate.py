"""What Gradio would do for any visitor, and this page does not: read files, fetch addresses, cut films.

Gradio lets a client name a file by its path or address in place of an upload, and serves addresses itself. A path is
only held against the folder of uploads where an app was launched, not where it was mounted, so a mounted one would hand
out every file of this machine; and what is fetched or cut knows nothing of our limits (``rhea.serving.untrusted``).
"""

import re

import gradio as gr
from fastapi import FastAPI, HTTPException, Request
from gradio import processing_utils
from starlette.responses import PlainTextResponse
from starlette.routing import Match
from starlette.types import ASGIApp, Receive, Scope, Send

_METHODS = ("GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE")
_SHUT = re.compile(r"/(?:file[=/]\s*https?:|proxy=|process_recording|vibe-)", re.IGNORECASE)


class Gate:
    """ASGI middleware that answers 404 for the addresses of Gradio's that fetch and cut."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        shut = scope["type"] == "http" and _SHUT.search(scope["path"])
        await (PlainTextResponse("there is nothing at this address", 404) if shut else self._app)(scope, receive, send)


def shut(blocks: gr.Blocks) -> None:
    """Take only files that were uploaded, and fetch none; the latter for all of Gradio in this process."""
    blocks.has_launched = True
    processing_utils.async_ssrf_protected_download = _nothing


def keep(app: FastAPI, prefix: str) -> None:
    """Let the app itself refuse what is not there under a prefix, rather than the page that is mounted after this."""

    @app.api_route(f"{prefix}{{rest:path}}", methods=[*_METHODS], include_in_schema=False)
    async def refuse(request: Request) -> None:
        here = [route for route in app.router.routes if route.matches(request.scope)[0] is Match.PARTIAL]
        allowed = {method for route in here for method in getattr(route, "methods", None) or ()}
        raise HTTPException(405, headers={"Allow": ", ".join(sorted(allowed))}) if here else HTTPException(404)


async def _nothing(url: str, cache_dir: str) -> str:
    raise gr.Error("nothing is fetched from other servers: upload the file")

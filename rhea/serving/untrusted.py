"""Pictures and films from strangers: what is taken, and how their bytes become pixels without harm to anybody else.

The format is told by the first bytes, never by a name or a declared type; decoding happens in a child process per file
(``decode.py``), with sizes read from the header first. A decoder that crashes, hangs or eats memory costs one request.
Every message is written here: decoders' words have told attackers addresses before.
"""

import asyncio
import base64
import binascii
import contextlib
import json
import math
import os
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from rhea.serving.backend import Clip
from rhea.serving.decode import HEAD_BYTES, MAX_HEAD, PATIENCE, Limits, request_head
from rhea.serving.errors import ApiError

_TYPES = {
    "image/png": "PNG",
    "image/jpeg": "JPEG",
    "image/jpg": "JPEG",
    "image/webp": "WEBP",
    "image/gif": "GIF",
    "video/mp4": "MP4",
    "video/webm": "WEBM",
}
_PICTURES = ("PNG", "JPEG", "WEBP", "GIF")
_FILMS = ("MP4", "WEBM", "GIF")
_MP4_BRANDS = set(b"isom iso2 iso3 iso4 iso5 iso6 iso7 iso8 iso9 mp41 mp42 avc1 dash M4VH MSNV".split()) | {b"M4V "}
"""Others, such as those of HEIC and AVIF, are in the same container but no films."""
_COMMAND = ("-P", "-m", "rhea.serving.decode")
_ENVIRONMENT = ("PATH", "HOME", "PYTHONPATH", "LD_LIBRARY_PATH")
"""What a decoder may know: no keys, no proxies."""
_MAX_DATA_HEADER = 64


@dataclass(frozen=True, kw_only=True)
class MediaLimits(Limits):
    """What one picture or film may be, and what decoding it may take."""

    max_bytes: int = 20 * 2**20
    min_side: int = 8
    max_side: int = 8192
    max_pixels: int = 2**24
    max_frames: int = 512
    max_film_pixels: int = 2**25
    max_seconds: float = 60.0
    decoding_seconds: float = 10.0
    decoding_memory: int = 2**30


class Fetcher(Protocol):
    """Gets what an https address names; raises ApiError."""

    async def get(self, url: str) -> bytes: ...


class MediaGuard:
    """Turns bytes and addresses that came with a request into pixels, or into an ApiError that says what to do."""

    def __init__(self, limits: MediaLimits | None = None, *, fetcher: Fetcher | None = None, children: int = 2) -> None:
        """Without a ``fetcher`` only data URLs are loaded. At most ``children`` files are decoded at once."""
        self.limits = limits or MediaLimits()
        self._fetcher = fetcher
        self._free = asyncio.Semaphore(children)
        self._nursery = _Nursery()

    async def start(self) -> None:
        """Start the forking process now rather than with the first file."""
        self._nursery.start()

    async def stop(self) -> None:
        """End the forking process; children at work end by themselves."""
        await asyncio.to_thread(self._nursery.stop)

    async def picture(self, data: bytes, *, param: str | None = None) -> np.ndarray:
        """Decode PNG, JPEG, WebP or the first frame of a GIF to uint8 RGB [H, W, 3]; ``param`` is named in errors."""
        found = self._checked(data, "picture", _PICTURES, param)
        _, pixels = await self._decode("picture", found, data, param)
        return pixels

    async def film(self, data: bytes, *, param: str | None = None) -> Clip:
        """Decode MP4, WebM or GIF; ``param`` is named in errors."""
        found = self._checked(data, "film", _FILMS, param)
        head, pixels = await self._decode("film", found, data, param)
        return Clip(frames=pixels, fps=head["fps"])

    async def load(self, url: str, *, param: str | None = None) -> bytes:
        """Return what a data URL holds or, if remote addresses are allowed, what an https address names."""
        if url[:5].lower() == "data:":
            return await asyncio.to_thread(self._unpack, url, param)
        if url[:8].lower() != "https://":
            raise _error("unsupported_url", "media are given as data: URLs in base64, or by https:// addresses", param)
        if self._fetcher is None:
            raise _error(
                "remote_media_disabled",
                "this server fetches nothing from other servers: send the file itself as a data: URL in base64",
                param,
            )
        try:
            return await self._fetcher.get(url)
        except ApiError as error:
            error.param = error.param or param
            raise

    def _unpack(self, url: str, param: str | None) -> bytes:
        comma = url.find(",", 0, _MAX_DATA_HEADER)
        kind, _, encoding = url[5 : max(comma, 5)].lower().partition(";")
        if comma < 0 or encoding != "base64" or kind not in _TYPES:
            allowed = ", ".join(_TYPES)
            raise _error(
                "invalid_data_url", f"a data: URL reads data:TYPE;base64,DATA with TYPE one of {allowed}", param
            )
        if (len(url) - comma - 1) // 4 * 3 > self.limits.max_bytes + 2:
            raise self._too_large(param)
        try:
            data = base64.b64decode(url[comma + 1 :].encode("ascii"), validate=True)
        except (binascii.Error, UnicodeEncodeError):
            raise _error(
                "invalid_data_url", "the data: URL holds no valid base64: encode the whole file", param
            ) from None
        if data and media_format(data) != _TYPES[kind]:
            raise _error(
                "media_type_mismatch", f"the data: URL declares {kind}, but its data are something else", param
            )
        return data

    def _checked(self, data: bytes, what: str, allowed: tuple[str, ...], param: str | None) -> str:
        if not data:
            raise _error("empty_media", f"the {what} is empty: it has no bytes", param)
        if len(data) > self.limits.max_bytes:
            raise self._too_large(param)
        found = media_format(data)
        if found not in allowed:
            raise _error("unsupported_format", f"a {what} must be a file in the format {' or '.join(allowed)}", param)
        return found

    def _too_large(self, param: str | None) -> ApiError:
        message = f"the file is too large: at most {self.limits.max_bytes} bytes are allowed"
        return ApiError(413, message, code="media_too_large", param=param)

    async def _decode(self, what: str, found: str, data: bytes, param: str | None) -> tuple[dict[str, Any], np.ndarray]:
        async with self._free:
            with self._nursery.child() as connection:
                try:
                    async with asyncio.timeout(PATIENCE * self.limits.decoding_seconds):
                        head, pixels = await self._converse(connection, what, found, data)
                except TimeoutError:
                    head = {"refused": "late"}
                except (OSError, EOFError, ValueError, TypeError, KeyError, RecursionError):
                    head = {"refused": "crashed"}  # or talked nonsense, which is no different
        if "refused" in head:
            code, message = self._refusal(what, head)
            raise _error(code, message, param)
        return head, pixels

    async def _converse(
        self, connection: socket.socket, what: str, found: str, data: bytes
    ) -> tuple[dict[str, Any], np.ndarray]:
        """Hand a child its file and hear its answer, believing nothing of it; the child is dead when this returns."""
        loop = asyncio.get_running_loop()
        child = await _born(connection)
        try:
            await loop.sock_sendall(connection, request_head(what, found, self.limits))
            await loop.sock_sendall(connection, data)
            connection.shutdown(socket.SHUT_WR)
            head = await _head(connection)
            if "refused" in head:
                return head, np.empty(0, np.uint8)
            pixels = np.empty(self._shape(what, head), np.uint8)
            await _fill(connection, pixels.data.cast("B"))
            return head, pixels
        finally:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(child, signal.SIGKILL)
            os.close(child)

    def _shape(self, what: str, head: dict[str, Any]) -> tuple[int, ...]:
        shape = tuple(int(size) for size in head["shape"])
        cap = self.limits.max_pixels if what == "picture" else self.limits.max_film_pixels
        dims = 3 if what == "picture" else 4
        if len(shape) != dims or shape[-1] != 3 or min(shape) < 1 or math.prod(shape) > 3 * cap:
            raise ValueError("no shape that was asked for")
        if what == "film" and not 0 < float(head["fps"]) < float("inf"):
            raise ValueError("no frame rate")
        return shape

    def _refusal(self, what: str, head: dict[str, Any]) -> tuple[str, str]:
        """Return code and message for a child's refusal."""
        limits = self.limits
        width, height = (side if isinstance(side, int) else 0 for side in (head.get("width"), head.get("height")))
        size = f"{width} x {height} pixels"
        messages = {
            "sides": (
                "media_size",
                f"the {what} is {size}; sides of {limits.min_side} to {limits.max_side} are allowed",
            ),
            "pixels": ("media_size", f"the {what} is {size}; at most {limits.max_pixels} in all are allowed"),
            "frames": ("film_too_long", f"the film has more than {limits.max_frames} frames: cut it"),
            "film_pixels": (
                "film_too_long",
                f"with frames of {size} the film has more than {limits.max_film_pixels} in all: shrink or cut it",
            ),
            "seconds": ("film_too_long", f"the film is longer than {limits.max_seconds:g} seconds: cut it"),
            "codec": ("unsupported_codec", "the film's codec is not taken: use H.264, H.265, MPEG-4, VP8, VP9 or AV1"),
            "no_film": ("unreadable_media", "there is no film in the file, only sound"),
            "late": ("media_timeout", f"the {what} took too long to decode: send a smaller or simpler one"),
        }
        broken = f"the {what} cannot be decoded: it is damaged, cut off or too demanding"
        return messages.get(str(head["refused"]), ("unreadable_media", broken))


class _Nursery:
    """The process that forks decoding children; born on demand, and again if it died."""

    def __init__(self) -> None:
        self._control: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        if self._process is not None and self._process.poll() is None:
            return
        self.stop()
        self._control, theirs = socket.socketpair()
        environment: dict[str, str] = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
        # One arena and one thread per library: children account for address space, not for memory in use.
        environment |= {"MALLOC_ARENA_MAX": "1", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        with theirs:
            command = [sys.executable, *_COMMAND]
            self._process = subprocess.Popen(
                command, stdin=theirs.fileno(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment
            )

    def stop(self) -> None:
        if self._control is not None:
            self._control.close()
            self._control = None
        if self._process is not None:
            self._process.wait()
            self._process = None

    @contextlib.contextmanager
    def child(self) -> Any:
        """Yield a socket to a child of its own."""
        ours, theirs = socket.socketpair()
        with ours:
            ours.setblocking(False)
            with theirs:
                self.start()
                assert self._control is not None
                try:
                    socket.send_fds(self._control, [b"\0"], [theirs.fileno()])
                except OSError:
                    raise _unavailable() from None
            yield ours


def media_format(data: bytes) -> str | None:
    """Tell a file's format by its first bytes; None if it is none that is taken."""
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data.startswith((b"GIF87a", b"GIF89a")):
        return "GIF"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if data[4:8] == b"ftyp" and data[8:12] in _MP4_BRANDS:
        return "MP4"
    if data.startswith(b"\x1a\x45\xdf\xa3") and b"\x42\x82\x84webm" in data[:64]:
        return "WEBM"
    return None


async def _born(connection: socket.socket) -> int:
    """Return a handle of the child at the other end, which waits for us: its number is its own still."""
    try:
        return os.pidfd_open((await _head(connection))["pid"])
    except (OSError, EOFError):
        raise _unavailable() from None


async def _head(connection: socket.socket) -> dict[str, Any]:
    length = bytearray(HEAD_BYTES)
    await _fill(connection, memoryview(length))
    if not 0 < int.from_bytes(length) <= MAX_HEAD:
        raise ValueError("no head")
    data = bytearray(int.from_bytes(length))
    await _fill(connection, memoryview(data))
    head = json.loads(data)
    if not isinstance(head, dict):
        raise ValueError("no head")
    return head


async def _fill(connection: socket.socket, target: memoryview) -> None:
    """Receive exactly as many bytes as there is room for."""
    done = 0
    while done < len(target):
        received = await asyncio.get_running_loop().sock_recv_into(connection, target[done:])
        if not received:
            raise EOFError
        done += received


def _unavailable() -> ApiError:
    message = "decoding is not available for the moment: try again"
    return ApiError(503, message, code="decoder_unavailable", kind="server_error")


def _error(code: str, message: str, param: str | None) -> ApiError:
    return ApiError(400, message, code=code, param=param)

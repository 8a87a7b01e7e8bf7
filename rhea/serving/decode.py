"""Where untrusted files are decoded: one process that forks a fresh child per file and never looks at a file itself.

Decoders are where servers were broken into, so a child has one file, few open files, a bounded address space and a
bounded life, and what it does to itself happens to one request. Forking costs milliseconds where starting Python costs
a quarter of a second. Files go in and pixels come out as plain bytes behind a JSON head, and what decoders say stays in
here: a refusal is one of the codes below with its numbers. Linux only (memfd, pidfd). Run by ``untrusted.py``.
"""

import dataclasses
import json
import math
import os
import resource
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import av
import numpy as np
from PIL import Image

from rhea.media import Film, read_film, read_picture

HEAD_BYTES = 4
"""A head's length comes first, big-endian."""
MAX_HEAD = 2**16

PATIENCE = 3
"""A busy machine lets a process wait for its turn."""

_BROKEN = "broken"
_CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2;matroska,webm"
_CODECS = "h264,hevc,mpeg4,vp8,libvpx,vp9,libvpx-vp9,av1,libdav1d,libaom-av1"
_SOUND_CODECS = "aac,aac_fixed,mp3,mp3float,opus,libopus,vorbis,libvorbis,flac,ac3"
_OPEN_FILES = 32
_MAX_FPS = 1000


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one file may be, and what its child may take."""

    max_bytes: int
    min_side: int
    max_side: int
    max_pixels: int
    """Height x width of a picture."""
    max_frames: int
    max_film_pixels: int
    """Frames x height x width."""
    max_seconds: float
    """A film's length."""
    decoding_seconds: float
    """Of a processor; PATIENCE times as much by the clock."""
    decoding_memory: int
    """Bytes of address space beyond what the forking process holds."""


class RefusedError(Exception):
    """Not to be decoded: a code, and the numbers that its message needs."""

    def __init__(self, code: str, **numbers: float) -> None:
        super().__init__(code)
        self.head = {"refused": code, **numbers}


def main() -> None:
    """Fork a child for every socket that comes over standard input, until that is closed."""
    control = socket.socket(fileno=os.dup(0))
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel buries the children
    for name in (signal.SIGINT, signal.SIGTERM):  # they go to all processes; the server ends us when it is done
        signal.signal(name, signal.SIG_IGN)
    while True:
        data, handles, _, _ = socket.recv_fds(control, 1, 1)
        if not data:
            return
        if os.fork() == 0:
            control.close()
            try:
                _work(socket.socket(fileno=handles[0]))
            finally:
                os._exit(0)
        os.close(handles[0])


def _work(connection: socket.socket) -> None:
    """Answer one request: a head with kind, format and limits, then the file up to the end of the stream."""
    silence = os.open(os.devnull, os.O_RDWR)
    for handle in (0, 1, 2):  # FFmpeg writes its complaints to standard error
        os.dup2(silence, handle)
    stream = connection.makefile("rwb")
    _send(connection, {"pid": os.getpid()})
    Image.MAX_IMAGE_PIXELS = None  # headers are held against our own limits, which are lower
    request = json.loads(stream.read(int.from_bytes(stream.read(HEAD_BYTES))))
    limits = Limits(**request["limits"])
    file = os.memfd_create("file")
    while chunk := stream.read(2**20):
        os.write(file, chunk)
    _confine(limits)
    try:
        head, pixels = _DECODERS[request["kind"]](f"/proc/self/fd/{file}", request["format"], limits)
    except RefusedError as refusal:
        _send(connection, refusal.head)
    except Exception:  # whatever decoders raise stays here
        _send(connection, {"refused": _BROKEN})
    else:
        _send(connection, head | {"shape": pixels.shape})
        connection.sendall(np.ascontiguousarray(pixels).data.cast("B"))


def _send(connection: socket.socket, head: dict[str, Any]) -> None:
    data = json.dumps(head).encode()
    connection.sendall(len(data).to_bytes(HEAD_BYTES) + data)


def _confine(limits: Limits) -> None:
    """Bound what this process can take, beyond its own power to ask for more unless it runs as root."""
    with open("/proc/self/statm") as handle:
        held = int(handle.read().split()[0]) * resource.getpagesize()
    for kind, amount in (
        (resource.RLIMIT_AS, held + limits.decoding_memory),
        (resource.RLIMIT_CPU, math.ceil(limits.decoding_seconds)),
        (resource.RLIMIT_NOFILE, _OPEN_FILES),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(kind, (amount, amount))
    signal.setitimer(
        signal.ITIMER_REAL, PATIENCE * limits.decoding_seconds
    )  # its signal ends the process, in C code as well


def _picture(path: str, kind: str, limits: Limits) -> tuple[dict[str, Any], np.ndarray]:
    with Image.open(path, formats=[kind]) as header:
        _check_sides(header.width, header.height, limits)
        if header.width * header.height > limits.max_pixels:
            raise RefusedError("pixels", width=header.width, height=header.height)
    return {}, read_picture(path, max_pixels=limits.max_pixels)


def _film(path: str, kind: str, limits: Limits) -> tuple[dict[str, Any], np.ndarray]:
    width, height = _gif_header(path, limits) if kind == "GIF" else _video_header(path, limits)
    affordable = min(limits.max_frames, limits.max_film_pixels // (width * height))
    # One frame more than is allowed tells whether there are more; a GIF's long frames may repeat beyond the cap.
    film = read_film(path, max_frames=affordable + 1, max_pixels=4 * limits.max_film_pixels + width * height)
    if len(film.frames) > affordable:
        raise _too_long(len(film.frames), width, height, limits)
    _check_time(film, limits)
    return {"fps": film.fps}, film.frames


def _gif_header(path: str, limits: Limits) -> tuple[int, int]:
    with Image.open(path, formats=["GIF"]) as header:
        _check_sides(header.width, header.height, limits)
        return header.width, header.height


def _video_header(path: str, limits: Limits) -> tuple[int, int]:
    """Check what the headers promise, with no decoder but those of the list at work; return width and height."""
    whitelists = {"format_whitelist": _CONTAINERS, "codec_whitelist": f"{_CODECS},{_SOUND_CODECS}"}
    with open(path, "rb") as file, av.open(file, options=whitelists) as container:
        allowed = {*_CODECS.split(","), *_SOUND_CODECS.split(",")}
        decoded = [stream.codec_context for stream in container.streams if stream.type in ("video", "audio")]
        if any(context is None or context.name not in allowed for context in decoded):
            raise RefusedError("codec")
        if not container.streams.video:
            raise RefusedError("no_film")
        stream = container.streams.video[0]
        if stream.codec_context.name not in _CODECS.split(","):
            raise RefusedError("codec")
        _check_sides(stream.width, stream.height, limits)
        if stream.frames > min(limits.max_frames, limits.max_film_pixels // (stream.width * stream.height)):
            raise _too_long(stream.frames, stream.width, stream.height, limits)
        return stream.width, stream.height


def _check_sides(width: int, height: int, limits: Limits) -> None:
    if not limits.min_side <= min(width, height) <= max(width, height) <= limits.max_side:
        raise RefusedError("sides", width=width, height=height)


def _too_long(frames: int, width: int, height: int, limits: Limits) -> RefusedError:
    return RefusedError("frames" if frames > limits.max_frames else "film_pixels", width=width, height=height)


def _check_time(film: Film, limits: Limits) -> None:
    if not 0 < film.fps <= _MAX_FPS or len(film.frames) / film.fps > limits.max_seconds:
        raise RefusedError("seconds")


_DECODERS: dict[str, Callable[[str, str, Limits], tuple[dict[str, Any], np.ndarray]]] = {
    "picture": _picture,
    "film": _film,
}


def request_head(kind: str, file_format: str, limits: Limits) -> bytes:
    """Return the head that goes before a file."""
    data = json.dumps({"kind": kind, "format": file_format, "limits": dataclasses.asdict(limits)}).encode()
    return len(data).to_bytes(HEAD_BYTES) + data


if __name__ == "__main__":
    main()

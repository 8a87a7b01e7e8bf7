"""Pictures and films to and from files, as plain uint8 RGB arrays.

Files are untrusted: sizes are read from the header and held against a cap before a single pixel is decoded, only
raster formats are opened, and whatever a decoder raises becomes one InputError. Pictures are what a viewer would show:
EXIF orientation applied, alpha laid over white. A film has one frame rate; where a file gives every frame its own
duration (GIF, animated WebP) a longer frame is repeated, so that time is kept. Files are written whole or not at all.
"""

import contextlib
import math
import mmap
import re
import stat
import struct
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO

import av
import numpy as np
from av.video.stream import VideoStream
from PIL import GifImagePlugin, Image, ImageOps

from rhea.errors import InputError
from rhea.io import atomic_file
from rhea.logging import logger

MAX_PICTURE_PIXELS = 2**26
"""67 million: more than today's cameras make in one shot, 200 MB decoded."""
MAX_FILM_PIXELS = 2**30
"""Frames x height x width: 3.2 GB decoded, 45 seconds of 1280 x 720 at 25 frames per second."""

PICTURE_SUFFIXES = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
FILM_SUFFIXES = (".mp4", ".gif")

_PICTURE_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")
_ANIMATED_FORMATS = ("GIF", "WEBP", "PNG", "AVIF")
_FILM_CONTAINERS = {
    "mov",
    "matroska",
    "webm",
    "avi",
    "mpegts",
    "mpeg",
    "ogg",
    "flv",
    "asf",
    "mpegvideo",
    "h264",
    "hevc",
}
_PNG_END = b"IEND\xae\x42\x60\x82"
"""The last chunk's name and checksum, the same in every file."""
_MATROSKA_SEGMENT = b"\x18\x53\x80\x67"
_DEFAULT_FPS = 24.0
_DEFAULT_FRAME_MS = 100.0
_GIF_TICK_MS = 10


@dataclass(frozen=True, kw_only=True)
class Film:
    """A film in memory."""

    frames: np.ndarray
    """uint8 [T, H, W, 3]."""
    fps: float


def read_picture(path: str | Path, *, max_pixels: int = MAX_PICTURE_PIXELS) -> np.ndarray:
    """Read a picture (the first frame of an animated one) as uint8 RGB [H, W, 3].

    Raises InputError if it is missing, empty, truncated, no picture, or larger than ``max_pixels``.
    """
    file = _checked_file(path)
    with _open_picture(file, max_pixels) as image:
        image.load()
        if image.format == "PNG":  # of a GIF, the first frame is enough
            _check_end(file, image)
        return _to_rgb(ImageOps.exif_transpose(image))


def read_film(path: str | Path, *, max_frames: int | None = None, max_pixels: int = MAX_FILM_PIXELS) -> Film:
    """Read a film: a video file, or an animated GIF, WebP, PNG or AVIF.

    Reading stops after ``max_frames``, with a warning if there were more. ``max_pixels`` caps frames x height x width.
    Raises InputError if the file is missing, empty, truncated, no film, has no frames, or is over the cap.
    """
    if max_frames is not None and max_frames < 1:
        raise InputError(f"max_frames is {max_frames}; it must be at least 1")
    file = _checked_file(path)
    return (
        _read_animation(file, max_frames, max_pixels)
        if _is_picture(file)
        else _read_video(file, max_frames, max_pixels)
    )


def is_film(path: str | Path) -> bool:
    """Tell whether ``read_film`` rather than ``read_picture`` fits this file; raise InputError if it does not exist."""
    file = _checked_file(path)
    if not _is_picture(file):
        return file.suffix.lower() not in PICTURE_SUFFIXES and _is_video(file)
    with contextlib.suppress(InputError), _open_picture(file, None) as image:
        return getattr(image, "n_frames", 1) > 1
    return False


def write_picture(path: str | Path, pixels: np.ndarray) -> None:
    """Write uint8 RGB [H, W, 3] as PNG, JPEG or WebP, by the extension; the file appears only when it is complete."""
    assert (pixels.dtype, pixels.ndim, pixels.shape[-1]) == (np.uint8, 3, 3), (pixels.dtype, pixels.shape)
    target = Path(path)
    if target.suffix.lower() not in PICTURE_SUFFIXES:
        raise InputError(
            f"cannot write a picture to {target}: the extension must be one of {_listed(PICTURE_SUFFIXES)}"
        )
    with atomic_file(target) as temporary:
        Image.fromarray(pixels).save(temporary, format=PICTURE_SUFFIXES[target.suffix.lower()], quality=95)


def write_film(path: str | Path, frames: np.ndarray, fps: float) -> None:
    """Write uint8 RGB frames [T, H, W, 3] as MP4 (H.264, yuv420p) or as a looping GIF, by the extension.

    H.264 in yuv420p holds even sizes only: an odd height or width gains one row or column, a copy of the last.
    """
    assert (frames.dtype, frames.ndim, frames.shape[-1]) == (np.uint8, 4, 3), (frames.dtype, frames.shape)
    target = Path(path)
    if target.suffix.lower() not in FILM_SUFFIXES:
        raise InputError(f"cannot write a film to {target}: the extension must be one of {_listed(FILM_SUFFIXES)}")
    if not len(frames):
        raise InputError(f"cannot write {target}: the film has no frames")
    if not 0 < fps <= 1000:
        raise InputError(f"{fps} frames per second; it must be over 0 and at most 1000")
    with atomic_file(target) as temporary:
        (_write_gif if target.suffix.lower() == ".gif" else _write_mp4)(temporary, frames, fps)


def _listed(suffixes: Any) -> str:
    return ", ".join(suffixes)


def _checked_file(path: str | Path) -> Path:
    file = Path(path)
    try:
        status = file.stat()
    except (OSError, ValueError):  # missing, but also a name too long or with a null byte in it
        raise InputError(f"no such file: {file}") from None
    if not stat.S_ISREG(status.st_mode):
        raise InputError(f"{file} is not a file" + (" but a folder" if stat.S_ISDIR(status.st_mode) else ""))
    if status.st_size == 0:
        raise InputError(f"{file} is empty")
    return file


# --- pictures ---------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _open_picture(file: Path, max_pixels: int | None) -> Iterator[Image.Image]:
    """Open by the header only; decoding inside the block may raise anything, which becomes an InputError."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of large pictures; we refuse by our own cap instead
            with Image.open(file, formats=_PICTURE_FORMATS) as image:
                if max_pixels is not None and image.width * image.height > max_pixels:
                    raise InputError(
                        f"{file} is {image.width} x {image.height} pixels; at most {max_pixels} in all are allowed"
                    )
                yield image
    except InputError:
        raise
    except Image.UnidentifiedImageError:
        raise InputError(f"{file} is not a picture in a format known here ({_listed(_PICTURE_FORMATS)})") from None
    except PermissionError:
        raise InputError(f"{file} may not be read: permission denied") from None
    except Image.DecompressionBombError:
        raise InputError(f"{file} is far too large a picture; at most {max_pixels} pixels are allowed") from None
    except Exception as error:  # decoders fed broken bytes raise OSError, SyntaxError, struct.error and more
        raise InputError(f"{file} cannot be read, it is damaged or cut off: {_reason(error)}") from None


def _check_end(file: Path, image: Image.Image) -> None:
    """Refuse a PNG without its last chunk and a GIF without its last byte, which Pillow does not miss."""
    if image.format not in ("PNG", "GIF"):
        return
    with file.open("rb") as handle, mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as data:
        tail = data[max(0, len(data) - 4096) :].rstrip(b"\0\r\n")
        if not tail.endswith(b";") if image.format == "GIF" else data.rfind(_PNG_END) < 0:
            raise InputError(f"{file} is cut off: the end of the {image.format} is missing")


def _reason(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0] or type(error).__name__


def _is_picture(file: Path) -> bool:
    try:
        with _open_picture(file, None):
            return True
    except InputError:
        return file.suffix.lower() in PICTURE_SUFFIXES or file.suffix.lower() == ".gif"


def _to_rgb(image: Image.Image) -> np.ndarray:
    if image.mode.startswith("I"):  # 16-bit grey: convert() would clip at 255 instead of scaling
        grey = (np.asarray(image).astype(np.int64).clip(0, 65535) >> 8).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return np.array(image.convert("RGB"))


def _read_animation(file: Path, max_frames: int | None, max_pixels: int) -> Film:
    with _open_picture(file, max_pixels) as image:
        total = getattr(image, "n_frames", 1)
        if image.format not in _ANIMATED_FORMATS or (total == 1 and image.format != "GIF"):
            raise InputError(f"{file} is a picture ({image.format}), not a film")
        wanted = total if max_frames is None else min(total, max_frames)
        frames, durations = [], []
        for index in range(wanted):
            image.seek(index)
            image.load()
            frames.append(_to_rgb(image))
            durations.append(float(image.info.get("duration") or _DEFAULT_FRAME_MS))
            # Half a frame more is the rounding of a clock in hundredths: 20 and 30 ms are 40 frames per second.
            repeats = [math.ceil(duration / min(durations) - 0.5) for duration in durations]
            _check_film_size(file, sum(repeats), image.height, image.width, max_pixels)
        if wanted == total:
            _check_end(file, image)
        told = _told_fps(image, sum(repeats), sum(durations))
    even = np.repeat(np.stack(frames), repeats, axis=0)[:max_frames]
    if wanted < total or len(even) < sum(repeats):
        logger.warning("%s has more than %d frames; reading the first %d", file, len(even), len(even))
    return Film(frames=even, fps=told or 1000 * sum(repeats) / sum(durations))


def _told_fps(image: Image.Image, num_frames: int, milliseconds: float) -> float | None:
    """Return the frame rate in our own GIFs' comment, unless the frames' durations tell another one."""
    comment = image.info.get("comment", b"")
    found = re.fullmatch(rb"(\d{1,4}(?:\.\d{1,20})?) frames per second", comment if isinstance(comment, bytes) else b"")
    fps = float(found[1]) if found else 0.0
    return fps if fps > 0 and abs(1000 * num_frames / fps - milliseconds) <= _GIF_TICK_MS else None


def _check_film_size(file: Path, frames: int, height: int, width: int, max_pixels: int) -> None:
    if frames * height * width > max_pixels:
        raise InputError(
            f"{file} has at least {frames} frames of {width} x {height} pixels; at most {max_pixels} pixels in all are "
            "allowed: read fewer frames or a smaller film"
        )


def _write_gif(file: Path, frames: np.ndarray, fps: float) -> None:
    """Write every frame as a block of its own: Pillow's ``save`` would merge equal neighbours into one long frame."""
    # GIF counts in hundredths of a second: rounding the running time, not each duration, keeps the film's length.
    ticks = np.round(np.arange(len(frames) + 1) * 100 / fps).astype(int)
    durations = np.clip(np.diff(ticks), 2, 0xFFFF) * _GIF_TICK_MS  # viewers slow down what is under 20 ms
    height, width = frames.shape[1:3]
    if max(height, width) > 0xFFFF:
        raise InputError(f"a GIF of {width} x {height} pixels cannot be written: sides are at most {0xFFFF}")
    comment = f"{np.format_float_positional(fps, trim='-')} frames per second".encode()
    with file.open("wb") as handle:
        handle.write(b"GIF89a" + struct.pack("<HHBBB", width, height, 0, 0, 0))
        handle.write(b"!\xff\x0bNETSCAPE2.0\x03\x01\x00\x00\x00")  # play again without end
        handle.write(b"!\xfe" + bytes([len(comment)]) + comment + b"\x00")
        for index, (frame, duration) in enumerate(zip(frames, durations, strict=True)):
            top, left, bottom, right = _changed_box(frames[index - 1], frame) if index else (0, 0, height, width)
            image = Image.fromarray(frame[top:bottom, left:right]).convert("P", palette=Image.Palette.ADAPTIVE)
            block = GifImagePlugin.getdata(image, (left, top), duration=int(duration), include_color_table=True)
            handle.writelines(block)
        handle.write(b";")


def _changed_box(before: np.ndarray, after: np.ndarray) -> tuple[int, int, int, int]:
    """Return top, left, bottom, right of what differs between two frames; one pixel if nothing does."""
    rows, columns = (np.flatnonzero((before != after).any(axis=(axis, 2))) for axis in (1, 0))
    if not len(rows):
        return 0, 0, 1, 1
    return int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1


# --- videos -----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _open_video(file: Path) -> Iterator[tuple[Any, VideoStream]]:
    """Open a container with at least one video stream; what FFmpeg raises inside the block becomes an InputError."""
    try:
        # A handle, not a name: FFmpeg would take a name such as "http:..." or a playlist's entries for addresses.
        with file.open("rb") as handle, av.open(handle) as container:
            if not _FILM_CONTAINERS & set(container.format.name.split(",")):
                raise InputError(f"{file} is not a film ({container.format.name})")
            if not container.streams.video:
                raise InputError(f"{file} has no frames: no video stream in it")
            stream = container.streams.video[0]
            if stream.codec_context is None:  # its header is cut off, and most attributes are missing
                raise InputError(f"{file} cannot be read as a film, it is damaged or cut off: no codec is told")
            yield container, stream
    except InputError:
        raise
    except PermissionError:
        raise InputError(f"{file} may not be read: permission denied") from None
    except (av.FFmpegError, OSError, ValueError, LookupError, AttributeError) as error:
        raise InputError(f"{file} cannot be read as a film, it is damaged or cut off: {_reason(error)}") from None


def _is_video(file: Path) -> bool:
    try:
        with _open_video(file):
            return True
    except InputError:
        return file.suffix.lower() in FILM_SUFFIXES


def _read_video(file: Path, max_frames: int | None, max_pixels: int) -> Film:
    frames: list[np.ndarray] = []
    with _open_video(file) as (container, stream):
        fps = float(stream.average_rate or stream.guessed_rate or _DEFAULT_FPS)
        promised = min(stream.frames or 1, max_frames or stream.frames or 1)
        _check_film_size(file, promised, stream.height, stream.width, max_pixels)
        for frame in _decoded(file, container, stream):
            if len(frames) == max_frames:
                logger.warning("%s has more than %d frames; reading the first %d", file, max_frames, max_frames)
                break
            _check_film_size(file, len(frames) + 1, frame.height, frame.width, max_pixels)
            pixels = np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90)
            if frames and pixels.shape != frames[0].shape:
                raise InputError(f"{file} changes its size at frame {len(frames)}; films of one size are allowed")
            frames.append(pixels)
    if not frames:
        raise InputError(f"{file} has no frames")
    return Film(frames=np.stack(frames), fps=fps)


def _decoded(file: Path, container: Any, stream: VideoStream) -> Iterator[Any]:
    """Decode to the end; raise InputError if the file goes on beyond it, by its own account."""
    packets = 0
    for packet in container.demux(stream):
        if packet.is_corrupt:
            raise InputError(f"{file} is damaged or cut off")
        packets += packet.size > 0
        yield from packet.decode()
    if packets < _announced_packets(container, stream) or file.stat().st_size < _announced_bytes(file, container):
        raise InputError(f"{file} is cut off: it announces more frames than are in it")


def _announced_packets(container: Any, stream: VideoStream) -> float:
    """Return at least how many packets the header promises, less a tenth for frames that were dropped on recording."""
    # An MP4 that was trimmed promises frames that it rightly does not show: its bytes are counted instead.
    return 0 if "mov" in container.format.name.split(",") else min(stream.frames - 2, stream.frames * 0.9)


def _announced_bytes(file: Path, container: Any) -> int:
    """Return where an MP4's or Matroska's pixel data end by its own headers; 0 if they do not say."""
    kinds = container.format.name.split(",")
    with file.open("rb") as handle:
        if "mov" in kinds:
            return _end_of_boxes(handle)
        return _end_of_segment(handle.read(4096)) if "matroska" in kinds else 0


def _end_of_boxes(handle: BinaryIO) -> int:
    """Return where the last "mdat" box of an MP4 ends (ISO 14496-12): lengths of 4 bytes, or 1 and then 8 bytes."""
    position = end = 0
    while len(head := handle.read(16)) >= 8:
        size = int.from_bytes(head[8:] if head[:4] == b"\0\0\0\1" else head[:4])
        end = position + size if head[4:8] == b"mdat" else end
        position += size
        if size < 8 or position >= 2**62:
            break
        handle.seek(position)
    return end


def _end_of_segment(head: bytes) -> int:
    """Return where the one segment of a Matroska file ends (RFC 8794); 0 if it was written live, of unknown size."""
    start = head.find(_MATROSKA_SEGMENT) + len(_MATROSKA_SEGMENT)
    if start < len(_MATROSKA_SEGMENT) or start >= len(head):
        return 0
    width = 9 - head[start].bit_length()  # as many leading zeros as further bytes
    unknown = (1 << 7 * width) - 1
    size = int.from_bytes(head[start : start + width]) & unknown
    return 0 if size == unknown else start + width + size


def _write_mp4(file: Path, frames: np.ndarray, fps: float) -> None:
    height, width = frames.shape[1:3]
    frames = (
        np.pad(frames, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        if (height | width) % 2
        else frames
    )
    with av.open(str(file), "w", format="mp4", options={"movflags": "+faststart"}) as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "yuv420p"
        # Without mbtree, whose AVX-512 code lets the same frames become other bytes now and then.
        stream.options = {"crf": "15", "preset": "medium", "x264-params": "mbtree=0"}
        for pixels in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")))
        container.mux(stream.encode())

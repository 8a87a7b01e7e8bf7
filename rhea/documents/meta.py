"""The size of an image or video as plain text between start-of-image and the first code, and how it may be continued.

An image says ``{height}*{width}`` in tokens, as in Emu3. Emu3's text for a video was never published; ours says
``{height}*{width}, {fps} fps, {seconds} s`` (docs/decisions/0002-video-meta-text.md). It is tokenized piece by piece
(digits, "*", ", ", ...), which for Qwen's tokenizer is the same as all at once. Numbers have at most three decimals.
"""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass

from rhea.documents.document import MAX_FPS, MIN_FPS, ImageSize, VideoSize
from rhea.errors import InputError

DIGITS = tuple("0123456789")
PIECES = (*DIGITS, "*", ".", ", ", " fps, ", " s")
END = ""
"""Stands for the image token, which closes the size text."""

_NUMBER = r"(?:0|[1-9]\d{0,7})(?:\.\d{0,2}[1-9])?"
_WHOLE = re.compile(rf"([1-9]\d{{0,5}})\*([1-9]\d{{0,5}})(?:, ({_NUMBER}) fps, ({_NUMBER}) s)?", re.ASCII)
_PARTIAL = re.compile(r"(\d*)(?:(\*)(\d*)(?:(, )([\d.]*)(?:( fps, )([\d.]*)( s)?)?)?)?", re.ASCII)


def format_meta(size: ImageSize | VideoSize) -> str:
    """Return the size text; raise InputError for a size that text cannot hold."""
    text = f"{size.height}*{size.width}"
    if isinstance(size, VideoSize):
        text += f", {_decimal(size.fps)} fps, {_decimal(size.num_frames / size.fps)} s"
    if _WHOLE.fullmatch(text) is None or (isinstance(size, VideoSize) and parse_meta(text) != _rounded(size)):
        raise InputError(f"{size} cannot be written as a size text (it would be {text!r})")
    return text


def parse_meta(text: str) -> ImageSize | VideoSize:
    """Read a size text back, exactly as ``format_meta`` writes it; raise InputError for anything else."""
    match = _WHOLE.fullmatch(text)
    if match is None:
        raise InputError(f"size text {text!r} is neither '8*8' (height*width) nor like '8*8, 24 fps, 5 s'")
    height, width = int(match[1]), int(match[2])
    if match[3] is None:
        return ImageSize(height=height, width=width)
    num_frames = _num_frames(float(match[3]), float(match[4]))
    if num_frames < 1 or not MIN_FPS <= float(match[3]) <= MAX_FPS:
        raise InputError(f"size text {text!r} describes no video: no frames, or not {MIN_FPS} to {MAX_FPS} per second")
    return VideoSize(height=height, width=width, num_frames=num_frames, fps=float(match[3]))


def _decimal(value: float) -> str:
    return f"{value:.3f}".rstrip("0").rstrip(".")


def _rounded(size: VideoSize) -> VideoSize:
    return VideoSize(height=size.height, width=size.width, num_frames=size.num_frames, fps=float(_decimal(size.fps)))


def _num_frames(fps: float, seconds: float) -> int:
    return math.floor(fps * seconds + 0.5)


@dataclass(frozen=True, kw_only=True)
class MetaLimits:
    """Which sizes a model may announce by itself."""

    max_side: int = 1024
    max_grid_tokens: int = 131072
    """Upper bound for a whole grid with its end-of-line and end-of-frame tokens."""
    videos: bool = True
    max_fps: int = 240
    """At most 960; the lower bound is 1."""
    max_frames: int = 100_000


def continuations(text: str, limits: MetaLimits, temporal_factor: int) -> list[str]:
    """Return the pieces that may follow ``text`` on the way to a size within the limits, and END where it is whole.

    ``temporal_factor`` is the number of pixel frames per latent frame.
    From an admissible text there is always at least one way to an end. Assumes that ``text`` is empty or was reached
    through continuations; anything else gives an empty list.
    """
    match = _PARTIAL.fullmatch(text)
    if match is None:
        return []
    height, star, width, comma, fps, per_second, seconds, unit = match.groups()
    if star is None:
        found = _more_digits(height, min(limits.max_side, (limits.max_grid_tokens - 1) // 2))
        return [*found, "*"] if height else found
    max_width = min(limits.max_side, (limits.max_grid_tokens - 1) // int(height) - 1)
    if comma is None:
        found = _more_digits(width, max_width)
        return [*found, END, *([", "] if limits.videos else [])] if width else found
    if per_second is None:
        return _more_number(fps, 1000, 1000 * limits.max_fps, " fps, ")
    if unit is None:
        return _more_number(seconds, *_seconds_range(height, width, fps, limits, temporal_factor), " s")
    return [END]


def _seconds_range(height: str, width: str, rate: str, limits: MetaLimits, temporal_factor: int) -> tuple[int, int]:
    """Return the shortest and longest admissible durations in thousandths."""
    latents = limits.max_grid_tokens // (int(height) * (int(width) + 1) + 1)
    max_frames = min(limits.max_frames, latents * temporal_factor)
    fps = float(rate)
    shortest, longest = math.ceil(500 / fps), math.floor(1000 * (max_frames + 0.5) / fps)
    shortest += _num_frames(fps, shortest / 1000) < 1
    longest -= _num_frames(fps, longest / 1000) > max_frames
    return shortest, longest


def _more_digits(value: str, maximum: int) -> list[str]:
    if value == "0":
        return []
    return [digit for digit in DIGITS if 1 <= int(value + digit) <= maximum]


def _more_number(value: str, low: int, high: int, closing: str) -> list[str]:
    """Continue a number with up to three decimals whose thousandths lie in [low, high]."""
    whole, point, decimals = value.partition(".")
    if point:
        return _more_decimals(whole, decimals, low, high, closing)
    if not whole:
        return [digit for digit in DIGITS if int(digit) * 1000 <= high and (digit != "0" or low <= 999)]
    found = [] if whole == "0" else [digit for digit in DIGITS if int(whole + digit) * 1000 <= high]
    if max(int(whole) * 1000 + 1, low) <= min(int(whole) * 1000 + 999, high):
        found.append(".")
    if low <= int(whole) * 1000 <= high:
        found.append(closing)
    return found


def _more_decimals(whole: str, decimals: str, low: int, high: int, closing: str) -> list[str]:
    found = []
    step = 10 ** (2 - len(decimals)) if len(decimals) < 3 else 0
    base = int(whole) * 1000 + int((decimals + "000")[:3])
    for digit in DIGITS if step else ():
        first = base + int(digit) * step
        # A number ends in no zero, so what starts with a zero here goes on to at least one thousandth more.
        least, most = first + (digit == "0"), first + step - 1
        if max(least, low) <= min(most, high):
            found.append(digit)
    if decimals and decimals[-1] != "0" and low <= base <= high:
        found.append(closing)
    return found


def listed_continuations(sizes: Iterable[ImageSize | VideoSize]) -> dict[str, list[str]]:
    """Return, for every beginning of the size texts of ``sizes``, the pieces that may follow (END where whole)."""
    found: dict[str, list[str]] = {}
    for size in sizes:
        before = ""
        for piece in (*split_pieces(format_meta(size)), END):
            following = found.setdefault(before, [])
            if piece not in following:
                following.append(piece)
            before += piece
    return found


def split_pieces(text: str) -> list[str]:
    """Split a size text into the pieces that are tokenized one by one."""
    return re.findall(r" fps, |, | s|[0-9*.]", text)

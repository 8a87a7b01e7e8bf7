"""The size text: reads back what it writes, and its continuations are exactly the beginnings of admissible sizes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rhea.documents.document import ImageSize, VideoSize
from rhea.documents.meta import (
    END,
    MetaLimits,
    continuations,
    format_meta,
    listed_continuations,
    parse_meta,
    split_pieces,
)
from rhea.errors import InputError


def test_image_size_is_height_first() -> None:
    assert format_meta(ImageSize(height=68, width=120)) == "68*120"
    assert parse_meta("68*120") == ImageSize(height=68, width=120)


@pytest.mark.parametrize(
    ("num_frames", "fps", "text"),
    [
        (120, 24, "8*8, 24 fps, 5 s"),
        (16, 8, "8*8, 8 fps, 2 s"),
        (17, 8, "8*8, 8 fps, 2.125 s"),
        (100, 23.976, "8*8, 23.976 fps, 4.171 s"),
        (10, 29.97, "8*8, 29.97 fps, 0.334 s"),
        (3, 0.5, "8*8, 0.5 fps, 6 s"),
    ],
)
def test_video_size_texts(num_frames: int, fps: float, text: str) -> None:
    size = VideoSize(height=8, width=8, num_frames=num_frames, fps=fps)
    assert format_meta(size) == text
    assert parse_meta(text) == size


@given(st.integers(1, 999), st.integers(1, 999), st.integers(1, 100_000), st.integers(100, 960_000))
def test_every_size_reads_back(height: int, width: int, num_frames: int, thousandths: int) -> None:
    size = VideoSize(height=height, width=width, num_frames=num_frames, fps=thousandths / 1000)
    text = format_meta(size)
    assert parse_meta(text) == size
    assert "".join(split_pieces(text)) == text


NO_SIZES = [
    "",
    "8",
    "8*",
    "*8",
    "0*8",
    "8*0",
    "08*8",
    "8*8*8",
    "8x8",
    " 8*8",
    "8*8 ",
    "8*8\n",
    "-1*8",
    "1٣*3",
    "9" * 99,
]
NO_VIDEOS = [
    "8*8, 0 fps, 5 s",
    "8*8, ",
    "8*8, 24 fps",
    "8*8, 24 fps, 5",
    "8*8, 24 fps, 0 s",
    "8*8, 961 fps, 5 s",
    "8*8, 1 fps, 0.001 s",
]
NO_NUMBERS = ["8*8, 24. fps, 5 s", "8*8, 24.50 fps, 5 s", "8*8, 1.2345 fps, 5 s", "8*8,24 fps,5 s", "8*8, 1e3 fps, 5 s"]


@pytest.mark.parametrize("text", [*NO_SIZES, *NO_VIDEOS, *NO_NUMBERS])
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(InputError):
        parse_meta(text)


@pytest.mark.parametrize(
    "size",
    [
        ImageSize(height=0, width=3),
        ImageSize(height=3, width=1_000_000),
        VideoSize(height=1, width=1, num_frames=0),
        VideoSize(height=1, width=1, num_frames=1, fps=961),
        VideoSize(height=1, width=1, num_frames=4, fps=0.0001),
    ],
)
def test_unwritable_sizes_are_refused(size: ImageSize | VideoSize) -> None:
    with pytest.raises(InputError):
        format_meta(size)


def decimal(thousandths: int) -> str:
    return f"{thousandths / 1000:.3f}".rstrip("0").rstrip(".")


def following(wholes: list[str], closing: str) -> dict[str, set[str]]:
    """Return by brute force what may follow each beginning of ``wholes``."""
    found: dict[str, set[str]] = {}
    for whole in wholes:
        for length, piece in enumerate([*whole, closing]):
            found.setdefault(whole[:length], set()).add(piece)
    return found


@pytest.mark.parametrize("limits", [MetaLimits(max_side=23), MetaLimits(max_side=400, max_grid_tokens=300)])
def test_image_continuations_equal_brute_force(limits: MetaLimits) -> None:
    heights = range(1, limits.max_side + 1)
    sizes = [
        (height, width)
        for height in heights
        for width in range(1, limits.max_side + 1)
        if height * (width + 1) + 1 <= limits.max_grid_tokens
    ]
    expected = following([f"{height}*{width}" for height, width in sizes], END)
    for text, pieces in expected.items():
        video = {", "} if END in pieces else set()
        assert set(continuations(text, limits, 4)) == pieces | video, text


def test_frame_rate_continuations_equal_brute_force() -> None:
    limits = MetaLimits(max_fps=12)
    expected = following([decimal(rate) for rate in range(1000, 12001)], " fps, ")
    for text, pieces in expected.items():
        assert set(continuations(f"2*2, {text}", limits, 4)) == pieces, text


@pytest.mark.parametrize(
    ("rate", "max_frames", "max_grid_tokens"),
    [
        (1.0, 4, 999),
        (1.001, 3, 999),
        (2.5, 7, 999),
        (7.993, 16, 22),
        (23.976, 1, 999),
        (240.0, 100, 999),
        (240.0, 1, 7),
    ],
)
def test_duration_continuations_equal_brute_force(rate: float, max_frames: int, max_grid_tokens: int) -> None:
    limits = MetaLimits(max_frames=max_frames, max_grid_tokens=max_grid_tokens)
    before = f"2*2, {decimal(round(rate * 1000))} fps, "
    admissible = []
    for thousandths in range(1, 9000):
        try:
            size = parse_meta(f"{before}{decimal(thousandths)} s")
        except InputError:
            continue
        assert isinstance(size, VideoSize)
        if size.num_frames <= max_frames and -(-size.num_frames // 4) * 7 <= max_grid_tokens:
            admissible.append(decimal(thousandths))
    expected = following(admissible, " s")
    assert admissible
    for text, pieces in expected.items():
        assert set(continuations(before + text, limits, 4)) == pieces, text
    assert continuations(f"{before}{admissible[0]} s", limits, 4) == [END]


def test_videos_can_be_left_out() -> None:
    assert ", " not in continuations("2*2", MetaLimits(videos=False), 4)


def test_continuations_of_what_is_no_size_text_are_empty() -> None:
    assert continuations("a", MetaLimits(), 4) == []


def test_listed_sizes_are_the_only_ones() -> None:
    sizes = [
        ImageSize(height=8, width=8),
        ImageSize(height=12, width=8),
        VideoSize(height=8, width=8, num_frames=16, fps=8),
    ]
    found = listed_continuations(sizes)
    assert found[""] == ["8", "1"]
    assert found["8*8"] == [END, ", "]
    assert found["12*8"] == [END]
    assert found["8*8, 8 fps, 2 s"] == [END]
    assert "9" not in found

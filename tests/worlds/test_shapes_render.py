"""Renderings: antialiased, where they should be, cut at the edges."""

import numpy as np
import pytest

from rhea.worlds.shapes.render import contact_sheet, render, sample_frames, sprite
from rhea.worlds.shapes.scene import ALL_KINDS, BACKGROUND, COLOURS, SHAPES, SIZES, Kind, Scene, ShapeObject


def lone(kind: Kind, x: float, y: float, canvas: int = 64) -> np.ndarray:
    return render(Scene(objects=(ShapeObject(kind=kind, x=x, y=y),), canvas=canvas))


def covered(picture: np.ndarray) -> np.ndarray:
    """How much of each pixel is not background, for a black object."""
    return (BACKGROUND[0] - picture[..., 0].astype(float)) / (BACKGROUND[0] - COLOURS["black"][0])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", SIZES)
def test_centroid_and_area_are_those_of_the_shape(shape: str, size: str) -> None:
    steps = np.arange(64)
    areas = []
    for x, y in ((32.0, 30.0), (31.25, 33.5), (20.5, 40.75)):
        coverage = covered(lone(Kind("black", shape, size), x, y))
        assert coverage.sum(axis=0) @ steps / coverage.sum() == pytest.approx(x, abs=0.05)
        assert coverage.sum(axis=1) @ steps / coverage.sum() == pytest.approx(y, abs=0.05)
        areas.append(coverage.sum())
    unit = {
        "circle": np.pi * 0.95**2,
        "ring": np.pi * (0.97**2 - 0.5**2),
        "square": 1.64**2,
        "cross": 4 * 0.68 - 0.68**2,
        "triangle": 3**1.5 / 4 * 1.2**2,
        "star": 5 * 1.2 * 0.5 * np.sin(np.pi / 5),
    }[shape]
    assert areas == pytest.approx([unit * SIZES[size] ** 2] * 3, rel=0.02)


def test_every_kind_looks_different() -> None:
    assert len({lone(kind, 32, 32).tobytes() for kind in ALL_KINDS}) == len(ALL_KINDS)


def test_edges_are_antialiased_and_the_inside_is_pure() -> None:
    picture = lone(Kind("red", "circle", "large"), 32, 32)
    assert tuple(picture[32, 32]) == COLOURS["red"]
    assert tuple(picture[0, 0]) == BACKGROUND
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 10


def test_what_leaves_the_canvas_is_cut() -> None:
    whole, half = (covered(lone(Kind("black", "square", "large"), x, 32)).sum() for x in (32, -0.5))
    assert half == pytest.approx(whole / 2, rel=0.01)
    assert covered(lone(Kind("black", "square", "large"), -40, 200)).sum() == 0


def test_other_canvas_sizes_scale_the_shapes() -> None:
    small = covered(lone(Kind("black", "star", "large"), 32, 32)).sum()
    large = covered(lone(Kind("black", "star", "large"), 64, 64, canvas=128)).sum()
    assert large == pytest.approx(4 * small, rel=0.01)


def test_sprites_are_shared_and_cannot_be_written_to() -> None:
    assert sprite("star", "small") is sprite("star", "small")
    with pytest.raises(ValueError, match="read-only"):
        sprite("star", "small")[0, 0] = 1


def test_sampled_frames_are_reproducible() -> None:
    first, again = (sample_frames(np.random.default_rng(7), 20) for _ in range(2))
    assert first.shape == (20, 64, 64, 3)
    assert first.dtype == np.uint8
    np.testing.assert_array_equal(first, again)


def test_contact_sheet_holds_every_picture() -> None:
    pictures = sample_frames(np.random.default_rng(0), 5)
    sheet = contact_sheet(list(pictures), columns=3, border=2, zoom=1)
    assert sheet.shape == (2 * 66 + 2, 3 * 66 + 2, 3)
    np.testing.assert_array_equal(sheet[68:132, 68:132], pictures[4])

import pytest
import torch

from rhea.models.vision.locality import LEAST, Window, locality_loss, paste, random_window

WINDOW = Window(height=3, width=4, source=(0, 1), target=(2, 0))


def cells(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def test_a_window_of_the_next_picture_is_pasted():
    pixels = cells(3, 2, 12, 10)
    pasted = paste(pixels, WINDOW, cell=2)
    for number in range(3):
        expected = pixels[number].clone()
        expected[:, 4:10, 0:8] = pixels[(number + 1) % 3][:, 0:6, 2:10]
        assert torch.equal(pasted[number], expected)


def test_local_latents_lose_nothing():
    """Means of single cells know nothing of one another."""
    pixels = cells(2, 3, 12, 12)
    encode = torch.nn.AvgPool2d(2)
    assert locality_loss(encode(paste(pixels, WINDOW, cell=2)), encode(pixels), WINDOW) < 1e-12


def test_only_cells_at_the_seam_may_know_the_other_side():
    pixels = cells(2, 3, 8, 8)
    encode = torch.nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False)
    latents, mixed = encode(pixels), encode(paste(pixels, WINDOW))
    assert locality_loss(mixed, latents, WINDOW._replace(source=(2, 1))) > 1e-3, "another window than was pasted"
    inner = WINDOW._replace(source=(3, 2), target=(2, 3))
    assert locality_loss(encode(paste(pixels, inner)), latents, inner) < 1e-12, "one cell of reach is allowed"
    wide = torch.nn.AvgPool2d(5, stride=1, padding=2, count_include_pad=False)
    assert locality_loss(wide(paste(pixels, inner)), wide(pixels), inner) > 1e-3, "two cells are not"


def test_what_depends_on_the_whole_picture_is_punished():
    pixels = cells(2, 3, 8, 8)
    latents, mixed = (x - x.mean((2, 3), keepdim=True) for x in (pixels, paste(pixels, WINDOW)))
    loss = locality_loss(mixed, latents, WINDOW)
    assert loss > 1e-4


@pytest.mark.parametrize(("rows", "columns"), [(LEAST, LEAST), (4, 8), (8, 4)])
def test_windows_fit_and_vary(rows: int, columns: int):
    generator = torch.Generator().manual_seed(0)
    windows = [random_window(rows, columns, generator) for _ in range(300)]
    for window in windows:
        for top, left in (window.source, window.target):
            assert min(top, left) >= 0
            assert top + window.height <= rows
            assert left + window.width <= columns
        assert window.height >= LEAST
        assert window.width >= LEAST
    assert {w.height for w in windows} == set(range(LEAST, rows + 1))
    assert {w.width for w in windows} == set(range(LEAST, columns + 1))

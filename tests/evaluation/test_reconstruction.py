"""Reconstruction: measures against their definitions, folders of everything, shards, and the page."""

import json
from pathlib import Path

import numpy as np
import pytest
from tiny_model import tiny_checkpoint

from rhea import cli, media
from rhea.errors import InputError
from rhea.evaluation import reconstruction
from rhea.evaluation.reconstruction import ReconstructionConfig, ReconstructionTask, pairs_page, psnr
from rhea.evaluation.runner import Shard, run_task
from rhea.generation.model import Rhea

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def model() -> Rhea:
    return Rhea(tiny_checkpoint())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder of three pictures, a film, and a file that is no picture."""
    folder = tmp_path / "photos"
    for name, size in (("a.png", (40, 30)), ("b.jpg", (64, 48)), ("deeper/c.webp", (33, 50))):
        media.write_picture(folder / name, RNG.integers(0, 256, (*size, 3), dtype=np.uint8))
    media.write_film(folder / "film.mp4", RNG.integers(0, 256, (6, 32, 24, 3), dtype=np.uint8), 8.0)
    (folder / "broken.png").write_bytes(b"not a picture")
    (folder / "notes.txt").write_text("no picture either")
    return folder


def test_every_readable_file_is_measured_as_by_hand(model: Rhea, folder: Path) -> None:
    task = ReconstructionTask(model, ReconstructionConfig(folder=folder))
    report = run_task(task, model)
    assert report is not None
    assert [each["file"] for each in report.records] == ["a.png", "b.jpg", "broken.png", "deeper/c.webp", "film.mp4"]
    assert "broken.png" in report.records[2]["refused"]
    codec, codes = model.prompts.codec, []
    for index in (0, 1, 3):
        pixels = media.read_picture(task.files[index])
        grid = codec.encode_picture(pixels)
        codes.append(grid.ravel())
        back = codec.decode_picture(grid)
        assert report.records[index]["PSNR"] == pytest.approx(psnr(codec.policy.resize(pixels), back))
        assert (task.pair(index)[1] == back).all()
    frames = media.read_film(task.files[4]).frames
    grid = codec.encode_film(frames)
    seen = [codec.policy.resize(frame) for frame in frames]
    per_frame = [psnr(*pair) for pair in zip(seen, codec.decode_film(grid, 6), strict=True)]
    assert report.records[4]["PSNR"] == pytest.approx(np.mean(per_frame))
    assert report.figure("pictures", "PSNR").value == np.mean([report.records[i]["PSNR"] for i in (0, 1, 3)])
    assert report.figure("films", "PSNR").count == 1
    share = np.unique(np.concatenate([*codes, grid.ravel()]), return_counts=True)[1]
    share = share / share.sum()
    assert report.figure("codebook", "use").value == len(share) / 32
    assert report.figure("codebook", "perplexity").value == pytest.approx(np.prod(share**-share))
    assert report.figure("files", "left out").value == 1


def test_measures_know_equal_and_unequal_pictures() -> None:
    first = RNG.integers(0, 256, (24, 32, 3), dtype=np.uint8)
    shifted = np.roll(first, 1, axis=0)
    ssim = reconstruction.ssim()
    assert psnr(first, first) == reconstruction.MAX_PSNR
    assert psnr(np.zeros_like(first), np.full_like(first, 255)) == 0
    assert psnr(np.zeros_like(first), np.full_like(first, 51)) == pytest.approx(20 * np.log10(5))
    assert ssim(first, first) == pytest.approx(1)
    assert abs(ssim(first, shifted)) < 0.2
    grey, lighter = (np.full((16, 16, 3), value, np.uint8) for value in (100, 150))
    means = 2 * 100 * 150 / 255**2 + 0.01**2, (100**2 + 150**2) / 255**2 + 0.01**2
    assert ssim(grey, lighter) == pytest.approx(means[0] / means[1], rel=1e-4)  # flat: only the means differ
    assert np.isnan(ssim(first[:8], first[:8]))


def test_figures_are_the_same_in_shards(model: Rhea, folder: Path, tmp_path: Path) -> None:
    config = ReconstructionConfig(folder=folder)
    alone = run_task(ReconstructionTask(model, config), model)
    for index in range(3):
        shard = Shard(index=index, count=3)
        whole = run_task(ReconstructionTask(model, config), model, output=tmp_path / "report.json", shard=shard)
    assert alone is not None
    assert whole is not None
    assert whole.figures == alone.figures
    media.write_picture(folder / "new.png", np.zeros((32, 24, 3), np.uint8))
    with pytest.raises(InputError, match="items, settings"):
        run_task(ReconstructionTask(model, config), model, output=tmp_path / "report.json")


def test_the_page_shows_best_and_worst(model: Rhea, folder: Path) -> None:
    media.write_picture(folder / "flat.png", np.full((32, 24, 3), 128, np.uint8))
    task = ReconstructionTask(model, ReconstructionConfig(folder=folder))
    report = run_task(task, model)
    assert report is not None
    html = pairs_page(task, report.records, model).html()
    graded = [each for each in report.records if "PSNR" in each]
    best, worst = (pick(graded, key=lambda each: each["PSNR"])["file"] for pick in (max, min))
    sections = html.split("<h2>")[1:]
    assert [section.split("<")[0] for section in sections] == ["Best", "Typical", "Worst"]
    assert best in sections[0].split("figcaption")[1]
    assert worst in sections[2].split("figcaption")[1]
    assert "broken.png" not in html


def test_further_measures(model: Rhea, folder: Path, tmp_path: Path) -> None:
    def compare(before: Path, after: Path) -> float:
        return len(list(before.rglob("*.png"))) + 10 * len(list(after.rglob("*.png")))

    with pytest.raises(InputError, match="--keep"):
        ReconstructionTask(model, ReconstructionConfig(folder=folder), fid=compare)
    config = ReconstructionConfig(folder=folder, keep=tmp_path / "kept")
    report = run_task(
        ReconstructionTask(model, config, distances={"reds": lambda a, b: float(a[0, 0, 0])}, fid=compare), model
    )
    assert report is not None
    assert report.figure("pictures", "rFID").value == 33
    first = model.prompts.codec.policy.resize(media.read_picture(folder / "a.png"))
    assert report.records[0]["reds"] == first[0, 0, 0]
    assert report.figure("films", "reds").count == 1


def test_the_command(tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from rhea.checkpoints.save import save_checkpoint

    save_checkpoint(tmp_path / "tiny", tiny_checkpoint())
    model = ["--checkpoint", str(tmp_path / "tiny")]
    options = ["--output", f"{tmp_path}/r.json", "--page", f"{tmp_path}/p.html", "--keep", f"{tmp_path}/kept"]
    assert cli.main(["evaluate", "reconstruction", str(folder), *options, "--max-frames", "2", *model]) == 0
    names = {figure["name"] for figure in json.loads((tmp_path / "r.json").read_text())["figures"]}
    assert names == {"PSNR", "SSIM", "use", "perplexity", "left out"}
    assert "Worst" in (tmp_path / "p.html").read_text()
    kept = {path.relative_to(tmp_path / "kept").as_posix() for path in (tmp_path / "kept").rglob("*.png")}
    assert kept == {
        f"{side}/{name}.png" for side in ("before", "after") for name in ("a.png", "b.jpg", "deeper/c.webp")
    }
    capsys.readouterr()
    assert cli.main(["evaluate", "reconstruction", f"{tmp_path}/kept/nothing", *model]) == 2
    assert "not a folder" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert cli.main(["evaluate", "reconstruction", f"{tmp_path}/empty", *model]) == 2
    assert "holds no pictures" in capsys.readouterr().err

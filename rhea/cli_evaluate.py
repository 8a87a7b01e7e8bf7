"""``rhea evaluate WHAT``: one function for each thing that a checkpoint can be graded on.

Nothing heavy is imported before a command runs.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import Positional, arg

from rhea.cli_messages import item_progress, say
from rhea.cli_options import GUIDANCE, MODEL, GuidanceOptions, ModelOptions
from rhea.errors import InputError

if TYPE_CHECKING:
    from rhea.evaluation.page import Page
    from rhea.evaluation.report import Report
    from rhea.evaluation.task import Task
    from rhea.generation.model import Rhea

Shard = Annotated[str | None, arg(metavar="I/N")]


def default(
    emoji: Annotated[Path | None, arg(metavar="FOLDER")] = None,
    driving: Annotated[Path | None, arg(metavar="FOLDER")] = None,
    limit: Annotated[int, arg(metavar="N")] = 200,
    output: Path = Path("evaluation.json"),
    seed: int = 0,
    side: Annotated[int | None, arg(metavar="PIXELS")] = None,
    best_of: Annotated[int, arg(metavar="N")] = 4,
    shard: Shard = None,
    model: ModelOptions = MODEL,
) -> None:
    """Grade all that the default model learned: shapes, emoji and driving; a report, and a page of samples beside it.

    $ rhea evaluate default --emoji emoji --driving films --output report.json

    Args:
        emoji: Shards of emoji; without them that part is left out.
        driving: Films that "rhea record driving" wrote with a seed of their own; without them that part is left out.
        limit: Scenes, cells and films per figure; more are slower and surer.
        output: The report, as JSON; the page is beside it (.html), and what is graded, to go on when interrupted.
        seed: Of scenes, cells and sampling; no training seed, whichever you take.
        side: Of the emoji; by default that of the checkpoint's pictures.
        best_of: Also grade pictures from text as the best of N that the model itself reads best; 1 leaves that out.
        shard: Grade only the I-th of N parts (from 0), for several processes with one --output; torchrun needs none.
    """
    from rhea.evaluation.default import default_task

    _check_report(output)
    loaded = _load(model)
    task = default_task(loaded, emoji=emoji, driving=driving, limit=limit, seed=seed, side=side, best_of=best_of)
    for name, reason in task.left_out.items():
        say(f"{name}: {reason}")
    report = _run(task, loaded, output, shard)
    if report is not None:
        _write_page(output.with_suffix(".html"), task.page(report))


def shapes(
    scenes: int = 200,
    output: Path | None = None,
    seed: int = 0,
    tasks: tuple[str, ...] = (),
    best_of: Annotated[int, arg(metavar="N")] = 4,
    shard: Shard = None,
    model: ModelOptions = MODEL,
) -> None:
    """Grade a checkpoint on fresh scenes of the shapes world; every figure beside its ceiling and its chance level.

    $ rhea evaluate shapes --scenes 200 --output report.json

    Args:
        scenes: Scenes per figure; more are slower and surer.
        output: Also write the report there, as JSON; what is graded is kept beside it, to go on when interrupted.
        seed: Of the scenes and of the sampling; no training seed, whichever you take.
        tasks: Only these, of: "text to image" answers films "text to film" edits.
        best_of: Also grade pictures from text as the best of N that the model itself reads best; 1 leaves that out.
        shard: Grade only the I-th of N parts (from 0), for several processes with one --output; torchrun needs none.
    """
    from rhea.evaluation.shapes.bench import ShapesBenchmark
    from rhea.evaluation.shapes.task import ShapesTask

    _check_report(output)
    config = ShapesBenchmark(scenes=scenes, seed=seed, best_of=best_of)
    loaded = _load(model)
    _run(ShapesTask(loaded, replace(config, tasks=tasks or config.tasks)), loaded, output, shard)


def reconstruction(
    folder: Annotated[Path, Positional, arg(metavar="FOLDER")],
    output: Path | None = None,
    page: Path | None = None,
    keep: Annotated[Path | None, arg(metavar="FOLDER")] = None,
    max_frames: Annotated[int | None, arg(metavar="N")] = None,
    lpips_weights: Annotated[Path | None, arg(metavar="FILE")] = None,
    fid_weights: Annotated[Path | None, arg(metavar="FILE")] = None,
    shard: Shard = None,
    model: ModelOptions = MODEL,
) -> None:
    """Measure what the vision tokenizer keeps of a folder's pictures and films: PSNR, SSIM, use of the codebook.

    $ rhea evaluate reconstruction photos --output report.json --page pairs.html

    Args:
        folder: Pictures and films of any size, in folders of any depth.
        output: Also write the report there, as JSON; what is measured is kept beside it, to go on when interrupted.
        page: Write a page (.html) of the best, typical and worst pairs.
        keep: Keep the pictures that come back there, and beside them what they are compared with.
        max_frames: Read no more of a film.
        lpips_weights: Also measure LPIPS, by this safetensors file; docs/evaluation.md tells how to get it.
        fid_weights: Also measure rFID of what --keep keeps, by Inception from this safetensors file.
        shard: Measure only the I-th of N parts (from 0), for several processes with one --output; torchrun needs none.
    """
    from rhea.evaluation import scores
    from rhea.evaluation.reconstruction import ReconstructionConfig, ReconstructionTask, pairs_page

    _check_report(output)
    loaded = _load(model)
    config = ReconstructionConfig(folder=folder, keep=keep, max_frames=max_frames)
    device = next(loaded.prompts.codec.model.parameters()).device
    distances = dict([scores.lpips(lpips_weights, device)]) if lpips_weights is not None else {}
    fid = partial(scores.fid, weights=fid_weights, device=device) if fid_weights is not None else None
    task = ReconstructionTask(loaded, config, distances=distances, fid=fid)
    report = _run(task, loaded, output, shard)
    if report is not None and page is not None:
        _write_page(page, pairs_page(task, report.records, loaded))


def prompts(
    suite: Annotated[Literal["geneval", "t2i-compbench", "dpg-bench", "vbench"], Positional],
    file: Annotated[Path, Positional, arg(metavar="FILE")],
    output: Annotated[Path, arg(metavar="FOLDER")],
    samples: Annotated[int | None, arg(metavar="N")] = None,
    size: Annotated[str | None, arg(metavar="WxH|W:H")] = None,
    num_frames: Annotated[int | None, arg(metavar="N")] = None,
    fps: Annotated[float | None, arg(metavar="RATE")] = None,
    shard: Shard = None,
    sampling: GuidanceOptions = GUIDANCE,
    model: ModelOptions = MODEL,
) -> None:
    """Draw a public suite's prompts into a folder that its own scorer reads; what exists is not drawn again.

    $ rhea evaluate prompts geneval evaluation_metadata.jsonl --output geneval-pictures

    Args:
        suite: Whose layout.
        file: The suite's own prompt file; for dpg-bench the folder of them.
        output: Folder for the pictures or films; a JSON file beside it tells whose they are.
        samples: Of each prompt; by default as many as the suite's scorer expects.
        size: Width x height in pixels ("640x480"), or an aspect ratio ("16:9").
        num_frames: Length of films.
        fps: Frames per second of films.
        shard: Draw only the I-th of N parts (from 0), for several processes with one --output; torchrun needs none.
    """
    from rhea.evaluation.drawing import draw_suite
    from rhea.evaluation.runner import read_shard
    from rhea.evaluation.suites import SUITES, read_order

    order = read_order(suite, file, samples)  # before the model is loaded
    length = {"num_frames": num_frames, "fps": fps}
    if not SUITES[suite].films and set(length.values()) != {None}:
        raise InputError(f"--num-frames and --fps are for films; {suite} is of pictures")
    settings = {"size": size, **length, **sampling.settings()}
    with item_progress("drawing") as told:
        part = read_shard(shard)
        drawn = draw_suite(_load(model), suite, file, output, samples=samples, shard=part, told=told, **settings)
    say(f"{output} holds {len(order.wanted)} files when all parts are done: drew {drawn} now")


def pictures(
    folder: Annotated[Path, Positional, arg(metavar="FOLDER")],
    reference: Annotated[Path | None, arg(metavar="FOLDER")] = None,
    fid_weights: Annotated[Path | None, arg(metavar="FILE")] = None,
    clip: Annotated[str | None, arg(metavar="FOLDER|ID")] = None,
    suite: Literal["geneval", "t2i-compbench"] | None = None,
    prompts: Annotated[Path | None, arg(metavar="FILE")] = None,
    output: Path | None = None,
    device: str = "cpu",
) -> None:
    """Score pictures that are drawn already: FID against a folder of true ones, CLIP score against their prompts.

    $ rhea evaluate pictures drawn --reference photos --fid-weights inception.safetensors

    Args:
        folder: The pictures; for the CLIP score as "rhea evaluate prompts" drew them.
        reference: True pictures.
        fid_weights: Inception as a safetensors file; docs/evaluation.md tells how to get it.
        clip: A CLIP in transformers' layout.
        suite: Whose prompts were drawn.
        prompts: The suite's prompt file.
        output: Also write the report there, as JSON.
        device: cpu or cuda.
    """
    from rhea.evaluation.report import table
    from rhea.evaluation.scores import score_folder
    from rhea.io import write_json
    from rhea.logging import console

    _check_report(output)
    report = score_folder(
        folder,
        reference=reference,
        fid_weights=fid_weights,
        clip=clip,
        suite=suite,
        prompts=prompts,
        device=device,
    )
    console().print(table(report))
    if output is not None:
        write_json(output, report.to_json())
        say(f"wrote {output}")


EVALUATIONS: dict[str, Callable[..., None]] = {
    function.__name__: function for function in (default, shapes, reconstruction, prompts, pictures)
}


def _check_report(output: Path | None) -> None:
    if output is not None and output.suffix != ".json":
        raise InputError(f"the report is written as JSON; {output} must end in .json")


def _write_page(path: Path, page: "Page") -> None:
    from rhea.io import atomic_file

    with atomic_file(path) as temporary:
        temporary.write_text(page.html(), encoding="utf-8")
    say(f"wrote {path}")


def _load(model: ModelOptions) -> "Rhea":
    """Load the model, under torchrun on the GPU that belongs to this process."""
    import os

    import torch

    if model.device is None and "LOCAL_RANK" in os.environ and torch.cuda.is_available():
        model = replace(model, device=f"cuda:{os.environ['LOCAL_RANK']}")
    return model.load()


def _run(task: "Task", model: "Rhea", output: Path | None, shard: str | None) -> "Report | None":
    """Grade, show and write; return the report if it is whole."""
    from rhea.evaluation.report import table
    from rhea.evaluation.runner import read_shard, run_task
    from rhea.logging import console

    with item_progress("evaluating") as told:
        report = run_task(task, model, output=output, shard=read_shard(shard), told=told)
    if report is None:
        say(f"this part is done; {output} is written by whichever part ends last")
        return None
    console().print(table(report))
    if output is not None:
        say(f"wrote {output}")
    return report

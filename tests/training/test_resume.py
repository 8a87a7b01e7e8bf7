"""Interrupted in any way, a run ends bitwise where the uninterrupted one ends: weights, optimizers, averages, counters,
random states, loader and the logged numbers."""

import dataclasses
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import tiny_runs
import torch

from rhea.documents.document import Document, Image
from rhea.documents.formats import text_to_image
from rhea.documents.grammar import Grammar
from rhea.documents.loader import PackedLoader, PackedLoaderConfig
from rhea.documents.mixture import Mixture, WeightedSource
from rhea.tokenizers.text import train_text_tokenizer
from rhea.tokenizers.vocabulary import Vocabulary, compact_vocabulary
from rhea.training.next_token import NextTokenTask, NextTokenTaskConfig
from rhea.training.schedule import ScheduleConfig
from rhea.training.state import checkpoint_folders, load_checkpoint
from rhea.training.trainer import Trainer

KINDS = ("next_token", "vision_tokenizer")
STEPS = tiny_runs.TRAINER.total_steps
KILLS = 2
PROGRAM = Path(tiny_runs.__file__)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Sums must be made in one order in every process."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@dataclass
class Ended:
    """A run that was ended in another process."""

    folder: Path
    code: int
    errors: str


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Ended]:
    folder, moments = tmp_path_factory.mktemp("ended"), random.Random(0)
    specs = {"twice": {"kind": "next_token", "signal": "SIGINT", "step": 6, "times": 2}}
    specs["recipe SIGTERM"] = {"kind": "recipe", "signal": "SIGTERM", "step": 4}
    for kind in KINDS:
        specs[f"{kind} SIGTERM"] = {"kind": kind, "signal": "SIGTERM", "step": 5}
        for moment in range(KILLS):
            # with a checkpoint after every step, many of the moments are in the middle of writing one
            kill_after = moments.uniform(0, 0.1)
            specs[f"{kind} SIGKILL {moment}"] = {"kind": kind, "checkpoint_every": 1, "kill_after": kill_after}
    specs = {name: spec | {"folder": str(folder / name.replace(" ", "-"))} for name, spec in specs.items()}
    root = PROGRAM.parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(PROGRAM), json.dumps(specs)]
    done = subprocess.run(
        command, cwd=root, env=environment, stdout=subprocess.PIPE, text=True, timeout=300, check=True
    )
    return {
        name: Ended(Path(specs[name]["folder"]), code, Path(specs[name]["folder"] + ".stderr").read_text())
        for name, code in json.loads(done.stdout).items()
    }


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folders = {}
    for kind in KINDS:
        folders[kind] = tmp_path_factory.mktemp("whole") / kind
        assert tiny_runs.trainer(kind, folders[kind], keep_last=5).train()
    return folders


def assert_same_end(ours: Path, theirs: Path) -> None:
    one, other = (load_checkpoint(folder / f"step-{STEPS:08d}") for folder in (ours, theirs))
    assert one.tensors.keys() == other.tensors.keys()
    different = [name for name, tensor in one.tensors.items() if not torch.equal(tensor, other.tensors[name])]
    assert not different
    for key in ("task", "loader", "metrics"):
        assert one.values[key] == other.values[key]
    assert logged(ours) == logged(theirs)


def checkpoint_values(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.safetensors")}


def logged(folder: Path) -> list[dict]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if not name.endswith("per_second")} for line in lines]


@pytest.mark.parametrize("kind", KINDS)
def test_everything_that_matters_is_in_the_checkpoint(uninterrupted, kind):
    names = load_checkpoint(uninterrupted[kind] / f"step-{STEPS:08d}").tensors.keys()
    kept = {".".join(name.split(".")[:2]) for name in names}
    expected = {"random.cpu", "task.model", "task.optimizer", "task.average"}
    if kind == "vision_tokenizer":
        expected |= {"task.codebook", "task.discriminator", "task.discriminator_optimizer"}
    assert kept - {"random.cuda"} == expected


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_continued_from_a_checkpoint_ends_the_same(uninterrupted, tmp_path, kind):
    """The process died after step 4 had been saved, and had already logged a later step."""
    shutil.copytree(uninterrupted[kind], tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / f"step-{STEPS:08d}")
    assert tiny_runs.trainer(kind, tmp_path / "run").train()
    assert_same_end(tmp_path / "run", uninterrupted[kind])


def test_a_damaged_newest_checkpoint_costs_only_time(uninterrupted, tmp_path):
    shutil.copytree(uninterrupted["next_token"], tmp_path / "run")
    file = tmp_path / "run" / f"step-{STEPS:08d}" / "state.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    assert tiny_runs.trainer("next_token", tmp_path / "run").train()
    assert_same_end(tmp_path / "run", uninterrupted["next_token"])


class Squares:
    """Pictures of one code each, named in their captions."""

    def document(self, index: int) -> Document:
        side, code = 2 + index % 4, index % 32
        return text_to_image(f"{side} x {code}", Image(codes=np.full((side, side), code)))


def test_with_the_real_loader(tmp_path):
    text = train_text_tokenizer(["4 x 12 3 x 7 fps, s *"] * 3, 280)
    grammar = Grammar(Vocabulary(compact_vocabulary(text.vocab_size, 32)), text)
    loader_config = PackedLoaderConfig(rows=2, seq_len=96, group=4)
    for name, stops in (("whole", [8]), ("parts", [3, 4, 8])):
        for stop in stops:
            loader = PackedLoader(loader_config, Mixture([WeightedSource(name="squares", source=Squares())]), grammar)
            config = dataclasses.replace(
                tiny_runs.TRAINER, schedule=ScheduleConfig(learning_rate=1e-3, kind="constant")
            )
            task = NextTokenTask(NextTokenTaskConfig(), tiny_runs.transformer(grammar.vocabulary), grammar.vocabulary)
            run = Trainer(config, task, loader, tmp_path / name)
            if stop < STEPS:
                tiny_runs.signal_at(run, stop - 1, signal.SIGTERM, times=1)
            assert run.train() is (stop == STEPS)
            assert run.step == stop
    assert_same_end(tmp_path / "parts", tmp_path / "whole")


@pytest.mark.parametrize("kind", KINDS)
def test_after_sigterm(uninterrupted, ended, kind):
    run = ended[f"{kind} SIGTERM"]
    assert run.code == 3, run.errors
    assert [path.name for path in checkpoint_folders(run.folder)] == ["step-00000004", "step-00000006"]
    assert "SIGTERM: stopped after step 6 of 8" in run.errors
    assert "run the same command again to go on" in run.errors
    assert tiny_runs.trainer(kind, run.folder).train()
    assert_same_end(run.folder, uninterrupted[kind])


def test_a_whole_recipe_after_sigterm(ended, tmp_path):
    """Muon, the packed loader, the process that makes batches ahead and the codec, as they are used."""
    run = ended["recipe SIGTERM"]
    assert run.code == 3, run.errors
    assert [path.name for path in checkpoint_folders(run.folder)] == ["step-00000004", "step-00000005"]
    assert tiny_runs.recipe().run(run.folder)
    assert tiny_runs.recipe().run(tmp_path / "whole")
    assert_same_end(run.folder, tmp_path / "whole")
    ours, theirs = (checkpoint_values(folder / "checkpoint") for folder in (run.folder, tmp_path / "whole"))
    assert ours == theirs
    assert len(ours) >= 2


@pytest.mark.parametrize("moment", range(KILLS))
@pytest.mark.parametrize("kind", KINDS)
def test_after_kill_9_at_a_random_moment(uninterrupted, ended, kind, moment):
    run = ended[f"{kind} SIGKILL {moment}"]
    assert run.code == -signal.SIGKILL, run.errors
    assert tiny_runs.trainer(kind, run.folder).train()
    assert_same_end(run.folder, uninterrupted[kind])
    assert not list(run.folder.glob(".step-*"))


def test_a_second_signal_ends_the_process_at_once(uninterrupted, ended):
    run = ended["twice"]
    assert run.code == 128 + signal.SIGINT, run.errors
    assert [path.name for path in checkpoint_folders(run.folder)] == ["step-00000004"]
    assert tiny_runs.trainer("next_token", run.folder).train()
    assert_same_end(run.folder, uninterrupted["next_token"])

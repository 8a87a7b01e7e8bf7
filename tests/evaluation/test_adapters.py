"""Adapters: other suites' requests get the answers that Rhea gives, through stand-ins of the suites' base classes."""

import importlib
import json
import sys
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny_model import save_tiny_checkpoint

from rhea import media
from rhea.errors import InputError
from rhea.generation.loading import load_model

PIXELS = np.random.default_rng(0).integers(0, 256, (2, 32, 24, 3), dtype=np.uint8)
QUESTIONS = ("How many objects are there?", "What colour is it?")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny")


@pytest.fixture(scope="module")
def answers(tiny: Path) -> list[str]:
    model = load_model(tiny)
    answers = [model.ask(pixels, text, temperature=0) for pixels, text in zip(PIXELS, QUESTIONS, strict=True)]
    assert len(set(answers)) == 2, "the test could not tell them apart"
    return answers


def stand_in(monkeypatch: pytest.MonkeyPatch, name: str, **names: Any) -> None:
    """Put modules in place of a package that is not installed."""
    parts = name.split(".")
    for depth in range(1, len(parts) + 1):
        path = ".".join(parts[:depth])
        if path not in sys.modules or depth == len(parts):
            module = ModuleType(path)
            monkeypatch.setitem(sys.modules, path, module)
    vars(sys.modules[name]).update(names)


@pytest.fixture
def lmms_eval(monkeypatch: pytest.MonkeyPatch) -> Any:
    class Lmms(ABC):
        """The abstract methods and attributes of lmms_eval.api.model.lmms."""

        def __init__(self) -> None:
            self.task_dict: dict[str, Any] = {}
            self.cached: list[Any] = []
            self.cache_hook = SimpleNamespace(add_partial=lambda *arguments: self.cached.append(arguments))

        @abstractmethod
        def loglikelihood(self, requests: Any) -> Any: ...
        @abstractmethod
        def generate_until(self, requests: Any) -> Any: ...
        @abstractmethod
        def generate_until_multi_round(self, requests: Any) -> Any: ...

    @dataclass(frozen=True)
    class ModelManifest:
        model_id: str
        simple_class_path: str | None = None

    stand_in(monkeypatch, "lmms_eval.api.model", lmms=Lmms)
    stand_in(monkeypatch, "lmms_eval.models.registry_v2", ModelManifest=ModelManifest)
    monkeypatch.delitem(sys.modules, "rhea.evaluation.adapters.lmms_eval", raising=False)
    return importlib.import_module("rhea.evaluation.adapters.lmms_eval")


def test_lmms_eval_gets_the_answers(lmms_eval: Any, tiny: Path, answers: list[str]) -> None:
    manifest = lmms_eval.manifest()
    assert manifest.model_id == "rhea"
    module, _, name = manifest.simple_class_path.rpartition(".")
    model = getattr(importlib.import_module(module), name)(checkpoint=str(tiny), batch_size="2", device="cpu")
    model.task_dict = {"mme": {"test": [{"image": Image.fromarray(pixels)} for pixels in PIXELS]}}
    settings = {"max_new_tokens": 6, "temperature": 0, "do_sample": False, "until": ["\n\n"]}

    def request(index: int, **changed: Any) -> Any:
        visuals = changed.pop("visuals", lambda document: [document["image"]])
        return SimpleNamespace(args=(f"<image>{QUESTIONS[index]}", settings | changed, visuals, index, "mme", "test"))

    assert model.generate_until([request(0), request(1), request(0)]) == [answers[0], answers[1], answers[0]]
    assert model.cached[1] == ("generate_until", (f"<image>{QUESTIONS[1]}", settings), answers[1])
    middle = answers[0][2]
    assert model.generate_until([request(0, until=middle)]) == [answers[0].split(middle)[0].strip()]
    assert model.generate_until([request(0, visuals=lambda _: None)]) != [answers[0]]
    with pytest.raises(InputError, match="about 2 pictures"):
        model.generate_until([request(0, visuals=lambda document: [document["image"]] * 2)])
    for refused in (model.loglikelihood, model.generate_until_multi_round):
        with pytest.raises(InputError, match="not supported"):
            refused([])


def test_the_entry_point_is_declared() -> None:
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    assert '[project.entry-points."lmms_eval.models"]\nrhea = "rhea.evaluation.adapters.lmms_eval:manifest"\n' in text


def test_vlmevalkit_gets_the_answers(
    monkeypatch: pytest.MonkeyPatch, tiny: Path, answers: list[str], tmp_path: Path
) -> None:
    class BaseModel:
        """What vlmeval.vlm.base.BaseModel does with a list of dictionaries."""

        allowed_types: Any = ("text", "image")

        def generate(self, message: list[dict[str, str]], dataset: str | None = None) -> str:
            assert all(each["type"] in self.allowed_types for each in message)
            return self.generate_inner(message, dataset)  # type: ignore[attr-defined]

    known: dict[str, Any] = {}
    stand_in(monkeypatch, "vlmeval.vlm.base", BaseModel=BaseModel)
    stand_in(monkeypatch, "vlmeval.config", supported_VLM=known)
    monkeypatch.delitem(sys.modules, "rhea.evaluation.adapters.vlmevalkit", raising=False)
    vlmevalkit = importlib.import_module("rhea.evaluation.adapters.vlmevalkit")
    media.write_picture(tmp_path / "0.png", PIXELS[0])
    script = tmp_path / "run.py"
    script.write_text(
        "import json, sys\nfrom vlmeval.config import supported_VLM\n"
        "message = [{'type': 'image', 'value': sys.argv[2]}, {'type': 'text', 'value': sys.argv[3]}]\n"
        "answer = supported_VLM['rhea']().generate(message, dataset='MME')\n"
        "json.dump(answer, open(sys.argv[1], 'w'))\n"
    )
    monkeypatch.setenv("RHEA_CHECKPOINT", str(tiny))
    monkeypatch.setattr(sys, "argv", sys.argv)
    monkeypatch.setattr(sys, "path", [*sys.path])
    vlmevalkit.main([str(script), str(tmp_path / "answer.json"), str(tmp_path / "0.png"), QUESTIONS[0]])
    assert json.loads((tmp_path / "answer.json").read_text()) == answers[0]
    with pytest.raises(InputError, match=r"run\.py"):
        vlmevalkit.main(["nowhere/run.py"])

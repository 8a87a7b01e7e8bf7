"""The benchmark for GPU machines works where there is none: whole on a tiny model, else with a clear refusal."""

import importlib
import json
from pathlib import Path
from types import ModuleType

import pytest
import torch

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("gpu_engine")


def test_the_whole_of_it_on_a_tiny_model(script: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    script.main(["--small", "--tokens-per-forward", "2"])
    results = json.loads(capsys.readouterr().out)
    found = results["pictures"]["128 x 128"]
    assert found.pop("vision_decoding_seconds") >= 0
    assert set(found) == {"plain loop", "1 at once, window 1", "1 at once, window 4", "2 at once, window 1"}
    for each in found.values():
        codes = 2 if each is found["1 at once, window 4"] else 1
        expected = 256 / codes * each["milliseconds_per_forward"] / 1000
        assert each["seconds_per_picture"] == pytest.approx(expected, abs=2e-3)
        assert each["share_of_roofline"] > 0


def test_forward_bytes_count_weights_head_and_cache(script: ModuleType) -> None:
    model, _ = script.build(script.SMALL, torch.device("cpu"))
    config = model.config
    layer = config.dim * (2 * 32 + 2 * 16 + 3 * config.ffn_dim + 2)  # queries and output, keys and values, norms
    assert script.forward_bytes(model, 0, 100, 0) == 2 * 2 * layer
    more = script.forward_bytes(model, 4, 100, 64) - 2 * 2 * layer
    assert more == 2 * 64 * 32 + 4 * 100 * 2 * 2 * (2 * 8) * 2


def test_without_a_gpu_it_says_what_to_do(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match=r"needs a CUDA GPU.*--small"):
        script.main([])

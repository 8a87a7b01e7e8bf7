import json
import logging
from pathlib import Path

import pytest
import torch

from rhea.errors import InputError
from rhea.training.state import checkpoint_folders, last_good, load_newest, save_checkpoint
from rhea.training.task import TrainingError


def save(folder: Path, step: int, keep_last: int = 10) -> Path:
    tensors = {"a": torch.full((3,), float(step)), "rng": torch.arange(4, dtype=torch.uint8), "none": torch.zeros(0)}
    return save_checkpoint(folder, step, tensors, {"loader": {"position": step}}, keep_last)


def test_round_trip(tmp_path):
    path = save(tmp_path, 12)
    assert path.name == "step-00000012"
    saved = load_newest(tmp_path)
    assert (saved.step, saved.values) == (12, {"loader": {"position": 12}})
    assert torch.equal(saved.tensors["a"], torch.full((3,), 12.0))
    assert saved.tensors["rng"].dtype == torch.uint8


def test_only_safetensors_and_json_are_written(tmp_path):
    assert sorted(file.name for file in save(tmp_path, 1).iterdir()) == ["state.json", "state.safetensors"]


def test_views_and_transposed_tensors_are_saved_by_value(tmp_path):
    matrix = torch.arange(6.0).view(2, 3)
    save_checkpoint(tmp_path, 1, {"whole": matrix, "turned": matrix.t()}, {}, 1)
    assert torch.equal(load_newest(tmp_path).tensors["turned"], matrix.t())


def test_no_checkpoint_is_none(tmp_path):
    assert load_newest(tmp_path) is None
    assert "no checkpoint" in last_good(tmp_path)


def test_keep_last_deletes_the_oldest_by_number(tmp_path):
    for step in (5, 9, 10, 100_000_000):
        save(tmp_path, step, keep_last=2)
    assert [path.name for path in checkpoint_folders(tmp_path)] == ["step-00000010", "step-100000000"]


def truncate(path: Path) -> None:
    file = path / "state.safetensors"
    file.write_bytes(file.read_bytes()[:-5])


def flip_a_bit(path: Path) -> None:
    file = path / "state.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(bytes(content))


def lose_tensors(path: Path) -> None:
    (path / "state.safetensors").unlink()


def lose_json(path: Path) -> None:
    (path / "state.json").unlink()


def truncate_json(path: Path) -> None:
    file = path / "state.json"
    file.write_text(file.read_text()[:-20])


def lose_a_key(path: Path) -> None:
    header = json.loads((path / "state.json").read_text())
    del header["values"]
    (path / "state.json").write_text(json.dumps(header))


def not_an_object(path: Path) -> None:
    (path / "state.json").write_text("[]")


DAMAGES = [truncate, flip_a_bit, lose_tensors, lose_json, truncate_json, lose_a_key, not_an_object]


def test_a_damaged_later_checkpoint_does_not_push_the_good_one_out(tmp_path):
    save(tmp_path, 4, keep_last=1)
    (tmp_path / "step-00000008").mkdir()
    save(tmp_path, 6, keep_last=1)
    assert load_newest(tmp_path).step == 6


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_newest_falls_back_to_the_one_before_with_a_warning(tmp_path, damage, caplog):
    save(tmp_path, 1)
    damage(save(tmp_path, 2))
    with caplog.at_level(logging.WARNING, logger="rhea"):
        assert load_newest(tmp_path).step == 1
    assert "step-00000002" in caplog.text


def test_only_damaged_checkpoints_never_mean_starting_over_silently(tmp_path):
    truncate(save(tmp_path, 1))
    with pytest.raises(InputError, match=r"no checkpoint in .* is whole"):
        load_newest(tmp_path)


def test_a_damaged_checkpoint_is_replaced_when_its_step_comes_again(tmp_path):
    save(tmp_path, 1)
    flip_a_bit(save(tmp_path, 2))
    assert load_newest(tmp_path).step == 1
    save(tmp_path, 2)
    assert load_newest(tmp_path).step == 2


def test_what_a_killed_writer_left_is_removed(tmp_path):
    save(tmp_path, 1)
    (tmp_path / ".step-00000002.abc").mkdir()
    (tmp_path / ".step-00000002.abc" / "state.safetensors").write_bytes(b"half")
    assert load_newest(tmp_path).step == 1
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


def test_a_failed_write_keeps_the_old_checkpoint_and_names_it(tmp_path, monkeypatch):
    save(tmp_path, 1, keep_last=1)

    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("rhea.training.state.save_file", full)
    with pytest.raises(TrainingError, match=r"No space left.*step-00000001"):
        save(tmp_path, 2, keep_last=1)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]

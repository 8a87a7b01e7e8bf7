"""Descriptions come from headers alone: a file of 17 GB full of nothing is described at once."""

import json
import struct
from pathlib import Path

import pytest
import torch
from checkpoint_cases import small_checkpoint, small_config, write_official

from rhea.checkpoints.configs import read_config
from rhea.checkpoints.inspect import describe_checkpoint
from rhea.checkpoints.layouts import OFFICIAL_TRANSFORMER
from rhea.checkpoints.load import Checkpoint, empty_model, shapes
from rhea.checkpoints.save import save_checkpoint
from rhea.errors import InputError


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return small_checkpoint()


@pytest.mark.parametrize("layout", ["rhea", "hf"])
def test_a_small_checkpoint(tmp_path: Path, checkpoint: Checkpoint, layout: str) -> None:
    save_checkpoint(tmp_path / "a", checkpoint, layout=layout)
    told = describe_checkpoint(tmp_path / "a")
    assert told.layout == layout
    for part in ("transformer", "vision_tokenizer"):
        model = getattr(checkpoint, part)
        assert told.parts[part].num_parameters == sum(parameter.numel() for parameter in model.parameters())
        assert told.parts[part].num_tensors == len(model.state_dict())
        assert told.parts[part].dtypes == ("float32",)
        assert told.parts[part].num_bytes == sum(t.numel() * t.itemsize for t in model.state_dict().values())
    text = "\n".join(told.lines())
    for words in ("2 layers, dim 32", "context 512 tokens", "64 codes of 4", "332 ids: 260 text, 8 special, 64 visual"):
        assert words in text
    for words in ("tokenizer.json", "top_k 32", "nothing at all", "64 to 4,096 pixels"):
        assert words in text


def test_mixed_dtypes_and_a_missing_text_tokenizer(tmp_path: Path) -> None:
    checkpoint = small_checkpoint()
    checkpoint.transformer.to(torch.bfloat16)
    checkpoint.transformer.norm.float()
    one = Checkpoint(config=checkpoint.config, transformer=checkpoint.transformer)
    save_checkpoint(tmp_path / "a", one, shard_bytes=20_000)
    told = describe_checkpoint(tmp_path / "a")
    assert list(told.parts) == ["transformer"]
    assert told.parts["transformer"].dtypes == ("bfloat16", "float32")
    assert len(told.parts["transformer"].files) > 1
    assert told.text_tokenizer is None
    assert "none in the folder" in "\n".join(told.lines())


def test_released_folders(tmp_path: Path, checkpoint: Checkpoint) -> None:
    language, vision = write_official(tmp_path, checkpoint)
    assert "released Emu3 language model" in describe_checkpoint(language).lines()[1]
    assert "image_area 4096" in "\n".join(describe_checkpoint(language).lines())
    assert "released Emu3 vision tokenizer" in describe_checkpoint(vision).lines()[1]
    assert describe_checkpoint(vision).config.vocabulary is None


def test_the_released_size_by_its_headers_alone(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "Emu3", "max_position_embeddings": 9216}')
    _sparse_emu3(tmp_path / "model.safetensors")
    told = describe_checkpoint(tmp_path)
    assert told.parts["transformer"].num_parameters == 8_492_011_520
    assert told.parts["transformer"].num_bytes == 2 * 8_492_011_520
    assert told.config.vocabulary.num_special == 211
    assert "184,622 ids: 151,643 text, 211 special, 32,768 visual from 151854" in "\n".join(told.lines())
    assert "8,492,011,520 parameters, bfloat16, 16.98 GB in model.safetensors" in "\n".join(told.lines())


def _sparse_emu3(file: Path) -> None:
    """Write the header of all 291 tensors and then a hole of 17 GB, which takes no room on disk."""
    _, config = read_config(file.parent)
    header, offset = {}, 0
    for name, shape in shapes(empty_model(config, "transformer")).items():
        end = offset + 2 * torch.Size(shape).numel()
        stored = OFFICIAL_TRANSFORMER.transformer[0].theirs(name)
        header[stored] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    assert len(header) == 291
    text = json.dumps(header).encode()
    with file.open("wb") as out:
        out.write(struct.pack("<Q", len(text)) + text)
        out.truncate(8 + len(text) + offset)


def test_faults_are_the_ones_of_loading(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        describe_checkpoint(tmp_path / "none")
    save_checkpoint(tmp_path / "a", small_checkpoint(small_config()))
    (tmp_path / "a" / "transformer.safetensors").write_bytes(b"x" * 20)
    with pytest.raises(InputError, match="damaged"):
        describe_checkpoint(tmp_path / "a")

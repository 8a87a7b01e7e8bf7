"""The name rules at the released size, on the meta device, against transformers and the recorded table of tensors."""

import csv
from pathlib import Path

import pytest
import torch
import transformers

from rhea.checkpoints.layouts import (
    HF,
    HF_TRANSFORMER,
    HF_VISION,
    LAYOUTS,
    OFFICIAL_TRANSFORMER,
    OFFICIAL_VISION,
    PARTS,
    RHEA,
)
from rhea.models.config import TransformerConfig
from rhea.models.transformer import Transformer
from rhea.models.vision.config import VisionTokenizerConfig
from rhea.models.vision.tokenizer import VisionTokenizer

TABLE = Path(__file__).parents[2].parent / "shared" / "facts" / "emu3_param_map.tsv"
EMU3 = TransformerConfig(
    vocab_size=184622,
    dim=4096,
    num_layers=32,
    num_heads=32,
    num_kv_heads=8,
    head_dim=128,
    ffn_dim=14336,
    max_seq_len=9216,
)
Shapes = dict[str, tuple[int, ...]]


def shapes(model: torch.nn.Module) -> Shapes:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


@pytest.fixture(scope="module")
def released() -> dict[str, Shapes]:
    with torch.device("meta"):
        return {
            "transformer": shapes(Transformer(EMU3)),
            "vision_tokenizer": shapes(VisionTokenizer(VisionTokenizerConfig())),
        }


@pytest.fixture(scope="module")
def hf_in_memory() -> Shapes:
    names = {f"<|visual token {code:06d}|>": 151854 + code for code in range(32768)} | {"<|extra_200|>": 151846}
    with torch.device("meta"):
        return shapes(transformers.Emu3ForConditionalGeneration(transformers.Emu3Config(vocabulary_map=names)))


def theirs(released: dict[str, Shapes], which: int) -> Shapes:
    """Return all our tensors under HF's names, on disk (0) or in memory (1)."""
    return {
        renaming.theirs(name): renaming.stored_shape(name, shape)
        for part in PARTS
        for renaming in [HF.renamings(part)[which]]
        for name, shape in released[part].items()
    }


def test_names_in_memory_are_transformers_own(released: dict[str, Shapes], hf_in_memory: Shapes) -> None:
    assert len(hf_in_memory) == 786
    assert theirs(released, 1) == hf_in_memory


def test_single_parts_are_transformers_own(released: dict[str, Shapes]) -> None:
    with torch.device("meta"):
        text = shapes(transformers.Emu3ForCausalLM(transformers.Emu3Config().text_config))
        vision = shapes(transformers.Emu3VQVAE(transformers.Emu3Config().vq_config))
    renaming = HF_TRANSFORMER.transformer[0]
    assert {renaming.theirs(name): shape for name, shape in released["transformer"].items()} == text
    renaming = HF_VISION.vision_tokenizer[0]
    stored = {renaming.theirs(n): renaming.stored_shape(n, s) for n, s in released["vision_tokenizer"].items()}
    assert stored == vision


def test_the_recorded_table_agrees(released: dict[str, Shapes]) -> None:
    if not TABLE.exists():
        pytest.skip(f"the recorded table of the released tensors is not at {TABLE}")
    with TABLE.open() as file:
        _, *rows = csv.reader(file, delimiter="\t")
    assert len(rows) == 786
    ours: Shapes = {}
    for official, on_disk, in_memory, official_shape, hf_shape in rows:
        found = (OFFICIAL_TRANSFORMER if official.startswith(("model.", "lm_head.")) else OFFICIAL_VISION).ours(
            official
        )
        assert found is not None
        part, name, _ = found
        ours[f"{part}.{name}"] = tuple(int(size) for size in official_shape.split("x") if size not in ("", "scalar"))
        assert [renaming.theirs(name) for renaming in HF.renamings(part)] == [on_disk, in_memory]
        for stored in (on_disk, in_memory):
            back = HF.ours(stored)
            assert back is not None
            assert back[:2] == (part, name)
        wanted = tuple(int(size) for size in hf_shape.split("x") if size not in ("", "scalar"))
        assert HF.renamings(part)[0].stored_shape(name, released[part][name]) == wanted
    assert ours == {f"{part}.{name}": shape for part in PARTS for name, shape in released[part].items()}


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
def test_every_layout_goes_there_and_back(released: dict[str, Shapes], layout) -> None:
    for part in layout.parts:
        for renaming in layout.renamings(part):
            stored = [renaming.theirs(name) for name in released[part]]
            assert len(set(stored)) == len(stored)
            assert [layout.ours(name) for name in stored] == [(part, name, renaming) for name in released[part]]


@pytest.mark.parametrize("name", ["lm_head", "modelx.norm.weight", "rotary.inv_freq", "text_model.lm_heads.weight"])
def test_foreign_names_belong_to_no_part(name: str) -> None:
    assert HF.ours(name) is None
    assert OFFICIAL_TRANSFORMER.ours(name) is None
    assert RHEA.ours(name) is None

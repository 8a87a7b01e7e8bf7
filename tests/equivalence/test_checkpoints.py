"""transformers loads what we export and we load what it saves: the same bits, logits and codes, in float32."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file

from rhea.checkpoints.configs import CheckpointConfig
from rhea.checkpoints.layouts import HF
from rhea.checkpoints.load import Checkpoint, load_checkpoint
from rhea.checkpoints.save import convert_checkpoint, save_checkpoint
from rhea.models.config import TransformerConfig
from rhea.models.transformer import Transformer
from rhea.models.vision.config import VisionTokenizerConfig
from rhea.models.vision.tokenizer import VisionTokenizer
from rhea.tokenizers.vision import PixelPolicy
from rhea.tokenizers.vocabulary import compact_vocabulary

TEXT_SIZE, CODES = 300, 128
# Float32 in another order of summation: a few units in the seventh digit of values around 1.
TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    transformer = TransformerConfig(
        vocab_size=TEXT_SIZE + 8 + CODES, dim=48, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=16, ffn_dim=80,
        max_seq_len=128, rope_theta=1e4, norm_eps=1e-6, pad_id=TEXT_SIZE,
    )  # fmt: skip
    vision = VisionTokenizerConfig(
        base_channels=32, channel_multipliers=(1, 2), attention_levels=(1,), num_res_blocks=1, temporal_res_blocks=1,
        codebook_size=CODES,
    )  # fmt: skip
    config = CheckpointConfig(
        transformer=transformer,
        vision_tokenizer=vision,
        vocabulary=compact_vocabulary(TEXT_SIZE, CODES),
        pixels=PixelPolicy(min_pixels=64, max_pixels=4096, factor=2),
    )
    torch.manual_seed(3)
    ours, tokenizer = Transformer(transformer), VisionTokenizer(vision)
    ours.init_weights(3)
    for tensor in tokenizer.state_dict().values():
        if tensor.is_floating_point():
            tensor.add_(0.1 * torch.randn_like(tensor)).abs_() if tensor.ndim == 1 else tensor.normal_(0, 0.1)
    return Checkpoint(config=config, transformer=ours.eval(), vision_tokenizer=tokenizer.eval())


@pytest.fixture(scope="module")
def folder(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export") / "hf"
    save_checkpoint(folder, checkpoint, layout="hf")
    return folder


def loaded(kind: Any, folder: Path) -> Any:
    model, report = kind.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert not any(report.values()), report
    return model.eval()


def same_logits(ours: Transformer | None, theirs: Any) -> None:
    assert ours is not None
    token_ids = torch.randint(0, ours.config.vocab_size, (2, 24), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(ours(token_ids), theirs(input_ids=token_ids).logits, **TOLERANCE)


def same_codes_and_pictures(ours: VisionTokenizer | None, theirs: Any) -> None:
    assert ours is not None
    pixels = torch.rand(2, 3, 12, 20, generator=torch.Generator().manual_seed(1)) * 2 - 1
    with torch.no_grad():
        codes = torch.stack(theirs.encode(pixels, image_sizes=torch.tensor([[12, 20]] * 2)).image_tokens)
        assert len(codes.unique()) > 4
        assert torch.equal(ours.encode(pixels), codes)
        torch.testing.assert_close(ours.decode(codes), theirs.decode(codes), **TOLERANCE)


def test_transformers_loads_our_export(checkpoint: Checkpoint, folder: Path) -> None:
    theirs = loaded(transformers.Emu3ForConditionalGeneration, folder)
    same_logits(checkpoint.transformer, theirs)
    same_codes_and_pictures(checkpoint.vision_tokenizer, theirs.model.vqmodel)
    stored, in_memory = load_file(folder / "model.safetensors"), theirs.state_dict()
    assert len(stored) == len(in_memory)
    for name, tensor in in_memory.items():
        part, ours, _ = HF.ours(name) or ("transformer", "", None)
        assert torch.equal(stored[HF.renamings(part)[0].theirs(ours)], tensor)


def test_its_picture_ids_are_ours(checkpoint: Checkpoint, folder: Path) -> None:
    theirs = loaded(transformers.Emu3ForConditionalGeneration, folder)
    vocabulary = checkpoint.vocabulary
    assert vocabulary is not None
    codes = torch.arange(CODES).view(8, 16)  # one picture, as its encode returns it
    rows = theirs.vocabulary_mapping.convert_img2bpe(codes)
    assert torch.equal(rows[..., :-1].long(), vocabulary.vision_id(codes))
    assert (rows[..., -1] == vocabulary.eol).all()
    assert (theirs.config.text_config.eos_token_id, theirs.config.text_config.pad_token_id) == (
        vocabulary.eos,
        vocabulary.pad,
    )


def test_single_parts(checkpoint: Checkpoint, tmp_path: Path) -> None:
    save_checkpoint(
        tmp_path / "text", Checkpoint(config=checkpoint.config, transformer=checkpoint.transformer), layout="hf"
    )
    same_logits(checkpoint.transformer, loaded(transformers.Emu3ForCausalLM, tmp_path / "text"))
    save_checkpoint(
        tmp_path / "vision",
        Checkpoint(config=checkpoint.config, vision_tokenizer=checkpoint.vision_tokenizer),
        layout="hf",
    )
    same_codes_and_pictures(checkpoint.vision_tokenizer, loaded(transformers.Emu3VQVAE, tmp_path / "vision"))


def test_we_load_what_transformers_saves(checkpoint: Checkpoint, folder: Path, tmp_path: Path) -> None:
    theirs = loaded(transformers.Emu3ForConditionalGeneration, folder)
    generator = torch.Generator().manual_seed(9)
    for parameter in theirs.parameters():
        parameter.data.add_(0.01 * torch.randn(parameter.shape, generator=generator))
    theirs.save_pretrained(tmp_path / "saved", max_shard_size="200KB")
    assert len(list((tmp_path / "saved").glob("*.safetensors"))) > 2
    ours = load_checkpoint(tmp_path / "saved")
    same_logits(ours.transformer, theirs)
    same_codes_and_pictures(ours.vision_tokenizer, theirs.model.vqmodel)
    assert ours.config.vocabulary == checkpoint.config.vocabulary
    convert_checkpoint(tmp_path / "saved", tmp_path / "again", "hf")
    again = loaded(transformers.Emu3ForConditionalGeneration, tmp_path / "again").state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in theirs.state_dict().items())


@pytest.mark.parametrize("kind", ["text", "vision"])
def test_we_load_single_parts_that_transformers_saves(folder: Path, tmp_path: Path, kind: str) -> None:
    config = transformers.AutoConfig.from_pretrained(folder)
    if kind == "vision":
        theirs = transformers.Emu3VQVAE(config.vq_config).eval()
        theirs.save_pretrained(tmp_path / "saved")
        same_codes_and_pictures(load_checkpoint(tmp_path / "saved").vision_tokenizer, theirs)
        return
    text = config.text_config
    for role, key in (("eol", "eol_token_id"), ("eof", "eof_token_id")):
        setattr(text, key, TEXT_SIZE + {"eol": 3, "eof": 4}[role])
    text.img_token_id, text.boi_token_id, text.eoi_token_id = TEXT_SIZE + 5, TEXT_SIZE + 6, TEXT_SIZE + 7
    theirs = transformers.Emu3ForCausalLM(text).eval()
    theirs.save_pretrained(tmp_path / "saved")
    same_logits(load_checkpoint(tmp_path / "saved").transformer, theirs)

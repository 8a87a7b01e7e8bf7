"""Small checkpoints to write, read and damage."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from rhea.checkpoints.configs import CheckpointConfig
from rhea.checkpoints.layouts import HF, OFFICIAL_TRANSFORMER
from rhea.checkpoints.load import Checkpoint
from rhea.models.config import TransformerConfig
from rhea.models.transformer import Transformer
from rhea.models.vision.config import VisionTokenizerConfig
from rhea.models.vision.tokenizer import VisionTokenizer
from rhea.tokenizers.text import ByteLevelTokenizer, train_text_tokenizer
from rhea.tokenizers.vision import PixelPolicy
from rhea.tokenizers.vocabulary import VocabularyConfig, compact_vocabulary

TEXT_SIZE, CODES = 260, 64


def small_config(**changes) -> CheckpointConfig:
    vocabulary: VocabularyConfig = compact_vocabulary(TEXT_SIZE, CODES)
    transformer = TransformerConfig(
        vocab_size=TEXT_SIZE + 8 + CODES,
        dim=32,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=8,
        ffn_dim=48,
        max_seq_len=512,
        pad_id=TEXT_SIZE,
        **changes,
    )
    vision = VisionTokenizerConfig(
        base_channels=32, channel_multipliers=(1, 2), attention_levels=(1,), num_res_blocks=1, temporal_res_blocks=1,
        codebook_size=CODES,
    )  # fmt: skip
    return CheckpointConfig(
        transformer=transformer,
        vision_tokenizer=vision,
        vocabulary=vocabulary,
        pixels=PixelPolicy(min_pixels=64, max_pixels=4096, factor=2),
        generation={"top_k": 32},
        trained_on="nothing at all",
    )


def text_tokenizer() -> ByteLevelTokenizer:
    return train_text_tokenizer(["a red circle and a blue square"] * 4, TEXT_SIZE)


def small_checkpoint(config: CheckpointConfig | None = None, seed: int = 0) -> Checkpoint:
    config = config or small_config()
    torch.manual_seed(seed)
    assert config.transformer is not None
    assert config.vision_tokenizer is not None
    transformer = Transformer(config.transformer)
    transformer.init_weights(seed)
    vision = VisionTokenizer(config.vision_tokenizer)
    for name, buffer in vision.named_buffers():
        if "running" in name:
            buffer.uniform_(0.5, 1.5)
    return Checkpoint(
        config=config, transformer=transformer.eval(), vision_tokenizer=vision.eval(), text_tokenizer=text_tokenizer()
    )


def states(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    """Return every tensor of both parts under one name space."""
    return {
        f"{part}.{name}": tensor
        for part in ("transformer", "vision_tokenizer")
        if getattr(checkpoint, part) is not None
        for name, tensor in getattr(checkpoint, part).state_dict().items()
    }


def same_bits(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        tensor.dtype == other[name].dtype and torch.equal(tensor, other[name]) for name, tensor in one.items()
    )


def write_official(folder: Path, checkpoint: Checkpoint, ids: dict[str, int] | None = None) -> tuple[Path, Path]:
    """Write the two folders in which BAAI released Emu3; the key names of their configs are BAAI's."""
    config, vocabulary = checkpoint.config, checkpoint.vocabulary
    assert config.transformer is not None
    assert config.vision_tokenizer is not None
    assert vocabulary is not None
    language, vision = folder / "language", folder / "vision"
    language.mkdir(parents=True)
    vision.mkdir()
    text, image = config.transformer, config.vision_tokenizer
    released_text = {
        "architectures": ["Emu3ForCausalLM"], "model_type": "Emu3", "vocab_size": text.vocab_size,
        "hidden_size": text.dim, "num_hidden_layers": text.num_layers, "num_attention_heads": text.num_heads,
        "num_key_value_heads": text.num_kv_heads, "intermediate_size": text.ffn_dim, "hidden_act": "silu",
        "max_position_embeddings": text.max_seq_len, "rms_norm_eps": 1e-5, "rope_theta": 1e6, "rope_scaling": None,
        "attention_dropout": text.dropout, "initializer_range": 0.02, "tie_word_embeddings": False, "image_area": 4096,
        "pad_token_id": vocabulary.pad, "bos_token_id": vocabulary.bos, "eos_token_id": vocabulary.eos,
        "eol_token_id": vocabulary.eol, "eof_token_id": vocabulary.eof, "img_token_id": vocabulary.image_token,
        "boi_token_id": vocabulary.image_start, "eoi_token_id": vocabulary.image_end,
    }  # fmt: skip
    released_vision = {
        "architectures": ["Emu3VisionVQModel"], "model_type": "Emu3VisionVQ", "ch": image.base_channels,
        "ch_mult": list(image.channel_multipliers), "num_res_blocks": image.num_res_blocks,
        "attn_resolutions": list(image.attention_levels), "z_channels": 4, "embed_dim": 4, "double_z": False,
        "codebook_size": image.codebook_size, "in_channels": 3, "out_channels": 3, "temporal_downsample_factor": 4,
        "dropout": 0.0,
    }  # fmt: skip
    (language / "config.json").write_text(json.dumps(released_text | (ids or {})))
    (vision / "config.json").write_text(json.dumps(released_vision))
    renaming = OFFICIAL_TRANSFORMER.transformer[0]
    assert checkpoint.transformer is not None
    assert checkpoint.vision_tokenizer is not None
    tensors = {renaming.theirs(name): tensor for name, tensor in checkpoint.transformer.state_dict().items()}
    write_sharded(language, tensors, 3)
    save_file(checkpoint.vision_tokenizer.state_dict(), vision / "model.safetensors", metadata={"format": "pt"})
    return language, vision


def write_sharded(folder: Path, tensors: dict[str, torch.Tensor], num_shards: int) -> None:
    names, weight_map = list(tensors), {}
    for index in range(num_shards):
        file = f"model-{index + 1:05}-of-{num_shards:05}.safetensors"
        save_file({name: tensors[name] for name in names[index::num_shards]}, folder / file)
        weight_map.update(dict.fromkeys(names[index::num_shards], file))
    content = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(content))


def in_memory_names(folder: Path) -> None:
    """Rename the tensors of an export from transformers' names on disk to those in memory."""
    file = folder / "model.safetensors"
    renamed = {}
    for name, tensor in load_file(file).items():
        found = HF.ours(name)
        assert found is not None
        part, ours, _ = found
        renamed[HF.renamings(part)[1].theirs(ours)] = tensor
    assert not renamed.keys() & load_file(file).keys()
    save_file(renamed, file)

"""config.json of a checkpoint folder, of whatever layout, as one ``CheckpointConfig``.

A released config leaves out what equals its class's defaults, so those defaults (the released Emu3's) are filled in.
Where one says nothing of Emu3's special ids they are known only if the vocabulary is the released one.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from rhea.checkpoints.layouts import HF, HF_TRANSFORMER, HF_VISION, OFFICIAL_TRANSFORMER, OFFICIAL_VISION, RHEA, Layout
from rhea.config import from_dict, to_dict
from rhea.errors import InputError
from rhea.io import read_json
from rhea.models.config import TransformerConfig
from rhea.models.vision.config import VisionTokenizerConfig
from rhea.tokenizers.vision import PixelPolicy
from rhea.tokenizers.vocabulary import EMU3_VOCABULARY, Vocabulary, VocabularyConfig


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """What config.json of our layout holds; either part of the model may be absent."""

    format: Literal["rhea"] = "rhea"
    version: Literal[1] = 1
    transformer: TransformerConfig | None = None
    vision_tokenizer: VisionTokenizerConfig | None = None
    vocabulary: VocabularyConfig | None = None
    """Present if there is a transformer."""
    pixels: PixelPolicy | None = None
    """How pictures become pixels that the vision tokenizer takes."""
    generation: dict[str, Any] = field(default_factory=dict)
    """Defaults of generation; ``image_area`` (pixels) is the size that a released model was tuned for."""
    trained_on: str = ""
    """One line on the data, for people."""

    def __post_init__(self) -> None:
        vocabulary, transformer, vision = self.vocabulary, self.transformer, self.vision_tokenizer
        if transformer and not vocabulary:
            raise InputError("a transformer needs a vocabulary beside it")
        if transformer and vocabulary and transformer.vocab_size != Vocabulary(vocabulary).size:
            raise InputError(
                f"the transformer has {transformer.vocab_size} vocabulary rows, the vocabulary has "
                f"{Vocabulary(vocabulary).size} ids"
            )
        if vision and vocabulary and vision.codebook_size != vocabulary.vision_size:
            raise InputError(
                f"the vision tokenizer has {vision.codebook_size} codes, the vocabulary has {vocabulary.vision_size}: "
                "they belong to different models"
            )


def read_config(folder: Path) -> tuple[Layout, CheckpointConfig]:
    """Tell the layout of a folder and read its config; raise InputError if it is no checkpoint that is known here."""
    file = folder / "config.json"
    if not file.is_file():
        raise InputError(f"{folder} is no checkpoint: there is no config.json in it")
    data = read_json(file)
    if not isinstance(data, dict):
        raise InputError(f"{folder} is no checkpoint: its config.json holds no object")
    layout = _layout(folder, data)
    if layout is RHEA:
        return layout, from_dict(CheckpointConfig, data, str(file))
    try:
        return layout, _released(layout, data, folder)
    except InputError:
        raise
    except (TypeError, ValueError, AttributeError, LookupError, ArithmeticError) as error:  # a value of a wrong type
        raise InputError(f"{file} is no config of a {layout.title}: {error}") from None


def _layout(folder: Path, data: dict[str, Any]) -> Layout:
    if data.get("format") == "rhea":
        return RHEA
    known = {
        "Emu3": OFFICIAL_TRANSFORMER,
        "Emu3VisionVQ": OFFICIAL_VISION,
        "emu3": HF,
        "emu3_text_model": HF_TRANSFORMER,
        "emu3_vqgan": HF_VISION,
    }
    kind = data.get("model_type")
    if isinstance(kind, str) and kind in known:
        return known[kind]
    if {"ch_mult", "z_channels", "codebook_size"} <= set(data):
        return OFFICIAL_VISION
    if kind is None:
        raise InputError(f'{folder} is no checkpoint: its config.json has neither "format": "rhea" nor a model_type')
    raise InputError(f"{folder} is a checkpoint of another model: {kind!r}; known are rhea and {', '.join(known)}")


def _released(layout: Layout, data: dict[str, Any], folder: Path) -> CheckpointConfig:
    text: dict[str, Any] = data.get("text_config") or {} if layout is HF else data
    vision: dict[str, Any] = data.get("vq_config") or {} if layout is HF else data
    where = f"{folder / 'config.json'} (in our names)"
    transformer = _transformer(text, where) if "transformer" in layout.parts else None
    ours = data.get("rhea") or {}  # what our export adds, since a config of transformers has no place for it
    tokenizer = _vision_tokenizer(vision, where) if "vision_tokenizer" in layout.parts else None
    pixels = _pixels(folder, tokenizer) if tokenizer else None
    if "pixels" in ours:
        pixels = from_dict(PixelPolicy, ours["pixels"], f"{where}.pixels")
    generation = dict(ours.get("generation") or {})
    if isinstance(data.get("image_area"), int) and data["image_area"] > 0:
        generation.setdefault("image_area", data["image_area"])
    return CheckpointConfig(
        transformer=transformer,
        vision_tokenizer=tokenizer,
        vocabulary=_vocabulary(data, text, ours, where) if transformer else None,
        pixels=pixels,
        generation=generation,
        trained_on=ours.get("trained_on", ""),
    )


_TRANSFORMER_KEYS: dict[str, tuple[str, Any]] = {
    "vocab_size": ("vocab_size", 184622),
    "dim": ("hidden_size", 4096),
    "num_layers": ("num_hidden_layers", 32),
    "num_heads": ("num_attention_heads", 32),
    "num_kv_heads": ("num_key_value_heads", 8),
    "ffn_dim": ("intermediate_size", 14336),
    "max_seq_len": ("max_position_embeddings", 9216),
    "norm_eps": ("rms_norm_eps", 1e-5),
    "dropout": ("attention_dropout", 0.1),
    "init_std": ("initializer_range", 0.02),
    "pad_id": ("pad_token_id", 151643),
}
_UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu",),
    "rope_scaling": (None,),
    "tie_word_embeddings": (False,),
    "attention_bias": (False,),
    "mlp_bias": (False,),
    "double_z": (False,),
    "double_latent": (False,),
}


def _check_supported(data: dict[str, Any], where: str) -> None:
    for key, allowed in _UNSUPPORTED.items():
        if key in data and data[key] not in allowed:
            raise InputError(f"{where}: {key} is {data[key]!r}; only {allowed[0]!r} is supported")


def _transformer(data: dict[str, Any], where: str) -> TransformerConfig:
    _check_supported(data, where)
    rope = data.get("rope_parameters") or {}
    if rope.get("rope_type", "default") != "default":
        raise InputError(f"{where}: rope_type is {rope['rope_type']!r}; only 'default' is supported")
    values = {ours: data.get(theirs, default) for ours, (theirs, default) in _TRANSFORMER_KEYS.items()}
    values["rope_theta"] = rope.get("rope_theta", data.get("rope_theta", 1e6))
    values["head_dim"] = data.get("head_dim") or values["dim"] // values["num_heads"]
    return from_dict(TransformerConfig, values, where)


_VISION_KEYS = {
    "base_channels": ("ch", "base_channels"),
    "channel_multipliers": ("ch_mult", "channel_multiplier"),
    "num_res_blocks": ("num_res_blocks",),
    "temporal_res_blocks": ("num_res_blocks",),
    "attention_levels": ("attn_resolutions",),
    "latent_channels": ("z_channels", "latent_channels"),
    "embed_dim": ("embed_dim",),
    "codebook_size": ("codebook_size",),
    "in_channels": ("in_channels",),
    "out_channels": ("out_channels",),
    "temporal_downsample": ("temporal_downsample_factor",),
    "dropout": ("dropout",),
}


def _vision_tokenizer(data: dict[str, Any], where: str) -> VisionTokenizerConfig:
    _check_supported(data, where)
    values = {ours: data[key] for ours, theirs in _VISION_KEYS.items() for key in theirs if key in data}
    return from_dict(VisionTokenizerConfig, values, where)


_ROLE_KEYS = {
    "pad": ("pad_token_id", "<|endoftext|>"),
    "bos": ("bos_token_id", "<|extra_203|>"),
    "eos": ("eos_token_id", "<|extra_204|>"),
    "eol": ("eol_token_id", "<|extra_200|>"),
    "eof": ("eof_token_id", "<|extra_201|>"),
    "image_token": ("img_token_id", "<|image token|>"),
    "image_start": ("boi_token_id", "<|image start|>"),
    "image_end": ("eoi_token_id", "<|image end|>"),
}
"""Role to its key in a released config and its name in transformers' vocabulary_map."""


def _vocabulary(data: dict[str, Any], text: dict[str, Any], ours: dict[str, Any], where: str) -> VocabularyConfig:
    if "vocabulary" in ours:
        return from_dict(VocabularyConfig, ours["vocabulary"], f"{where}.vocabulary")
    size, names = text.get("vocab_size", 184622), data.get("vocabulary_map") or {}
    ids: dict[str, Any] = {role: text.get(key, names.get(name)) for role, (key, name) in _ROLE_KEYS.items()}
    ids = {role: value[0] if isinstance(value, list) and value else value for role, value in ids.items()}
    if size == Vocabulary(EMU3_VOCABULARY).size:
        released = Vocabulary(EMU3_VOCABULARY)
        ids = {role: getattr(released, role) if value is None else value for role, value in ids.items()}
    missing = [role for role, value in ids.items() if not isinstance(value, int)]
    if missing:
        raise InputError(f"{where}: no ids are given for {', '.join(missing)}")
    # The special range starts at the smallest of these and the visual one follows the largest, as in Emu3.
    first, last = min(ids.values()), max(ids.values())
    offsets = {role: value - first for role, value in ids.items()}
    return VocabularyConfig(text_size=first, num_special=last + 1 - first, vision_size=size - last - 1, **offsets)


def _pixels(folder: Path, tokenizer: VisionTokenizerConfig) -> PixelPolicy:
    """Return the released policy with the area limits of the folder's image processor, where it has one."""
    policy = PixelPolicy(factor=tokenizer.spatial_factor)
    file = folder / "preprocessor_config.json"
    data = read_json(file) if file.is_file() else {}
    limits = {key: data[key] for key in ("min_pixels", "max_pixels") if isinstance(data, dict) and key in data}
    return from_dict(PixelPolicy, {**to_dict(policy), **limits}, str(file))

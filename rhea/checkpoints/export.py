"""Our configs as transformers' config files, for the models that its Emu3 classes can express.

transformers' config has no place for our vocabulary layout, pixel policy and the like: they travel under one extra key,
"rhea", which it keeps and ignores.
"""

from typing import Any

from rhea.checkpoints.configs import CheckpointConfig
from rhea.checkpoints.layouts import HF, HF_TRANSFORMER, HF_VISION, Layout
from rhea.config import to_dict
from rhea.errors import InputError
from rhea.models.config import TransformerConfig
from rhea.models.vision.config import VisionTokenizerConfig
from rhea.tokenizers.vision import PixelPolicy
from rhea.tokenizers.vocabulary import EMU3_VOCABULARY, Vocabulary


def hf_layout(config: CheckpointConfig) -> Layout:
    """Return the layout for the parts that there are."""
    if config.transformer and config.vision_tokenizer:
        return HF
    return HF_TRANSFORMER if config.transformer else HF_VISION


def hf_files(config: CheckpointConfig, dtype: str) -> dict[str, dict[str, Any]]:
    """Return the JSON files of an export by name; raise InputError for what transformers' Emu3 classes cannot hold."""
    layout = hf_layout(config)
    kept = to_dict(config)
    extra = {key: kept[key] for key in ("vocabulary", "pixels", "generation", "trained_on") if kept[key]}
    common = {"dtype": dtype, "torch_dtype": dtype, "tie_word_embeddings": False, "rhea": extra}
    files: dict[str, dict[str, Any]] = {}
    text = _text(config.transformer, Vocabulary(config.vocabulary)) if config.transformer and config.vocabulary else {}
    vision = _vision(config.vision_tokenizer) if config.vision_tokenizer else {}
    if layout is HF:
        assert config.vocabulary is not None
        names = _vocabulary_map(Vocabulary(config.vocabulary))
        head = {"architectures": ["Emu3ForConditionalGeneration"], "model_type": "emu3"}
        files["config.json"] = {**head, **common, "text_config": text, "vq_config": vision, "vocabulary_map": names}
    elif layout is HF_TRANSFORMER:
        files["config.json"] = {"architectures": ["Emu3ForCausalLM"], **common, **text}
    else:
        files["config.json"] = {"architectures": ["Emu3VQVAE"], **common, **vision}
    if config.transformer:
        files["generation_config.json"] = {key: text[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    if config.vision_tokenizer and config.pixels and config.pixels.shape == "keep":
        files["preprocessor_config.json"] = _image_processor(config.pixels)
    return files


def _text(config: TransformerConfig, vocabulary: Vocabulary) -> dict[str, Any]:
    if config.qk_norm:
        raise InputError("transformers' Emu3 has no QK-norm: this transformer only fits our own layout")
    return {
        "model_type": "emu3_text_model",
        "vocab_size": config.vocab_size,
        "hidden_size": config.dim,
        "intermediate_size": config.ffn_dim,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": config.max_seq_len,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "attention_dropout": config.dropout,
        "initializer_range": config.init_std,
        "tie_word_embeddings": False,
        "pad_token_id": vocabulary.pad,
        "bos_token_id": vocabulary.bos,
        "eos_token_id": vocabulary.eos,
    }


def _vision(config: VisionTokenizerConfig) -> dict[str, Any]:
    widths = {config.channels(level) for level in (*config.attention_levels, -1)}
    needs = {
        "32 norm groups": config.norm_groups == 32,
        "as many temporal as spatial residual blocks": config.temporal_res_blocks == config.num_res_blocks,
        "attention at one width": len(widths) == 1,
    }
    unmet = [need for need, met in needs.items() if not met]
    if unmet:
        raise InputError(
            f"transformers' Emu3 vision tokenizer needs {', '.join(unmet)}: this one only fits our own layout"
        )
    return {
        "model_type": "emu3_vqgan",
        "base_channels": config.base_channels,
        "channel_multiplier": list(config.channel_multipliers),
        "num_res_blocks": config.num_res_blocks,
        "attn_resolutions": list(config.attention_levels),
        "hidden_size": widths.pop(),
        "num_attention_heads": 1,
        "latent_channels": config.latent_channels,
        "double_latent": False,
        "embed_dim": config.embed_dim,
        "codebook_size": config.codebook_size,
        "in_channels": config.in_channels,
        "out_channels": config.out_channels,
        "temporal_downsample_factor": config.temporal_downsample,
        "dropout": config.dropout,
    }


def _vocabulary_map(vocabulary: Vocabulary) -> dict[str, int]:
    """Return the names by which transformers finds the visual tokens and the end of a row."""
    named = {
        "<|endoftext|>": vocabulary.pad,
        "<|extra_200|>": vocabulary.eol,
        "<|extra_201|>": vocabulary.eof,
        "<|extra_203|>": vocabulary.bos,
        "<|extra_204|>": vocabulary.eos,
        "<|image token|>": vocabulary.image_token,
        "<|image start|>": vocabulary.image_start,
        "<|image end|>": vocabulary.image_end,
    }
    if vocabulary.config == EMU3_VOCABULARY:
        named["<image>"] = vocabulary.special.start + 3  # its placeholder takes the unused <|extra_0|>
    return {**named, **{vocabulary.token_string(token_id): token_id for token_id in vocabulary.vision}}


def _image_processor(policy: PixelPolicy) -> dict[str, Any]:
    return {
        "image_processor_type": "Emu3ImageProcessor",
        "processor_class": "Emu3Processor",
        "do_convert_rgb": True,
        "do_resize": True,
        "resample": 3,
        "min_pixels": policy.min_pixels,
        "max_pixels": policy.max_pixels,
        "spatial_factor": policy.factor,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "do_pad": True,
    }

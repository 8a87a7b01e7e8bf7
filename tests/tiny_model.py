"""A random checkpoint that is small enough for every test that generates."""

from pathlib import Path
from typing import Any

import torch

from rhea.checkpoints.configs import CheckpointConfig
from rhea.checkpoints.load import Checkpoint
from rhea.checkpoints.save import save_checkpoint
from rhea.models.config import TransformerConfig
from rhea.models.transformer import Transformer
from rhea.models.vision.config import VisionTokenizerConfig
from rhea.models.vision.tokenizer import VisionTokenizer
from rhea.tokenizers.text import train_text_tokenizer
from rhea.tokenizers.vision import PixelPolicy
from rhea.tokenizers.vocabulary import Vocabulary, compact_vocabulary

TEXTS = ["a small red circle", "How many objects are there?", "USER: ASSISTANT: two", "make it blue, 8 fps, 2 s 8*8."]
GENERATION = {"height": 32, "width": 24, "num_frames": 8, "fps": 8.0, "guidance_scale": 2.0, "max_answer_tokens": 6}
TRAINED_ON = "nothing at all: its weights are random"


def tiny_checkpoint(max_seq_len: int = 256, **generation: Any) -> Checkpoint:
    """Return random weights, the same each time, with everything that a complete checkpoint has."""
    text_tokenizer = train_text_tokenizer(TEXTS, vocab_size=280)
    vocabulary = compact_vocabulary(text_size=text_tokenizer.vocab_size, vision_size=32)
    transformer_config = TransformerConfig(
        vocab_size=Vocabulary(vocabulary).size,
        dim=32,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=8,
        ffn_dim=48,
        max_seq_len=max_seq_len,
        init_std=0.3,  # a nearly uniform model would hide mistakes
    )
    vision_config = VisionTokenizerConfig(
        base_channels=8,
        channel_multipliers=(1, 1, 1, 2),
        num_res_blocks=1,
        temporal_res_blocks=1,
        codebook_size=32,
        norm_groups=4,
    )
    transformer = Transformer(transformer_config)
    transformer.init_weights(seed=3)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        vision_tokenizer = VisionTokenizer(vision_config)
    return Checkpoint(
        config=CheckpointConfig(
            transformer=transformer_config,
            vision_tokenizer=vision_config,
            vocabulary=vocabulary,
            pixels=PixelPolicy(min_pixels=32 * 24, max_pixels=32 * 24),
            generation=GENERATION | generation,
            trained_on=TRAINED_ON,
        ),
        transformer=transformer.eval(),
        vision_tokenizer=vision_tokenizer.eval(),
        text_tokenizer=text_tokenizer,
    )


def save_tiny_checkpoint(folder: Path, **arguments: Any) -> Path:
    """Write the tiny checkpoint in our layout; return the folder."""
    save_checkpoint(folder, tiny_checkpoint(**arguments))
    return folder

"""Shapes, emoji and driving in one mixture through the packed loader, with the default model's tokenizers."""

import json
from pathlib import Path

import numpy as np
from tiny_shards import noise, sample, webp

from rhea.checkpoints.load import load_checkpoint
from rhea.config import to_dict
from rhea.documents.grammar import Grammar
from rhea.documents.loader import PackedLoader, PackedLoaderConfig
from rhea.documents.mixture import Mixture, WeightedSource
from rhea.documents.shard_source import ShardSourceConfig
from rhea.documents.shards import write_shard
from rhea.generation.loading import DEFAULT_MODEL
from rhea.tokenizers.vision import VisionCodec
from rhea.worlds.driving.recording import Recording
from rhea.worlds.driving.source import TASKS, driving_source
from rhea.worlds.emoji.source import EmojiSource, EmojiSourceConfig
from rhea.worlds.shapes.source import ShapesSource


def emoji_shard(folder: Path) -> str:
    record = {
        "emoji": "?",
        "name_en": "butterfly",
        "name_zh": "蝴蝶",
        "keywords_en": ["insect"],
        "keywords_zh": ["昆虫"],
    }
    style = {"style_en": "a flat icon", "style_zh": "扁平图标", "source": "here"}
    samples = [
        sample(f"c{n}_flat", noise(n, 128, 128), concept=f"c{n}", style="flat", **record, **style) for n in range(3)
    ]
    write_shard(folder / "emoji.tar", samples)
    return str(folder / "emoji.tar")


def driving_shard(folder: Path) -> str:
    frames = 8
    truth = Recording(
        track_seed=0,
        clockwise=False,
        start=0,
        warm_up=13,
        fps=12.5,
        controls=((0.0, 0.1, 0.0),) * frames,
        speed=(30.0,) * frames,
        yaw_rate=(0.5,) * frames,
        offset=(0.0,) * frames,
    )
    files = {".webp": webp(noise(0, frames, 64, 64), 80), ".json": json.dumps(to_dict(truth)).encode()}
    write_shard(folder / "driving.tar", [("film", files)])
    return str(folder / "driving.tar")


def test_three_sources_share_one_row(tmp_path: Path) -> None:
    checkpoint = load_checkpoint(DEFAULT_MODEL)
    assert checkpoint.vision_tokenizer is not None
    assert checkpoint.text_tokenizer is not None
    assert checkpoint.vocabulary is not None
    assert checkpoint.policy is not None
    driving = ShardSourceConfig(shards=driving_shard(tmp_path), tasks=TASKS, num_frames=8, given_latents=1)
    sources = [
        WeightedSource(name="shapes", source=ShapesSource(), weight=0.4),
        WeightedSource(name="emoji", source=EmojiSource(EmojiSourceConfig(shards=emoji_shard(tmp_path))), weight=0.4),
        WeightedSource(name="driving", source=driving_source(driving), weight=0.2),
    ]
    grammar = Grammar(checkpoint.vocabulary, checkpoint.text_tokenizer)
    codec = VisionCodec(checkpoint.vision_tokenizer.float(), checkpoint.policy)

    def loader() -> PackedLoader:
        config = PackedLoaderConfig(rows=1, seq_len=512, group=8, too_long="drop")
        return PackedLoader(config, Mixture(sources, seed=1), grammar, codec)

    first = loader()
    batch, state = first.next_batch(), first.state_dict()
    assert {name.split(":")[0] for name in batch.origins[0]} == {"shapes", "emoji", "driving"}
    assert batch.token_ids.shape == (1, 512)
    assert (batch.loss_weights > 0).mean() > 0.5
    again = loader()
    again.load_state_dict(state)
    np.testing.assert_array_equal(again.next_batch().token_ids, first.next_batch().token_ids)

"""Shapes, emoji and driving in one mixture through the packed loader, with the default model's tokenizers."""

from pathlib import Path

import numpy as np
from tiny_shards import driving_shard, emoji_shard

from rhea.checkpoints.load import load_checkpoint
from rhea.documents.grammar import Grammar
from rhea.documents.loader import PackedLoader, PackedLoaderConfig
from rhea.documents.mixture import Mixture, WeightedSource
from rhea.documents.shard_source import ShardSourceConfig
from rhea.generation.loading import DEFAULT_MODEL
from rhea.tokenizers.vision import VisionCodec
from rhea.worlds.driving.source import TASKS, driving_source
from rhea.worlds.emoji.source import EmojiSource, EmojiSourceConfig
from rhea.worlds.shapes.source import ShapesSource


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

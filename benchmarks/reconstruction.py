"""What a vision tokenizer keeps of pictures and films that it was not trained on: PSNR, SSIM, use of the codebook.

Usage: python benchmarks/reconstruction.py --emoji FOLDER --driving FOLDER [--tokenizer FOLDER]

Emoji are those of the held-out cells, at both sides; shapes are drawn fresh; ``--driving`` names films of a seed that
training did not use (``rhea record driving --seed 1000``). ``--tokenizer`` is a checkpoint, or a run of rich-tokenizer.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from record import save

from rhea.checkpoints.load import load_checkpoint
from rhea.documents.shards import Shards, find_shards
from rhea.evaluation.reconstruction import psnr, ssim
from rhea.evaluation.task import EVALUATION
from rhea.generation.loading import DEFAULT_MODEL
from rhea.recipes.default_tokenizer import trained_tokenizer
from rhea.recipes.rich_frames import SIDES, ShapesStills
from rhea.recipes.rich_tokenizer import rich_tokenizer
from rhea.tokenizers.vision import PixelPolicy, VisionCodec
from rhea.training.state import checkpoint_folders
from rhea.worlds.emoji.source import EmojiSource, EmojiSourceConfig

FRAMES = 16


def tokenizer(folder: Path) -> VisionCodec:
    """Return the vision tokenizer of a checkpoint or of a run of rich-tokenizer."""
    if checkpoint_folders(folder):
        model = trained_tokenizer(rich_tokenizer(), folder, made_by="rich-tokenizer")
    else:
        found = load_checkpoint(folder, parts=("vision_tokenizer",), vision_dtype=torch.float32).vision_tokenizer
        assert found is not None, f"{folder} holds no vision tokenizer"
        model = found
    return VisionCodec(model, PixelPolicy(min_pixels=SIDES[0] ** 2, max_pixels=SIDES[1] ** 2, rounding="nearest"))


def sources(emoji: str, driving: str, limit: int) -> dict[str, list[np.ndarray]]:
    """Return pictures [H, W, 3] and films [T, H, W, 3] by the name of what they show."""
    rng = np.random.default_rng([EVALUATION, 60])
    stills = ShapesStills()
    found: dict[str, list[np.ndarray]] = {}
    for side in SIDES:
        held_out = EmojiSource(EmojiSourceConfig(shards=emoji, split="validation", side=side))
        chosen = rng.permutation(held_out.numbers)[:limit]
        pixels = [held_out.image(int(number)).pixels for number in chosen]
        found[f"emoji of {side} x {side}"] = [each for each in pixels if each is not None]
        found[f"shapes of {side} x {side}"] = [stills.picture(rng, side) for _ in range(limit)]
    found["films of shapes"] = [stills.clip(rng, FRAMES) for _ in range(limit // 4)]
    films = Shards(find_shards(driving))
    chosen_films = range(min(limit // 4, len(films)))
    found["films of driving"] = [films.visual(number).frames[:FRAMES] for number in chosen_films]
    return found


def measured(codec: VisionCodec, shown: list[np.ndarray], counts: np.ndarray) -> dict[str, Any]:
    """Return mean PSNR and SSIM over pictures or frames; add the codes to ``counts``."""
    film, similarity = shown[0].ndim == 4, ssim()
    codes = [codec.encode_film(each) for each in shown] if film else codec.encode_pictures(shown)
    back = [codec.decode_film(each, FRAMES) for each in codes] if film else codec.decode_pictures(codes)
    for each in codes:
        np.add.at(counts, np.asarray(each).ravel(), 1)
    pairs = [
        pair
        for source, result in zip(shown, back, strict=True)
        for pair in (zip(source, result, strict=True) if film else [(source, result)])
    ]
    return {
        "count": len(shown),
        "psnr_db": float(np.mean([psnr(*pair) for pair in pairs])),
        "ssim": float(np.mean([similarity(*pair) for pair in pairs])),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokenizer", type=Path, default=DEFAULT_MODEL, help="the default model's if not given")
    parser.add_argument("--emoji", required=True, help="folder of the emoji shards")
    parser.add_argument("--driving", required=True, help="folder of driving films of another seed than training's")
    parser.add_argument("--limit", type=int, default=200, help="pictures of each kind; a quarter as many films")
    arguments = parser.parse_args()
    codec = tokenizer(arguments.tokenizer)
    counts = np.zeros(codec.model.config.codebook_size)
    results = {
        name: measured(codec, shown, counts)
        for name, shown in sources(arguments.emoji, arguments.driving, arguments.limit).items()
    }
    share = counts[counts > 0] / counts.sum()
    codebook = {
        "entries": len(counts),
        "used": float((counts > 0).mean()),
        "perplexity": float(np.exp(-(share * np.log(share)).sum())),
        "codes_seen": int(counts.sum()),
    }
    save(__file__, {"sources": results, "codebook": codebook})


if __name__ == "__main__":
    main()

"""Tiny shards made on the spot, for the tests of everything that reads shards."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from rhea.config import to_dict
from rhea.documents.shards import write_shard
from rhea.worlds.driving.recording import Recording


def noise(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3)).astype(np.uint8)


def webp(pixels: np.ndarray, milliseconds: int = 100) -> bytes:
    """Write a picture [H, W, C], or an animation [T, H, W, C], without loss."""
    frames = [Image.fromarray(frame) for frame in (pixels if pixels.ndim == 4 else pixels[None])]
    more: dict[str, Any] = {"save_all": True, "append_images": frames[1:], "duration": milliseconds}
    buffer = io.BytesIO()
    frames[0].save(buffer, "WEBP", lossless=True, exact=True, **(more if len(frames) > 1 else {}))
    return buffer.getvalue()


def sample(key: str, pixels: np.ndarray, **record: Any) -> tuple[str, dict[str, bytes]]:
    return key, {".webp": webp(pixels), ".json": json.dumps(record, ensure_ascii=False).encode()}


def pictures(folder: Path, count: int = 5, shards: int = 2) -> Path:
    """Write shards of pictures of 16 x 24 pixels with captions "picture 0", "picture 1", ..."""
    for shard in range(shards):
        mine = range(shard, count, shards)
        write_shard(
            folder / f"p-{shard}.tar", [sample(f"k{n}", noise(n, 16, 24), caption=f"picture {n}", n=n) for n in mine]
        )
    return folder


def emoji_shard(folder: Path) -> str:
    """Write three concepts in one style, noise of 128 x 128 pixels."""
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


def driving_shard(folder: Path, frames: int = 8) -> str:
    """Write one film of noise with its truth."""
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

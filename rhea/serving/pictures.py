"""Pixels as clients get them: files in memory, in base64 or as data URLs, written outside the event loop."""

import asyncio
import base64
import io

import numpy as np
from PIL import Image


async def encoded(pixels: np.ndarray, output_format: str = "png", quality: int | None = None) -> str:
    """Return uint8 [H, W, 3] as a file in base64; ``quality`` 0 to 100 is of JPEG and WebP."""
    return await asyncio.to_thread(_encoded, pixels, output_format, 95 if quality is None else quality)


def data_url(b64: str, output_format: str = "png") -> str:
    """Return a file in base64 as an address that holds it."""
    return f"data:image/{output_format};base64,{b64}"


def size_of(pixels: np.ndarray) -> str:
    """Return "WIDTHxHEIGHT"."""
    return f"{pixels.shape[-2]}x{pixels.shape[-3]}"


def _encoded(pixels: np.ndarray, output_format: str, quality: int) -> str:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format=output_format.upper(), quality=quality)
    return base64.b64encode(file.getvalue()).decode()

"""Initial weights from a seed, whatever was drawn before."""

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw from a generator seeded with ``seed`` inside the block and leave the outer one as it was."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield

"""What the runner asks of a task: items in a fixed order, a small record for each, and figures from all records.

An item is graded alone: its record depends on the checkpoint, the settings and the item, never on what is graded beside
it. So items may go to any process in any batch, and figures are the same for one process as for many.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from rhea.evaluation.report import Figure
from rhea.generation.completion import Completion

EVALUATION = 20260923
"""First word of every seed of ours; training sources have small ones."""

Record = dict[str, Any]
"""What grading found in one item: plain JSON values, small enough for a line of a file."""


class Task(Protocol):
    """Something to grade a checkpoint on; it holds the model that it grades."""

    @property
    def name(self) -> str:
        """Return what reports call it."""

    @property
    def batch(self) -> int:
        """Return how many items are graded together: an interruption loses at most as many."""

    @property
    def settings(self) -> dict[str, Any]:
        """Return everything but the checkpoint that records depend on, as plain JSON values."""

    def __len__(self) -> int:
        """Return the number of items."""

    def grade(self, indices: Sequence[int]) -> list[Record]:
        """Grade these items; return a record for each."""

    def figures(self, records: Sequence[Record]) -> list[Figure]:
        """Sum up the records of all items, in their order."""


def codes_of(completion: Completion) -> np.ndarray:
    """Return the codes of a picture [h, w] or film [t, h, w] that was asked for."""
    assert completion.codes is not None
    return completion.codes


def best_of_title(candidates: int) -> str:
    """Return what a group of pictures is called after, if each is the best of several."""
    return f", best of {candidates}" if candidates > 1 else ""


def best_of_option(candidates: int) -> str:
    """Return what a command says that draws such a picture."""
    return f" --best-of {candidates}" if candidates > 1 else ""

"""Batches made ahead are the same, and a saved state is that of the last batch handed out."""

import json
import multiprocessing
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rhea.documents.prefetch import Prefetcher
from rhea.errors import InputError


class Counter:
    """A loader of numbers that breaks at 50."""

    def __init__(self) -> None:
        self.number = 0

    def next_batch(self) -> int:
        self.number += 1
        if self.number == 50:
            raise ValueError("fifty")
        return self.number

    def state_dict(self) -> dict[str, Any]:
        return {"number": self.number}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.number = state["number"]


def test_same_batches_and_exact_state() -> None:
    ahead = Prefetcher(Counter(), depth=3)
    assert ahead.state_dict() == {"number": 0}
    assert [ahead.next_batch() for _ in range(5)] == [1, 2, 3, 4, 5]
    assert ahead.state_dict() == {"number": 5}
    resumed = Prefetcher(Counter(), depth=3)
    resumed.load_state_dict(ahead.state_dict())
    assert [resumed.next_batch() for _ in range(3)] == [6, 7, 8]


def test_the_process_ends_with_the_block() -> None:
    before = set(multiprocessing.active_children())
    with Prefetcher(Counter(), depth=2) as ahead:
        ahead.next_batch()
        assert len(set(multiprocessing.active_children()) - before) == 1
    assert set(multiprocessing.active_children()) == before


def test_a_signal_to_all_processes_is_left_to_the_trainer() -> None:
    before = set(multiprocessing.active_children())
    with Prefetcher(Counter(), depth=2) as ahead:
        assert ahead.next_batch() == 1
        (worker,) = set(multiprocessing.active_children()) - before
        worker.terminate()
        assert [ahead.next_batch() for _ in range(9)] == list(range(2, 11))
    worker.join(timeout=30)
    assert not worker.is_alive()


def test_an_error_reaches_the_caller() -> None:
    ahead = Prefetcher(Counter())
    assert [ahead.next_batch() for _ in range(49)][-1] == 49
    with pytest.raises(ValueError, match="fifty"):
        ahead.next_batch()


def test_python_ends_though_nobody_closed_it() -> None:
    program = "from test_prefetch import Counter, Prefetcher; ahead = Prefetcher(Counter()); print(ahead.next_batch())"
    ended = subprocess.run(
        [sys.executable, "-c", program], cwd=Path(__file__).parent, capture_output=True, text=True, timeout=120
    )
    assert (ended.returncode, ended.stdout) == (0, "1\n"), ended.stderr


def test_the_process_ends_when_the_trainer_is_killed() -> None:
    program = """
import os
import numpy as np
from rhea.documents.prefetch import Prefetcher
class Large:
    def next_batch(self): return np.zeros(10**6)
    def state_dict(self): return {}
ahead = Prefetcher(Large())
ahead.next_batch()
print("made", flush=True)
os._exit(7)
"""
    # The worker holds the other end of this pipe too: reading it to its end waits until both are gone.
    ended = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, timeout=120)
    assert (ended.returncode, ended.stdout) == (7, b"made\n")


class Every(Counter):
    """Every so manieth number."""

    def __init__(self, first: int, step: int) -> None:
        self.number, self.step = first - step, step

    def next_batch(self) -> int:
        self.number += self.step
        return self.number


def test_several_processes_take_turns_and_resume_within_a_round() -> None:
    before = set(multiprocessing.active_children())
    with Prefetcher(Every(0, 2), Every(1, 2), depth=2) as ahead:
        assert [ahead.next_batch() for _ in range(3)] == [0, 1, 2]
        assert len(set(multiprocessing.active_children()) - before) == 2
        state = ahead.state_dict()
    assert set(multiprocessing.active_children()) == before
    with Prefetcher(Every(0, 2), Every(1, 2)) as resumed:
        resumed.load_state_dict(json.loads(json.dumps(state)))
        assert resumed.state_dict() == state
        assert [resumed.next_batch() for _ in range(5)] == [3, 4, 5, 6, 7]


def test_other_numbers_of_processes_are_refused() -> None:
    state = Prefetcher(Every(0, 2), Every(1, 2)).state_dict()
    for loaders in (1, 3):
        with pytest.raises(InputError, match=f"come from 2 workers: it cannot go on with {loaders}"):
            Prefetcher(*(Every(0, 2) for _ in range(loaders))).load_state_dict(state)

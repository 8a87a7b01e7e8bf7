"""The tuner climbs to the best window, whatever the machine, and notices when the load has changed."""

import pytest

from rhea.generation.tuning import WindowTuner


def work(
    tuner: WindowTuner, steps: int, per_forward: float, per_token: float, accepted: float, rows: int = 2
) -> list[int]:
    """Let a machine with these costs work; return the sizes it used."""
    sizes = []
    for _ in range(steps):
        size = tuner.size(rows)
        sizes.append(size)
        tuner.record(rows, int(1000 * (1 - accepted**size) / (1 - accepted)), per_forward + per_token * size)
    return sizes


@pytest.mark.parametrize(
    ("per_forward", "per_token", "accepted"), [(1.0, 0.0, 0.99), (0.0, 1.0, 0.9), (1.0, 0.1, 0.7), (1.0, 0.01, 0.5)]
)
def test_it_finds_a_window_within_five_percent_of_the_fastest(
    per_forward: float, per_token: float, accepted: float
) -> None:
    rates = {size: (1 - accepted**size) / (per_forward + per_token * size) for size in (1, 2, 4, 8, 16, 32, 64)}
    assert min(rates.values()) < 0.7 * max(rates.values()), "or any choice would do"
    used = work(WindowTuner(), 300, per_forward, per_token, accepted)[-50:]
    assert sum(rates[size] > 0.95 * max(rates.values()) for size in used) >= 40


def test_it_follows_a_change() -> None:
    tuner = WindowTuner()
    work(tuner, 300, 1.0, 0.0, 0.99)
    assert tuner.size(2) == 64
    assert work(tuner, 4000, 0.0, 1.0, 0.5)[-100:].count(1) >= 80


def test_every_load_has_a_window_of_its_own() -> None:
    tuner = WindowTuner()
    assert [tuner.size(rows) for rows in (1, 2, 4, 16, 64)] == [16, 8, 4, 1, 1]
    work(tuner, 300, 1.0, 0.0, 0.99)
    assert max(work(tuner, 300, 1.0, 0.0, 0.99, rows=17)) == 16, "a forward has a bounded number of logits"
    work(tuner, 300, 0.0, 1.0, 0.5, rows=9)
    assert (tuner.size(2), tuner.size(8)) == (64, 1)

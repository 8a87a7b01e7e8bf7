"""The tuner climbs to the best window, whatever the machine, and notices when the load has changed."""

import pytest

from rhea.generation.tuning import WindowTuner


def work(tuner: WindowTuner, steps: int, per_forward: float, per_token: float, accepted: float) -> list[int]:
    """Let a machine with these costs work; return the sizes it used."""
    sizes = []
    for _ in range(steps):
        sizes.append(tuner.size)
        tuner.record(int(1000 * (1 - accepted**tuner.size) / (1 - accepted)), per_forward + per_token * tuner.size)
    return sizes


@pytest.mark.parametrize(
    ("per_forward", "per_token", "accepted", "best"),
    [(1.0, 0.0, 0.99, 64), (0.0, 1.0, 0.9, 1), (1.0, 0.1, 0.7, 4), (1.0, 0.01, 0.5, 8)],
)
def test_it_finds_the_fastest_window(per_forward: float, per_token: float, accepted: float, best: int) -> None:
    sizes = work(WindowTuner(), 300, per_forward, per_token, accepted)
    assert sizes[-50:].count(best) >= 40


def test_it_follows_a_change() -> None:
    tuner = WindowTuner()
    work(tuner, 300, 1.0, 0.0, 0.99)
    assert tuner.size == 64
    assert work(tuner, 4000, 0.0, 1.0, 0.5)[-100:].count(1) >= 80

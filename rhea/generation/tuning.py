"""How many tokens of a grid to draw at a time: as many as pay on this machine, under this load, with this model.

A wide window costs time in every forward and saves forwards as far as guesses hold; both depend on too much to be
computed beforehand, so they are measured while the engine works, apart for every load: what pays for one picture is a
burden for sixteen. The choice changes speed alone, never a token.
"""

import statistics
from dataclasses import dataclass, field

_TRIAL = 8
"""Steps on which a window is judged."""
_BETTER = 1.05
"""How many times more a window must write than the best so far: a wider one that gains nothing is a burden."""
_AGAIN = 400
"""Steps after which windows near the present one are tried again."""
_MOST = 64
_FIRST_TOKENS, _MOST_TOKENS = 16, 256
"""Tokens per forward, over all cache rows, at which a load's first window aims, and which none exceeds: the logits of
more would take more memory than they could save time."""


@dataclass
class _Climb:
    """The search for the best window under one load; windows are powers of two."""

    size: int
    best: int
    most: int
    rates: dict[int, float] = field(default_factory=dict)
    tokens: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    settled: int = 0

    def record(self, tokens: int, seconds: float) -> None:
        self.tokens.append(tokens)
        self.seconds.append(seconds)
        if len(self.tokens) < _TRIAL:
            return
        # The median, for a machine that others use too now and then takes many times longer.
        self.rates[self.size] = statistics.mean(self.tokens) / max(statistics.median(self.seconds), 1e-9)
        self.tokens, self.seconds = [], []
        if self.rates[self.size] > _BETTER * self.rates.get(self.best, 0.0):
            self.best = self.size
        near = [size for size in (self.best // 2, self.best * 2) if 1 <= size <= self.most]
        untried = [size for size in near if size not in self.rates]
        self.settled = 0 if untried else self.settled + _TRIAL
        if self.settled >= _AGAIN:
            self.rates, self.settled = {self.best: self.rates[self.best]}, 0
        self.size = untried[0] if untried else self.best


class WindowTuner:
    """Climbs, for every load, to the window that writes the most tokens per second."""

    def __init__(self) -> None:
        self._climbs: dict[int, _Climb] = {}

    def size(self, rows: int) -> int:
        """Return the window to use while ``rows`` cache rows are fed."""
        return self._climb(rows).size

    def record(self, rows: int, tokens: int, seconds: float) -> None:
        """Note what a step with that window wrote, and move on to another if it is time."""
        self._climb(rows).record(tokens, seconds)

    def _climb(self, rows: int) -> _Climb:
        load = max(rows, 1).bit_length()
        if load not in self._climbs:
            first, most = (max(tokens >> (load - 1), 1) for tokens in (_FIRST_TOKENS, _MOST_TOKENS))
            self._climbs[load] = _Climb(size=first, best=first, most=min(most, _MOST))
        return self._climbs[load]

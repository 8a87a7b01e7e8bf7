"""How many tokens of a grid to draw at a time: as many as pay on this machine, under this load, with this model.

A wide window costs time in every forward and saves forwards as far as guesses hold; both depend on too much to be
computed beforehand, so they are measured while the engine works. The choice changes speed alone, never a token.
"""

import statistics
from dataclasses import dataclass, field

_TRIAL = 8
"""Steps on which a window is judged."""
_BETTER = 1.05
"""How many times more a window must write than the best so far: a wider one that gains nothing is a burden."""
_AGAIN = 400
"""Steps after which windows near the present one are tried again."""


@dataclass
class WindowTuner:
    """Climbs to the window that writes the most tokens per second; windows are powers of two."""

    size: int = 8
    most: int = 64
    _best: int = 8
    _rates: dict[int, float] = field(default_factory=dict)
    _tokens: list[int] = field(default_factory=list)
    _seconds: list[float] = field(default_factory=list)
    _settled: int = 0

    def record(self, tokens: int, seconds: float) -> None:
        """Note what a step with the present ``size`` wrote, and move on to another size if it is time."""
        self._tokens.append(tokens)
        self._seconds.append(seconds)
        if len(self._tokens) < _TRIAL:
            return
        # The median, for a machine that others use too now and then takes many times longer.
        self._rates[self.size] = statistics.mean(self._tokens) / max(statistics.median(self._seconds), 1e-9)
        self._tokens, self._seconds = [], []
        if self._rates[self.size] > _BETTER * self._rates.get(self._best, 0.0):
            self._best = self.size
        near = [size for size in (self._best // 2, self._best * 2) if 1 <= size <= self.most]
        untried = [size for size in near if size not in self._rates]
        self._settled = 0 if untried else self._settled + _TRIAL
        if self._settled >= _AGAIN:
            self._rates, self._settled = {self._best: self._rates[self._best]}, 0
        self.size = untried[0] if untried else self._best

"""How many tokens of a grid to draw at a time: as many as pay on this machine, under this load, with this model.

A wide window costs time in every forward and saves forwards as far as guesses hold; both depend on too much to be
computed beforehand, so they are measured while the engine works. The choice changes speed alone, never a token.
"""

from dataclasses import dataclass, field

_TRIAL = 6
"""Steps on which a window is judged."""
_AGAIN = 400
"""Steps after which windows near the present one are tried again."""


@dataclass
class WindowTuner:
    """Climbs to the window that writes the most tokens per second; windows are powers of two."""

    size: int = 4
    most: int = 64
    _rates: dict[int, float] = field(default_factory=dict)
    _tokens: int = 0
    _seconds: float = 0.0
    _steps: int = 0
    _settled: int = 0

    def record(self, tokens: int, seconds: float) -> None:
        """Note what a step with the present ``size`` wrote, and move on to another size if it is time."""
        self._tokens, self._seconds, self._steps = self._tokens + tokens, self._seconds + seconds, self._steps + 1
        if self._steps < _TRIAL:
            return
        self._rates[self.size] = self._tokens / max(self._seconds, 1e-9)
        self._tokens, self._seconds, self._steps = 0, 0.0, 0
        best = max(self._rates, key=lambda size: self._rates[size])
        near = [size for size in (best * 2, best // 2) if 1 <= size <= self.most]
        untried = [size for size in near if size not in self._rates]
        self._settled = 0 if untried else self._settled + _TRIAL
        if self._settled >= _AGAIN:
            self._rates, self._settled = {best: self._rates[best]}, 0
        self.size = untried[0] if untried else best

"""How alike people judge: the share of pairs of annotators that chose alike, and kappa, which takes chance away.

Kappa is Cohen's (1960) for two annotators and Fleiss' (1971) for more, each comparison counted with as many judgements
as it has.
"""

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How alike annotators judge; nothing can be said (None) while no comparison has two judgements."""

    comparisons: int
    """Those with at least two judgements."""
    annotators: int
    """Those who judged one of them."""
    percent: float | None
    """Of all pairs of judgements on one comparison, how many are alike."""
    kappa: float | None
    """1 is agreement throughout, 0 what chance would give; None as well if all judgements are the same."""
    kind: str
    """ "Cohen" or "Fleiss"."""


def agreement_of(judged: Sequence[dict[str, Any]]) -> Agreement:
    """Count agreement over comparisons, each a label by annotator, of at least two annotators."""
    annotators = {name for labels in judged for name in labels}
    kind = "Cohen" if len(annotators) == 2 else "Fleiss"
    pairs = [a == b for labels in judged for a, b in itertools.combinations(labels.values(), 2)]
    if not pairs:
        return Agreement(comparisons=0, annotators=0, percent=None, kappa=None, kind=kind)
    if kind == "Cohen":
        observed, expected = sum(pairs) / len(pairs), _chance_of_two(judged, sorted(annotators))
    else:
        observed, expected = _mean_of_comparisons(judged), _chance_of_all(judged)
    return Agreement(
        comparisons=len(judged),
        annotators=len(annotators),
        percent=100 * sum(pairs) / len(pairs),
        kappa=None if expected == 1 else (observed - expected) / (1 - expected),
        kind=kind,
    )


def _chance_of_two(judged: Sequence[dict[str, Any]], names: list[str]) -> float:
    """Return how often two annotators with these habits would agree by chance."""
    first, second = (Counter(labels[name] for labels in judged) for name in names)
    return sum(first[label] * second[label] for label in first) / len(judged) ** 2


def _mean_of_comparisons(judged: Sequence[dict[str, Any]]) -> float:
    """Return the share of pairs that agree, as the mean over comparisons."""
    shares = []
    for labels in judged:
        several = len(labels)
        alike = sum(count * (count - 1) for count in Counter(labels.values()).values())
        shares.append(alike / (several * (several - 1)))
    return sum(shares) / len(shares)


def _chance_of_all(judged: Sequence[dict[str, Any]]) -> float:
    """Return how often two judgements drawn from all would be alike."""
    labels = Counter(label for comparison in judged for label in comparison.values())
    total = labels.total()
    return sum((count / total) ** 2 for count in labels.values())

"""Mixtures: proportions, and every draw a pure function of its number."""

import itertools
from collections import Counter

import pytest

from rhea.documents.document import Document, Text
from rhea.documents.mixture import FiniteSource, Mixture, WeightedSource
from rhea.errors import InputError


class Named:
    def __init__(self, name: str) -> None:
        self.name = name

    def document(self, index: int) -> Document:
        return Document((Text(f"{self.name}{index}"),))


def mixture(*weights: float, seed: int = 0) -> Mixture:
    entries = [
        WeightedSource(name=f"s{number}", source=Named(f"s{number}-"), weight=weight)
        for number, weight in enumerate(weights)
    ]
    return Mixture(entries, seed=seed)


def test_shares_follow_the_weights_and_each_source_is_read_in_order() -> None:
    draws, counts = mixture(5, 0, 3, 2).draws(0, [0, 0, 0, 0], 20_000)
    assert counts[1] == 0
    assert [round(count / 20_000, 2) for count in counts] == pytest.approx([0.5, 0, 0.3, 0.2], abs=0.011)
    for source in range(4):
        assert [draw.index for draw in draws if draw.source == source] == list(range(counts[source]))


def test_draws_do_not_depend_on_how_they_are_asked_for() -> None:
    mixed = mixture(1, 2, 3, seed=7)
    whole, after = mixed.draws(0, [0, 0, 0], 100)
    pieces, counts = [], [0, 0, 0]
    for first, how_many in ((0, 1), (1, 40), (41, 59)):
        drawn, counts = mixed.draws(first, counts, how_many)
        pieces += drawn
    assert pieces == whole
    assert counts == after


def test_seeds_differ_and_neighbours_do_not_correlate() -> None:
    first, second = (mixture(1, 1, seed=seed).draws(0, [0, 0], 4000)[0] for seed in (0, 1))
    same = sum(one.source == other.source for one, other in zip(first, second, strict=True))
    assert 1800 < same < 2200
    pairs = Counter((one.source, other.source) for one, other in itertools.pairwise(first))
    assert all(800 < count < 1200 for count in pairs.values())


def test_documents_and_names() -> None:
    mixed = mixture(1)
    (draw,), _ = mixed.draws(5, [3], 1)
    assert mixed.name(draw) == "s0:3"
    assert mixed.document(draw).segments[0].text == "s0-3"  # type: ignore[union-attr]


def test_settings_tell_mixtures_apart() -> None:
    assert mixture(1, 2).settings == mixture(1, 2).settings
    assert len({mixture(1, 2).settings, mixture(2, 1).settings, mixture(1, 2, seed=1).settings}) == 3


def test_a_finite_source_gives_each_document_once_per_pass_in_new_orders() -> None:
    source = FiniteSource([Document((), task=str(number)) for number in range(40)], seed=3)
    passes = [[source.document(40 * epoch + place).task for place in range(40)] for epoch in range(3)]
    assert all(sorted(order, key=int) == [str(number) for number in range(40)] for order in passes)
    assert len({tuple(order) for order in passes}) == 3
    assert source.document(1).task == passes[0][1]  # going back gives the same


@pytest.mark.parametrize("weights", [[], [0.0], [-1.0, 2.0], [float("nan")], [float("inf")]])
def test_impossible_weights_are_refused(weights: list[float]) -> None:
    with pytest.raises(InputError, match="weights"):
        mixture(*weights)


def test_other_impossible_settings_are_refused() -> None:
    with pytest.raises(InputError, match="seed"):
        mixture(1, seed=-1)
    with pytest.raises(InputError, match="at least one document"):
        FiniteSource([])

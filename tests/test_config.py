"""Configs to JSON and back: lossless for what we write, strict for what we read."""

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rhea.config import from_dict, to_dict
from rhea.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Inner:
    rate: float
    steps: int = 3


@dataclass(frozen=True, kw_only=True)
class Other:
    name: str


@dataclass(frozen=True, kw_only=True)
class Outer:
    inner: Inner
    size: tuple[int, int] = (1, 2)
    levels: tuple[int, ...] = ()
    several: tuple[Inner, ...] = ()
    either: Inner | Other | None = None
    mode: Literal["a", "b", 1] = "a"
    table: dict[str, float] = field(default_factory=dict)
    names: list[str] = field(default_factory=list)
    extra: dict[str, Any] = field(default_factory=dict)
    number: int | float = 0
    flag: bool = False


inners = st.builds(Inner, rate=st.floats(allow_nan=False, allow_infinity=False), steps=st.integers())
outers = st.builds(
    Outer,
    inner=inners,
    size=st.tuples(st.integers(), st.integers()),
    levels=st.lists(st.integers(), max_size=4).map(tuple),
    several=st.lists(inners, max_size=3).map(tuple),
    either=st.one_of(st.none(), inners, st.builds(Other, name=st.text())),
    mode=st.sampled_from(["a", "b", 1]),
    table=st.dictionaries(st.text(), st.floats(allow_nan=False, allow_infinity=False), max_size=3),
    names=st.lists(st.text(), max_size=3),
    extra=st.dictionaries(st.text(), st.one_of(st.integers(), st.text(), st.none()), max_size=3),
    number=st.one_of(st.integers(), st.floats(allow_nan=False, allow_infinity=False)),
    flag=st.booleans(),
)


@settings(deadline=None, derandomize=True)  # the same examples on every machine; a slow one is no failure
@given(outers)
def test_round_trip_through_json_text(config: Outer) -> None:
    again = from_dict(Outer, json.loads(json.dumps(to_dict(config))))
    assert again == config
    assert type(again.number) is type(config.number)


def test_defaults_may_be_missing_and_whole_numbers_may_stand_for_floats() -> None:
    config = from_dict(Outer, {"inner": {"rate": 1}})
    assert config == Outer(inner=Inner(rate=1.0))
    assert type(config.inner.rate) is float


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"inner": {}}, r"config\.inner: missing keys \['rate'\]"),
        (
            {"inner": {"rate": 1.0, "stpes": 3}},
            r"config\.inner: unknown keys \['stpes'\]; known are \['rate', 'steps'\]",
        ),
        ({"inner": {"rate": "1"}}, r"config\.inner\.rate: expected float, got '1'"),
        ({"inner": {"rate": True}}, r"config\.inner\.rate: expected float, got True"),
        ({"inner": {"rate": 1.0, "steps": 2.0}}, r"config\.inner\.steps: expected int, got 2\.0"),
        ({"inner": {"rate": 1.0, "steps": True}}, r"config\.inner\.steps: expected int, got True"),
        ({"inner": {"rate": 1.0, "steps": None}}, r"config\.inner\.steps: expected int, got None"),
        ({"inner": [1.0]}, r"config\.inner: expected an object"),
        ({"size": [1]}, r"config\.size: expected 2 values"),
        ({"size": "ab"}, r"config\.size: expected a list"),
        ({"levels": [1, "2"]}, r"config\.levels\[1\]: expected int, got '2'"),
        ({"several": [{"rate": 1.0}, {"steps": 1}]}, r"config\.several\[1\]: missing keys"),
        ({"either": {"nome": "x"}}, r"config\.either: unknown keys"),
        ({"mode": "c"}, r"config\.mode: 'c' is not one of \['a', 'b', 1\]"),
        ({"mode": True}, r"config\.mode: True is not one of"),
        ({"mode": []}, r"config\.mode: \[\] is not one of"),
        ({"table": {"x": "y"}}, r"config\.table\.x: expected float"),
        ({"table": [1]}, r"config\.table: expected an object"),
        ({"flag": 1}, r"config\.flag: expected bool, got 1"),
    ],
)
def test_whatever_does_not_fit_is_named_with_its_path(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        from_dict(Outer, {"inner": {"rate": 1.0}} | change)


@pytest.mark.parametrize("data", [None, [], "x", 3])
def test_not_an_object(data: Any) -> None:
    with pytest.raises(InputError, match="transformer: expected an object"):
        from_dict(Inner, data, "transformer")


def test_a_replaced_config_differs_in_one_place() -> None:
    config = Outer(inner=Inner(rate=1.0))
    changed = dataclasses.replace(config, flag=True)
    assert {k for k, v in to_dict(changed).items() if v != to_dict(config)[k]} == {"flag"}

import math
from itertools import pairwise

import pytest

from rhea.errors import InputError
from rhea.training.schedule import ScheduleConfig, check_schedule, learning_rate


def rates(config: ScheduleConfig, total: int) -> list[float]:
    return [learning_rate(config, step, total) for step in range(total)]


def test_warmup_rises_linearly_and_reaches_the_peak_on_its_last_step():
    config = ScheduleConfig(learning_rate=1.0, warmup_steps=4)
    assert rates(config, 100)[:4] == [0.25, 0.5, 0.75, 1.0]


def test_cosine_falls_from_the_peak_to_the_final_rate():
    config = ScheduleConfig(learning_rate=2.0, final_learning_rate=0.5, warmup_steps=10)
    values = rates(config, 110)
    assert values[10] == 2.0
    assert values[60] == pytest.approx(1.25)  # half way in time is half way in rate
    assert learning_rate(config, 110, 110) == pytest.approx(0.5)
    assert all(later <= earlier for earlier, later in pairwise(values[10:]))


@pytest.mark.parametrize(
    ("shape", "middle"), [("linear", 0.5), ("sqrt", 1 - math.sqrt(0.5)), ("cosine", 0.5)], ids=lambda value: str(value)
)
def test_wsd_is_flat_until_its_decay(shape, middle):
    config = ScheduleConfig(learning_rate=1.0, kind="wsd", warmup_steps=10, decay_steps=20, decay_shape=shape)
    values = rates(config, 100)
    assert values[10:80] == [1.0] * 70
    assert values[90] == pytest.approx(middle)
    assert 0 < values[99] < 0.1
    assert learning_rate(config, 100, 100) == pytest.approx(0.0)


def test_wsd_runs_of_any_length_share_their_stable_part():
    config = ScheduleConfig(learning_rate=1.0, kind="wsd", warmup_steps=10, decay_steps=20)
    assert rates(config, 100)[:80] == rates(config, 200)[:80]


def test_constant_stays():
    assert set(rates(ScheduleConfig(learning_rate=0.3, kind="constant"), 20)) == {0.3}


@pytest.mark.parametrize(
    "config",
    [
        ScheduleConfig(learning_rate=0.0),
        ScheduleConfig(learning_rate=-1.0),
        ScheduleConfig(learning_rate=1.0, final_learning_rate=2.0),
        ScheduleConfig(learning_rate=1.0, warmup_steps=101),
        ScheduleConfig(learning_rate=1.0, kind="wsd", warmup_steps=60, decay_steps=60),
        ScheduleConfig(learning_rate=1.0, warmup_steps=-1),
    ],
)
def test_impossible_schedules_are_refused(config):
    with pytest.raises(InputError):
        check_schedule(config, 100)

"""Learning rates as a pure function of the step, so that a resumed run needs no scheduler state.

Cosine to a final value is Emu3's own schedule (arXiv 2409.18869); WSD (warm-up, stable, decay: arXiv 2404.06395) keeps
the rate constant until the last ``decay_steps``, so that one long run can be branched into several finished models.
"""

import math
from dataclasses import dataclass
from typing import Literal

from rhea.errors import InputError


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    learning_rate: float
    """The peak."""
    kind: Literal["cosine", "wsd", "constant"] = "cosine"
    final_learning_rate: float = 0.0
    """What the decay ends at."""
    warmup_steps: int = 0
    """Steps of linear rise; the first of them already moves."""
    decay_steps: int = 0
    """WSD only: length of the decay at the end."""
    decay_shape: Literal["linear", "sqrt", "cosine"] = "sqrt"
    """WSD only: 1 - x, 1 - sqrt(x) or half a cosine."""


def learning_rate(config: ScheduleConfig, step: int, total_steps: int) -> float:
    """Return the rate of update number ``step`` (0 is the first) in a run of ``total_steps``."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    if config.kind == "constant":
        return config.learning_rate
    if config.kind == "cosine":
        start, shape = config.warmup_steps, "cosine"
    else:
        start, shape = max(total_steps - config.decay_steps, config.warmup_steps), config.decay_shape
    if step < start:
        return config.learning_rate
    done = min((step - start) / max(total_steps - start, 1), 1.0)
    return config.final_learning_rate + (config.learning_rate - config.final_learning_rate) * _remaining(shape, done)


def _remaining(shape: str, done: float) -> float:
    if shape == "linear":
        return 1.0 - done
    if shape == "sqrt":
        return 1.0 - math.sqrt(done)
    return 0.5 * (1.0 + math.cos(math.pi * done))


def check_schedule(config: ScheduleConfig, total_steps: int) -> None:
    """Raise InputError for a schedule that cannot be run in ``total_steps``."""
    if config.learning_rate <= 0 or not 0 <= config.final_learning_rate <= config.learning_rate:
        raise InputError(
            f"final_learning_rate {config.final_learning_rate} must be between 0 and the peak {config.learning_rate}, "
            "and the peak above 0"
        )
    if config.warmup_steps < 0 or config.decay_steps < 0 or config.warmup_steps + config.decay_steps > total_steps:
        raise InputError(
            f"{config.warmup_steps} warm-up and {config.decay_steps} decay steps do not fit into {total_steps} steps"
        )

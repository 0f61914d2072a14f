"""Learning-rate schedules: from a step, counted from 0, to a multiplier of the base rate."""

import math
from collections.abc import Callable

Schedule = Callable[[int], float]


def warmup_cosine(*, steps: int, warmup: int, floor: float) -> Schedule:
    """A linear climb over ``warmup`` steps, then half a cosine from 1 down to ``floor``.

    The climb starts above 0 and the cosine would meet the floor at ``steps``, one past the last:
    no step is spent at rate 0. (Formulas of nanoGPT's get_lr.)

    Raises:
        ValueError: the warm-up is negative or leaves no step for the cosine.
    """
    if not 0 <= warmup < steps:
        raise ValueError(f"warmup is {warmup}, expected 0 to {steps - 1} for {steps} steps")

    def multiplier(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        progress = min((step - warmup) / (steps - warmup), 1.0)
        return floor + (1 - floor) * (1 + math.cos(math.pi * progress)) / 2

    return multiplier

import math

import pytest

from braid.training.optimizers import warmup_cosine


def test_warmup_climbs_linearly_and_the_cosine_falls_to_its_floor() -> None:
    rate = warmup_cosine(steps=104, warmup=4, floor=0.1)
    assert [rate(step) for step in range(5)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert rate(4 + 25) == pytest.approx(0.1 + 0.9 * (1 + math.sqrt(0.5)) / 2)
    assert rate(4 + 50) == pytest.approx(0.55)
    assert rate(103) == pytest.approx(0.1, abs=1e-3)
    assert rate(104) == rate(1000) == pytest.approx(0.1)
    falling = [rate(step) for step in range(4, 104)]
    assert falling == sorted(falling, reverse=True)


def test_schedules_without_warmup_start_at_the_base_rate() -> None:
    assert warmup_cosine(steps=10, warmup=0, floor=0.0)(0) == 1.0
    assert warmup_cosine(steps=1, warmup=0, floor=0.0)(0) == 1.0


@pytest.mark.parametrize("warmup", [-1, 10, 11])
def test_a_warmup_that_does_not_fit_is_refused(warmup: int) -> None:
    with pytest.raises(ValueError, match=f"warmup is {warmup}, expected 0 to 9 for 10 steps"):
        warmup_cosine(steps=10, warmup=warmup, floor=0.0)

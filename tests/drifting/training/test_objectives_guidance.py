from typing import Any

import pytest
import torch
from scipy import stats

from braid.drifting.training.objectives import draw_alpha, unconditional_weight
from tests.drifting import configs


def draw(count: int, alpha_max: float, power: float, **more: Any) -> torch.Tensor:
    config = configs.batches(alpha_max=alpha_max, alpha_power=power, **more)
    return draw_alpha(count, config, torch.Generator().manual_seed(0))


def cdf(power: float, alpha_max: float):
    if power == 1:
        return stats.loguniform(1, alpha_max).cdf
    return lambda a: (a ** (1 - power) - 1) / (alpha_max ** (1 - power) - 1)


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0, 1.001, 3.0, 5.0])
def test_draws_have_the_given_density(power):
    alpha = draw(20_000, 4.0, power)
    assert 1 <= alpha.min() < alpha.max() <= 4
    assert stats.kstest(alpha.double().numpy(), cdf(power, 4.0)).pvalue > 0.01
    wrong = stats.kstest(alpha.double().numpy(), cdf(power + 0.2, 4.0)).pvalue
    assert wrong < 1e-3


def test_draws_are_continuous_in_the_power():
    torch.testing.assert_close(draw(100, 4.0, 1.0), draw(100, 4.0, 1 + 1e-5), rtol=1e-4, atol=0)
    torch.testing.assert_close(draw(100, 4.0, 1.0), draw(100, 4.0, 1 - 1e-7), rtol=1e-5, atol=0)


def test_without_guidance_alpha_is_one():
    assert (draw(10, 1.0, 3.0) == 1).all()
    assert (unconditional_weight(draw(10, 1.0, 3.0), 16, 8) == 0).all()


def test_values_are_drawn_with_their_probabilities_and_none_between_them():
    chances = {"alpha_values": [1.0, 2.0, 4.0], "alpha_probabilities": [0.5, 0.3, 0.2]}
    alpha = draw(20_000, 4.0, 3.0, **chances)
    assert set(alpha.tolist()) == {1.0, 2.0, 4.0}
    fractions = [float((alpha == value).float().mean()) for value in (1, 2, 4)]
    assert fractions == pytest.approx([0.5, 0.3, 0.2], abs=0.015)


def test_a_fraction_of_the_classes_has_no_guidance_and_the_others_as_before():
    plain, mixed = (draw(20_000, 4.0, 1.0, no_guidance=fraction) for fraction in (0.0, 0.25))
    unguided = mixed == 1
    assert float(unguided.float().mean()) == pytest.approx(0.25, abs=0.015)
    assert torch.equal(mixed[~unguided], plain[~unguided])


@pytest.mark.parametrize(
    ("values", "probabilities", "message"),
    [
        ([1.0, 2.0], [0.5], "alpha_probabilities are .*, expected 2 that add up to 1"),
        ([1.0, 2.0], [0.5, 0.4], "alpha_probabilities are .*, expected 2 that add up to 1"),
        ([], [1.0], "alpha_probabilities are .*, expected 0 that add up to 0"),
        ([0.5, 2.0], [0.5, 0.5], "alpha_values are .*, expected 1 to alpha_max: 4"),
        ([1.0, 5.0], [0.5, 0.5], "alpha_values are .*, expected 1 to alpha_max: 4"),
    ],
)
def test_values_without_probabilities_or_out_of_range_are_named(values, probabilities, message):
    with pytest.raises(ValueError, match=message):
        draw(3, 4.0, 3.0, alpha_values=values, alpha_probabilities=probabilities)


def test_the_same_generator_gives_the_same_draws():
    assert torch.equal(draw(10, 4.0, 3.0), draw(10, 4.0, 3.0))


def test_the_weight_gives_unconditional_samples_their_fraction_of_the_negatives():
    alpha = torch.tensor([1.0, 2.0, 4.0])
    weight = unconditional_weight(alpha, generated=17, unconditional=8)
    torch.testing.assert_close(weight, torch.tensor([0.0, 2.0, 6.0]))
    banked = unconditional_weight(
        alpha, generated=torch.tensor([3, 5, 9]), unconditional=4, banked=2
    )
    fraction = 4 * banked / (4 * banked + torch.tensor([4, 6, 10]))
    torch.testing.assert_close(fraction, 1 - 1 / alpha)


@pytest.mark.parametrize("bad", [(0.5, 1.0), (float("inf"), 1.0), (2.0, float("nan"))])
def test_impossible_guidance_is_named(bad):
    with pytest.raises(ValueError, match=r"alpha_max|alpha_power"):
        draw(3, *bad)
    with pytest.raises(ValueError, match="unconditional samples"):
        unconditional_weight(torch.ones(2), 4, 0)

import pytest
import torch
from scipy import stats

from braid.drifting.training.objectives import draw_alpha, unconditional_weight


def draw(count: int, alpha_max: float, power: float) -> torch.Tensor:
    return draw_alpha(count, alpha_max, power, torch.Generator().manual_seed(0))


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
    with pytest.raises(ValueError, match="expected 1 <= alpha_max"):
        draw(3, *bad)
    with pytest.raises(ValueError, match="unconditional samples"):
        unconditional_weight(torch.ones(2), 4, 0)

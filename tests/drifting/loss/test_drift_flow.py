import math
from typing import Any

import pytest
import torch
from torch import Tensor

from braid.drifting.loss.drift import DriftLoss, Samples
from tests.drifting.drift_example import drift_loss


def raw_drift(
    loss: DriftLoss, x: Tensor, positives: Tensor, step: float = math.inf
) -> tuple[Tensor, Tensor]:
    """V before lambda, in the units of x [N, D], and its root mean square in those of phi."""
    x = x.clone().requires_grad_()
    samples = Samples(x[None, :, None], positives[None, :, None])
    result = loss({"x": samples}, torch.zeros(1), step=step, statistics=True)
    (gradient,) = torch.autograd.grad(result.loss, x)
    unit = result.statistics["field_scale_x"] / math.sqrt(x.shape[1])
    size = result.statistics[f"field_sq_x_{loss.config.temperatures[0]:g}"].sqrt()
    return -gradient / 2 * x.numel() * unit**2 * size, size


def energy_distance(x: Tensor, y: Tensor) -> float:
    pairs = [torch.cdist(a, b).mean() for a, b in ((x, y), (x, x), (y, y))]
    return float(2 * pairs[0] - pairs[1] - pairs[2])


def two_modes(count: int, generator: torch.Generator) -> Tensor:
    """At (-1, 0) and (1, 0), of standard deviation 0.1."""
    side = torch.randint(0, 2, (count, 1), generator=generator) * 2.0 - 1
    noise = 0.1 * torch.randn(count, 2, generator=generator)
    return torch.cat([side, torch.zeros(count, 1)], 1) + noise


def flow(tau: float, start: tuple[float, float], **switches: Any) -> tuple[float, Tensor]:
    """Energy distance to the data and place of 128 particles after 150 steps x += V."""
    generator = torch.Generator().manual_seed(0)
    x = torch.tensor(start) + 0.1 * torch.randn(128, 2, generator=generator)
    loss = drift_loss(temperatures=[tau], **switches)
    for step in range(150):
        x = x + raw_drift(loss, x, two_modes(128, generator), step)[0]
    return energy_distance(x, two_modes(2000, generator)), x


@pytest.mark.parametrize("start", [(0.0, 0.0), (4.0, 4.0), (1.0, 0.0)])
def test_particles_reach_both_modes_from_anywhere(start):
    error, x = flow(0.5, start)  # from .75, 10 and .9
    assert error < 0.06
    assert 0.3 < (x[:, 0] < 0).float().mean() < 0.7


@pytest.mark.parametrize("start", [(0.0, 0.0), (1.0, 0.0)])
def test_at_a_small_temperature_alone_they_stay_stuck(start):
    assert flow(0.05, start)[0] > 0.3


@pytest.mark.parametrize("start", [(0.0, 0.0), (1.0, 0.0)])
@pytest.mark.parametrize(
    ("switches", "most"),
    [
        ({"coupling": "sinkhorn"}, 0.15),
        ({"coupling": "sinkhorn", "normalization": "separate"}, 0.1),
        ({"annealing": 20.0, "annealing_steps": 100}, 0.05),
    ],
    ids=["sinkhorn", "separate", "annealed"],
)
def test_a_sinkhorn_coupling_and_annealing_cure_that(switches, most, start):
    assert flow(0.05, start, **switches)[0] < most  # from .9 and .6


def test_separate_sides_help_a_small_temperature_but_do_not_cure_it():
    error = flow(0.05, (0.0, 0.0), normalization="separate")[0]
    assert 0.2 < error < 0.7 * flow(0.05, (0.0, 0.0))[0]


@pytest.mark.parametrize("start", [(0.0, 0.0), (4.0, 4.0), (1.0, 0.0)])
def test_more_attraction_than_repulsion_collapses_them(start):
    (error, x), (balanced, _) = flow(0.5, start, attraction=1.5), flow(0.5, start)
    assert error > 5 * balanced
    assert x[:, 1].std() < 0.02  # of 0.1


def test_at_equilibrium_only_the_noise_of_finite_samples_is_left():
    sizes = {}
    for count in (32, 128, 512):
        generator = torch.Generator().manual_seed(0)
        x, y = torch.randn(2, count, 64, generator=generator)
        loss = drift_loss(temperatures=[0.2])
        sizes[count] = [float(raw_drift(loss, x, y + shift)[1]) for shift in (0.0, 0.5)]
    noise = [sizes[count][0] for count in sizes]
    assert noise[0] / noise[1] == pytest.approx(2, rel=0.2)  # ~ N^-1/2
    assert noise[1] / noise[2] == pytest.approx(2, rel=0.2)
    assert sizes[128][1] > 3 * sizes[128][0]
    assert sizes[512][1] > 6 * sizes[512][0]

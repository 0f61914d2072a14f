from typing import NamedTuple

import pytest
import torch

from braid.radiance.distillation.response import ResponseLoss
from tests.radiance.settings import loss_config


class Seen(NamedTuple):
    rgb: torch.Tensor
    alpha: torch.Tensor
    depth: torch.Tensor


def seen(seed, count=6):
    values = torch.rand(count, 5, generator=torch.Generator().manual_seed(seed))
    return Seen(values[:, :3] * values[:, 3:4], values[:, 3], 2 + values[:, 4])


ONES = torch.ones(6)
BACKGROUND = torch.rand(6, 3, generator=torch.Generator().manual_seed(3))


def test_terms_are_those_of_composited_images():
    student, teacher = seen(0), seen(1)
    over = [rays.rgb + (1 - rays.alpha[:, None]) * BACKGROUND for rays in (student, teacher)]
    loss = ResponseLoss(loss_config(color=2.0, opacity=0.5, depth=0.1), scale=0.5, solid=0.4)
    terms, error = loss(student, teacher, BACKGROUND, ONES)
    torch.testing.assert_close(terms["color"], 2 * (over[0] - over[1]).square().mean())
    torch.testing.assert_close(error, (over[0] - over[1]).square().mean(1))
    torch.testing.assert_close(terms["opacity"], 0.5 * (student.alpha - teacher.alpha).abs().mean())
    gap = (student.depth - teacher.depth).abs() / 0.5
    smooth = torch.where(gap < 1, gap**2 / 2, gap - 0.5)
    solid = teacher.alpha > 0.4
    assert 0 < solid.sum() < 6
    torch.testing.assert_close(terms["depth"], 0.1 * smooth[solid].sum() / 6)


def test_equal_responses_cost_nothing():
    assert sum(ResponseLoss(loss_config())(seen(0), seen(0), BACKGROUND, ONES).terms.values()) == 0


def test_importance_weights_are_linear():
    loss = ResponseLoss(loss_config(), solid=0.0)
    one = torch.zeros(6)
    one[2] = 6.0
    weighted = loss(seen(0), seen(1), BACKGROUND, one).terms
    single = loss(
        *(Seen(*(values[2:3] for values in rays)) for rays in (seen(0), seen(1))),
        BACKGROUND[2:3],
        torch.ones(1),
    ).terms
    assert {k: float(v) for k, v in weighted.items()} == pytest.approx(
        {k: float(v) for k, v in single.items()}
    )


def test_the_error_for_resampling_carries_no_gradient():
    student = seen(0)
    student.rgb.requires_grad_()
    result = ResponseLoss(loss_config())(student, seen(1), BACKGROUND, ONES)
    assert not result.error.requires_grad
    assert result.terms["color"].requires_grad

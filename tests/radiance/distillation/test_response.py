"""What students are trained on in Stage 1B, at a size where a second of training shows."""

from __future__ import annotations

import pytest
import torch

from braid.radiance.distillation.response import ResponseObjective
from braid.radiance.scenes.grids import FieldPoints
from tests.radiance.tiny_objectives import Spy, fit, response
from tests.radiance.tiny_teacher import field_points, seeded


def psnr_of_the_first_view(objective: ResponseObjective) -> float:
    seen = objective.student.render(objective.renders.cameras, 0, chunk=256, stop=0.0)
    image = seen.rgb + 1 - seen.alpha[..., None]
    return float(-10 * (image - objective.renders.on_white()[0]).square().mean().log10())


def test_one_view_is_overfitted() -> None:
    objective = response()
    before = psnr_of_the_first_view(objective)
    fit(objective, 60)
    assert psnr_of_the_first_view(objective) > max(28.0, before + 8)


def test_a_start_in_the_field_alone_shows_the_ball() -> None:
    objective = response(rays=256, field_points=field_points(), field_steps=60)
    before = psnr_of_the_first_view(objective)
    fit(objective, 60)
    assert psnr_of_the_first_view(objective) > max(18.0, before + 2)


def test_the_field_comes_first_then_rays() -> None:
    objective = response(field_points=field_points(), field_steps=2)
    names = [set(objective(step, seeded(step))) for step in range(4)]
    field, rays = {"field_alpha", "field_color"}, {"color", "opacity", "depth"}
    assert names == [field, field, rays, rays]
    assert set(response(field_steps=2)(0, seeded())) == rays


def test_field_points_that_the_student_already_predicts_cost_nothing() -> None:
    objective = response(field_points=field_points(200), field_steps=1)
    target = objective.field_points
    places = target.points, target.directions
    with torch.no_grad():
        own = objective.field(*places)
    objective.field_points = FieldPoints(*places, own.sigma, own.rgb)
    assert all(term.item() < 1e-9 for term in objective(0, seeded()).values())
    objective.field_points = FieldPoints(*places, 0 * own.sigma, target.rgb)
    terms = objective(0, seeded())
    assert terms["field_color"] == 0  # what is not there has no color
    assert terms["field_alpha"] > 0


def test_the_same_generator_gives_the_same_terms() -> None:
    objective = response()
    first, second, other = (objective(0, seeded(seed)) for seed in (3, 3, 4))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["color"], other["color"])


def test_the_background_is_random_and_the_same_behind_both() -> None:
    spy = Spy()
    response(loss=spy)(0, seeded())
    marched, teacher, background, _ = spy.seen
    assert background.shape == (128, 3)
    assert 0 <= background.min() < 0.1
    assert 0.9 < background.max() <= 1
    assert len(background.unique(dim=0)) == 128
    mine = marched.rgb + (1 - marched.alpha[:, None]) * background
    theirs = teacher.rgb + (1 - teacher.alpha[:, None]) * background
    expected = (mine - theirs).square().mean()
    torch.testing.assert_close(spy(*spy.seen).terms["color"], expected)


def test_uniform_rays_all_weigh_one() -> None:
    spy = Spy()
    objective = response(hard=0.0, loss=spy)
    objective(0, seeded())
    assert objective.diagnostics["samples_per_ray"] == len(spy.seen[0].weights) / 128
    objective(1, seeded(1))
    assert (spy.seen[3] == 1).all()
    assert objective.diagnostics["ray_ess"] == pytest.approx(1.0)
    assert objective.diagnostics["hard_ray_fraction"] == 0.0


def test_hard_rays_are_drawn_more_often_and_weigh_less() -> None:
    """The weighted loss stays an unbiased estimate of the mean over all rays."""
    spy = Spy()
    objective = response(rays=4096, hard=0.7, loss=spy).eval()
    objective.field.density_scale = 1e-6  # it is transparent: all that is wrong is the ball
    uniform = objective(0, seeded())["color"].item()  # no tile was drawn from yet
    assert (spy.seen[3] == 1).all()
    errors = torch.full((4, 4), 0.1)
    errors[1:3, 1:3] = 1.0  # where the ball is
    objective.sampler.set_extra_state(errors.flatten())
    weighted = objective(1, seeded(1))["color"].item()
    teacher, weight = spy.seen[1], spy.seen[3]
    assert weight.mean().item() == pytest.approx(1.0, abs=0.05)
    assert weighted == pytest.approx(uniform, rel=0.05)
    unweighted = spy(*spy.seen).error.mean().item()
    assert unweighted > 1.2 * uniform  # what was drawn is harder than all rays are
    assert weight[teacher.alpha > 0.9].mean() < 1 < weight[teacher.alpha < 0.01].mean()
    assert 0.1 < objective.diagnostics["ray_ess"] < 0.95
    assert objective.diagnostics["hard_ray_fraction"] > 0.5


def test_only_training_moves_the_running_errors() -> None:
    objective = response(hard=0.5)
    before = objective.sampler.errors.clone()
    objective.eval()
    objective(0, seeded())
    assert torch.equal(objective.sampler.errors, before)
    objective.train()
    objective(0, seeded())
    assert (objective.sampler.errors >= 0).all()


def test_the_state_is_the_field_s_and_the_sampler_s() -> None:
    names = set(response(field_points=field_points(10)).state_dict())
    assert names == {"field.network_of_cell", "field.weights", "sampler._extra_state"}

import math
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from braid.radiance.config import TeacherConfig
from braid.radiance.fitting import fitting
from braid.radiance.fitting.fitting import FitState, fit
from braid.radiance.gaussians import splat
from braid.radiance.gaussians.gaussians import Gaussians
from braid.radiance.scenes.cameras import Cameras, Rendered
from braid.training.trainer import Run
from tests.radiance.settings import teacher_config

CPU = torch.device("cpu")


def tiny(**values: Any) -> TeacherConfig:
    small = {"steps": 12, "resolution": 8, "sh_degree": 1, "sh_interval": 4}
    density = {"density_interval": 5, "density_stop": 1.0, "density_grow": 0.3, "split_scale": 0.5}
    return teacher_config(**{**small, **density, **values})


def seeded_run(seed: int, scratch: Path | None = None, checkpoint_every: int = 2) -> Run:
    return Run(
        seed=seed, device=CPU, log_every=3, checkpoint_every=checkpoint_every, scratch=scratch
    )


@pytest.fixture(scope="module")
def scene() -> tuple[Cameras, torch.Tensor]:
    """Five views, 12 x 12 px, of a few colored splats."""
    generator = torch.Generator().manual_seed(0)
    truth = Gaussians(
        0.25 * torch.randn(8, 3, generator=generator),
        torch.full((8, 3), math.log(0.2)),
        torch.tensor([1.0, 0.0, 0.0, 0.0]).repeat(8, 1),
        torch.full((8,), 3.0),
        torch.randn(8, 1, 3, generator=generator),
    )
    poses = []
    for angle in torch.arange(5) * 2 * math.pi / 5:
        cos, sin = float(torch.cos(angle)), float(torch.sin(angle))
        rows = [[cos, 0, sin, 4 * sin], [0, 1, 0, 0], [-sin, 0, cos, 4 * cos], [0, 0, 0, 1]]
        poses.append(torch.tensor(rows))
    cameras = Cameras(torch.stack(poses), 20.0, 12, 12)
    images = [splat.render(truth, cameras, view) for view in range(5)]
    return cameras, torch.stack([torch.cat([o.rgb, o.alpha[..., None]], dim=-1) for o in images])


def same(first: fitting.Fit, second: fitting.Fit) -> bool:
    tensors = all(
        torch.equal(getattr(first.gaussians, f.name), getattr(second.gaussians, f.name))
        for f in fields(Gaussians)
    )
    return tensors and first.history == second.history


class Killed(Exception):
    pass


def killed_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the fit die in the middle of a step, after its backward pass."""
    check = fitting._check_finite

    def die(loss, state):
        check(loss, state)
        if state.step == step:
            raise Killed

    monkeypatch.setattr(fitting, "_check_finite", die)


@pytest.mark.parametrize("step", [0, 3, 4, 5, 6, 10, 11])
def test_killed_and_resumed_gives_the_same_bytes(step, scene, tmp_path, monkeypatch):
    whole = fit(*scene, tiny(), seeded_run(3))
    run = seeded_run(3, tmp_path)
    with monkeypatch.context() as patch:
        killed_at(step, patch)
        with pytest.raises(Killed):
            fit(*scene, tiny(), run)
    assert (tmp_path / "fit.pt").exists() == (step >= 2)
    assert same(fit(*scene, tiny(), run), whole)


def test_same_seed_same_bytes_and_another_seed_another_result(scene):
    first, again, other = (fit(*scene, tiny(), seeded_run(seed)) for seed in (3, 3, 4))
    assert same(first, again)
    assert not same(first, other)


def test_fit_comes_close_to_the_images(scene):
    cameras, rgba = scene
    config = tiny(steps=150, resolution=12, sh_degree=0, density_interval=0)
    result = fit(cameras, rgba, config, seeded_run(0))
    errors = [
        (splat.render(result.gaussians, cameras, view).rgb - rgba[view, ..., :3]).square().mean()
        for view in range(len(cameras))
    ]
    blank = rgba[..., :3].square().mean()
    assert torch.stack(errors).mean() < 0.03 * blank
    assert result.history[-1]["loss"] < 0.3 * result.history[0]["loss"]


def test_history_has_a_row_per_interval_and_the_last_step(scene):
    logged: list[dict[str, float]] = []
    run = replace(seeded_run(0), on_log=logged.append)
    history = fit(*scene, tiny(steps=10), run).history
    assert [row["step"] for row in history] == [3, 6, 9, 10]
    assert all(list(row) == ["step", "loss", "psnr", "count"] for row in history)
    assert logged == history


def test_degrees_are_let_in_one_after_the_other(scene):
    for steps, moving in ((4, 1), (8, 4), (12, 9)):
        config = tiny(steps=steps, sh_degree=2, density_interval=0)
        sh = fit(*scene, config, seeded_run(0)).gaussians.sh
        assert sh.shape[1] == 9
        assert sh[:, moving:].eq(0).all()
        assert sh[:, :moving].ne(0).any(dim=(0, 2)).all()


def test_density_control_changes_the_count_and_keeps_the_fit_going(scene):
    still = fit(*scene, tiny(density_interval=0), seeded_run(0))
    grown = fit(*scene, tiny(), seeded_run(0))
    assert len(grown.gaussians) > len(still.gaussians)
    assert grown.history[-1]["count"] == len(grown.gaussians)


def test_moments_follow_their_rows_through_density_control(scene):
    fitted = fit(*scene, tiny(), seeded_run(0))
    state = FitState(fitted.gaussians, fitting._rates(tiny(), 1.0))
    for part in state.parts.values():
        part.grad = torch.ones_like(part) * torch.arange(len(part)).view(
            -1, *[1] * (part.dim() - 1)
        )
    state.optimizer.step()
    gaussians = state.gaussians(1).detach()
    source = torch.tensor([2, 0, 2])
    state.replace(gaussians[source], source, torch.tensor([False, False, True]))
    moments = state.optimizer.state[state.parts["means"]]
    assert torch.equal(moments["exp_avg"][:, 0], 0.1 * torch.tensor([2.0, 0.0, 0.0]))
    assert float(moments["step"]) == 1


def test_loss_that_is_not_finite_stops_and_keeps_the_checkpoint(scene, tmp_path):
    cameras, rgba = scene
    fit(cameras, rgba, tiny(steps=4), seeded_run(0, tmp_path))
    before = (tmp_path / "fit.pt").read_bytes()
    spoilt = rgba.clone()
    spoilt[:, 5, 5, 0] = math.nan
    with pytest.raises(FloatingPointError, match="not finite at step 4"):
        fit(cameras, spoilt, tiny(), seeded_run(0, tmp_path, checkpoint_every=1))
    assert (tmp_path / "fit.pt").read_bytes() == before


def test_loss_is_l1_of_color_and_squared_error_of_alpha():
    rendered = Rendered(torch.full((2, 2, 3), 0.5), torch.full((2, 2), 0.8), torch.zeros(2, 2))
    target = torch.tensor([0.4, 0.4, 0.4, 1.0]).expand(2, 2, 4)
    assert float(fitting.photo_loss(rendered, target, 0.5)) == pytest.approx(0.1 + 0.5 * 0.04)


def test_density_control_leaves_no_twins(scene: tuple[Cameras, torch.Tensor]) -> None:
    """Children of a clone in one place have equal gradients and stay twins for ever."""
    rounds = {"density_interval": 3, "density_start": 0.0, "density_grow": 0.5, "split_scale": 9.0}
    grown = fit(*scene, tiny(steps=30, prune_opacity=0.0, **rounds), seeded_run(0)).gaussians
    alone = fit(*scene, tiny(steps=30, density_interval=0), seeded_run(0)).gaussians
    assert len(grown) > 2 * len(alone)
    distance = torch.cdist(grown.means, grown.means).fill_diagonal_(math.inf).amin(dim=1)
    size = grown.log_scales.exp().amax(dim=1)
    assert (distance < 0.01 * size).float().mean() < 0.02

"""A user's own Gaussians: floaters are dropped, what is of another scene is not taken."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from braid.radiance.config import OwnTeacherConfig
from braid.radiance.features.aggregation import extract_features
from braid.radiance.gaussians.compressed import half_turn
from braid.radiance.gaussians.field import (
    main_part,
    render_all,
    scan_space,
    turned_to,
    verified,
)
from braid.radiance.gaussians.gaussians import Gaussians, concatenate
from braid.radiance.scenes.blender import Views
from braid.radiance.scenes.cameras import Cameras
from tests.radiance.settings import features_config, renders_config
from tests.radiance.tiny_teacher import ball, seeded, views

STOP = OwnTeacherConfig(outside=0.001, mismatch="stop")


def train(count: int = 8) -> Views:
    cameras = views(count, width=24)
    return Views(cameras, torch.from_numpy(render_all(ball(), cameras).rgba.astype(np.float32)))


def floater(x: float, opacity: float, scale: float = 0.12) -> Gaussians:
    one = ball()[torch.tensor([0])]
    logit = torch.tensor([math.log(opacity / (1 - opacity))])
    size = torch.full((1, 3), math.log(scale))
    return replace(one, means=torch.tensor([[x, 0.0, 0.0]]), opacity_logits=logit, log_scales=size)


def test_gaussians_of_the_scene_are_taken_as_they_are() -> None:
    taken = verified(ball(), train(), STOP)
    assert all(torch.equal(getattr(taken, name), value) for name, value in vars(ball()).items())


@pytest.mark.parametrize(("x", "opacity"), [(8.0, 0.02), (40.0, 0.02), (30.0, 0.88), (-5.0, 0.05)])
def test_one_floater_changes_neither_voxels_nor_cells(x: float, opacity: float) -> None:
    with_it = concatenate(ball(), floater(x, opacity))
    taken = verified(with_it, train(), STOP)
    assert len(taken) == len(ball())
    config = renders_config(voxels=12, field_points=10)
    alone, cleaned, spoilt = (
        int(scan_space(g, views(), config, seeded())[0].occupied.sum())
        for g in (ball(), taken, with_it)
    )
    assert cleaned == alone > 2 * spoilt
    cells = (extract_features(g, features_config(cells=8, block=2)) for g in (ball(), taken))
    assert len({len(stored.features.cells) for stored in cells}) == 1


def test_what_is_thin_and_sticks_out_stays() -> None:
    spike = [floater(x, 0.5, scale=0.02) for x in np.linspace(0.6, 0.95, 8)]
    assert len(verified(concatenate(ball(), *spike), train(), STOP)) == len(ball()) + 8


def test_the_box_is_that_of_the_contribution_along_each_axis() -> None:
    means = torch.zeros(1001, 3)
    means[:, 0] = torch.linspace(-1, 1, 1001)
    means[[0, 1], 0] = torch.tensor([-5.0, 2.5])
    weight = torch.ones(1001)
    weight[[0, 1]] = 1e-3
    kept = main_part(means, weight, outside=0.01)
    assert (~kept).nonzero()[:, 0].tolist() == [0, 1]
    weight[0] = 100.0  # it is seen: it belongs to the scene
    assert main_part(means, weight, outside=0.01)[0]


def of_another_scene() -> dict[str, tuple[Gaussians, Cameras]]:
    cameras = train().cameras
    small = replace(ball(), means=0.3 * ball().means, log_scales=ball().log_scales + math.log(0.3))
    moved = replace(ball(), means=ball().means + torch.tensor([0.0, 1.5, 0.0]))
    vast = replace(ball(), log_scales=torch.full((60, 3), 50.0))
    tele = replace(cameras, focal=3 * cameras.focal)
    return {
        "other units": (small, cameras),
        "another frame": (moved, cameras),
        "log scales of 50": (vast, cameras),
        "other cameras": (ball(), tele),
    }


@pytest.mark.parametrize("how", list(of_another_scene()))
def test_gaussians_that_do_not_show_the_views_stop_with_one_line(how: str) -> None:
    gaussians, cameras = of_another_scene()[how]
    seen = Views(cameras, train().rgba)
    with pytest.raises(
        ValueError, match=r"expected Gaussians of this scene, in its frame"
    ) as error:
        verified(gaussians, seen, STOP)
    assert "\n" not in str(error.value)
    warn = OwnTeacherConfig(outside=0.0, mismatch="warn")
    with pytest.warns(UserWarning, match="a silhouette's in one color"):
        assert len(verified(gaussians, seen, warn)) == len(gaussians)


def test_a_faint_but_right_teacher_is_taken_without_a_word() -> None:
    faint = replace(ball(), opacity_logits=ball().opacity_logits - 1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(verified(faint, train(), STOP)) == len(ball())


@pytest.mark.parametrize("packed", [ball, lambda: half_turn(ball())])
def test_axes_that_a_file_leaves_open_are_those_of_the_views(
    packed: Callable[[], Gaussians],
) -> None:
    chosen = turned_to(train(), packed())
    for name, expected in vars(ball()).items():
        torch.testing.assert_close(getattr(chosen, name), expected)

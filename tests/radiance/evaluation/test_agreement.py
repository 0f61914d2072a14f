"""The probe of how much of the teacher's features a student's features hold."""

from __future__ import annotations

import pytest
import torch

from braid.radiance.evaluation import agreement as probe
from braid.radiance.evaluation.agreement import feature_agreement
from braid.radiance.features.table import StoredFeatures
from braid.radiance.gaussians.field import render_all
from braid.radiance.scenes.grids import CellGrid
from braid.radiance.scenes.renders import Renders
from tests.radiance.tiny_objectives import stored_features
from tests.radiance.tiny_teacher import ball, rendered, seeded, student, views

GRID = CellGrid((-1.0, -1.0, -1.0), (1.0, 1.0, 1.0), (5, 5, 5))


def features(values: torch.Tensor) -> StoredFeatures:
    return stored_features(GRID, torch.arange(125), values)


def held_out() -> Renders:
    return render_all(ball(), views(5)[[3, 4]])


@pytest.fixture(autouse=True)
def few_points(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("BATCHES", 3), ("RAYS", 256), ("POINTS", 800)):
        monkeypatch.setattr(probe, name, value)


def test_what_depends_on_the_place_alone_is_read_by_a_head_and_less_by_the_networks_mean() -> None:
    place = GRID.coordinates(torch.arange(125)).float() - 2
    figures = feature_agreement(
        student(), rendered(), held_out(), features(place[:, [0, 1, 2, 0]]), seed=0
    )
    explained, alone = (
        figures[f"feature_explained_variance{which}"] for which in ("", "_by_network")
    )
    assert explained is not None
    assert alone is not None
    assert 0.3 < alone < explained < 1
    assert explained > alone + 0.1
    groups = [figures[f"explained_variance_{group}"] for group in ("sh", "opacity")]
    assert explained == pytest.approx(sum(filter(None, groups)) / 2)


def test_noise_cannot_be_read_and_the_seed_decides_the_points() -> None:
    noise = features(torch.randn(125, 4, generator=seeded(3)))
    first, second = (feature_agreement(student(), rendered(), held_out(), noise, 0) for _ in "ab")
    assert first == second
    place = features(GRID.coordinates(torch.arange(125)).float()[:, [0, 1, 2, 0]])
    better = feature_agreement(student(), rendered(), held_out(), place, 0)
    assert first["feature_explained_variance"] < better["feature_explained_variance"] - 0.2


def test_a_student_that_shows_nothing_has_no_figure() -> None:
    empty = student()
    empty.field.density_scale = 1e-6
    figures = feature_agreement(empty, rendered(), held_out(), features(torch.zeros(125, 4)), 0)
    assert figures == {"feature_explained_variance": None}

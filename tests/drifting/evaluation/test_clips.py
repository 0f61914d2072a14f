"""Evaluating clips: what is right scores right, each failure has a name."""

from __future__ import annotations

import pytest
import torch

from braid.common.rng import generator
from braid.drifting.evaluation.clips import (
    ClipEvaluator,
    Completion,
    clips_of_many_classes,
    complete,
    costs,
    drift_status,
    headline,
    interpolation_table,
    methods_table,
)
from braid.drifting.interpolation.interpolation import interpolate
from braid.drifting.interpolation.keyframes import nested_masks
from braid.metrics.spaces import PcaSpace, RandomConvolutions
from tests.drifting import configs
from tests.drifting.toy_refinement import toy_clips, toy_corruption, toy_refiner

CPU = torch.device("cpu")


def evaluator() -> ClipEvaluator:
    clips, labels = toy_clips()
    mask = nested_masks(len(clips), 5, [5, 2], None)[-1]
    spaces = RandomConvolutions(2), PcaSpace(clips, 4)
    return ClipEvaluator(clips, mask, labels.numpy(), *spaces, CPU)


def corrupted():
    clips, _ = toy_clips()
    ids = torch.arange(len(clips))
    return toy_corruption()(clips, torch.ones_like(ids), ids, generator(0))


def test_the_truth_itself_scores_perfectly_and_interpolation_does_not() -> None:
    clips, _ = toy_clips()
    own, interpolated = (
        {**evaluator().distances(values), **evaluator().errors(values)}
        for values in (clips, corrupted().latents)
    )
    assert own["frechet"] == pytest.approx(0, abs=1e-6)
    assert own["frechet_pca"] == pytest.approx(0, abs=1e-4)
    assert own["coverage"] == own["recall"] == own["class_coverage"] == own["motion_energy"] == 1
    assert own["mse_all"] == own["keyframe_mse"] == 0
    assert interpolated["frechet"] > 0.01
    assert interpolated["motion_energy"] < 0.3
    assert interpolated["keyframe_mse"] == 0 < interpolated["mse_missing"]
    assert interpolated["mse_all"] == pytest.approx(interpolated["mse_missing"] * 3 / 5, rel=1e-4)


GOOD = {"frechet": 0.5, "frechet_pca": 0.8, "mse_missing": 1.1, "recall": 0.9}
PLAIN = {"frechet": 1.0, "frechet_pca": 1.0, "mse_missing": 1.0, "recall": 0.9}


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({}, "ok"),
        ({"recall": 0.1}, "collapsed"),
        ({"frechet": 0.75}, "no_better_than_interpolation"),
        ({"frechet_pca": 1.0}, "worse_in_pca"),
        ({"mse_missing": 1.3}, "off_the_mark"),
    ],
)
def test_each_failure_has_its_name(change: dict[str, float], status: str) -> None:
    assert drift_status(PLAIN, GOOD | change) == status


def test_methods_and_other_real_clips_are_compared() -> None:
    clips, _ = toy_clips()
    completions = {"interpolated": Completion(corrupted().latents, 0, 0.5)}
    figures = evaluator().compare(completions, clips.flip(0), generator(1))
    assert list(figures) == ["interpolated", "real"]
    assert figures["real"]["frechet"] == pytest.approx(0, abs=1e-6)  # the same clips
    assert set(figures["interpolated"]) - set(figures["real"]) == {
        "mse_missing",
        "mse_all",
        "keyframe_mse",
    }
    row, real = methods_table(figures, 40)
    assert row == {"method": "interpolated", "clips": 40, **figures["interpolated"]}
    assert real["method"] == "real"
    assert costs(completions) == {"milliseconds_interpolated": 0.5}


def test_the_headline_has_few_figures_of_few_methods() -> None:
    other = {"frechet": 3.0, "energy": 0.3}
    figures = {
        "refined": {**GOOD, "energy": 0.1},
        "interpolated": {**PLAIN, "energy": 0.2},
        "unclamped": other,
        "paired": other,
        "real": other,
    }
    assert headline(figures) == {
        "frechet": {"refined": 0.5, "interpolated": 1.0, "paired": 3.0, "real": 3.0},
        "energy": {"refined": 0.1, "interpolated": 0.2},
        "mse": {"refined": 1.1, "interpolated": 1.0},
        "status": "ok",
    }


def test_interpolators_are_compared_level_by_level() -> None:
    clips, config = toy_clips()[0], configs.corruption(levels=2, min_keyframes=2)
    rows = interpolation_table(clips, config)
    assert [(row["level"], row["keyframes"]) for row in rows] == [(1, 4), (2, 2)]
    assert all(len(row) == 2 + 2 * 5 for row in rows)
    mask = nested_masks(len(clips), 5, [5, 4, 2], None)[2]
    filled = interpolate(clips, mask, config.model_copy(update={"interpolator": "harmonic"}))
    error = (filled - clips).square()
    assert rows[1]["harmonic_mse_all"] == pytest.approx(float(error.mean()))
    missing = float(error.sum()) / (error.numel() * 3 / 5)
    assert rows[1]["harmonic_mse_missing"] == pytest.approx(missing)
    assert error[:, :, [0, 4]].max() == 0


def test_clips_are_shown_of_as_many_classes_as_can_be() -> None:
    classes = torch.tensor([2, 2, 0, 2, 1, 0])
    assert clips_of_many_classes(classes, 4) == [0, 2, 4, 1]
    assert clips_of_many_classes(classes, 9) == [0, 2, 4, 1, 5, 3]


def test_all_methods_have_the_same_keyframes_and_keep_them_where_clamped() -> None:
    clips, labels = toy_clips()
    refiner, paired = toy_refiner(clamp=False), toy_refiner()
    for model in (refiner, paired):
        torch.nn.init.normal_(model.out.bias)
    mask, completions = complete(
        clips, labels, toy_corruption(), refiner, paired, 1.0, generator(0)
    )
    assert list(completions) == ["interpolated", "refined", "unclamped", "paired", "cold"]
    for name, completion in completions.items():
        kept = (completion.clips == clips).transpose(1, 2)[mask].all()
        assert kept == (name != "unclamped"), name
    assert [completion.calls for completion in completions.values()] == [0, 1, 1, 1, 1]

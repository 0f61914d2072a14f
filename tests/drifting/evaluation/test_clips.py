"""Evaluating clips: what is right scores right, each failure has a name."""

from __future__ import annotations

import time

import pytest
import torch
from torch import Tensor

from braid.clips.preparation.moving_digits import read_words
from braid.common.rng import generator
from braid.drifting.config import trained_steps
from braid.drifting.evaluation.clips import (
    ClipEvaluator,
    Completed,
    Sample,
    compare,
    complete,
    costs,
    drift_status,
    headline,
    interpolation_table,
    methods_table,
)
from braid.drifting.interpolation.interpolation import interpolate
from braid.drifting.interpolation.keyframes import nested_masks
from braid.drifting.video.corruption import Corruption
from braid.drifting.video.refiner import Refiner
from braid.metrics.distances import PcaSpace, RandomConvolutions
from tests.drifting import configs
from tests.drifting.toy_refinement import toy_clips, toy_corruption, toy_refiner

CPU = torch.device("cpu")


GIVEN = torch.tensor([True, False, False, False, True])


def evaluator() -> ClipEvaluator:
    clips, labels = toy_clips()
    spaces = RandomConvolutions(2), PcaSpace(clips, 4)
    return ClipEvaluator(clips, Completed(GIVEN, labels, {}), *spaces, CPU)


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
    assert own["energy"] == own["energy_pca"] == pytest.approx(0, abs=1e-6)
    assert evaluator().distances(clips, completions=False)["energy_pca"] < -0.01
    assert own["coverage"] == own["recall"] == own["class_coverage"] == own["motion_energy"] == 1
    assert own["mse_all"] == own["keyframe_mse"] == 0
    assert interpolated["frechet"] > 0.01
    assert interpolated["motion_energy"] < 0.3
    assert interpolated["keyframe_mse"] == 0 < interpolated["mse_missing"]
    assert interpolated["mse_all"] == pytest.approx(interpolated["mse_missing"] * 3 / 5, rel=1e-4)


GOOD = {"frechet": 0.5, "frechet_pca": 0.8, "mse_missing": 1.1, "recall": 0.9}
READ = {"ghost": 0.2, "digit_missing": 0.8}
PLAIN = {"frechet": 1.0, "frechet_pca": 1.0, "mse_missing": 1.0, "recall": 0.9}
READ_PLAIN = {"ghost": 0.4, "digit_missing": 0.7}


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({}, "ok"),
        ({"recall": 0.1}, "collapsed"),
        ({"frechet": 0.75}, "no_better_than_interpolation"),
        ({"frechet_pca": 1.0}, "worse_in_pca"),
        ({"mse_missing": 1.3}, "off_the_mark"),
        ({"ghost": 0.5}, "more_ghosts_than_interpolation"),
        ({"digit_missing": 0.6}, "less_legible_than_interpolation"),
    ],
)
def test_each_failure_has_its_name(change: dict[str, float], status: str) -> None:
    assert drift_status(GOOD | READ | change, PLAIN | READ_PLAIN) == status


def test_without_words_the_status_is_of_distances_alone() -> None:
    assert drift_status(GOOD, PLAIN) == "ok"
    assert drift_status(GOOD | {"recall": 0.1}, PLAIN) == "collapsed"


def sample(prompts: list[str]) -> Sample:
    clips, labels = toy_clips()
    return Sample(clips, labels[:, None, None].float(), prompts, read_words(prompts))


def completed(corruption: Corruption, refiner: Refiner, paired: Refiner) -> Completed:
    config = configs.drift_evaluation(refiner="one", paired="two")
    test = sample(["a clip"] * 40)
    return complete(test, by_text, corruption, refiner, paired, config, generator(0))


def by_text(texts: Tensor, start: Tensor) -> Tensor:
    assert len(start) == len(texts)
    return texts.flatten().long()


def test_all_methods_have_the_same_keyframes_and_keep_them_where_clamped() -> None:
    clips, labels = toy_clips()
    refiner, paired = toy_refiner(clamp=False), toy_refiner()
    for model in (refiner, paired):
        torch.nn.init.normal_(model.out.bias)
    results = completed(toy_corruption(), refiner, paired)
    names = ["interpolated", "refined", "unclamped", "shuffled", "paired", "cold"]
    assert list(results.methods) == names
    assert torch.equal(results.given, GIVEN)
    assert torch.equal(results.classes, labels)
    for name, method in results.methods.items():
        kept = (method.clips == clips).movedim(2, 1)[:, GIVEN].all()
        assert kept == (name != "unclamped"), name
    assert [method.calls for method in results.methods.values()] == [0, 1, 1, 1, 1, 1]
    assert [method.refiner for method in results.methods.values()] == [
        "",
        *3 * ["one"],
        *2 * ["two"],
    ]
    assert list(costs(results)) == [f"milliseconds_{name}" for name in names]


def test_the_first_method_s_time_is_without_the_warm_up() -> None:
    refiner, calls = toy_refiner(), []

    def slow_at_first(*_: object) -> None:
        time.sleep(0 if calls else 0.5)
        calls.append(1)

    refiner.register_forward_pre_hook(slow_at_first)
    methods = completed(toy_corruption(), refiner, toy_refiner()).methods
    assert methods["refined"].milliseconds * 40 < 500


def test_steps_are_those_of_all_trainings_behind_the_weights() -> None:
    refiners = {
        "long": configs.refiner_training(start="models/drift/drift", steps=5),
        "drift": configs.refiner_training(start="models/drift/paired", steps=40),
        "paired": configs.refiner_training(start="none", steps=700),
        "other": configs.refiner_training(start="/models/elsewhere", steps=9),
    }
    steps = {"long": 745, "drift": 740, "paired": 700, "other": None}
    assert trained_steps(refiners, "models/drift") == steps


def test_the_reference_is_linear_whatever_the_refiners_start_from() -> None:
    bent = Corruption(5, configs.corruption(levels=1, min_keyframes=2, interpolator="harmonic"))
    refiners = toy_refiner(), toy_refiner()
    linear, other = (completed(corruption, *refiners) for corruption in (toy_corruption(), bent))
    reference = [run.methods["interpolated"].clips for run in (linear, other)]
    assert torch.equal(*reference)
    assert torch.equal(other.methods["start"].clips, other.methods["refined"].clips)  # untrained
    assert not torch.equal(other.methods["start"].clips, reference[0])
    assert "start" not in linear.methods


def test_classes_are_those_of_keyframes_and_text() -> None:
    seen = []

    def classify(texts: Tensor, start: Tensor) -> Tensor:
        seen.append(start)
        return by_text(texts, start)

    config = configs.drift_evaluation()
    refiners = toy_refiner(), toy_refiner()
    test = sample(["a clip"] * 40)
    poisoned = test.latents.clone()
    poisoned[:, :, ~GIVEN] = 7
    for latents in (test.latents, poisoned):
        given = test._replace(latents=latents)
        complete(given, classify, toy_corruption(), *refiners, config, generator(0))
    assert torch.equal(*seen)


def test_a_refiner_of_levels_takes_a_call_each_and_what_it_takes_beside_the_class() -> None:
    torch.manual_seed(0)
    config = configs.refiner(beside="embedding")
    levels = Corruption(5, configs.corruption(levels=2, min_keyframes=2, schedule="linear"))
    refiner, paired = (Refiner(2, 2, 3, config, 3, target) for target in ("finer", "clip"))
    for part in (refiner.rows, refiner.modulate, refiner.out):
        torch.nn.init.normal_(part.weight)
    h = torch.randn(40, 3)
    given = by_text, levels, refiner, paired, configs.drift_evaluation(), generator(0)
    runs = [
        complete(sample(["a clip"] * 40), *given, lambda *_, own=own: own).methods
        for own in (h, h.roll(1, 0))
    ]
    assert [runs[0][name].calls for name in ("refined", "paired", "cold")] == [2, 1, 2]
    assert not torch.equal(runs[0]["refined"].clips, runs[1]["refined"].clips)


def test_methods_real_clips_and_chance_are_compared() -> None:
    results = completed(toy_corruption(), toy_refiner(), toy_refiner())
    config = configs.drift_evaluation(read_clips=10, reader_steps=3)
    for prompts in (["a red one grows, over black"] * 40, ["a clip"] * 40):
        figures = compare(results, sample(prompts), sample(prompts), colors, config, CPU, 0)
        assert list(figures) == [*results.methods, "real", "chance"]
        assert figures["real"]["frechet"] == pytest.approx(0, abs=1e-6)  # the same clips
        assert figures["real"]["sharpness"] == 1
        assert "mse_missing" not in figures["real"]
        rows = methods_table(figures, results, {"drift": 9, "one": 7, "two": 8}, 10)
        assert [row["steps"] for row in rows] == [None, 7, 7, 7, 8, 8, None, None]
        assert rows[1] == {
            "method": "refined",
            "steps": 7,
            "calls": 1,
            "clips": 40,
            "clips_read": 10,
            **figures["refined"],
        }
        read = prompts[0] != "a clip"
        assert ("ghost" in figures["refined"]) == read
        assert ("reader_reason" in figures["chance"]) != read
        ratio = headline(figures)["reader_ratio"]
        assert (ratio is not None) == read


def colors(latents: Tensor) -> Tensor:
    """Frames of 8 x 8 pixels, the two channels as red and green."""
    frames = latents.movedim(1, -1).repeat_interleave(2, 2).repeat_interleave(2, 3)
    return torch.nn.functional.pad(frames, (0, 1)).sigmoid()


def test_the_headline_is_ratios() -> None:
    read = {"digit_missing": 0.6, "motion_missing": 0.9, "ghost": 0.2, "motion_energy": 0.7}
    figures = {
        "refined": {**GOOD, **read},
        "interpolated": {**PLAIN, **read, "ghost": 0.8},
        "real": {"digit_missing": 0.8, "motion_missing": 1.0},
    }
    assert headline(figures) == {
        "frechet_ratio": 0.5,
        "frechet_pca_ratio": 0.8,
        "paired_error_ratio": 1.1,
        "reader_ratio": pytest.approx((0.75 + 0.9) / 2),
        "ghost_ratio": 0.25,
        "motion_energy": 0.7,
        "status": "ok",
    }


def test_interpolators_are_compared_level_by_level() -> None:
    clips, config = toy_clips()[0], configs.corruption(levels=2, min_keyframes=2)
    rows = interpolation_table(clips, config)
    assert [(row["level"], row["keyframes"]) for row in rows] == [(1, 4), (2, 2)]
    assert all(len(row) == 2 + 2 * 5 for row in rows)
    mask = nested_masks(len(clips), 5, [5, 4, 2])[2]
    filled = interpolate(clips, mask, config.model_copy(update={"interpolator": "harmonic"}))
    error = (filled - clips).square()
    assert rows[1]["harmonic_mse_all"] == pytest.approx(float(error.mean()))
    missing = float(error.sum()) / (error.numel() * 3 / 5)
    assert rows[1]["harmonic_mse_missing"] == pytest.approx(missing)
    assert error[:, :, [0, 4]].max() == 0

"""Judging clips: what is right scores right, each named failure is seen, the best is kept."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from braid.common.rng import generator
from braid.drifting.evaluation.evaluation import Judge, compare, drift_status, flattened
from braid.drifting.interpolation.keyframes import nested_masks
from braid.drifting.training.selection import BestOnValidation
from braid.drifting.video.sampling import cold_sample, refine
from braid.metrics.spaces import PcaSpace, RandomConvolutions
from braid.training.ema import Ema
from tests.drifting.toy_refinement import toy_clips, toy_corruption, toy_objective, toy_refiner

CPU = torch.device("cpu")


def judge() -> Judge:
    clips, labels = toy_clips()
    mask = nested_masks(len(clips), 5, [5, 2], None)[-1]
    return Judge(clips, mask, labels.numpy(), RandomConvolutions(2), PcaSpace(clips, 4))


def corrupted():
    clips, _ = toy_clips()
    ids = torch.arange(len(clips))
    return toy_corruption()(clips, torch.ones_like(ids), ids, generator(0))


def test_the_truth_itself_scores_perfectly_and_interpolation_does_not() -> None:
    clips, _ = toy_clips()
    own, interpolated = (
        {**judge().distances(each), **judge().errors(each)} for each in (clips, corrupted().latents)
    )
    assert own["frechet"] == pytest.approx(0, abs=1e-6)
    assert own["frechet_pca"] == pytest.approx(0, abs=1e-4)
    assert own["coverage"] == own["recall"] == own["class_coverage"] == own["motion_energy"] == 1
    assert own["mse_all"] == own["keyframe_mse"] == 0
    assert interpolated["frechet"] > 0.01
    assert interpolated["motion_energy"] < 0.3
    assert interpolated["keyframe_mse"] == 0 < interpolated["mse_missing"]
    assert interpolated["mse_all"] == pytest.approx(interpolated["mse_missing"] * 3 / 5, rel=1e-4)


def test_random_convolutions_are_the_same_each_time_and_see_motion() -> None:
    clips, _ = toy_clips()
    first, again = (RandomConvolutions(2).points(clips) for _ in range(2))
    assert np.array_equal(first, again)
    shuffled = clips[:, :, [0, 3, 1, 2, 4]]
    assert not np.allclose(RandomConvolutions(2).points(shuffled), first, atol=1e-3)


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


def test_figures_are_flattened_under_measure_and_method() -> None:
    assert flattened({"refined": {"frechet": 1.0}, "real": {"frechet": 2.0}}) == {
        "frechet_refined": 1.0,
        "frechet_real": 2.0,
    }


def test_refining_in_chunks_is_refining_at_once(monkeypatch) -> None:
    refiner, (_, labels) = toy_refiner(), toy_clips()
    torch.nn.init.normal_(refiner.out.weight)
    whole = refine(refiner, corrupted(), labels, 1, 1.0)
    monkeypatch.setattr("braid.drifting.video.sampling.CHUNK", 7)
    torch.testing.assert_close(refine(refiner, corrupted(), labels, 1, 1.0), whole)


def test_cold_sampling_with_a_perfect_refiner_gives_the_truth() -> None:
    clips, labels = toy_clips()
    corruption = type(toy_corruption())(5, levels=2, min_keyframes=2, schedule="linear")
    masks = nested_masks(len(clips), 5, corruption.counts, None)
    refiner = toy_refiner()

    def perfect(corrupted, mask, confidence, classes, level, alpha):
        seen.append(int(level[0]))
        return clips

    seen: list[int] = []
    refiner.forward = perfect  # type: ignore[method-assign]
    made = cold_sample(refiner, corruption, clips, masks, labels, 1.0, generator(0))
    torch.testing.assert_close(made, clips)
    assert seen == [2, 1]


def test_cold_sampling_reads_nothing_but_the_given_keyframes() -> None:
    clips, labels = toy_clips()
    masks = nested_masks(len(clips), 5, toy_corruption().counts, None)
    poisoned = torch.where(masks[-1][:, None, :, None, None], clips, torch.nan)
    made = [
        cold_sample(toy_refiner(), toy_corruption(), each, masks, labels, 1.0, generator(0))
        for each in (clips, poisoned)
    ]
    assert torch.equal(*made)


def test_all_methods_see_the_same_keyframes_and_keep_them_where_clamped() -> None:
    clips, labels = toy_clips()
    refiner, paired = toy_refiner(), toy_refiner()
    for each in (refiner, paired):
        torch.nn.init.normal_(each.out.bias)
    mask, made = compare(clips, labels, toy_corruption(), refiner, paired, 1.0, generator(0))
    assert list(made) == ["interpolated", "refined", "unclamped", "paired", "cold"]
    for name, each in made.items():
        kept = (each.clips == clips).transpose(1, 2)[mask].all()
        assert kept == (name != "unclamped"), name
    assert [each.calls for each in made.values()] == [0, 1, 1, 1, 1]


def test_the_best_weights_are_kept_and_averages_are_what_is_judged() -> None:
    objective, (clips, labels) = toy_objective("drift"), toy_clips()
    ema = Ema(objective, decay=0.5)

    def make() -> BestOnValidation:
        return BestOnValidation(
            clips, labels, toy_corruption(), generator(0), every=2, score="mse_missing", device=CPU
        )

    best = make()
    assert best.verdict()[0] is False
    assert best(1, objective, ema) is None
    first = best(2, objective, ema)
    with torch.no_grad():
        objective.refiner.out.bias += 5  # worse, but the average does not know it yet
    assert best(4, objective, ema) == first
    ema.update(10)
    assert best(6, objective, ema)["val_mse_missing"] > first["val_mse_missing"]
    assert best.step == 2
    assert best.weights["out.bias"].abs().max() == 0
    assert objective.refiner.out.bias.min() == 5
    other = make()
    other.load_state_dict(best.state_dict())
    assert (other.score, other.step) == (best.score, 2)
    assert other.verdict() == (False, best.verdict()[1])  # an untrained refiner interpolates
    assert "is not below interpolation's" in best.verdict()[1]
    report = best.report()
    assert (report["best_step"], report["val_mse_missing"]) == (2, best.score)
    assert report["val_mse_missing_interpolated"] == best.interpolated["val_mse_missing"]
    best.score -= 0.1
    assert best.verdict()[0] is True

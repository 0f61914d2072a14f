"""The best weights on the validation split are kept, of the averages."""

from __future__ import annotations

import pytest
import torch

from braid.drifting.evaluation.clips import drift_status
from braid.drifting.training.clips import BestOnValidation, ClipSplit
from braid.drifting.video.corruption import Corruption
from braid.training.ema import Ema
from braid.training.trainer import Run
from tests.drifting import configs
from tests.drifting.toy_refinement import toy_clips, toy_corruption, toy_objective

RUN = Run(seed=0, device=torch.device("cpu"))


class InMemory:
    """Clips that are there."""

    def __init__(self, clips: torch.Tensor) -> None:
        self.clips = clips

    def latents(self, indices: torch.Tensor) -> torch.Tensor:
        return self.clips[indices]


def make(corruption=None, clips=40, **changes) -> BestOnValidation:
    clips, labels = toy_clips(clips)
    split = ClipSplit(InMemory(clips), torch.arange(len(clips)), labels, labels[:, None].float())
    settings = {"objective": "paired", "steps": 10, "validate_every": 2}
    config = configs.refiner_training(**settings | changes)
    return BestOnValidation(split, corruption or toy_corruption(), config, RUN)


def test_the_best_weights_are_kept_and_averages_are_what_is_evaluated() -> None:
    objective = toy_objective("drift")
    ema = Ema(objective, decay=0.5)
    best = make()
    assert best(1, objective, ema) is None
    first = best(2, objective, ema)
    with torch.no_grad():
        objective.refiner.out.bias += 5  # worse, but the average does not know it yet
    assert best(4, objective, ema) == first
    ema.update(10)
    assert best(6, objective, ema)["val_mse_missing"] > first["val_mse_missing"]
    assert best.best["step"] == 2
    assert best.weights["out.bias"].abs().max() == 0
    assert objective.refiner.out.bias.min() == 5
    other = make()
    other.load_state_dict(best.state_dict())
    assert other.best == best.best
    assert other.status() == best.status()
    assert best.status()[0] == "diverging"
    best.last = best.best
    status, reason = best.status()  # an untrained refiner interpolates
    assert status == "no_better_than_interpolation"
    assert "mse_missing" in reason
    assert "at step 2 is not below 1.0 of interpolation's" in reason
    best.best["mse_missing"] -= 0.1
    assert best.status()[0] == "passed"


def test_figures_of_the_best_stand_beside_interpolation_s() -> None:
    objective = toy_objective("drift")
    for kind, name, score in (("paired", "mse", "mse_missing"), ("drift", "frechet", "frechet")):
        best = make(objective=kind)
        best(2, objective, None)
        assert best.metrics() == {
            name: {"refined": best.best[score], "interpolated": best.interpolated[score]},
            "status": "no_better_than_interpolation",
        }
        refined, last, interpolated = best.rows(objective)
        assert last == {"method": "last", **best.best}
        assert refined["classes"] == 2
        assert refined["parameters"] == sum(p.numel() for p in objective.refiner.parameters())
        assert set(refined) > {"method", "step", "frechet", "mse_missing"} == set(interpolated)


@pytest.mark.parametrize(("ratio", "status"), [(0.65, "ok"), (0.8, "no_better")])
def test_a_frechet_distance_is_better_where_the_evaluation_says_so(ratio, status) -> None:
    best = make(objective="drift")
    best(2, toy_objective("drift"), None)
    best.best = best.last = {"step": 2, "frechet": ratio * best.interpolated["frechet"]}
    plain = {"recall": 1.0, "frechet": 1.0, "frechet_pca": 2.0, "mse_missing": 1.0}
    evaluated = drift_status(plain | {"frechet": ratio, "frechet_pca": 1.0}, plain)
    assert evaluated.startswith(status)
    assert best.status()[0].replace("passed", "ok").startswith(status)


def test_a_short_training_is_evaluated_at_its_end() -> None:
    best = make(steps=3, validate_every=20)
    assert best(2, toy_objective("drift"), None) is None
    assert best(3, toy_objective("drift"), None) is not None


def test_every_end_is_evaluated_whatever_the_steps_between() -> None:
    best, objective = make(steps=7, validate_every=3), toy_objective("drift")
    assert [n for n in range(1, 8) if best(n, objective, None)] == [3, 6, 7]
    assert best.last["step"] == 7


def test_plain_interpolation_is_without_the_noise_that_refiners_start_from() -> None:
    noisy = configs.corruption(levels=1, min_keyframes=2, noise="gauss", sigma=1.0)
    plain = make().interpolated
    assert make(Corruption(5, noisy)).interpolated == plain


def test_of_many_validation_clips_some_are_evaluated_spread_evenly() -> None:
    best = make(clips=20, validation_clips=8)
    assert best.chosen.tolist() == [0, 2, 5, 7, 10, 12, 15, 17]
    assert best(2, toy_objective("drift"), None)


@pytest.mark.parametrize("noise", ["none", "gauss"])
def test_validation_clips_are_read_in_chunks_and_score_what_all_at_once_do(noise: str) -> None:
    corruption = Corruption(5, configs.corruption(levels=1, noise=noise, sigma=0.5))
    scores = []
    for chunk in (0, 3):
        best, most = make(corruption, clips=20, chunk=chunk), 0
        read = best.split.clips.latents

        def counted(indices: torch.Tensor, read=read) -> torch.Tensor:
            nonlocal most
            most = max(most, len(indices))
            return read(indices)

        best.split.clips.latents = counted  # type: ignore[method-assign]
        scores.append(best(2, toy_objective("drift"), None))
        assert most == (chunk or 20)
    assert scores[0] == pytest.approx(scores[1], rel=1e-5)


def test_a_training_that_ends_much_worse_than_its_best_diverges() -> None:
    objective = toy_objective("drift")
    best = make()
    best(2, objective, None)
    best.best = {**best.best, "mse_missing": 0.7 * best.interpolated["mse_missing"]}
    for worse, status in ((0.8, "passed"), (0.9, "diverging")):
        best.last = {"step": 10, "mse_missing": worse * best.interpolated["mse_missing"]}
        assert best.status()[0] == best.metrics()["status"] == status
    assert "at the end, step 10, is more than 1.25 times the best" in best.status()[1]
    with torch.no_grad():
        objective.refiner.out.bias += 5
    best(4, objective, None)
    resumed = make()
    resumed.load_state_dict(best.state_dict())
    assert resumed.status() == best.status()
    assert best.rows(objective)[1]["step"] == 4

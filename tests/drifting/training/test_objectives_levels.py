"""A refiner may be trained to the next finer level: what it is compared with is of that level."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from braid.common.rng import generator
from braid.drifting.config import DriftConfig
from braid.drifting.training.objectives import DriftObjective, PairedObjective
from braid.drifting.video.corruption import Corruption
from braid.drifting.video.refiner import Refiner
from braid.stage.params import load_params
from tests.drifting import configs
from tests.drifting.toy_refinement import toy_clips, toy_objective

ROOT = Path(__file__).parents[3]
LEVELS = configs.corruption(levels=2, min_keyframes=2, schedule="linear", placement="random")


def objective(kind: str, **more):
    """Of two levels, 4 and 2 keyframes, whose refiner is replaced by what a test says."""
    toy = toy_objective(kind)
    toy.refiner = Refiner(2, 2, 3, configs.refiner())
    corruption = Corruption(5, LEVELS)
    base = (toy.refiner, corruption, toy.latents, toy_clips()[1], toy.batches)
    more |= {"finer": corruption.finer}
    if kind == "paired":
        return PairedObjective(*base, **more)
    drift = {"branches": toy.branches, "loss": toy.loss, "log_every": 1}
    return DriftObjective(*base, **drift, level_of="step", **more)


def test_one_level_finer_has_its_keyframes_and_what_lies_between_them() -> None:
    clips, _ = toy_clips()
    corruption, ids = Corruption(5, LEVELS), torch.arange(len(clips))
    one, two = torch.ones_like(ids), torch.full_like(ids, 2)
    assert torch.equal(corruption.finer(clips, one, ids, generator(0)), clips)
    finer = corruption.finer(clips, two, ids, generator(0))
    assert torch.equal(finer, corruption(clips, one, ids, generator(0)).latents)
    coarse, fine = (corruption(clips, level, ids, generator(0)) for level in (two, one))
    assert (coarse.mask & ~fine.mask).sum() == 0  # nested
    noisy = Corruption(5, LEVELS.model_copy(update={"noise": "gauss", "sigma": 1.0}))
    assert torch.equal(noisy.finer(clips, two, ids, generator(0)), finer)


def test_regression_to_the_next_level_is_perfect_where_that_level_is_hit() -> None:
    toy = objective("paired")
    refined = toy.refine(torch.ones(2), generator(0, "step"))
    clip = toy_objective("paired").refine(torch.ones(2), generator(0, "step"))
    assert torch.equal(clip.target, clip.truth)
    coarse = refined.level.view(2, -1) == 2
    assert coarse.any()
    assert torch.equal(refined.target[~coarse], refined.truth[~coarse])
    assert not torch.isclose(refined.target[coarse], refined.truth[coarse]).all()
    for answer, loss in ((refined.target, 0.0), (refined.truth, 0.01)):
        toy.refiner.forward = lambda *_, hit=answer: hit.flatten(0, 1) + 0 * toy.refiner.out.bias[0]
        error = toy(0, generator(0, "step"))["paired"].item()
        assert (error == 0) if loss == 0 else (error > loss)


def test_drifting_compares_with_real_clips_of_the_level_of_the_step(monkeypatch) -> None:
    toy = objective("drift")
    seen, steps, refine = [], [], toy.refine
    monkeypatch.setattr(toy, "_groups", lambda *given: seen.append(given[1:]) or groups(*given))
    groups = DriftObjective._groups.__get__(toy)
    toy.refine = lambda *given: steps.append(refine(*given)) or steps[-1]
    for step in range(6):
        toy(step, generator(0, "step", step))
    levels = [refined.level for refined in steps]
    assert {len(level.unique()) for level in levels} == {1}
    assert {int(level[0]) for level in levels} == {1, 2}
    for level, (_, positives, _, unconditional) in zip(levels, seen, strict=True):
        for real in (positives.flatten(0, 1), unconditional):
            bends = (
                real.diff(dim=2).diff(dim=2).abs().amax((1, 3, 4))
            )  # 0 where frames are on a line
            assert ((bends < 1e-5).any(1) == (level[0] == 2)).all()


def test_what_is_sampled_in_many_steps_is_trained_to_the_clip() -> None:
    drift = load_params(ROOT / "params.yaml").drift.model_dump()
    drift["refiners"]["paired"]["target"] = "finer"
    with pytest.raises(ValueError, match=r"evaluation\.paired is paired, expected .* clip"):
        DriftConfig(**drift)
    drift["refiners"]["paired"]["target"] = "clip"
    drift["refiners"]["drift"]["target"] = "finer"
    DriftConfig(**drift)
    drift["batches"]["negatives"] = 2
    with pytest.raises(ValueError, match=r"negatives is 2, expected 0: refiners\.drift\.target"):
        DriftConfig(**drift)

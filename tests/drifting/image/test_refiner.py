"""The refiner of images: what it depends on, what it keeps, and that drifting trains it."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from braid.common.rng import generator
from braid.drifting.image.corruption import KeypatchCorruption
from braid.drifting.image.refiner import ImageRefiner, load_image_refiner, save_image_refiner
from braid.drifting.image.training import ImageProbe
from braid.drifting.loss.drift import DriftLoss
from braid.drifting.training.objectives import DriftObjective
from braid.drifting.video.features import vanilla
from braid.metrics.distances import variance_ratio
from braid.training.ema import Ema
from braid.training.trainer import Run, TrainResult, train
from tests.drifting.configs import optimizer
from tests.drifting.image.configs import drift_config, refiner_config

SMALL = {"patch": 2, "dim": 8, "depth": 1, "heads": 2, "style": 16, "spread": 1.0}
TOY = drift_config(
    corruption={"given": [1, 0], "noise": 0.3},
    batches={
        **{"classes": 2, "generated": 16, "positives": 24, "negatives": 4, "unconditional": 4},
        **{"bank": 32, "bank_unconditional": 32, "alpha_max": 2.0, "alpha_power": 1.0},
    },
    evaluation={"components": 4, "neighbors": 5},
)
STEADY = optimizer(lr=5e-3, clip_norm=2.0, ema_decay=0.9)


def make(trained: bool = True, keep_anchors_fixed: bool = False, **changes: Any) -> ImageRefiner:
    torch.manual_seed(0)
    config = refiner_config(**{**SMALL, **changes}, keep_anchors_fixed=keep_anchors_fixed)
    refiner = ImageRefiner((2, 4, 6), 5, 3, config)
    if trained:
        for parameter in refiner.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    return refiner


def inputs() -> list[Tensor]:
    mask = torch.tensor([[[1, 0, 0], [0, 1, 0]], [[0, 0, 0], [0, 0, 0]]]).bool()
    images = torch.randn(2, 2, 4, 6, generator=generator(1))
    return [images, mask, mask.float(), torch.tensor([0, 4]), torch.tensor([1, 2]), torch.ones(2)]


@pytest.mark.parametrize("which", [2, 3, 4, 5])
def test_each_condition_changes_the_result(which: int) -> None:
    given = inputs()
    before = make()(*given)
    given[which] = (given[which] + 1) % 3 if which in (3, 4) else given[which] * 0.5 + 0.7
    assert (make()(*given) - before).abs().amax((1, 2, 3)).min() > 1e-4


def test_every_pixel_reaches_every_patch_and_no_other_image() -> None:
    given = inputs()
    images = given[0].requires_grad_()
    refined = make()(images, *given[1:])
    for row in (0, 3):
        (slope,) = torch.autograd.grad(refined[1, 0, row, row], images, retain_graph=True)
        assert (slope[1] != 0).all()
        assert slope[0].count_nonzero() == 0


def test_given_patches_are_kept_bit_for_bit_only_where_configured() -> None:
    given = inputs()
    kept, free = make(keep_anchors_fixed=True)(*given), make()(*given)
    pixels = given[1].repeat_interleave(2, 1).repeat_interleave(2, 2)[:, None].expand_as(kept)
    assert torch.equal(kept[pixels], given[0][pixels])
    assert torch.equal(kept[~pixels], free[~pixels])
    assert (free[pixels] != given[0][pixels]).all()
    assert torch.equal(make()(*given, clamp=True), kept)
    assert torch.equal(make(keep_anchors_fixed=True)(*given, clamp=False), free)


def test_spread_widens_the_differences_between_untrained_images() -> None:
    given = [each[1:].expand(64, *each.shape[1:]) for each in inputs()]
    given[0] = torch.randn(64, 2, 4, 6, generator=generator(3))
    usual, wide = (make(trained=False, spread=each)(*given).std(0).mean() for each in (1.0, 4.0))
    assert wide > 2 * usual


def test_noise_is_not_left_in_an_image_of_which_nothing_is_given() -> None:
    given, refiner = inputs(), make()
    torch.nn.init.zeros_(refiner.squeeze.weight)
    refined = refiner(*given)
    given[0] = given[0] + 1
    moved = refiner(*given)
    assert torch.equal(moved[1], refined[1])
    assert (moved[0] != refined[0]).all()


def test_a_stored_refiner_computes_the_same(tmp_path: Path) -> None:
    refiner = make(keep_anchors_fixed=True)
    save_image_refiner(tmp_path / "refiner", refiner)
    assert torch.equal(load_image_refiner(tmp_path / "refiner")(*inputs()), refiner(*inputs()))
    (tmp_path / "refiner/model.safetensors").write_bytes(b"broken")
    with pytest.raises(ValueError, match=r"expected config\.json .* of a refiner of images"):
        load_image_refiner(tmp_path / "refiner")


def test_a_refiner_of_other_images_is_refused() -> None:
    make().require((2, 4, 6), 5, 3)
    for other in (((2, 6, 4), 5, 3), ((2, 4, 6), 4, 3), ((2, 4, 6), 5, 2)):
        with pytest.raises(ValueError, match=r"of images \[2, 4, 6\] of 5 classes at 3 levels"):
            make().require(*other)


def test_impossible_shapes_are_named() -> None:
    with pytest.raises(ValueError, match=r"image_drift\.refiner\.dim is 8, expected a multiple"):
        make(heads=3)
    with pytest.raises(ValueError, match=r"image_drift\.refiner\.patch is 4, expected a divisor"):
        make(patch=4)


@cache
def world() -> tuple[Tensor, Tensor]:
    """Images [n, 1, 4, 4], bright above in class 0, below in class 1; each tilts its own way."""
    labels = torch.arange(200) % 2
    rows = torch.linspace(1, -1, 4)[:, None] * (1 - 2 * labels)[:, None, None]
    tilt = torch.randn(200, 1, 1, generator=generator(2)) * torch.linspace(-1, 1, 4)
    return (0.6 * (rows + tilt))[:, None], labels


def corruption() -> KeypatchCorruption:
    return KeypatchCorruption((4, 4), 2, TOY.corruption)


def toy_objective(attraction: float = 1.0) -> DriftObjective:
    images, labels = world()
    torch.manual_seed(0)
    config = refiner_config(**(SMALL | {"dim": 16, "style": 32, "spread": 4.0}))
    return DriftObjective(
        ImageRefiner((1, 4, 4), 2, 3, config),
        corruption(),
        lambda positions: images[positions],
        labels,
        TOY.batches,
        branches={"vanilla": (1.0, vanilla(["clip"]))},
        loss=DriftLoss(TOY.loss.model_copy(update={"attraction": attraction})),
        log_every=50,
        level_of="class",
    )


def toy_probe(every: int = 100) -> ImageProbe:
    images, labels = world()
    training = TOY.training.model_copy(update={"validate_every": every})
    config = TOY.model_copy(update={"training": training})
    return ImageProbe(images, labels, images, corruption(), config, seed=5)


def run(
    objective: DriftObjective, steps: int, scratch: Path | None = None, **hooks: Any
) -> TrainResult:
    where = Run(seed=0, device=torch.device("cpu"), checkpoint_every=4, scratch=scratch)
    stateful = objective.stateful()
    return train(objective, STEADY, where, steps=steps, stateful=stateful, hooks=hooks)


def test_drifting_makes_images_of_each_class_from_noise_and_completes_others() -> None:
    objective, probe = toy_objective(), toy_probe(every=60)
    before = probe.evaluate(objective.refiner)
    rows = run(objective, 120, validation=probe).probes["validation"]
    assert [row["step"] for row in rows] == [60, 120]
    after = rows[-1]
    assert after["frechet_0"] < 0.3 * before[0]["frechet"]
    assert after["frechet_1"] < 0.4 * probe.interpolated[1]["frechet"]
    assert after["variance_ratio_0"] > 0.2


@pytest.mark.parametrize(("attraction", "name"), [(1.5, "collapsed"), (1 / 1.5, "scattered")])
def test_attraction_and_repulsion_must_balance(attraction: float, name: str) -> None:
    objective, probe = toy_objective(attraction), toy_probe()
    run(objective, 120)
    figures = probe.evaluate(objective.refiner)
    assert not 0.2 < figures[0]["variance_ratio"] < 3
    assert probe.status(figures)[0] == name


def test_a_step_draws_one_level_a_class() -> None:
    objective = toy_objective()
    levels = set()
    for step in range(6):
        given = objective.refine(torch.ones(2), generator(0, "step", step)).corrupted.mask
        by_class = given.sum((1, 2)).unflatten(0, (2, -1))
        assert (by_class == by_class[:, :1]).all()
        levels.add(tuple(by_class[:, 0].tolist()))
    assert {each for pair in levels for each in pair} == {0, 1}
    assert any(first != second for first, second in levels)


def test_a_killed_training_goes_on_as_if_nothing_had_happened(tmp_path: Path) -> None:
    def killed(done: int, module: Any, ema: Any) -> None:
        if done == 6:
            raise KeyboardInterrupt

    unbroken, broken, resumed = toy_objective(), toy_objective(), toy_objective()
    run(unbroken, 8)
    with pytest.raises(KeyboardInterrupt):
        run(broken, 8, tmp_path, kill=killed)
    run(resumed, 8, tmp_path)
    for name, weights in unbroken.state_dict().items():
        assert torch.equal(weights, resumed.state_dict()[name]), name


def test_the_probe_evaluates_averaged_weights_when_it_is_due() -> None:
    objective, probe = toy_objective(), toy_probe(every=2)
    ema = Ema(objective, 0.9)
    own = probe(2, objective, None)
    torch.nn.init.zeros_(objective.refiner.out.weight)
    assert probe(2, objective, ema) == own != probe(2, objective, None)
    assert probe(3, objective, ema) is None


def test_the_table_has_both_methods_at_each_level() -> None:
    objective, probe = toy_objective(), toy_probe()
    refined = probe.evaluate(objective.refiner)
    rows = probe.rows(refined, objective)
    assert [(row["given"], row["method"]) for row in rows] == [
        *((1, "interpolated"), (1, "refined"), (0, "interpolated"), (0, "refined"))
    ]
    assert rows[0] == {"given": 1, "method": "interpolated", **probe.interpolated[1]}
    assert rows[1].items() >= {"given": 1, "method": "refined", **refined[1]}.items()
    assert rows[1]["classes"] == 2
    assert probe.metrics(refined) == {
        "frechet": {"generated": refined[0]["frechet"]},
        "recall": refined[0]["recall"],
    }
    assert probe.metrics({1: refined[1]}) == {"frechet": {"generated": None}, "recall": None}


def test_variance_within_classes() -> None:
    images, labels = world()
    assert variance_ratio(images, images, labels) == pytest.approx(1)
    assert variance_ratio(0.5 * images + 3, images, labels) == pytest.approx(0.25)
    one_each = images[:2][labels]
    assert variance_ratio(one_each, images, labels) == pytest.approx(0, abs=1e-6)


def test_the_status_names_what_is_wrong() -> None:
    probe = toy_probe()
    start = probe.interpolated[0]["frechet"]

    def status(**changes: float) -> tuple[str, str]:
        good = {"frechet": 0.5 * start, "variance_ratio": 0.9, "recall": 0.5}
        return probe.status({0: good | changes})

    name, reason = status()
    assert name == "passed"
    assert "0 patches given is below the start's" in reason
    assert status(frechet=2 * start)[0] == "no_better_than_start"
    assert "not below" in status(frechet=2 * start)[1]
    for change, wrong in (
        ({"variance_ratio": 0.1}, "collapsed"),
        ({"recall": 0.01}, "collapsed"),
        ({"variance_ratio": 2.0}, "scattered"),
    ):
        name, reason = status(**change)
        assert name == wrong
        assert wrong in reason

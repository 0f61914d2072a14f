"""Drifting trains a refiner of images, and the probe says how good it is."""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from braid.common.rng import generator
from braid.drifting.image.refiner import ImageRefiner, KeypatchCorruption
from braid.drifting.image.training import ImageProbe
from braid.drifting.loss.drift import DriftLoss
from braid.drifting.training.objectives import DriftObjective
from braid.drifting.video.features import vanilla
from braid.metrics.distances import PcaSpace
from braid.training.ema import Ema
from braid.training.trainer import Run, TrainResult, train
from tests.drifting.configs import optimizer
from tests.drifting.image.configs import drift_config, refiner_config

SMALL = {"patch": 2, "dim": 16, "depth": 1, "heads": 2, "style": 32, "spread": 4.0}
TOY = drift_config(
    corruption={"given": [1, 0], "noise": 0.3},
    batches={
        **{"classes": 2, "generated": 16, "positives": 24, "negatives": 4, "unconditional": 4},
        **{"bank": 32, "bank_unconditional": 32, "alpha_max": 2.0, "alpha_power": 1.0},
    },
)
STEADY = optimizer(lr=5e-3, clip_norm=2.0, ema_decay=0.9)


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
    config = refiner_config(**SMALL)
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
    config = TOY.training.model_copy(update={"validate_every": every})
    space = PcaSpace(images, components=4)
    return ImageProbe(images, labels, corruption(), space, 5, config, seed=5)


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
    assert {count for pair in levels for count in pair} == {0, 1}
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
    probe.steps = 3  # the last
    assert probe(3, objective, ema) == own


def test_the_probe_measures_classes_and_the_memory_bank() -> None:
    objective, probe = toy_objective(), toy_probe(every=2)
    bare = probe(2, objective, None)
    assert (bare["queue_occupancy"], bare["queue_entropy"], bare["queue_empty"]) == (0, 0, 1)
    run(objective, 2)
    row = probe(2, objective, None)
    bank = objective.banks["real"]
    sizes = bank.sizes.tolist()
    assert row["queue_occupancy"] == pytest.approx(sum(sizes) / (2 * bank.capacity))
    assert row["queue_entropy"] == pytest.approx(math.log(2), abs=0.05)
    assert row["queue_empty"] == 0
    real = probe.separation(probe.truth)
    shuffled = probe.separation(probe.truth[torch.randperm(len(probe.truth))])
    assert real["silhouette"] > 0.3 > shuffled["silhouette"]
    assert real["intra_inter"] < 1 < shuffled["intra_inter"]
    images = probe.refined(objective.refiner)[0]
    assert row["silhouette_0"] == probe.separation(images)["silhouette"]
    assert row["intra_inter_0"] == probe.separation(images)["intra_inter"]


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
        "status": probe.status(refined)[0],
    }


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

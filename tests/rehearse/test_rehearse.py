"""Rehearsals: what is counted, what is projected, what plans say, and one that runs."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from braid.stage.dag import declarations
from braid.stage.params import load_yaml
from rehearse.measured import Meter
from rehearse.plans import PLANS, Cut, Full, Input, Plan
from rehearse.rehearsal import Rehearsal, value_at
from rehearse.tables import gpu_hours, projection, write_tables

ROOT = Path(__file__).parents[2]
PARAMS = load_yaml(ROOT / "params.yaml")


def test_flops_are_those_of_the_innermost_loop_forward_and_backward() -> None:
    meter, weight = Meter(), torch.ones(5, 7, requires_grad=True)
    product = 2 * 3 * 5 * 7
    with meter.counter:
        for step in meter.around("train", "step", iter(range(2))):
            (torch.ones(3, 5) @ weight).sum().backward()  # forward, and the weight's gradient
            if step:
                for _ in meter.around("validate", "batch", iter(range(4))):
                    with torch.inference_mode():
                        torch.nn.functional.linear(torch.ones(3, 5), torch.ones(7, 5))
    train, validate = meter.loops.values()
    assert train.flops == [2 * product, 2 * product]
    assert validate.flops == [product] * 4
    assert meter.counter.total == 8 * product


def test_a_projection_takes_the_cheapest_time_around_and_what_was_cut_down() -> None:
    loops = [
        {"name": "training", "unit": "step", "flops": [100, 700]},
        {"name": "scan", "unit": "image", "flops": [1]},
    ]
    recipe = {"drift": {"steps": 3000, "batch": 64, "accumulate": 8}}
    settings = {"drift": {"steps": 2, "batch": 4, "accumulate": 1}}
    full = {"training": Full(("drift.steps", 10.0), batch=("drift.batch", "drift.accumulate"))}
    assert projection(loops, full, recipe, settings) == 100 * 3000 * 10 * 16 * 8
    assert projection(loops, {}, recipe, settings) is None
    assert gpu_hours(0.4 * 989e12 * 7200, "bfloat16") == pytest.approx(2)


@pytest.mark.parametrize("name", PLANS)
def test_a_plan_is_of_the_recipe_and_every_cut_cuts(name: str, tmp_path: Path) -> None:
    rehearsal = Rehearsal(ROOT, name, PLANS[name], tmp_path)
    settings, plan = rehearsal.settings, rehearsal.plan
    for cut in plan.cuts:
        assert value_at(rehearsal.recipe, cut.key) != cut.value, cut.key
        assert len(cut.why) > 10
    changed = [cut.key for cut in plan.cuts] + [part.param for part in plan.inputs]
    assert len(changed) == len(set(changed))
    (tmp_path / "params.yaml").write_text(repr(settings))
    (tmp_path / "dvc.yaml").write_text((ROOT / "dvc.yaml").read_text())
    stages = {stage.address for stage in declarations(tmp_path)}
    assert set(plan.targets) | set(plan.full) <= stages
    for loops in plan.full.values():
        for full in loops.values():
            for factor in (*full.times, *full.batch):
                assert not isinstance(factor, str) or value_at(rehearsal.recipe, factor) > 0


def write_pictures(folder: Path) -> None:
    draws = np.random.default_rng(0)
    for number in range(24):
        path = folder / f"{'ab'[number % 2]}/{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draws.integers(0, 256, (20, 16, 3), dtype=np.uint8)).save(path)


TINY = Plan(
    targets=("train_image_mae",),
    inputs=(Input("images.source", "pictures", write_pictures, "yours", "24 pictures"),),
    cuts=(
        Cut("images.size", 16, "pictures are 16 px wide"),
        Cut("image_mae.width", 8, "this is a test"),
        Cut("image_mae.blocks", [1], "this is a test"),
        Cut("image_mae.batch", 4, "this is a test"),
        Cut("image_mae.steps", 3, "this is a test"),
    ),
    full={"train_image_mae": {"training": Full(("image_mae.steps",), batch=("image_mae.batch",))}},
)


def test_a_rehearsal_runs_is_measured_and_goes_on(tmp_path: Path) -> None:
    rehearsal = Rehearsal(ROOT, "pictures", TINY, tmp_path / "pictures")
    assert rehearsal.run(8) == 0
    write_tables(tmp_path, rehearsal)
    with (tmp_path / "rehearsals.csv").open(newline="") as file:
        rows = {row["stage"]: row for row in csv.DictReader(file)}
    assert {row["status"] for row in rows.values()} == {"ok"}
    training = rows["train_image_mae"]
    assert "3 × step" in training["did"]
    assert float(training["peak_gib"]) > 0.1
    assert float(training["full_pflop"]) * 1000 > 100 * float(training["tflop"]) > 0
    with (tmp_path / "rehearsal_cuts.csv").open(newline="") as file:
        cuts = {row["param"]: row for row in csv.DictReader(file)}
    assert cuts["image_mae.steps"]["recipe_value"] == str(PARAMS["image_mae"]["steps"])

    before = (rehearsal.log / "train_image_mae.json").stat().st_mtime_ns
    assert rehearsal.run(8) == 0  # nothing is left to do
    assert (rehearsal.log / "train_image_mae.json").stat().st_mtime_ns == before

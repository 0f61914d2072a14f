"""Does a student that takes over more of the teacher's features render better or worse?

    python -m benchmarks.feature_doses bricks 0 1 2

needs the scene's teacher, renders and features (`dvc repro`). Once per seed it trains Stage 1B,
then Stage 2 on all feature groups with the weights of the feature loss multiplied by each dose and
held constant after their warm-up; dose 0 is the control. benchmarks/results/feature_doses_<scene>
.csv gets a row per seed and dose: the explained variance of the same probe (test views, a head per
network) and PSNR of validation and test views; feature_doses_<scene>_means.csv has means over seeds
and differences of test PSNR to dose 0 *of the same seed*, with 95 % t-intervals.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd
import torch
from scipy import stats

from braid.common.rng import generator
from braid.radiance.config import RadianceConfig
from braid.radiance.distillation.features import FeatureLoss, FeatureObjective
from braid.radiance.distillation.response import ResponseObjective
from braid.radiance.evaluation.agreement import feature_agreement
from braid.radiance.evaluation.image_metrics import validation_psnr
from braid.radiance.features.table import load_features
from braid.radiance.scenes.blender import load_scene
from braid.radiance.scenes.grids import load_space
from braid.radiance.scenes.renders import load_renders
from braid.radiance.student.student import Student, build_student
from braid.stage.params import load_params
from braid.training.device import set_up
from braid.training.trainer import Run, train

ROOT = Path(__file__).parents[1]
DOSES = (0.0, 1.0, 10.0)


def main() -> None:
    """Train, tabulate, print."""
    scene, *seeds = sys.argv[1:]
    config = load_params(ROOT / "params.yaml").radiance
    path = ROOT / f"benchmarks/results/feature_doses_{scene}.csv"
    rows, device = [], set_up("cpu", 1, seed=0)
    for seed in map(int, seeds):
        run = Run(seed=seed, device=device, log_every=1000)
        weights = stage_1b(config, scene, run)
        for dose in DOSES:
            student = build(config, scene, run)
            student.field.load_state_dict(weights)
            rows.append(
                {"scene": scene, "seed": seed, "dose": dose}
                | figures(stage_2(student, config, scene, run, dose), config, scene, seed)
            )
            table = pd.DataFrame(rows)
            table.to_csv(path, index=False, float_format="%.4f")
            print(rows[-1], flush=True)
    means = effects(table)
    means.to_csv(path.with_stem(f"{path.stem}_means"), index=False, float_format="%.4f")
    print(means.to_string(index=False, float_format=lambda value: f"{value:+.3f}"))


def build(config: RadianceConfig, scene: str, run: Run) -> Student:
    """A fresh student."""
    occupancy, _ = load_space(ROOT / f"data/teacher/{scene}/space.safetensors")
    return build_student(occupancy, config.student, generator(run.seed, "student"))


def stage_1b(config: RadianceConfig, scene: str, run: Run) -> dict[str, torch.Tensor]:
    """The field's weights after Stage 1B, as the stage `distill_response` trains it."""
    teacher, student = ROOT / f"data/teacher/{scene}", build(config, scene, run)
    _, points = load_space(teacher / "space.safetensors")
    renders = load_renders(teacher / "train", teacher / "random")
    objective = ResponseObjective(
        student,
        renders,
        config.rays,
        config.loss,
        field_points=points,
        field_steps=int(config.response.field_fraction * config.response.steps),
    )
    train(objective, config.optimizer, run, steps=config.response.steps)
    return student.field.state_dict()


def stage_2(student: Student, config: RadianceConfig, scene: str, run: Run, dose: float) -> Student:
    """Stage 2 with `dose` times the feature loss, not decaying."""
    teacher, distill = ROOT / f"data/teacher/{scene}", config.distill
    scaled = {"l2": dose * distill.l2, "cosine": dose * distill.cosine, "floor": 1.0}
    changed = distill.model_copy(update=scaled)
    renders = load_renders(teacher / "train", teacher / "random")
    stored = load_features(ROOT / f"data/features/{scene}.npz")
    heads = len(student.field.weights), student.width
    loss = FeatureLoss(stored, heads, changed) if dose else None
    response = ResponseObjective(student, renders, config.rays, config.loss)
    objective = FeatureObjective(response, loss, changed)
    objective.fit_heads(run.seed)
    train(objective, config.optimizer, run, steps=changed.steps, lr_scale=changed.lr_scale)
    return student


def figures(
    student: Student, config: RadianceConfig, scene: str, seed: int
) -> dict[str, float | None]:
    """What the student scores."""
    views, teacher = load_scene(ROOT / f"data/scenes/{scene}"), ROOT / f"data/teacher/{scene}"
    of_train, of_test = (load_renders(teacher / name) for name in ("train", "test"))
    stored = load_features(ROOT / f"data/features/{scene}.npz")
    agreement = feature_agreement(student, of_train, of_test, stored, seed)
    row: dict[str, float | None] = {
        name: agreement[name]
        for name in ("feature_explained_variance", "feature_explained_variance_by_network")
    }
    for split in ("val", "test"):
        cameras = views[split].cameras
        images = student.on_white(cameras, range(len(cameras)), config.evaluation)
        row[f"psnr_{split}"] = validation_psnr(images, views[split])
    return row


def effects(table: pd.DataFrame) -> pd.DataFrame:
    """By dose: mean explained variance, mean PSNR and its difference to dose 0 of the same seed."""
    psnr = table.pivot(index="seed", columns="dose", values="psnr_test")
    explained = table.groupby("dose")["feature_explained_variance"].mean()
    rows = []
    for dose in psnr.columns:
        gain = psnr[dose] - psnr[0.0]
        half = (
            stats.t.ppf(0.975, len(gain) - 1) * stats.sem(gain) if len(gain) > 1 else float("nan")
        )
        rows.append(
            {"dose": dose, "explained": explained[dose], "psnr": psnr[dose].mean()}
            | {"gain": gain.mean(), "low": gain.mean() - half, "high": gain.mean() + half}
        )
    return pd.DataFrame(rows)


if __name__ == "__main__":
    main()

"""Do teacher features help, and photos? Variants of Stage 2 over seeds.

    python -m benchmarks.feature_seeds bricks 0 1 2 control_long photos

needs the scene's teacher, renders, features and VAE (`dvc repro`). Once per seed it trains Stage 1B
and the named variants (all of params.yaml, where none is named), as the stages do, the teacher
staying the same; benchmarks/results/feature_seeds_<scene>.csv gets a row each, and the same with
`_means` the means over seeds with 95 % t-intervals: of PSNR, of its difference to the teacher's,
and of its difference to the control of the same seed and length.
"""

from __future__ import annotations

import json
import sys

import pandas as pd
import torch
from scipy import stats

from benchmarks.feature_doses import ROOT, build, stage_1b
from braid.radiance.config import RadianceConfig
from braid.radiance.distillation.features import FeatureObjective, feature_loss
from braid.radiance.distillation.response import ResponseObjective
from braid.radiance.evaluation.image_metrics import evaluate
from braid.radiance.features.table import load_features
from braid.radiance.scenes.blender import load_scene, load_views
from braid.radiance.scenes.renders import load_renders, mixed
from braid.radiance.student.student import Student
from braid.stage.params import load_params
from braid.training.device import set_up
from braid.training.trainer import Run, train

CONTROLS = ("control", "control_long")


def main() -> None:
    """Train, tabulate, print."""
    scene, *rest = sys.argv[1:]
    config = load_params(ROOT / "params.yaml").radiance
    names = [name for name in rest if not name.isdigit()] or list(config.variants)
    path = ROOT / f"benchmarks/results/feature_seeds_{scene}.csv"
    rows, device = [], set_up("cpu", 1, seed=0)
    for seed in (int(seed) for seed in rest if seed.isdigit()):
        run = Run(seed=seed, device=device, log_every=1000)
        weights = stage_1b(config, scene, run)
        for name in ("response", *names):
            rows.append(row_of(name, weights, config, scene, run))
            table = pd.DataFrame(rows)
            table.to_csv(path, index=False, float_format="%.4f")
            print(rows[-1], flush=True)
    teacher = json.loads((ROOT / f"metrics/radiance/{scene}/teacher.json").read_text())["psnr"]
    lengths = {name: variant.length for name, variant in config.variants.items()}
    means = effects(table, teacher, lengths)
    means.to_csv(path.with_stem(f"{path.stem}_means"), index=False, float_format="%.4f")
    print(means.to_string(index=False, float_format=lambda value: f"{value:+.3f}"))


def row_of(
    name: str, weights: dict[str, torch.Tensor], config: RadianceConfig, scene: str, run: Run
) -> dict[str, object]:
    """What a variant scores that starts from these weights of Stage 1B; `response`: they alone."""
    student = build(config, scene, run)
    student.field.load_state_dict(weights)
    if name != "response":
        stage_2(student, name, config, scene, run)
    views = load_scene(ROOT / f"data/scenes/{scene}")
    test = views["test"]
    images = student.on_white(test.cameras, range(len(test)), config.evaluation)
    reached = evaluate(images, test, views["train"], None, None).figures
    figures = {key: reached[key] for key in ("psnr", "ssim", "psnr_foreground")}
    return {"scene": scene, "seed": run.seed, "variant": name, **figures}


def stage_2(student: Student, name: str, config: RadianceConfig, scene: str, run: Run) -> None:
    """A variant, as the stage `distill_features` trains it."""
    variant, teacher = config.variants[name], ROOT / f"data/teacher/{scene}"
    distill = variant.distillation(config.distill)
    of_train, random = (load_renders(teacher / which) for which in ("train", "random"))
    photos = load_views(ROOT / f"data/scenes/{scene}", "train")
    renders = mixed(of_train, random, photos, variant.photos)
    stored, vae = load_features(ROOT / f"data/features/{scene}.npz"), "models/feature_vae"
    loss = feature_loss(stored, student, distill, variant, ROOT / vae / scene)
    response = ResponseObjective(student, renders, config.rays, config.loss)
    objective = FeatureObjective(response, loss, distill)
    objective.fit_heads(run.seed)
    train(objective, config.optimizer, run, steps=distill.steps, lr_scale=distill.lr_scale)


def effects(table: pd.DataFrame, teacher: float, lengths: dict[str, float]) -> pd.DataFrame:
    """By variant: means and intervals; a difference to a control that was not trained is NaN."""
    psnr = table.pivot(index="seed", columns="variant", values="psnr")
    controls = {lengths[name]: name for name in CONTROLS if name in psnr and name in lengths}
    rows = []
    for variant in table["variant"].unique():
        control = controls.get(lengths.get(variant, 0.0))
        gain = psnr[variant] - (psnr[control] if control else float("nan"))
        row = {"variant": variant, **_interval("psnr", psnr[variant])}
        rows.append(row | _interval("teacher", psnr[variant] - teacher) | _interval("gain", gain))
    return pd.DataFrame(rows)


def _interval(name: str, values: pd.Series) -> dict[str, float]:
    """The mean over seeds, and how far its 95 % t-interval reaches to both sides."""
    half = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values) if len(values) > 1 else None
    return {name: values.mean(), f"{name}_half": float("nan") if half is None else half}


if __name__ == "__main__":
    main()

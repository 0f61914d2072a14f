"""How much of the feature loss each boundary mask leaves, on one student.

    python -m benchmarks.masks bricks

needs the scene's Stage 1B (`dvc repro`). Of points drawn as Stage 2 draws them, of train views
alone, the mean and the percentiles of the mask at the seed's three thresholds: by the fraction of
the ray's compositing weight in its main cell, and by the distance to the nearest face of a cell.
Written to benchmarks/results/masks_<scene>.csv.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from braid.common.io import Row, write_csv
from braid.common.rng import generator
from braid.radiance.distillation.features import FeatureLoss, FeatureObjective
from braid.radiance.distillation.response import ResponseObjective
from braid.radiance.features.table import load_features
from braid.radiance.scenes.renders import load_renders
from braid.radiance.student.student import load_student
from braid.stage.params import load_params
from braid.training.device import set_up

ROOT = Path(__file__).parents[1]
BATCHES = 8


def main() -> None:
    """Print and write a row for each mask and threshold."""
    (scene,) = sys.argv[1:]
    set_up("cpu", 1, seed=0)
    config = load_params(ROOT / "params.yaml").radiance
    student = load_student(ROOT / f"models/student/{scene}/response")
    stored = load_features(ROOT / f"data/features/{scene}.npz")
    renders = load_renders(ROOT / f"data/teacher/{scene}/train")
    rows: list[Row] = []
    print("mask    threshold  mean   p05   p95")
    for mask in ("weight", "face"):
        for threshold in (0.3, 0.45, 0.6):
            distill = config.distill.model_copy(update={"mask": mask, "threshold": threshold})
            loss = FeatureLoss(stored, (len(student.field.weights), student.width), distill)
            response = ResponseObjective(student, renders, config.rays, config.loss)
            objective = FeatureObjective(response, loss, distill)
            points = objective.fresh_points(loss, generator(0, "masks"), BATCHES)
            weight = loss.mask(points)
            low, high = torch.quantile(weight, torch.tensor([0.05, 0.95])).tolist()
            mean = float(weight.mean())
            print(f"{mask:7} {threshold:9.2f} {mean:6.3f} {low:5.2f} {high:5.2f}")
            place = {"mask": mask, "threshold": f"{threshold:.2f}"}
            rows.append({**place, "mean": mean, "p05": low, "p95": high})
    write_csv(ROOT / f"benchmarks/results/masks_{scene}.csv", rows)


if __name__ == "__main__":
    main()

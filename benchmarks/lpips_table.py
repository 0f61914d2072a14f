"""LPIPS of teacher, students and trivial predictions on the test views of a scene.

    make lpips
    python -m benchmarks.lpips_table bricks

needs the scene's students (`dvc repro`). The run itself has no weights, so its column is null;
here docs/results/lpips.csv gets a row a model: AlexNet, images over white, mean over the views.
"""

from __future__ import annotations

import sys

import pandas as pd
import torch

from benchmarks.feature_doses import ROOT
from benchmarks.lpips_weights import TARGET
from braid.radiance.evaluation.image_metrics import Lpips, trivial_predictions
from braid.radiance.scenes.blender import load_scene
from braid.radiance.scenes.renders import load_renders
from braid.radiance.student.student import load_student
from braid.stage.params import load_params
from braid.training.device import set_up


def main() -> None:
    """Render, compare, tabulate."""
    (scene,) = sys.argv[1:]
    config, device = load_params(ROOT / "params.yaml").radiance, set_up("cpu", 1, seed=0)
    lpips, views = Lpips(ROOT / TARGET, device), load_scene(ROOT / f"data/scenes/{scene}")
    test = views["test"]
    images = {"teacher": load_renders(ROOT / f"data/teacher/{scene}/test").on_white()}
    for name in config.students:
        student = load_student(ROOT / f"models/student/{scene}/{name}")
        images[name] = student.on_white(test.cameras, range(len(test)), config.evaluation)
    for name, prediction in trivial_predictions(test, views["train"]).items():
        images[f"baseline_{name}"] = prediction
    with torch.no_grad():
        rows = [
            {"variant": name, "lpips": float(lpips(shown.clamp(0, 1), test.on_white()).mean())}
            for name, shown in images.items()
        ]
    table = pd.DataFrame(rows)
    table.to_csv(ROOT / "docs/results/lpips.csv", index=False, float_format="%.4f")
    print(table.to_string(index=False))


if __name__ == "__main__":
    main()

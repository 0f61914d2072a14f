"""Size against quality and speed: students of several sizes beside their teacher's files.

    python -m benchmarks.student_sizes bricks 9x32 7x16

needs the scene's teacher, renders, features and VAE (`dvc repro`). For each size, networks along
the longest axis and hidden units, it trains Stage 1B and `photos` as the stages do, seed 0.
benchmarks/results/student_sizes_<scene>.csv gets a row each, and one for the teacher as PLY and as
SPZ: numbers, bytes as stored, PSNR on the test views, and frames a CPU second of one thread at the
views' own size. A student is stored in half precision too, `half`.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from benchmarks.feature_doses import ROOT, build, stage_1b
from benchmarks.feature_seeds import stage_2
from braid.radiance.config import RadianceConfig
from braid.radiance.evaluation.image_metrics import validation_psnr
from braid.radiance.gaussians.compressed import load_spz, save_spz
from braid.radiance.gaussians.field import render_all
from braid.radiance.gaussians.gaussians import Gaussians, load_ply
from braid.radiance.gaussians.splat import render
from braid.radiance.scenes.blender import Views, load_views
from braid.radiance.student.student import halved, stored_bytes
from braid.stage.params import load_params
from braid.training.device import set_up
from braid.training.trainer import Run

FRAMES = 10


def main() -> None:
    """Train, tabulate, print."""
    scene, *sizes = sys.argv[1:]
    device = set_up("cpu", 1, seed=0)
    config = load_params(ROOT / "params.yaml").radiance
    test = load_views(ROOT / f"data/scenes/{scene}", "test")
    path = ROOT / f"benchmarks/results/student_sizes_{scene}.csv"
    ply = ROOT / f"models/teacher/{scene}/point_cloud.ply"
    with tempfile.TemporaryDirectory() as folder:
        spz = Path(folder) / "teacher.spz"
        save_spz(spz, load_ply(ply))
        rows = [
            {"model": "teacher_ply", "bytes": ply.stat().st_size, **_teacher(load_ply(ply), test)},
            {"model": "teacher_spz", "bytes": spz.stat().st_size, **_teacher(load_spz(spz), test)},
        ]
    for size in sizes:
        cells, hidden = map(int, size.split("x"))
        student = config.student.model_copy(update={"cells": cells, "hidden": hidden})
        changed = config.model_copy(update={"student": student})
        rows += _trained(size, changed, scene, test, Run(seed=0, device=device, log_every=1000))
        pd.DataFrame(rows).to_csv(path, index=False, float_format="%.4f")
        print(rows[-2], rows[-1], flush=True)
    pd.DataFrame(rows).to_csv(path, index=False, float_format="%.4f")


def _trained(
    size: str, config: RadianceConfig, scene: str, test: Views, run: Run
) -> list[dict[str, object]]:
    """A student of one size after Stage 1B and `photos`, as it is and in half precision."""
    weights = stage_1b(config, scene, run)
    student = build(config, scene, run)
    student.field.load_state_dict(weights)
    stage_2(student, "photos", config, scene, run)
    chunk, stop = config.evaluation.chunk, config.evaluation.stop
    rows: list[dict[str, object]] = []
    for name, model, number in ((size, student, 4), (f"{size}_half", halved(student), 2)):
        images = model.on_white(test.cameras, range(len(test)), config.evaluation)
        fps = _frames(partial(model.render, test.cameras, chunk=chunk, stop=stop))
        size_of = {"bytes": stored_bytes(model, number), "parameters": model.parameters}
        quality = {"psnr": validation_psnr(images, test), "frames_per_cpu_second": fps}
        rows.append({"model": name, **size_of, **quality})
    return rows


def _teacher(gaussians: Gaussians, test: Views) -> dict[str, float]:
    images: Tensor = render_all(gaussians, test.cameras).on_white()
    with torch.no_grad():
        fps = _frames(lambda view: render(gaussians, test.cameras, view))
    size = {"parameters": gaussians.parameters, "psnr": validation_psnr(images, test)}
    return {**size, "frames_per_cpu_second": fps}


def _frames(show: Callable[[int], object]) -> float:
    """Frames a CPU second."""
    show(0)
    start = time.process_time()
    for view in range(FRAMES):
        show(view)
    return FRAMES / (time.process_time() - start)


if __name__ == "__main__":
    main()

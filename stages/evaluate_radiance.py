"""Judge a student on the test views: quality, cost, trivial baselines, residual maps.

Reads models/student/<scene>/<variant>, writes data/renders/<scene>/<variant>.npz. Seconds.
"""

from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

import pandas as pd
import torch

from braid.radiance.distillation.feature_loss import mask_state
from braid.radiance.evaluation.figures import image_table
from braid.radiance.evaluation.hardware import measure_frames
from braid.radiance.evaluation.image_metrics import CONVENTIONS, Lpips, evaluate
from braid.radiance.scenes.blender import Views, load_views
from braid.radiance.scenes.renders import load_renders, save_images
from braid.radiance.student.student import Student, load_student
from braid.stage.context import Stage, open_stage
from braid.stage.records import read_json
from braid.training.device import set_up


def main() -> None:
    """Run the stage."""
    with open_stage("evaluate_radiance") as stage:
        hardware, params = stage.params.hardware, stage.params.evaluation
        device = set_up(hardware.device, hardware.threads, seed=0)
        scene = stage.dep("data/scenes")
        train, test = (load_views(scene, split).to(device) for split in ("train", "test"))
        teacher = load_renders(stage.dep("data/teacher") / "test").on_white().to(device)
        folder = stage.dep("models/student")
        student, warm = (load_student(folder, which).to(device) for which in (None, "warm"))

        frames = _figure_frames(params.figure_frames, len(test))
        images = _render(stage, student, test, range(len(test)))
        lpips = Lpips(Path(params.lpips_weights), device) if params.lpips_weights else None
        figures = dict(evaluate(images, test, train, teacher, lpips))
        curve = pd.read_csv(stage.dep("plots/student"))
        stage.write_metrics(
            {
                **figures,
                **_mask(curve),
                "params": student.parameters,
                "steps": int(curve["step"].max()) + 1,
                "conventions": CONVENTIONS,
            }
        )
        view = partial(student.render, test.cameras, chunk=params.chunk, stop=params.stop)
        stage.runtime |= asdict(measure_frames(view, min(params.frames, len(test)), device))
        stage.runtime["train_seconds"] = read_json(stage.dep("metrics/runtime/distill"))["seconds"]

        shown = {
            "end of warm-up": _render(stage, warm, test, frames),
            "end of training": images[frames],
        }
        labels = [f"test view {frame}" for frame in frames]
        truth = test.on_white()[frames]
        image_table(stage.out("plots/residuals"), truth, shown, labels)
        shown |= {"truth": truth, "teacher": teacher[frames]}
        save_images(stage.out("data/renders"), frames, shown)


def _figure_frames(wanted: Sequence[int], views: int) -> list[int]:
    frames = [frame for frame in wanted if frame < views]
    if not frames:
        raise ValueError(
            f"evaluation.figure_frames: expected one of 0 to {views - 1}, got {list(wanted)}"
        )
    return frames


def _render(stage: Stage, student: Student, test: Views, views: range | list[int]) -> torch.Tensor:
    """Chosen test views over white, [N, H, W, 3]."""
    params = stage.params.evaluation
    images = []
    for view in views:
        rendered = student.render(test.cameras, view, chunk=params.chunk, stop=params.stop)
        images.append(rendered.rgb + (1 - rendered.alpha[..., None]))
    return torch.stack(images)


def _mask(curve: pd.DataFrame) -> dict[str, float | str | None]:
    """The boundary mask over the whole training; null where no features were compared."""
    if "feature_mask_weight_mean" not in curve:
        return {"feature_mask_weight_mean": None, "feature_mask_state": None}
    mean = float(curve["feature_mask_weight_mean"].mean())
    return {"feature_mask_weight_mean": mean, "feature_mask_state": mask_state(mean)}


if __name__ == "__main__":
    main()

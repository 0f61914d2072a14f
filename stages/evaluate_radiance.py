"""Evaluate a student on the test views: quality, cost, trivial baselines, residual maps.

Reads models/student/<scene>/<variant>, writes data/renders/<scene>/<variant>.npz. Seconds.
"""

from dataclasses import asdict
from functools import partial

from braid.radiance.evaluation.figures import image_table, pictured_frames, read_table
from braid.radiance.evaluation.hardware import measure_frames
from braid.radiance.evaluation.image_metrics import evaluate
from braid.radiance.scenes.blender import load_views
from braid.radiance.scenes.renders import load_renders, save_images
from braid.radiance.student.student import load_student
from braid.stage.context import open_stage


def main() -> None:
    """Run the stage."""
    with open_stage("evaluate_radiance") as stage:
        scene, variant = stage.item
        config, device = stage.params.radiance.evaluation, stage.device()
        views = (load_views(stage.dep("data/scenes"), split) for split in ("train", "test"))
        train, test = (split.to(device) for split in views)
        teacher = load_renders(stage.dep("data/teacher") / "test").on_white().to(device)
        folder = stage.dep("models/student")
        student, warm = (load_student(folder, which).to(device) for which in (None, "warm"))

        frames = pictured_frames(config.figure_frames, len(test))
        images = student.on_white(test.cameras, range(len(test)), config)
        weights = stage.optional_dep(config.lpips_weights)
        quality = evaluate(images, test, train, teacher, weights)
        steps = int(read_table(stage.dep("plots/student"))[-1]["step"]) + 1
        size = {"parameters": student.parameters, "steps": steps}
        stage.write_metrics({**quality.headline(), **size})
        stage.write_table("metrics/tables", quality.rows(scene, variant, **size))
        view = partial(student.render, test.cameras, chunk=config.chunk, stop=config.stop)
        stage.runtime |= asdict(measure_frames(view, min(config.frames, len(test)), device))

        truth = test.on_white()[frames]
        shown = {
            "end of warm-up": warm.on_white(test.cameras, frames, config),
            "end of training": images[frames],
        }
        image_table(stage.out("plots/residuals"), truth, shown, frames)
        shown |= {"truth": truth, "teacher": teacher[frames]}
        save_images(stage.out("data/renders"), frames, shown)


if __name__ == "__main__":
    main()

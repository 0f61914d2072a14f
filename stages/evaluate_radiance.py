"""Evaluate a student on the test views: quality, cost, trivial baselines, residual maps, a GIF.

Reads models/student/<scene>/<variant>, writes below data/renders and data/turntable. Seconds.
"""

from functools import partial

from braid.radiance.evaluation.agreement import feature_agreement
from braid.radiance.evaluation.figures import image_table, movie, pictured_frames, read_table
from braid.radiance.evaluation.hardware import frame_cost
from braid.radiance.evaluation.image_metrics import evaluate, validation_psnr
from braid.radiance.features.table import load_features
from braid.radiance.scenes.blender import load_scene
from braid.radiance.scenes.renders import load_renders, save_images
from braid.radiance.student.student import evaluation_shots, load_student, stored_bytes
from braid.stage.context import open_stage
from braid.training.distributed import working


def main() -> None:
    """Run the stage."""
    with open_stage("evaluate_radiance") as stage:
        scene, variant = stage.item
        config, device = stage.params.radiance.evaluation, stage.device()
        views, folder = load_scene(stage.dep("data/scenes")), stage.dep("models/student")
        test, renders = views["test"], stage.dep("data/teacher")
        student, before = (load_student(folder, name).to(device) for name in (None, "before"))
        cameras = test.cameras.to(device)
        view = partial(student.render, cameras, chunk=config.chunk, stop=config.stop)
        frames, scratch = pictured_frames(config.figure_frames, len(test)), stage.scratch()
        with working() as process:
            stage.runtime |= frame_cost(view, min(config.frames, len(test)), device)
            sets = ("train", "test", "turntable")
            of_train, of_test, around = (load_renders(renders / name) for name in sets)
            shots = evaluation_shots(student, before, views, around, frames, config, scratch)
        if not process.is_main:
            return
        teacher, weights = of_test.on_white(), stage.optional_dep(config.lpips_weights)
        quality = evaluate(shots["test"], test, views["train"], teacher, weights, device)
        stored = load_features(stage.dep("data/features"))
        agreement = feature_agreement(student, of_train, of_test, stored, stage.params.seed)
        steps = int(read_table(stage.dep("plots/student"))[-1]["step"]) + 1
        held = agreement["feature_explained_variance"]
        size = {"parameters": student.parameters, "steps": steps}
        stage.write_metrics({**quality.headline(), "feature_explained_variance": held, **size})
        if val := views.get("val"):
            agreement["psnr_val"] = validation_psnr(shots["val"], val)
        size["bytes"] = stored_bytes(student)
        half = {"psnr": validation_psnr(shots["half"], test), "bytes": stored_bytes(student, 2)}
        rows = quality.rows(scene, variant, {"half": half}, **size, **agreement)
        stage.write_table("metrics/tables", rows)
        truth, teacher = test.on_white()[frames], teacher[frames]
        shown = {"before": shots["before"], "after": shots["test"][frames]}
        image_table(stage.out("plots/residuals"), truth, shown, frames)
        save_images(stage.out("data/renders"), frames, shown | {"truth": truth, "teacher": teacher})
        movie(stage.out("data/turntable"), around.on_white(), shots["turntable"])


if __name__ == "__main__":
    main()

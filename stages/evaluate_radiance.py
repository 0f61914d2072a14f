"""Evaluate a student on the test views: quality, cost, trivial baselines, residual maps, a GIF.

Reads models/student/<scene>/<variant>, writes below data/renders and data/turntable. Seconds.
"""

from dataclasses import asdict
from functools import partial

from braid.radiance.evaluation.agreement import feature_agreement
from braid.radiance.evaluation.figures import image_table, movie, pictured_frames, read_table
from braid.radiance.evaluation.hardware import measure_frames
from braid.radiance.evaluation.image_metrics import evaluate, validation_psnr
from braid.radiance.features.table import load_features
from braid.radiance.scenes.blender import load_scene
from braid.radiance.scenes.renders import load_renders, save_images
from braid.radiance.student.student import halved, load_student, stored_bytes
from braid.stage.context import open_stage


def main() -> None:
    """Run the stage."""
    with open_stage("evaluate_radiance") as stage:
        scene, variant = stage.item
        config, device = stage.params.radiance.evaluation, stage.device()
        views, folder = load_scene(stage.dep("data/scenes")), stage.dep("models/student")
        student, cameras = load_student(folder, None).to(device), views["test"].cameras.to(device)
        view = partial(student.render, cameras, chunk=config.chunk, stop=config.stop)
        stage.runtime |= asdict(measure_frames(view, min(config.frames, len(cameras)), device))
        test, renders = views["test"], stage.dep("data/teacher")
        sets = ("train", "test", "turntable")
        of_train, of_test, around = (load_renders(renders / name) for name in sets)
        teacher = of_test.on_white()
        frames = pictured_frames(config.figure_frames, len(test))
        images = student.on_white(cameras, range(len(test)), config)
        weights = stage.optional_dep(config.lpips_weights)
        quality = evaluate(images, test, views["train"], teacher, weights, device)
        stored = load_features(stage.dep("data/features"))
        agreement = feature_agreement(student, of_train, of_test, stored, stage.params.seed)
        steps = int(read_table(stage.dep("plots/student"))[-1]["step"]) + 1
        held = agreement["feature_explained_variance"]
        size = {"parameters": student.parameters, "steps": steps}
        stage.write_metrics({**quality.headline(), "feature_explained_variance": held, **size})
        if val := views.get("val"):
            of_val = student.on_white(val.cameras.to(device), range(len(val)), config)
            agreement["psnr_val"] = validation_psnr(of_val, val)
        size["bytes"] = stored_bytes(student)
        of_half = halved(student).on_white(cameras, range(len(test)), config)
        half = {"half": {"psnr": validation_psnr(of_half, test), "bytes": stored_bytes(student, 2)}}
        stage.write_table("metrics/tables", quality.rows(scene, variant, half, **size, **agreement))
        truth, teacher = test.on_white()[frames], teacher[frames]
        before = load_student(folder, "before").to(device)
        shown = {"before": before.on_white(cameras, frames, config), "after": images[frames]}
        image_table(stage.out("plots/residuals"), truth, shown, frames)
        save_images(stage.out("data/renders"), frames, shown | {"truth": truth, "teacher": teacher})
        shots = student.on_white(around.cameras.to(device), range(config.turntable), config)
        movie(stage.out("data/turntable"), around.on_white(), shots)


if __name__ == "__main__":
    main()

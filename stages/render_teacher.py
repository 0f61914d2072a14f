"""Render the teacher for its students, so that they never load it, and evaluate it.

Writes data/teacher/<scene>: RGBA and depth from the train poses, from random ones and from the test
poses (these only to evaluate on), and the teacher's occupied space. Seconds.
"""

from dataclasses import asdict
from functools import partial

import torch

from braid.radiance.evaluation.hardware import measure_frames
from braid.radiance.evaluation.image_metrics import evaluate
from braid.radiance.gaussians.field import render_all, scan_space
from braid.radiance.gaussians.gaussians import load_ply
from braid.radiance.gaussians.splat import render
from braid.radiance.scenes.blender import load_views
from braid.radiance.scenes.cameras import random_poses
from braid.radiance.scenes.occupancy import save_space
from braid.radiance.scenes.renders import save_renders
from braid.stage.context import open_stage


def main() -> None:
    """Run the stage."""
    with open_stage("render_teacher") as stage:
        (scene,) = stage.item
        config, evaluation = stage.params.radiance.renders, stage.params.radiance.evaluation
        device = stage.device()
        gaussians = load_ply(stage.dep("models/teacher")).to(device)
        train, test = (load_views(stage.dep("data/scenes"), split) for split in ("train", "test"))
        out = stage.out("data/teacher")

        draws = torch.Generator().manual_seed(stage.params.seed)
        random = random_poses(train.cameras, config.random_poses, draws)
        poses = {"train": train.cameras, "random": random, "test": test.cameras}
        renders = {name: render_all(gaussians, views.to(device)) for name, views in poses.items()}
        for name, rendered in renders.items():
            save_renders(out / name, rendered)
        train, test = train.to(device), test.to(device)
        space = scan_space(gaussians, train.cameras, config, draws)
        save_space(out / "space.safetensors", *space)

        images = renders["test"].on_white().to(device)
        weights = stage.optional_dep(evaluation.lpips_weights)
        quality = evaluate(images, test, train, images, weights)
        size = {"parameters": gaussians.parameters}
        stage.write_metrics({**quality.headline(), **size})
        rows = quality.rows(scene, "teacher", **size, gaussians=len(gaussians))
        stage.write_table("metrics/tables", rows)
        view = partial(render, gaussians, test.cameras)
        stage.runtime |= asdict(measure_frames(view, min(evaluation.frames, len(test)), device))


if __name__ == "__main__":
    main()

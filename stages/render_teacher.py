"""Render the teacher for its students, so that they never load it, and evaluate it.

Writes data/teacher/<scene>: RGBA and depth from the train poses, from random ones, from the val and
test poses and around the scene (to evaluate on), its occupied space, and it as an SPZ. Seconds.
"""

from functools import partial

import torch

from braid.radiance.evaluation.hardware import frame_cost
from braid.radiance.evaluation.image_metrics import evaluate, validation_psnr
from braid.radiance.gaussians.field import packed, render_sets, scan_space
from braid.radiance.gaussians.gaussians import load_ply
from braid.radiance.gaussians.splat import render
from braid.radiance.scenes.blender import load_scene
from braid.radiance.scenes.cameras import random_poses, turntable
from braid.radiance.scenes.grids import save_space
from braid.radiance.scenes.renders import save_renders
from braid.stage.context import open_stage
from braid.training.distributed import working


def main() -> None:
    """Run the stage."""
    with open_stage("render_teacher") as stage:
        (scene,) = stage.item
        config, evaluation = stage.params.radiance.renders, stage.params.radiance.evaluation
        gaussians = load_ply(stage.dep("models/teacher")).to(device := stage.device())
        views = load_scene(stage.dep("data/scenes"))
        train, test = views["train"], views["test"]
        view = partial(render, gaussians, test.cameras.to(device))
        out = stage.out("data/teacher")
        draws = torch.Generator().manual_seed(stage.params.seed)
        poses = {name: part.cameras for name, part in views.items()}
        poses["random"] = random_poses(train.cameras, config.random_poses, draws)
        poses["turntable"] = turntable(train.cameras, evaluation.turntable)
        with working() as process:
            stage.runtime |= frame_cost(view, min(evaluation.frames, len(test)), device)
            renders = render_sets(gaussians, poses, device, stage.scratch())
        if not process.is_main:
            return
        for name, rendered in renders.items():
            save_renders(out / name, rendered)
        space = scan_space(gaussians, train.cameras.to(device), config, draws)
        save_space(out / "space.safetensors", *space)
        weights = stage.optional_dep(evaluation.lpips_weights)
        quality = evaluate(renders["test"].on_white(), test, train, None, weights, device)
        size: dict[str, float] = {"parameters": gaussians.parameters}
        stage.write_metrics({**quality.headline(), **size})
        size |= {"gaussians": len(gaussians), "bytes": stage.dep("models/teacher").stat().st_size}
        if "val" in views:
            size["psnr_val"] = validation_psnr(renders["val"].on_white(), views["val"])
        spz = {"spz": packed(out / "teacher.spz", gaussians, test)}
        stage.write_table("metrics/tables", quality.rows(scene, "teacher", spz, **size))


if __name__ == "__main__":
    main()

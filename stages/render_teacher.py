"""Render the teacher for its students, so that they never hold it in memory, and judge it.

Writes data/teacher/<scene>: RGBA and depth from the train poses, from random ones and from the test
poses (these only to judge by), and the teacher's occupied space. Seconds.
"""

from dataclasses import asdict
from pathlib import Path

import torch

from braid.radiance.evaluation.hardware import measure_frames
from braid.radiance.evaluation.image_metrics import CONVENTIONS, Lpips, evaluate
from braid.radiance.gaussians.field import render_all, survey
from braid.radiance.gaussians.gaussians import Gaussians, load_ply
from braid.radiance.gaussians.splat import render
from braid.radiance.scenes.blender import Views, load_views
from braid.radiance.scenes.cameras import random_poses
from braid.radiance.scenes.occupancy import save_space
from braid.radiance.scenes.renders import Renders, save_renders
from braid.stage.context import Stage, open_stage
from braid.stage.records import read_json
from braid.training.device import set_up


def main() -> None:
    """Run the stage."""
    with open_stage("render_teacher") as stage:
        hardware, renders = stage.params.hardware, stage.params.renders
        device = set_up(hardware.device, hardware.threads, stage.params.seed)
        teacher = stage.dep("models/teacher")
        gaussians = load_ply(teacher).to(device)
        scene, out = stage.dep("data/scenes"), stage.out("data/teacher")
        train, test = (load_views(scene, split) for split in ("train", "test"))
        draws = torch.Generator().manual_seed(stage.params.seed)
        random = random_poses(train.cameras, renders.random_poses, draws)
        poses = {"train": train.cameras, "random": random, "test": test.cameras}
        rendered = {name: render_all(gaussians, each.to(device)) for name, each in poses.items()}
        for name, each in rendered.items():
            save_renders(out / name, each)
        try:
            space = survey(
                gaussians,
                train.cameras.to(device),
                voxels=renders.voxels,
                points=renders.field_points,
                generator=draws,
            )
        except ValueError as error:
            raise ValueError(f"{teacher}: {error}") from None
        save_space(out / "space.safetensors", *space)
        _judge(stage, gaussians, rendered["test"], train.to(device), test.to(device))


def _judge(
    stage: Stage, gaussians: Gaussians, rendered: Renders, train: Views, test: Views
) -> None:
    params, device = stage.params.evaluation, test.rgba.device
    images = rendered.on_white().to(device)
    lpips = Lpips(Path(params.lpips_weights), device) if params.lpips_weights else None
    figures = dict(evaluate(images, test, train, images, lpips))
    size = {"gaussians": len(gaussians), "params": gaussians.parameters}
    stage.write_metrics({**figures, **size, "conventions": CONVENTIONS})
    with torch.no_grad():
        cost = measure_frames(
            lambda view: render(gaussians, test.cameras, view),
            min(params.frames, len(test)),
            device,
        )
    fitting = read_json(stage.dep("metrics/runtime/fit_teacher"))
    stage.runtime |= {**asdict(cost), "train_seconds": fitting["seconds"]}


if __name__ == "__main__":
    main()

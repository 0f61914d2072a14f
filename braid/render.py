"""Render a student, or the teacher's .ply, along a path of cameras: `python -m braid.render`.

python -m braid.render --model models/student/bricks/response --out turntable.gif
python -m braid.render --model models/teacher/bricks/point_cloud.ply --path test --out views/
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from braid.common.progress import progress
from braid.radiance.config import EvaluationConfig
from braid.radiance.gaussians.field import render_all
from braid.radiance.gaussians.gaussians import load_ply
from braid.radiance.scenes.camera_path import (
    PATHS,
    TURNTABLE,
    open_path,
    require_out,
    save_pictures,
)
from braid.radiance.scenes.cameras import Cameras
from braid.radiance.student.student import load_student
from braid.stage.params import load_params
from braid.training.device import set_up


def main() -> None:
    """Render and say where; a fault ends in one line."""
    parser = argparse.ArgumentParser(
        prog="python -m braid.render",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--model", type=Path, required=True, help="folder of a student, or a 3DGS .ply")
    add("--scene", type=Path, help="Blender-format folder (data/scenes/<the model's scene>)")
    add("--path", choices=PATHS, default=TURNTABLE, help="cameras: %(choices)s (%(default)s)")
    add("--frames", type=int, default=48, help="views, at most (%(default)s)")
    add("--width", type=int, help="pixels (as the scene's images)")
    add(
        "--snapshot",
        help="of a student: before, its weights at the start of the stage's last phase",
    )
    add("--out", type=Path, required=True, help="a .gif, or a folder for PNGs")
    try:
        _run(parser.parse_args())
    except (ValueError, OSError) as error:
        sys.exit(f"error: render: {' '.join(str(error).split())}")


def _run(options: argparse.Namespace) -> None:
    require_out(options.out)
    if not options.model.exists():
        raise ValueError(f"{options.model}: no such model; `dvc repro` makes those of models/")
    params = load_params(Path("params.yaml"))
    device = set_up(params.hardware.device, params.hardware.threads, params.seed)
    scene = options.scene or Path("data/scenes") / options.model.parent.name
    cameras = open_path(scene, options.path, options.frames, options.width).to(device)
    images = _images(options.model, options.snapshot, cameras, params.radiance.evaluation)
    save_pictures(options.out, images)
    print(f"{options.out}: {len(images)} views of {cameras.width}x{cameras.height}, over white")


def _images(
    model: Path, snapshot: str | None, cameras: Cameras, config: EvaluationConfig
) -> torch.Tensor:
    """Every view over white, [N, H, W, 3]."""
    device = cameras.camera_to_world.device
    views = progress(range(len(cameras)), "render", "view")
    if model.suffix == ".ply":
        gaussians = load_ply(model).to(device)
        return torch.cat([render_all(gaussians, cameras[[view]]).on_white() for view in views])
    return load_student(model, snapshot).to(device).on_white(cameras, views, config)


if __name__ == "__main__":
    main()

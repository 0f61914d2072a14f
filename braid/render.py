"""Render a student, or the teacher's .ply, along a path of cameras: `python -m braid.render`.

python -m braid.render --model models/student/bricks/response --out turntable.gif
python -m braid.render --model models/teacher/bricks/point_cloud.ply --path test --out views/
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from braid.common.progress import run_command
from braid.radiance.config import EvaluationConfig
from braid.radiance.gaussians.compressed import FILES, load_gaussians
from braid.radiance.gaussians.field import render_all
from braid.radiance.scenes.blender import SPLITS, load_views
from braid.radiance.scenes.cameras import Cameras, turntable
from braid.radiance.student.student import load_student
from braid.stage.params import load_params
from braid.training.device import set_up

TURNTABLE = "turntable"
PATHS = (TURNTABLE, *SPLITS)
_COLORS = 128  # of a GIF


def main() -> None:
    """Render and say where."""
    run_command("render", __doc__, _options, _run)


def _options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--model", type=Path, required=True, help="folder of a student, or a .ply, .splat or .spz")
    add("--scene", type=Path, help="Blender-format folder (data/scenes/<the model's scene>)")
    add("--path", choices=PATHS, default=TURNTABLE, help="cameras: %(choices)s (%(default)s)")
    add("--frames", type=int, default=48, help="views, at most (%(default)s)")
    add("--width", type=int, help="pixels (as the scene's images)")
    add(
        "--snapshot",
        help="of a student: before, its weights at the start of the stage's last phase",
    )
    add("--out", type=Path, required=True, help="a .gif, or a folder for PNGs")


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
    if model.suffix in FILES:
        return render_all(load_gaussians(model).to(device), cameras).on_white()
    student = load_student(model, snapshot).to(device)
    return student.on_white(cameras, range(len(cameras)), config)


# ---- The path of cameras -------------------------------------------------------------------------


def open_path(
    scene: Path,  # a folder in the Blender format
    name: str,  # one of PATHS
    count: int,  # of cameras, at most
    width: int | None = None,  # pixels; None: as the scene's images
) -> Cameras:
    """A turntable around the training views' subject, or the first views of a split.

    Raises:
        ValueError: the scene cannot be read, or a number is not positive.
    """
    if count < 1 or (width is not None and width < 1):
        raise ValueError(f"a path of {count} cameras, {width} pixels wide; expected 1 or more")
    cameras = load_views(scene, "train" if name == TURNTABLE else name).cameras
    cameras = turntable(cameras, count) if name == TURNTABLE else cameras[:count]
    return cameras if width is None else resized(cameras, width)


def resized(cameras: Cameras, width: int) -> Cameras:
    """The same views in images of another width."""
    scale = width / cameras.width
    height = max(1, round(scale * cameras.height))
    return Cameras(cameras.camera_to_world, scale * cameras.focal, width, height)


def save_pictures(
    out: Path,  # a .gif, or a folder to make
    images: Tensor,  # [N, H, W, 3] in [0, 1]
    milliseconds: int = 60,  # a frame of the GIF
) -> None:
    """Write an animation that starts anew, or a PNG of each image: `000.png` and so on.

    Raises:
        ValueError: another kind of file is named.
    """
    require_out(out)
    pixels = (images.clamp(0, 1).cpu().numpy() * 255 + 0.5).astype(np.uint8)
    pictures = [Image.fromarray(frame) for frame in pixels]
    if out.suffix != ".gif":
        out.mkdir(parents=True, exist_ok=True)
        for number, picture in enumerate(pictures):
            picture.save(out / f"{number:03}.png")
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    first, *rest = [picture.quantize(_COLORS, dither=Image.Dither.NONE) for picture in pictures]
    first.save(out, save_all=True, append_images=rest, duration=milliseconds, loop=0)


def require_out(out: Path) -> None:
    """Refuse, before the work, what `save_pictures` cannot write.

    Raises:
        ValueError: another kind of file is named.
    """
    if out.suffix not in ("", ".gif"):
        raise ValueError(f"{out}: expected a .gif, or a folder for PNGs")


if __name__ == "__main__":
    main()

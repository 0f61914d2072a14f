"""A path of cameras around a scene, and what is seen along it as PNGs or an animation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

from braid.radiance.scenes.blender import SPLITS, load_views
from braid.radiance.scenes.cameras import Cameras, gaze, look_at

TURNTABLE = "turntable"
PATHS = (TURNTABLE, *SPLITS)
_COLORS = 128  # of a GIF


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


def turntable(cameras: Cameras, count: int) -> Cameras:
    """`count` poses on a full circle at the views' mean height and distance.

    Its axis is the mean of the views' up axes, and it begins on the side of the view that
    stands furthest out.
    """
    center = gaze(cameras)
    offset = cameras.camera_to_world[:, :3, 3] - center
    distance = offset.norm(dim=-1)
    up = normalize(cameras.camera_to_world[:, :3, 1].mean(0), dim=0)
    height = offset @ up
    outward = offset - height[:, None] * up
    east = normalize(outward[outward.norm(dim=-1).argmax()], dim=0)
    north = torch.linalg.cross(up, east)
    angle = (2 * torch.pi * torch.arange(count) / count).to(up)[:, None]
    sine = (height / distance).mean()
    level = (1 - sine**2).clamp_min(0).sqrt()
    back = level * (angle.cos() * east + angle.sin() * north) + sine * up
    poses = look_at(center + distance.mean() * back, back, up)
    return Cameras(poses, cameras.focal, cameras.width, cameras.height)


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

"""The Blender (NeRF-synthetic) scene format.

A folder with one `transforms_{split}.json` per split: the horizontal field of view
`camera_angle_x` in radians, and frames that each name an 8-bit RGBA PNG (`file_path`, with or
without `.png`) and its camera-to-world matrix (OpenGL axes). PNGs hold *straight* alpha; in memory
color is *premultiplied*, since only premultiplied pixels may be averaged. Files that the JSON does
not name are never opened: published scenes keep depth and normal maps in the same folders.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from braid.radiance.scenes.cameras import Cameras

SPLITS = ("train", "val", "test")
RIGID_TOLERANCE = 1e-3  # published poses are float32 exports, rigid to about 1e-6


@dataclass(frozen=True)
class Views:
    """N posed images."""

    cameras: Cameras
    rgba: Tensor  # [N, H, W, 4] float32, premultiplied, in [0, 1]

    def __len__(self) -> int:
        return len(self.cameras)

    def __getitem__(self, views: slice | Tensor | list[int]) -> Views:
        """The chosen views, in that order."""
        return Views(self.cameras[views], self.rgba[views])

    @property
    def alpha(self) -> Tensor:
        """Opacity, [N, H, W]."""
        return self.rgba[..., 3]

    def on_white(self) -> Tensor:
        """The images composited over white, [N, H, W, 3]."""
        return self.rgba[..., :3] + (1 - self.rgba[..., 3:])

    def to(self, device: torch.device) -> Views:
        """The same views on another device."""
        return Views(self.cameras.to(device), self.rgba.to(device))


def load_scene(folder: Path) -> dict[str, Views]:
    """Read every split of a scene; one without validation views is none the less a scene.

    Raises:
        ValueError: as `load_views`, or the splits differ in image size.
    """
    has_val = (folder / "transforms_val.json").exists()
    scene = {split: load_views(folder, split) for split in SPLITS if has_val or split != "val"}
    cameras = ((split, views.cameras) for split, views in scene.items())
    sizes = {split: f"{camera.width}x{camera.height}" for split, camera in cameras}
    if len(set(sizes.values())) > 1:
        raise ValueError(f"{folder}: expected one image size in all splits, got {sizes}")
    return scene


def load_views(folder: Path, split: str) -> Views:
    """Read one split of a scene.

    Raises:
        ValueError: a file is missing or malformed; the message names it.
    """
    path = folder / f"transforms_{split}.json"
    angle, frames = _read_transforms(path)
    names = [_image_path(path, index, frame) for index, frame in enumerate(frames)]
    poses = np.stack([_pose(path, index, frame) for index, frame in enumerate(frames)])
    rgba = _premultiplied(folder / name for name in names)
    height, width = rgba.shape[1:3]
    focal = 0.5 * width / math.tan(0.5 * angle)
    return Views(Cameras(torch.from_numpy(poses), focal, width, height), rgba)


def save_views(folder: Path, split: str, views: Views) -> None:
    """Write one split in the format that `load_views` reads; equal views give equal bytes."""
    (folder / split).mkdir(parents=True, exist_ok=True)
    frames = []
    for index, (pose, rgba) in enumerate(
        zip(views.cameras.camera_to_world, views.rgba, strict=True)
    ):
        name = f"{split}/r_{index}"
        (folder / f"{name}.png").write_bytes(_png(rgba))
        frames.append({"file_path": f"./{name}", "transform_matrix": pose.cpu().tolist()})
    angle = 2 * math.atan(0.5 * views.cameras.width / views.cameras.focal)
    text = json.dumps({"camera_angle_x": angle, "frames": frames}, indent=1)
    (folder / f"transforms_{split}.json").write_text(text + "\n", encoding="utf-8")


def downsample(views: Views, factor: int) -> Views:
    """Shrink by a whole factor: the mean of each block of premultiplied pixels (box filter).

    Raises:
        ValueError: the factor does not divide the image's width and height alike.
    """
    cameras = views.cameras
    if cameras.width % factor or cameras.height % factor:
        raise ValueError(
            f"downsample: {factor} does not divide both sides of {cameras.width}x{cameras.height}"
        )
    width, height = cameras.width // factor, cameras.height // factor
    blocks = views.rgba.reshape(len(views), height, factor, width, factor, 4)
    smaller = Cameras(cameras.camera_to_world, cameras.focal / factor, width, height)
    return Views(smaller, blocks.mean(dim=(2, 4)))


def _read_transforms(path: Path) -> tuple[float, list[dict[str, Any]]]:
    """Field of view in radians, and the frames."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(
            f"{path}: no such file; a scene has one transforms JSON per split"
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not JSON ({error})") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected an object with camera_angle_x and frames")
    angle, frames = content.get("camera_angle_x"), content.get("frames")
    if isinstance(angle, bool) or not isinstance(angle, int | float) or not 0 < angle < math.pi:
        raise ValueError(f"{path}: camera_angle_x must lie between 0 and pi radians, got {angle!r}")
    if not isinstance(frames, list) or not frames or not all(isinstance(f, dict) for f in frames):
        raise ValueError(f"{path}: frames must be a non-empty list of objects")
    return float(angle), frames


def _image_path(path: Path, index: int, frame: dict[str, Any]) -> PurePosixPath:
    """The frame's image, relative to the scene folder.

    Checked by its spelling, not resolved: DVC may link a scene's files out of its cache.
    """
    name = frame.get("file_path")
    if not isinstance(name, str) or not name:
        raise ValueError(f"{path}: frame {index} has no file_path")
    relative = PurePosixPath(name if name.endswith(".png") else f"{name}.png")
    if relative.is_absolute() or ".." in relative.parts or "\\" in name or ":" in name:
        raise ValueError(f"{path}: frame {index}: {name!r} leaves the scene folder")
    return relative


def _pose(path: Path, index: int, frame: dict[str, Any]) -> NDArray[np.float32]:
    """The frame's camera-to-world matrix, [4, 4]."""
    try:
        pose = np.asarray(frame.get("transform_matrix"), dtype=np.float64)
    except (TypeError, ValueError):
        pose = np.empty(0)
    where = f"{path}: frame {index}: transform_matrix"
    if pose.shape != (4, 4):
        raise ValueError(f"{where} must be a 4x4 matrix of numbers")
    if not np.isfinite(pose).all():
        raise ValueError(f"{where} holds NaN or infinity")
    rotation = pose[:3, :3]
    stretched = np.abs(rotation.T @ rotation - np.eye(3)).max() > RIGID_TOLERANCE
    projective = np.abs(pose[3] - [0, 0, 0, 1]).max() > RIGID_TOLERANCE
    if stretched or projective or np.linalg.det(rotation) < 0:
        raise ValueError(f"{where} is not rigid: expected a proper rotation and last row 0 0 0 1")
    return pose.astype(np.float32)


def _premultiplied(paths: Iterable[Path]) -> Tensor:
    """All images as premultiplied float32, [N, H, W, 4]."""
    images: list[Tensor] = []
    for path in paths:
        rgba = torch.from_numpy(_read_rgba(path)).float() / 255
        rgba[..., :3] *= rgba[..., 3:]
        if images and rgba.shape != images[0].shape:
            size, first = (f"{i.shape[1]}x{i.shape[0]}" for i in (rgba, images[0]))
            raise ValueError(f"{path}: image is {size}, the first of its split is {first}")
        images.append(rgba)
    return torch.stack(images)


def _read_rgba(path: Path) -> NDArray[np.uint8]:
    """One PNG with straight alpha, [H, W, 4]."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise ValueError(
            f"{path}: no such image, but its split's transforms JSON names it"
        ) from None
    try:
        with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
            mode, pixels = image.mode, np.array(image)
    except (OSError, SyntaxError) as error:  # Pillow reports a broken chunk as a SyntaxError
        raise ValueError(f"{path}: not a readable PNG ({error})") from None
    if mode != "RGBA":
        raise ValueError(f"{path}: no alpha channel: expected 8-bit RGBA, got mode {mode}")
    return pixels


def _png(
    rgba: Tensor,  # [H, W, 4], premultiplied
) -> bytes:
    """The image as an 8-bit PNG with straight alpha; nothing is known where alpha is 0: black."""
    alpha = rgba[..., 3:]
    color = torch.where(alpha > 0, rgba[..., :3] / alpha.clamp_min(1e-8), 0.0)
    straight = torch.cat([color, alpha], dim=-1).clamp(0, 1)
    pixels = (straight * 255).round().to(torch.uint8).cpu().numpy()
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", compress_level=6)
    return buffer.getvalue()

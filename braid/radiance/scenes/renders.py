"""The teacher's renders: what students learn from, so that they never load the teacher itself.

On disk a folder per set of poses: `rgba.npy` (premultiplied, float16), `depth.npy` (distance along
the unit ray, float16, 0 where nothing is seen) and `cameras.json`; arrays are memory-mapped.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import BadZipFile

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from braid.radiance.scenes.blender import Views
from braid.radiance.scenes.cameras import Cameras, Rays


class RayBatch(NamedTuple):
    """R rays with what the teacher sees along them."""

    rays: Rays
    rgb: Tensor  # [R, 3], premultiplied
    alpha: Tensor  # [R]
    depth: Tensor  # [R]


@dataclass(frozen=True)
class Renders:
    """N rendered views; ray `i` is pixel `i % pixels` of view `i // pixels`."""

    cameras: Cameras
    rgba: NDArray[np.float16]  # [N, H, W, 4]
    depth: NDArray[np.float16]  # [N, H, W]

    def __len__(self) -> int:
        """Rays in all views."""
        return len(self.cameras) * self.cameras.pixels

    def on_white(self) -> Tensor:
        """The images composited over white, [N, H, W, 3]."""
        rgba = torch.from_numpy(self.rgba.astype(np.float32))
        return rgba[..., :3] + (1 - rgba[..., 3:])

    def batch(
        self,
        index: Tensor,  # [R] ray indices
        device: torch.device,
    ) -> RayBatch:
        """The chosen rays and their targets."""
        flat = index.cpu().numpy()
        rgba = torch.from_numpy(self.rgba.reshape(-1, 4)[flat].astype(np.float32)).to(device)
        depth = torch.from_numpy(self.depth.reshape(-1)[flat].astype(np.float32)).to(device)
        index = index.to(self.cameras.camera_to_world.device)
        rays = self.cameras.rays(index // self.cameras.pixels, index % self.cameras.pixels)
        rays = Rays(rays.origins.to(device), rays.directions.to(device))
        return RayBatch(rays, rgba[:, :3], rgba[:, 3], depth)


def joined(*parts: Renders) -> Renders:
    """Sets of views of one size and focal length as one."""
    poses = torch.cat([part.cameras.camera_to_world for part in parts])
    return Renders(
        replace(parts[0].cameras, camera_to_world=poses),
        np.concatenate([part.rgba for part in parts]),
        np.concatenate([part.depth for part in parts]),
    )


def mixed(
    train: Renders,  # of the teacher, from the train views' poses
    random: Renders,  # of the teacher, from poses of its own
    photos: Views,  # the train views
    fraction: float,  # of the views that are photos
) -> Renders:
    """What a student is trained on: the photos and the teacher's random views, by the fraction.

    Photos come with the teacher's depth. Without any, all that the teacher rendered.

    Raises:
        ValueError: there are too few random views for so small a fraction.
    """
    if fraction == 0:
        return joined(train, random)
    count, most = round(len(photos) * (1 / fraction - 1)), len(random.cameras)
    if count > most:
        least = len(photos) / (len(photos) + most)
        raise ValueError(
            f"photos: expected 0 or at least {least:.2f} with {len(photos)} train views and"
            f" {most} random ones (radiance.renders.random_poses), got {fraction}"
        )
    true = Renders(train.cameras, photos.rgba.cpu().numpy().astype(np.float16), train.depth)
    kept = Renders(random.cameras[:count], random.rgba[:count], random.depth[:count])
    return joined(true, kept)


def save_renders(folder: Path, renders: Renders) -> None:
    """Write one set of views into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "rgba.npy", renders.rgba)
    np.save(folder / "depth.npy", renders.depth)
    cameras = renders.cameras
    description = {
        "focal": cameras.focal,
        "width": cameras.width,
        "height": cameras.height,
        "camera_to_world": cameras.camera_to_world.double().tolist(),
    }
    (folder / "cameras.json").write_text(json.dumps(description))


def load_renders(*folders: Path) -> Renders:
    """Read sets of views as one; a single set is memory-mapped.

    Raises:
        ValueError: a file is missing or its shape does not fit the cameras; the message names it.
    """
    parts = [_load(folder) for folder in folders]
    if len(parts) == 1:
        return parts[0]
    sizes = {(part.cameras.focal, part.cameras.width, part.cameras.height) for part in parts}
    if len(sizes) > 1:
        raise ValueError(f"{folders[0].parent}: expected sets of one focal length and image size")
    return joined(*parts)


def save_images(path: Path, frames: list[int], images: Mapping[str, Tensor]) -> None:
    """Write named stacks of images [N, H, W, 3] of the given frames to an `.npz`."""
    arrays: dict[str, Any] = {name: stack.half().cpu().numpy() for name, stack in images.items()}
    with path.open("wb") as file:
        np.savez(file, frames=np.array(frames), **arrays)


def load_images(path: Path) -> tuple[list[int], dict[str, Tensor]]:
    """Read what `save_images` wrote.

    Raises:
        ValueError: the file is missing or broken; the message names it.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        frames = arrays.pop("frames").tolist()
    except (OSError, EOFError, BadZipFile, KeyError, ValueError) as error:
        raise ValueError(f"{path}: expected stored images ({error})") from None
    return frames, {name: torch.from_numpy(array).float() for name, array in arrays.items()}


def _load(folder: Path) -> Renders:
    try:
        cameras = _cameras(json.loads((folder / "cameras.json").read_text()))
        rgba = np.load(folder / "rgba.npy", mmap_mode="r", allow_pickle=False)
        depth = np.load(folder / "depth.npy", mmap_mode="r", allow_pickle=False)
    except (OSError, EOFError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{folder}: expected rgba.npy, depth.npy, cameras.json ({error})"
        ) from None
    shape = (len(cameras), cameras.height, cameras.width)
    if rgba.shape != (*shape, 4) or depth.shape != shape:
        raise ValueError(f"{folder}: expected {shape} views, got {rgba.shape} and {depth.shape}")
    return Renders(cameras, rgba, depth)


def _cameras(stored: dict[str, Any]) -> Cameras:
    poses = torch.tensor(stored["camera_to_world"], dtype=torch.float32)
    return Cameras(poses, stored["focal"], stored["width"], stored["height"])

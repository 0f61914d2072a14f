"""The teacher's renders: what students learn from, so that they never hold the teacher itself.

On disk a folder per set of poses: `rgba.npy` (premultiplied, float16), `depth.npy` (distance along
the unit ray, float16, 0 where nothing is seen) and `cameras.json`; arrays are memory-mapped.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import BadZipFile

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from braid.radiance.scenes.cameras import Cameras, Rays

# ---- Active ray resampling: a mixture of all rays and the ones that the student gets wrong -----
# After PVD-AL (Fang et al. 2023), without its pools. Ray i is drawn with
#
#     p_i = (1 - hard) / N + hard * e_i / sum_j e_j,
#
# e being a running mean of the error in the ray's tile of the image (a tile of 1 pixel: of the
# ray). A loss weighted by 1 / (N p_i) is unbiased: its mean over draws is the mean over all rays;
# with hard = 0 every weight is 1.

_UNSEEN = -1.0  # the error of a tile that no ray was drawn from yet


class Draw(NamedTuple):
    """R rays drawn with replacement, on the CPU, where the targets lie."""

    ray: Tensor  # [R] int64, flat ray numbers: view * pixels + row-major pixel
    weight: Tensor  # [R] float32, 1 / (N p)


class RaySampler(nn.Module):
    """Draws rays of V views of one size; its state, a buffer, is saved with the model's.

    Raises:
        ValueError: `hard` is no share.
    """

    def __init__(
        self,
        views: int,
        width: int,
        height: int,
        *,
        hard: float = 0.5,  # share drawn in proportion to the error, 0: uniform
        decay: float = 0.9,  # of the running error, per visit of a tile
        tile: int = 8,  # pixels a side
    ) -> None:
        super().__init__()
        if not 0 <= hard <= 1:
            raise ValueError(f"resampling: expected a hard share in [0, 1], got {hard}")
        self.width, self.height, self.tile = width, height, tile
        self.hard, self.decay = hard, decay
        self.columns, self.rows = -(-width // tile), -(-height // tile)
        self.rays = views * width * height
        row_sizes = (height - tile * torch.arange(self.rows)).clamp_max(tile)
        column_sizes = (width - tile * torch.arange(self.columns)).clamp_max(tile)
        sizes = torch.outer(row_sizes, column_sizes).flatten().repeat(views)
        self.register_buffer("sizes", sizes, persistent=False)
        self.register_buffer("errors", torch.full((len(sizes),), _UNSEEN))
        self.sizes: Tensor  # [T] rays in each tile
        self.errors: Tensor  # [T] running mean error of a ray there

    def probabilities(self) -> Tensor:
        """p of a ray by tile, [T] float64, summing to 1 over rays; unseen tiles are average."""
        errors = self.errors.cpu().double()
        seen = errors != _UNSEEN
        errors = torch.where(seen, errors, errors[seen].mean() if seen.any() else 1.0)
        total = (errors * self.sizes.cpu()).sum()
        share = errors / total if total > 0 else torch.full_like(errors, 1 / self.rays)
        return (1 - self.hard) / self.rays + self.hard * share

    def draw(self, count: int, generator: torch.Generator) -> Draw:
        """Draw rays."""
        probability = self.probabilities()
        edges = (probability * self.sizes.cpu()).cumsum(0)
        shape = (4, count)
        u, fine, v, w = torch.rand(shape, generator=generator, device=generator.device).cpu()
        u = u.double() + fine.double() / 2**24  # 24 bits are too few to choose among millions
        tile = torch.searchsorted(edges, u * edges[-1], right=True).clamp_max(len(edges) - 1)
        weight = 1 / (self.rays * probability[tile])
        return Draw(self._ray_in(tile, v, w), weight.float())

    def update(
        self,
        ray: Tensor,  # [R] int64
        error: Tensor,  # [R], >= 0
    ) -> None:
        """Take the errors of drawn rays into their tiles' running means."""
        tile = self.tile_of(ray.cpu())
        visited, member = torch.unique(tile, return_inverse=True)
        total = torch.bincount(member, weights=error.detach().cpu().double())
        mean = total / torch.bincount(member)
        visited = visited.to(self.errors.device)
        old = self.errors[visited]
        running = self.decay * old + (1 - self.decay) * mean.to(old)
        self.errors[visited] = torch.where(old == _UNSEEN, mean.to(old), running)

    def _ray_in(self, tile: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """A ray at relative place (u, v) of [0, 1)^2 in each tile."""
        view, place = tile // (self.rows * self.columns), tile % (self.rows * self.columns)
        top, left = place // self.columns * self.tile, place % self.columns * self.tile
        row = top + (u * (self.height - top).clamp_max(self.tile)).long()
        column = left + (v * (self.width - left).clamp_max(self.tile)).long()
        return (view * self.height + row) * self.width + column

    def tile_of(
        self,
        ray: Tensor,  # [R] int64
    ) -> Tensor:
        """The tile of each ray, [R]."""
        pixel = ray % (self.width * self.height)
        row, column = pixel // self.width // self.tile, pixel % self.width // self.tile
        view = ray // (self.width * self.height)
        return (view * self.rows + row) * self.columns + column


def effective_sample_size(
    weight: Tensor,  # [R]
) -> Tensor:
    """(sum w)^2 / sum w^2: how many equally weighted rays the draw is worth."""
    return weight.sum().square() / weight.square().sum()


def hard_share(
    weight: Tensor,  # [R]
) -> Tensor:
    """Share of the draws that fell on rays more likely than under uniform sampling."""
    return (weight < 1).float().mean()


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

    def sampler(self, **options: Any) -> RaySampler:
        """A sampler of these rays; the options are its own."""
        cameras = self.cameras
        return RaySampler(len(cameras), cameras.width, cameras.height, **options)

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
    first = parts[0].cameras
    sizes = {(part.cameras.focal, part.cameras.width, part.cameras.height) for part in parts}
    if len(sizes) > 1:
        raise ValueError(f"{folders[0].parent}: expected sets of one focal length and image size")
    poses = torch.cat([part.cameras.camera_to_world for part in parts])
    return Renders(
        Cameras(poses, first.focal, first.width, first.height),
        np.concatenate([part.rgba for part in parts]),
        np.concatenate([part.depth for part in parts]),
    )


def save_images(path: Path, frames: list[int], images: Mapping[str, Tensor]) -> None:
    """Write named stacks of images [N, H, W, 3] of the given frames to an `.npz`."""
    arrays: dict[str, Any] = {name: each.half().cpu().numpy() for name, each in images.items()}
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
    return frames, {name: torch.from_numpy(each).float() for name, each in arrays.items()}


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

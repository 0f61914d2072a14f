"""The built-in scene: a wheel loader of studded toy bricks on a green plate.

Made here, analytically, so that the pipeline has a scene to start from without any download. The
cameras stand where NeRF-synthetic's do: on the upper hemisphere, some 4 units from the origin, at
that data set's field of view. Bricks keep the toy's proportions: a stud's pitch is the unit of
length, a plate is 0.4 high, a stud 0.3 in radius and 0.2 high.
"""

from __future__ import annotations

import math
import zlib
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from braid.radiance.blender import Views, resize
from braid.radiance.ray_tracing import BOX, Lighting, Solids, screen_rectangles, trace
from braid.radiance.rays import Cameras

CAMERA_ANGLE_X = 0.6911112070083618  # radians; NeRF-synthetic
CAMERA_RADIUS = 4.031128874  # scene units; NeRF-synthetic
LOWEST, HIGHEST = 0.06, 0.97  # height of the cameras on the unit hemisphere

PITCH = 0.19  # scene units between studs
PLATE = 0.4  # height of a plate, in pitches
STUD_RADIUS, STUD_HEIGHT = 0.3, 0.2  # pitches
MIDDLE = (5.0, 4.0, 2.5)  # pitches; the point of the model that lies at the world's origin

COLOURS = {
    "green": (0.24, 0.52, 0.22),
    "yellow": (0.96, 0.74, 0.06),
    "orange": (0.93, 0.45, 0.08),
    "red": (0.78, 0.12, 0.09),
    "blue": (0.10, 0.32, 0.68),
    "glass": (0.45, 0.68, 0.82),
    "white": (0.90, 0.90, 0.86),
    "grey": (0.46, 0.47, 0.48),
    "black": (0.10, 0.10, 0.11),
}


class Brick(NamedTuple):
    """A studded box; x and y in studs, z and height in plates."""

    x: int
    y: int
    z: int
    studs_x: int
    studs_y: int
    height: int
    colour: str

    def covers(self, x: int, y: int, z: int) -> bool:
        """Whether the brick stands on the stud of cell (x, y) whose foot is at z."""
        inside_x = self.x <= x < self.x + self.studs_x
        inside_y = self.y <= y < self.y + self.studs_y
        return inside_x and inside_y and self.z == z


class Drum(NamedTuple):
    """A plain cylinder: its middle, radius and length in pitches, along one axis."""

    middle: tuple[float, float, float]
    radius: float
    length: float
    axis: int
    colour: str


BRICKS = (
    Brick(0, 0, 0, 10, 8, 1, "green"),  # the ground
    Brick(1, 3, 1, 7, 2, 2, "black"),  # chassis
    Brick(0, 2, 3, 8, 4, 1, "grey"),
    Brick(0, 2, 4, 1, 4, 2, "grey"),  # counterweight
    Brick(1, 2, 4, 3, 4, 3, "yellow"),  # cab
    Brick(1, 2, 7, 3, 4, 1, "black"),
    Brick(1, 2, 8, 3, 4, 4, "glass"),
    Brick(0, 2, 12, 2, 4, 1, "red"),  # roof
    Brick(2, 2, 12, 2, 4, 1, "white"),
    Brick(4, 2, 4, 2, 2, 3, "yellow"),  # bonnet
    Brick(4, 4, 4, 2, 2, 3, "yellow"),
    Brick(6, 2, 4, 2, 4, 2, "orange"),
    Brick(4, 3, 7, 3, 2, 1, "grey"),
    Brick(6, 2, 6, 1, 1, 1, "white"),
    Brick(6, 5, 6, 1, 1, 1, "white"),
    Brick(8, 2, 2, 1, 1, 2, "grey"),  # arms
    Brick(8, 5, 2, 1, 1, 2, "grey"),
    Brick(9, 0, 1, 1, 8, 3, "red"),  # blade
    Brick(9, 0, 4, 1, 2, 1, "red"),
    Brick(9, 6, 4, 1, 2, 1, "red"),
    Brick(3, 0, 1, 2, 1, 3, "blue"),  # cargo that lies about
    Brick(4, 7, 1, 2, 1, 1, "white"),
)
WHEELS = tuple((x, tyre, rim) for x in (2.0, 6.6) for tyre, rim in ((1.5, 1.0), (6.5, 7.0)))
DRUMS = (
    *(Drum((x, tyre, 1.5), 1.08, 0.96, 1, "black") for x, tyre, _ in WHEELS),
    *(Drum((x, rim, 1.5), 0.5, 0.16, 1, "yellow") for x, _, rim in WHEELS),
    *(Drum((x, y, 4.0), 0.16, 1.6, 2, "black") for x in (1.1, 3.9) for y in (2.1, 5.9)),  # pillars
    Drum((5.5, 2.4, 3.5), 0.22, 1.4, 2, "black"),  # exhaust
    Drum((2.0, 4.0, 5.5), 0.42, 0.5, 2, "orange"),  # beacon
)


def make_bricks(
    width: int,
    counts: dict[str, int],
    seed: int,
    supersample: int = 3,
) -> dict[str, Views]:
    """The scene's splits, from each split's name to as many views as `counts` says.

    Every pixel is the mean of supersample squared premultiplied samples. A split depends on its own
    name and count only. Raises ValueError for sizes or counts below 1.
    """
    if min(width, supersample, *counts.values()) < 1:
        raise ValueError(
            f"bricks: width {width}, supersample {supersample} and counts {counts} must be positive"
        )
    solids = model()
    focal = 0.5 * width / math.tan(0.5 * CAMERA_ANGLE_X)
    splits = {}
    for split, count in counts.items():
        rng = np.random.default_rng([seed, zlib.crc32(split.encode())])
        cameras = Cameras(hemisphere_poses(count, rng), focal, width, width)
        splits[split] = render_bricks(solids, cameras, supersample, Lighting())
    return splits


def render_bricks(
    solids: Solids,
    cameras: Cameras,
    supersample: int,
    lighting: Lighting,
) -> Views:
    """The solids seen from every camera, over a transparent background."""
    images = []
    for view in range(len(cameras)):
        fine = _finer(cameras[[view]], supersample)
        images.append(resize(Views(fine, _trace_view(solids, fine, lighting)), cameras.width).rgba)
    return Views(cameras, torch.cat(images))


def hemisphere_poses(count: int, rng: np.random.Generator) -> Tensor:
    """Cameras that look at the origin from evenly spread random places, [N, 4, 4] float32.

    Stratified in height, which is uniform in area, and golden-angle steps around; both jittered.
    """
    turn = math.pi * (3 - math.sqrt(5))
    height = LOWEST + (HIGHEST - LOWEST) * (np.arange(count) + rng.random(count)) / count
    azimuth = turn * (np.arange(count) + 0.5 * rng.random(count)) + 2 * math.pi * rng.random()
    ring = np.sqrt(1 - height**2)
    back = np.stack([ring * np.cos(azimuth), ring * np.sin(azimuth), height], axis=1)
    right = np.stack([-np.sin(azimuth), np.cos(azimuth), np.zeros(count)], axis=1)
    poses = np.zeros((count, 4, 4))
    poses[:, :3] = np.stack([right, np.cross(back, right), back, CAMERA_RADIUS * back], axis=2)
    poses[:, 3, 3] = 1
    return torch.from_numpy(poses[rng.permutation(count)]).float()


def model() -> Solids:
    """The loader's boxes, studs and drums, in scene units."""
    rows = [_box(brick) for brick in BRICKS]
    rows += [_cylinder(drum) for brick in BRICKS for drum in _studs(brick)]
    rows += [_cylinder(drum) for drum in DRUMS]
    centre, half, axis, colour = (np.array(column) for column in zip(*rows, strict=True))
    return Solids(PITCH * (centre - MIDDLE), PITCH * half, axis, colour)


_Row = tuple[tuple[float, ...], tuple[float, ...], int, tuple[float, ...]]


def _box(brick: Brick) -> _Row:
    size = (brick.studs_x, brick.studs_y, PLATE * brick.height)
    corner = (brick.x, brick.y, PLATE * brick.z)
    middle = tuple(c + 0.5 * s for c, s in zip(corner, size, strict=True))
    return middle, tuple(0.5 * s for s in size), BOX, COLOURS[brick.colour]


def _cylinder(drum: Drum) -> _Row:
    half = tuple(0.5 * drum.length if i == drum.axis else drum.radius for i in range(3))
    return drum.middle, half, drum.axis, COLOURS[drum.colour]


def _studs(brick: Brick) -> list[Drum]:
    """The studs on top of a brick, but for those inside a brick that stands on it."""
    top = brick.z + brick.height
    cells = [
        (x, y)
        for x in range(brick.x, brick.x + brick.studs_x)
        for y in range(brick.y, brick.y + brick.studs_y)
        if not any(other.covers(x, y, top) for other in BRICKS)
    ]
    height = PLATE * top + 0.5 * STUD_HEIGHT
    return [
        Drum((x + 0.5, y + 0.5, height), STUD_RADIUS, STUD_HEIGHT, 2, brick.colour)
        for x, y in cells
    ]


def _finer(cameras: Cameras, factor: int) -> Cameras:
    """The same cameras with `factor` times the pixels along each side."""
    width, height = factor * cameras.width, factor * cameras.height
    return Cameras(cameras.camera_to_world, factor * cameras.focal, width, height)


def _trace_view(solids: Solids, camera: Cameras, lighting: Lighting) -> Tensor:
    """One camera's image, a sample per pixel, [1, H, W, 4] float32."""
    size = (camera.height, camera.width)
    rays = camera.view_rays(0)
    rectangles = screen_rectangles(
        solids.corners(),
        camera.world_to_camera()[0].double().numpy(),
        camera.focal,
        camera.width,
        camera.height,
    )
    directions = rays.directions.double().numpy().reshape(*size, 3)
    origin = rays.origins[0].double().numpy()
    image = trace(solids, origin, directions, rectangles, lighting)
    return torch.from_numpy(image).float()[None]

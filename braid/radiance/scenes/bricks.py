"""The built-in scenes: a wheel loader of studded toy bricks, and a rack of thin, shiny bars.

Made here, analytically, so that the pipeline has scenes to start from without any download. The
rack is what the loader is not: bars thinner than a pixel, and highlights that move with the view.
The cameras stand where NeRF-synthetic's do: on the upper hemisphere, some 4 units from the
origin, at that data set's field of view. Bricks keep the toy's proportions: a stud's pitch is the
unit of length, a plate is 0.4 high, a stud 0.3 in radius and 0.2 high.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from braid.common.config import BUILT_IN
from braid.radiance.config import BricksConfig
from braid.radiance.scenes.blender import Views, downsample
from braid.radiance.scenes.cameras import Cameras

# ---- Analytic ray tracing of boxes and capped cylinders: the ground truth of the built-in scene
# Both shapes are convex and are met along one interval of a ray, the intersection of slabs (and,
# for a cylinder, of a disc's chord). Lambert shading under one distant light with a hard shadow, a
# hemispherical ambient term, and Blinn-Phong gloss (Blinn 1977), which depends on the view. Shapes
# are culled by the screen (or light-plane) rectangle of their bounding boxes. All in float64.

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]

BOX = -1
SHADOW_OFFSET = 1e-6  # scene units; lifts a shadow ray off the face that it leaves
CORNERS = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], dtype=float)


@dataclass(frozen=True)
class Solids:
    """K boxes and cylinders, aligned with the axes."""

    center: Array  # [K, 3]
    half: Array  # [K, 3] half extents; a cylinder's are its radius twice and half its length
    axis: NDArray[np.int64]  # [K] BOX, or the cylinder's axis 0, 1 or 2
    color: Array  # [K, 3] albedo in [0, 1]

    def __len__(self) -> int:
        return len(self.center)

    def corners(self) -> Array:
        """Corners of the bounding boxes, [K, 8, 3]."""
        return np.asarray(self.center[:, None] + self.half[:, None] * CORNERS)


@dataclass(frozen=True)
class Lighting:
    """One distant light, and how a surface answers it."""

    direction: tuple[float, float, float] = (0.52, -0.40, 0.76)  # towards the light, any length
    sky: tuple[float, float, float] = (-0.45, 0.50, 0.74)  # pole of the ambient hemisphere, unit
    ambient: float = 0.58  # towards the pole; half as much from behind
    diffuse: float = 0.58
    gloss: float = 0.28  # strength of the highlight
    shininess: float = 18.0  # Blinn-Phong exponent

    def towards(self) -> Array:
        """Unit vector towards the light."""
        direction = np.asarray(self.direction)
        return np.asarray(direction / np.linalg.norm(direction))


class Hits(NamedTuple):
    """What each of R rays meets first."""

    distance: Array  # [R], infinity where nothing is met
    solid: NDArray[np.int64]  # [R], -1 where nothing is met


def chord(
    center: Array,  # [3]
    half: Array,  # [3]
    axis: int,
    origins: Array,  # [..., 3]
    directions: Array,  # [..., 3], unit length
) -> tuple[Array, Array]:
    """Distances at which rays enter and leave one solid; it is missed where enter > leave."""
    local = origins - center
    sides = range(3) if axis == BOX else (axis,)
    spans = [_slab(local[..., i], directions[..., i], half[i]) for i in sides]
    if axis != BOX:
        plane = [i for i in range(3) if i != axis]
        spans.append(_disc(local[..., plane], directions[..., plane], half[plane[0]]))
    enter, leave = spans[0]
    for near, far in spans[1:]:
        enter, leave = np.maximum(enter, near), np.minimum(leave, far)
    return enter, leave


def _slab(local: Array, direction: Array, half: float) -> tuple[Array, Array]:
    """The interval of a ray between two parallel planes."""
    with np.errstate(divide="ignore"):
        inverse = 1.0 / np.where(direction == 0, 1e-300, direction)  # 0 * inf would be NaN
    middle, reach = -local * inverse, np.abs(half * inverse)
    return middle - reach, middle + reach


def _disc(local: Array, direction: Array, radius: float) -> tuple[Array, Array]:
    """The interval of a ray within an endless cylinder; [..., 2] across its axis."""
    speed = np.maximum((direction**2).sum(-1), 1e-300)
    middle = -(local * direction).sum(-1) / speed
    nearest = local + middle[..., None] * direction
    squared = (radius**2 - (nearest**2).sum(-1)) / speed
    reach = np.sqrt(np.maximum(squared, 0))
    return middle - reach, np.where(squared >= 0, middle + reach, -np.inf)


def first_hits(
    solids: Solids,
    origin: Array,  # [3] the camera, outside all solids
    directions: Array,  # [H, W, 3], unit length
    rectangles: NDArray[np.int64],  # [K, 4] left, top, right, bottom pixel of each solid
) -> Hits:
    """The nearest solid along each pixel's ray (a z-buffer), each of H * W."""
    distance = np.full(directions.shape[:2], np.inf)
    solid = np.full(directions.shape[:2], -1)
    for k, (left, top, right, bottom) in enumerate(rectangles):
        window = (slice(top, bottom), slice(left, right))
        center, half, axis = solids.center[k], solids.half[k], int(solids.axis[k])
        enter, leave = chord(center, half, axis, origin, directions[window])
        nearer = (enter <= leave) & (enter > 0) & (enter < distance[window])
        distance[window][nearer] = enter[nearer]
        solid[window][nearer] = k
    return Hits(distance.ravel(), solid.ravel())


def screen_rectangles(
    corners: Array,  # [K, 8, 3]
    world_to_camera: Array,  # [4, 4], OpenCV axes
    focal: float,
    width: int,
    height: int,
) -> NDArray[np.int64]:
    """Pixels that each solid may touch: left, top, right, bottom (exclusive), [K, 4].

    Valid while all corners are in front of the camera.
    """
    local = corners @ world_to_camera[:3, :3].T + world_to_camera[:3, 3]
    pixel = focal * local[..., :2] / local[..., 2:] + 0.5 * np.array([width, height])
    low, high = np.floor(pixel.min(axis=1)), np.ceil(pixel.max(axis=1))
    edges = np.clip(np.concatenate([low, high], axis=1), 0, [width, height] * 2)
    return np.asarray(edges, dtype=np.int64)


def normals(
    solids: Solids,
    points: Array,  # [R, 3] on the solids' surfaces
    solid: NDArray[np.int64],  # [R]
) -> Array:
    """Outward unit normals, [R, 3]: of the face or, on a cylinder, the mantle that is nearest."""
    local = (points - solids.center[solid]) / solids.half[solid]
    axis = solids.axis[solid]
    across = np.where(np.arange(3) == axis[:, None], 0.0, local)
    along = local - across
    radius = np.linalg.norm(across, axis=1, keepdims=True)
    mantle = (axis[:, None] != BOX) & (radius >= np.abs(along).max(axis=1, keepdims=True))
    face = np.where(axis[:, None] == BOX, local, along)
    flat = np.sign(face) * (np.arange(3) == np.abs(face).argmax(axis=1)[:, None])
    return np.asarray(np.where(mantle, across / np.maximum(radius, 1e-300), flat))


def in_shadow(
    solids: Solids,
    points: Array,  # [R, 3]
    light: Array,  # [3] unit vector towards the light
) -> Mask:
    """Whether any solid stands between each point and the distant light, [R]."""
    plane = np.linalg.svd(light[None])[2][1:]  # two directions across the light's
    place = points @ plane.T
    order = np.argsort(place[:, 0], kind="stable")
    first, second, sorted_points = place[order, 0], place[order, 1], points[order]
    corners = solids.corners() @ plane.T
    low, high = corners.min(axis=1), corners.max(axis=1)
    shadow = np.zeros(len(points), dtype=bool)
    for k in range(len(solids)):
        start, stop = np.searchsorted(first, [low[k, 0], high[k, 0]])
        band = second[start:stop]
        candidates = start + np.flatnonzero((band >= low[k, 1]) & (band <= high[k, 1]))
        center, half, axis = solids.center[k], solids.half[k], int(solids.axis[k])
        enter, leave = chord(center, half, axis, sorted_points[candidates], light)
        shadow[order[candidates]] |= (enter < leave) & (leave > 0)
    return shadow


def shade(
    color: Array,  # [R, 3] albedo
    normal: Array,  # [R, 3] unit
    view: Array,  # [R, 3] unit, towards the camera
    shadow: Mask,  # [R]
    lighting: Lighting,
) -> Array:
    """Color seen from the view, [R, 3] in [0, 1]."""
    light = lighting.towards()
    lit = np.maximum(normal @ light, 0) * ~shadow
    halfway = view + light
    halfway /= np.linalg.norm(halfway, axis=1, keepdims=True)
    gloss = np.maximum((normal * halfway).sum(axis=1), 0) ** lighting.shininess * (lit > 0)
    sky = lighting.ambient * (0.75 + 0.25 * normal @ lighting.sky)
    seen = color * (sky + lighting.diffuse * lit)[:, None] + lighting.gloss * gloss[:, None]
    return np.asarray(np.clip(seen, 0, 1))


def trace(
    solids: Solids,
    origin: Array,  # [3]
    directions: Array,  # [H, W, 3], unit length
    rectangles: NDArray[np.int64],  # [K, 4]
    lighting: Lighting,
) -> Array:
    """One sample per pixel, RGB and coverage 0 or 1, [H, W, 4]."""
    hits = first_hits(solids, origin, directions, rectangles)
    seen = hits.solid >= 0
    solid, ray = hits.solid[seen], directions.reshape(-1, 3)[seen]
    points = origin + hits.distance[seen, None] * ray
    normal = normals(solids, points, solid)
    shadow = (normal @ lighting.towards()) <= 0
    facing = ~shadow
    lifted = points[facing] + SHADOW_OFFSET * normal[facing]
    shadow[facing] = in_shadow(solids, lifted, lighting.towards())
    image = np.zeros((len(seen), 4))
    image[seen, :3] = shade(solids.color[solid], normal, -ray, shadow, lighting)
    image[seen, 3] = 1
    return image.reshape(*directions.shape[:2], 4)


# ---- The model and its cameras ------------------------------------------------------------------

CAMERA_ANGLE_X = 0.6911112070083618  # radians; NeRF-synthetic
CAMERA_RADIUS = 4.031128874  # scene units; NeRF-synthetic
LOWEST, HIGHEST = 0.06, 0.97  # height of the cameras on the unit hemisphere

PITCH = 0.19  # scene units between studs
PLATE = 0.4  # height of a plate, in pitches
STUD_RADIUS, STUD_HEIGHT = 0.3, 0.2  # pitches
MIDDLE = (5.0, 4.0, 2.5)  # pitches; the point of the model that lies at the world's origin

COLORS = {
    "green": (0.24, 0.52, 0.22),
    "yellow": (0.96, 0.74, 0.06),
    "orange": (0.93, 0.45, 0.08),
    "red": (0.78, 0.12, 0.09),
    "blue": (0.10, 0.32, 0.68),
    "glass": (0.45, 0.68, 0.82),
    "white": (0.90, 0.90, 0.86),
    "gray": (0.46, 0.47, 0.48),
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
    color: str

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
    color: str


BRICKS = (
    Brick(0, 0, 0, 10, 8, 1, "green"),  # the ground
    Brick(1, 3, 1, 7, 2, 2, "black"),  # chassis
    Brick(0, 2, 3, 8, 4, 1, "gray"),
    Brick(0, 2, 4, 1, 4, 2, "gray"),  # counterweight
    Brick(1, 2, 4, 3, 4, 3, "yellow"),  # cab
    Brick(1, 2, 7, 3, 4, 1, "black"),
    Brick(1, 2, 8, 3, 4, 4, "glass"),
    Brick(0, 2, 12, 2, 4, 1, "red"),  # roof
    Brick(2, 2, 12, 2, 4, 1, "white"),
    Brick(4, 2, 4, 2, 2, 3, "yellow"),  # bonnet
    Brick(4, 4, 4, 2, 2, 3, "yellow"),
    Brick(6, 2, 4, 2, 4, 2, "orange"),
    Brick(4, 3, 7, 3, 2, 1, "gray"),
    Brick(6, 2, 6, 1, 1, 1, "white"),
    Brick(6, 5, 6, 1, 1, 1, "white"),
    Brick(8, 2, 2, 1, 1, 2, "gray"),  # arms
    Brick(8, 5, 2, 1, 1, 2, "gray"),
    Brick(9, 0, 1, 1, 8, 3, "red"),  # blade
    Brick(9, 0, 4, 1, 2, 1, "red"),
    Brick(9, 6, 4, 1, 2, 1, "red"),
    Brick(3, 0, 1, 2, 1, 3, "blue"),  # cargo that lies about
    Brick(4, 7, 1, 2, 1, 1, "white"),
)
WHEELS = tuple((x, tire, rim) for x in (2.0, 6.6) for tire, rim in ((1.5, 1.0), (6.5, 7.0)))
DRUMS = (
    *(Drum((x, tire, 1.5), 1.08, 0.96, 1, "black") for x, tire, _ in WHEELS),
    *(Drum((x, rim, 1.5), 0.5, 0.16, 1, "yellow") for x, _, rim in WHEELS),
    *(Drum((x, y, 4.0), 0.16, 1.6, 2, "black") for x in (1.1, 3.9) for y in (2.1, 5.9)),  # pillars
    Drum((5.5, 2.4, 3.5), 0.22, 1.4, 2, "black"),  # exhaust
    Drum((2.0, 4.0, 5.5), 0.42, 0.5, 2, "orange"),  # beacon
)


# ---- The rack: bars and rings of polished metal around glossy blocks -----------------------------

BAR = 0.07  # pitches, radius: .013 scene units, half a pixel at 100 pixels
POLISHED = Lighting(ambient=0.42, diffuse=0.45, gloss=0.9, shininess=25.0)
SHELVES = (0.6, 2.6, 4.6)  # pitches, height


def rack() -> Solids:
    """Posts, wires on three shelves, and what lies on them, in scene units."""
    posts = [Drum((x, y, 2.7), BAR, 5.4, 2, "white") for x in (0.5, 5.0, 9.5) for y in (1.0, 7.0)]
    along = [Drum((5.0, 1.0 + 0.75 * i, z), BAR, 9.0, 0, "gray") for z in SHELVES for i in range(9)]
    across = [
        Drum((0.5 + 4.5 * i, 4.0, z), 1.5 * BAR, 6.0, 1, "white") for z in SHELVES for i in range(3)
    ]
    things = [
        Drum((2.0, 2.5, 3.4), 0.8, 1.6, 2, "red"),
        Drum((7.5, 5.5, 1.2), 1.0, 1.2, 2, "blue"),
        Drum((3.5, 4.5, 5.2), 0.6, 3.0, 0, "orange"),
        Drum((8.0, 2.2, 5.4), 0.7, 1.6, 2, "glass"),
        Drum((2.5, 5.5, 1.0), 0.5, 3.4, 0, "green"),
    ]
    blocks = [Brick(6, 4, 7, 2, 2, 3, "yellow"), Brick(3, 2, 2, 2, 1, 3, "black")]
    rows = [_cylinder(drum) for drum in (*posts, *along, *across, *things)]
    return _solids([*rows, *(_box(block) for block in blocks)])


def made_scene(source: str, config: BricksConfig, seed: int) -> dict[str, Views]:
    """The splits of one of the `BUILT_IN_SCENES`."""
    if source == BUILT_IN:
        return make_bricks(config, seed)
    return make_bricks(config, seed, rack(), POLISHED)


def make_bricks(
    config: BricksConfig,
    seed: int,
    solids: Solids | None = None,  # None: the loader
    lighting: Lighting | None = None,
) -> dict[str, Views]:
    """The scene's splits by name.

    Every pixel is the mean of supersample squared premultiplied samples. A split depends on its own
    name and count only.
    """
    solids, lighting, width = solids or model(), lighting or Lighting(), config.width
    focal = 0.5 * width / math.tan(0.5 * CAMERA_ANGLE_X)
    splits = {}
    for split, count in {"train": config.train, "val": config.val, "test": config.test}.items():
        rng = np.random.default_rng([seed, zlib.crc32(split.encode())])
        cameras = Cameras(hemisphere_poses(count, rng), focal, width, width)
        splits[split] = render_bricks(solids, cameras, config.supersample, lighting)
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
        views = Views(fine, _trace_view(solids, fine, lighting))
        images.append(downsample(views, supersample).rgba)
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
    return _solids([*rows, *(_cylinder(drum) for drum in DRUMS)])


def _solids(rows: list[_Row]) -> Solids:
    """Rows in pitches as solids in scene units."""
    center, half, axis, color = (np.array(column) for column in zip(*rows, strict=True))
    return Solids(PITCH * (center - MIDDLE), PITCH * half, axis, color)


_Row = tuple[tuple[float, ...], tuple[float, ...], int, tuple[float, ...]]


def _box(brick: Brick) -> _Row:
    size = (brick.studs_x, brick.studs_y, PLATE * brick.height)
    corner = (brick.x, brick.y, PLATE * brick.z)
    middle = tuple(c + 0.5 * s for c, s in zip(corner, size, strict=True))
    return middle, tuple(0.5 * s for s in size), BOX, COLORS[brick.color]


def _cylinder(drum: Drum) -> _Row:
    half = tuple(0.5 * drum.length if i == drum.axis else drum.radius for i in range(3))
    return drum.middle, half, drum.axis, COLORS[drum.color]


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
        Drum((x + 0.5, y + 0.5, height), STUD_RADIUS, STUD_HEIGHT, 2, brick.color) for x, y in cells
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

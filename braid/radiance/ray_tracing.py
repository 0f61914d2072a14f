"""Analytic ray tracing of boxes and capped cylinders: the truth behind the built-in scene.

Both shapes are convex and are met along one interval of a ray, the intersection of slabs (and, for
a cylinder, of a disc's chord). Lambert shading under one distant light with a hard shadow, a
hemispherical ambient term, and Blinn-Phong gloss (Blinn 1977), which depends on the view.
Shapes are culled by the screen (or light-plane) rectangle of their bounding boxes. All in float64.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]

BOX = -1
SHADOW_OFFSET = 1e-6  # scene units; lifts a shadow ray off the face that it leaves
CORNERS = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], dtype=float)


@dataclass(frozen=True)
class Solids:
    """K boxes and cylinders, aligned with the axes."""

    centre: Array  # [K, 3]
    half: Array  # [K, 3] half extents; a cylinder's are its radius twice and half its length
    axis: NDArray[np.int64]  # [K] BOX, or the cylinder's axis 0, 1 or 2
    colour: Array  # [K, 3] albedo in [0, 1]

    def __len__(self) -> int:
        return len(self.centre)

    def corners(self) -> Array:
        """Corners of the bounding boxes, [K, 8, 3]."""
        return np.asarray(self.centre[:, None] + self.half[:, None] * CORNERS)


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
    centre: Array,  # [3]
    half: Array,  # [3]
    axis: int,
    origins: Array,  # [..., 3]
    directions: Array,  # [..., 3], unit length
) -> tuple[Array, Array]:
    """Distances at which rays enter and leave one solid; it is missed where enter > leave."""
    local = origins - centre
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
        centre, half, axis = solids.centre[k], solids.half[k], int(solids.axis[k])
        enter, leave = chord(centre, half, axis, origin, directions[window])
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
    local = (points - solids.centre[solid]) / solids.half[solid]
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
        centre, half, axis = solids.centre[k], solids.half[k], int(solids.axis[k])
        enter, leave = chord(centre, half, axis, sorted_points[candidates], light)
        shadow[order[candidates]] |= (enter < leave) & (leave > 0)
    return shadow


def shade(
    colour: Array,  # [R, 3] albedo
    normal: Array,  # [R, 3] unit
    view: Array,  # [R, 3] unit, towards the camera
    shadow: Mask,  # [R]
    lighting: Lighting,
) -> Array:
    """Colour seen from the view, [R, 3] in [0, 1]."""
    light = lighting.towards()
    lit = np.maximum(normal @ light, 0) * ~shadow
    halfway = view + light
    halfway /= np.linalg.norm(halfway, axis=1, keepdims=True)
    gloss = np.maximum((normal * halfway).sum(axis=1), 0) ** lighting.shininess * (lit > 0)
    sky = lighting.ambient * (0.75 + 0.25 * normal @ lighting.sky)
    seen = colour * (sky + lighting.diffuse * lit)[:, None] + lighting.gloss * gloss[:, None]
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
    image[seen, :3] = shade(solids.colour[solid], normal, -ray, shadow, lighting)
    image[seen, 3] = 1
    return image.reshape(*directions.shape[:2], 4)

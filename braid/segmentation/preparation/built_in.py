"""The built-in images in SA-1B's format: drawn scenes, and crops of photos among them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy import ndimage
from skimage.filters import sobel
from skimage.segmentation import felzenszwalb, find_boundaries, watershed

from braid.common.progress import progress
from braid.segmentation.config import ShapesConfig
from braid.segmentation.data.sa1b import encode, pixel_box

# ---- An annotated image that Braid makes itself, written as a pair of SA-1B files --------------

_QUALITY = 92


@dataclass(frozen=True)
class Annotated:
    """An image with the masks of its objects."""

    pixels: NDArray[np.uint8]  # [h, w, 3]
    masks: tuple[NDArray[np.bool_], ...]  # [h, w] each, none empty
    names: tuple[str | None, ...]  # of the masks
    captions: tuple[str, ...]
    exhaustive: bool  # every object has a mask


def write_annotated(folder: Path, identity: int, image: Annotated) -> None:
    """Write sa_<identity>.jpg and sa_<identity>.json."""
    stem = f"sa_{identity}"
    height, width = image.pixels.shape[:2]
    content = {
        "image": {
            "image_id": identity,
            "width": width,
            "height": height,
            "file_name": f"{stem}.jpg",
        },
        "annotations": [
            _annotation(number, mask, name)
            for number, (mask, name) in enumerate(zip(image.masks, image.names, strict=True))
        ],
        "captions": image.captions,
        "exhaustive": image.exhaustive,
    }
    with (folder / f"{stem}.jpg").open("wb") as file:
        Image.fromarray(image.pixels).save(file, "JPEG", quality=_QUALITY)
    (folder / f"{stem}.json").write_text(json.dumps(content), encoding="utf-8")


def _annotation(number: int, mask: NDArray[np.bool_], name: str | None) -> dict[str, Any]:
    rle = encode(mask)
    rows, columns = mask.nonzero()
    distance = np.square(rows - rows.mean()) + np.square(columns - columns.mean())
    nearest = int(distance.argmin())
    return {
        "id": number,
        "segmentation": rle,
        "bbox": pixel_box(rle),
        "area": len(rows),
        "predicted_iou": 1.0,
        "stability_score": 1.0,
        "crop_box": [0, 0, mask.shape[1], mask.shape[0]],
        "point_coords": [[int(columns[nearest]), int(rows[nearest])]],
        **({"noun_phrase": name} if name else {}),
    }


# ---- Crops of the photos that come with scikit-image and scikit-learn, with masks made from them
# The crops of a photo are the tiles of a grid, so that no pixel is in two images: a validation crop
# has nothing of a training one. Coins and a horse have masks by threshold, and names. The other
# photos have the segments of Felzenszwalb and Huttenlocher (2004), which have no names and are not
# all that one could point at. Brick, grass and gravel are surfaces, which count as images without
# objects: negative ones.
#
# Photos are read where the packages were installed; nothing is ever downloaded.

_MOST = 0.5  # of a crop: a larger segment is a background
_THICKNESS = 4  # pixels from an object's edge to the middle; a thinner segment is a contour
_FRAGMENT = 12  # pixels; less of an object at the edge of a crop has no mask

Pixels = NDArray[np.uint8]  # [h, w, 3]
Labels = NDArray[np.int32]  # [h, w], 0 where nothing is


class Photo(NamedTuple):
    """A photo, cut into columns x rows tiles."""

    file: str  # below the folder where packages are installed
    columns: int
    rows: int
    objects: Callable[[Pixels], Labels] | None = None  # of the whole photo; None: segments
    name: str | None = None  # of each object


def coins(pixels: Pixels) -> Labels:
    """Coins that are lighter than their uneven background: the basins of its gradient."""
    gray = pixels[..., 0]
    seeds = np.select([gray < 30, gray > 150], [1, 2])
    inside = ndimage.binary_fill_holes(watershed(sobel(gray), seeds) == 2)
    return ndimage.label(ndimage.binary_opening(inside, iterations=2))[0].astype(np.int32)


def silhouette(pixels: Pixels) -> Labels:
    """A dark object before white."""
    return (pixels[..., 0] < 128).astype(np.int32)


def nothing(pixels: Pixels) -> Labels:
    """A surface."""
    return np.zeros(pixels.shape[:2], np.int32)


def segments(pixels: Pixels) -> Labels:
    """Regions of one color, but those that are rather a background or a contour."""
    labels = felzenszwalb(pixels, scale=200, sigma=0.8, min_size=100).astype(np.int32) + 1
    depth = ndimage.distance_transform_edt(~find_boundaries(labels, mode="inner"))
    thickness = ndimage.maximum(depth, labels, np.arange(labels.max() + 1))
    fraction = np.bincount(labels.ravel()) / labels.size
    labels[((thickness < _THICKNESS) | (fraction > _MOST))[labels]] = 0
    return labels


PHOTOS = (
    Photo("skimage/data/coins.png", 3, 2, coins, "coin"),
    Photo("skimage/data/horse.png", 1, 1, silhouette, "horse"),
    Photo("skimage/data/brick.png", 2, 2, nothing),
    Photo("skimage/data/grass.png", 2, 2, nothing),
    Photo("skimage/data/gravel.png", 2, 2, nothing),
    Photo("skimage/data/astronaut.png", 2, 2),
    Photo("skimage/data/camera.png", 2, 2),
    Photo("skimage/data/chelsea.png", 3, 2),
    Photo("skimage/data/coffee.png", 3, 2),
    Photo("skimage/data/hubble_deep_field.jpg", 3, 3),
    Photo("skimage/data/motorcycle_left.png", 3, 2),
    Photo("skimage/data/rocket.jpg", 3, 2),
    Photo("sklearn/datasets/images/china.jpg", 3, 2),
    Photo("sklearn/datasets/images/flower.jpg", 3, 2),
)
TILES = [(photo, tile) for photo in PHOTOS for tile in range(photo.columns * photo.rows)]


def crop_photo(number: int, *, size: int) -> Annotated:
    """Cut out a tile and find its objects.

    Args:
        number: of `TILES`.
        size: pixels of the shorter side; tiles that are smaller stay as they are.

    Raises:
        ValueError: the photo is not where its package was installed.
    """
    photo, tile = TILES[number]
    image, labels = _read(photo)
    width, height = image.width // photo.columns, image.height // photo.rows
    x, y = tile % photo.columns * width, tile // photo.columns * height
    box = (x, y, x + width, y + height)
    scale = min(1, size / min(width, height))
    shape = (round(width * scale), round(height * scale))
    pixels = np.array(image.resize(shape, Image.Resampling.BILINEAR, box))
    if labels is None:
        objects = segments(pixels)
    else:
        objects = np.array(Image.fromarray(labels).resize(shape, Image.Resampling.NEAREST, box))
    areas = np.bincount(objects.ravel())[1:]
    kept = np.flatnonzero(areas >= _FRAGMENT) + 1
    return Annotated(
        pixels=pixels,
        masks=tuple(objects == label for label in kept),
        names=(photo.name,) * len(kept),
        captions=(),
        exhaustive=labels is not None and len(kept) == int((areas > 0).sum()),
    )


@cache
def _read(photo: Photo) -> tuple[Image.Image, Labels | None]:
    """A photo, and its objects where they are found in the whole of it."""
    package, _, file = photo.file.partition("/")
    spec = find_spec(package)  # to import scikit-learn's images would take a second
    folders = (spec and spec.submodule_search_locations) or ()
    for path in (Path(folder) / file for folder in folders):
        if path.is_file():
            with path.open("rb") as content:
                image = Image.open(content).convert("RGB")
            return image, photo.objects(np.asarray(image)) if photo.objects else None
    raise ValueError(f"{photo.file}: not installed, expected it to come with the package")


# ---- Drawn scenes: shapes of four kinds in four colors, with exact masks and names -------------
# Real segmentation data have neither names nor the certainty that nothing was left out. Here both
# are known, so that text prompts have known targets, the negative ones as well.

COLORS = {
    "red": (205, 45, 45),
    "green": (45, 150, 65),
    "blue": (50, 80, 200),
    "yellow": (230, 200, 45),
}
SHAPES = ("circle", "square", "triangle", "star")
VISIBLE = 0.6  # of a shape, at least
_DIAMETERS = (0.22, 0.46)  # as fractions of the image's shorter side
_TILT = 0.35  # radians, at most
_COLOR_JITTER, _NOISE = 15, 4  # of 255
_BRIGHTNESS = (0.75, 1.1)
_RESIZED, _STRETCH = 0.25, 1.4  # the fraction of images whose sides are up to this much longer
_SUPERSAMPLE = 4  # samples a pixel's side
_TRIES = 20  # to find a place

Mask = NDArray[np.bool_]


def draw_scene(rng: np.random.Generator, *, size: int, most_shapes: int) -> Annotated:
    """Draw one to ``most_shapes`` shapes, fewer if they find no place.

    Args:
        rng: of all draws.
        size: pixels a side; a quarter of the scenes has sides of up to 1.4 times that.
        most_shapes: in a scene.
    """
    stretch = rng.uniform(1, _STRETCH, 2) if rng.random() < _RESIZED else np.ones(2)
    height, width = (round(side) for side in size * stretch)
    canvas = _background(rng, height, width)
    names: list[str] = []
    masks: list[Mask] = []
    areas: list[int] = []
    for _ in range(rng.integers(1, most_shapes + 1)):
        color, shape = str(rng.choice(list(COLORS))), str(rng.choice(SHAPES))
        # Where two shapes of one color overlapped, their common edge could hardly be seen.
        needed = [
            int(mask.sum()) if name.startswith(color) else VISIBLE * area
            for mask, name, area in zip(masks, names, areas, strict=True)
        ]
        cover = _place(rng, shape, masks, needed, (height, width))
        if cover is None:
            continue
        shade = COLORS[color] + rng.integers(-_COLOR_JITTER, _COLOR_JITTER + 1, 3)
        canvas.paste(tuple(shade.tolist()), mask=cover)
        own = _inside(cover)
        masks = [*(mask & ~own for mask in masks), own]
        areas.append(int(own.sum()))
        names.append(f"{color} {shape}")
    pixels = np.asarray(canvas) * np.float32(rng.uniform(*_BRIGHTNESS))
    pixels += _NOISE * rng.standard_normal(pixels.shape, np.float32)
    return Annotated(
        pixels=pixels.clip(0, 255).astype(np.uint8),
        masks=tuple(masks),
        names=tuple(names),
        captions=(_caption(rng, names),),
        exhaustive=True,
    )


def cover_of(
    shape: str, center: NDArray[np.float64], radius: float, tilt: float, size: tuple[int, int]
) -> Image.Image:
    """The fraction of each pixel that a shape covers, 255 for all of it.

    Args:
        shape: of `SHAPES`.
        center: x, y in pixels.
        radius: of the circle around the shape, in pixels.
        tilt: clockwise, in radians.
        size: height and width in pixels.
    """
    turns = {"circle": 48, "square": 4, "triangle": 3, "star": 10}[shape]
    angle = tilt + np.linspace(0, 2 * np.pi, turns, endpoint=False)
    angle += np.pi / 4 if shape == "square" else -np.pi / 2
    reach = np.where(np.arange(turns) % 2 & (shape == "star"), 0.45, 1.0) * radius
    corners = center + reach[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1)
    fine = Image.new("L", (size[1] * _SUPERSAMPLE, size[0] * _SUPERSAMPLE))
    ImageDraw.Draw(fine).polygon([tuple(corner) for corner in corners * _SUPERSAMPLE], fill=255)
    return fine.reduce(_SUPERSAMPLE)


def _inside(cover: Image.Image) -> Mask:
    """The pixels of which a shape covers at least half, [height, width]."""
    return np.asarray(cover) >= 128


def _place(
    rng: np.random.Generator,
    shape: str,
    masks: Sequence[Mask],
    needed: Sequence[float],  # pixels of each mask that are to remain
    size: tuple[int, int],
) -> Image.Image | None:
    """A shape where it leaves enough of the others; None if no such place was found."""
    radius = min(size) * rng.uniform(*_DIAMETERS) / 2
    tilt = rng.uniform(-_TILT, _TILT)
    for _ in range(_TRIES):
        center = rng.uniform(radius, np.array(size[::-1]) - radius)
        cover = cover_of(shape, center, radius, tilt, size)
        free = ~_inside(cover)
        remaining = [(mask & free).sum() for mask in masks]
        if all(left >= least for left, least in zip(remaining, needed, strict=True)):
            return cover
    return None


def _background(rng: np.random.Generator, height: int, width: int) -> Image.Image:
    """A muted color, blotched at a random scale."""
    base = rng.uniform(70, 180) + rng.uniform(-20, 20, 3)
    cells = rng.integers(2, 13, 2)
    blotches = base + rng.normal(0, rng.uniform(5, 25), (*cells, 1)) + rng.normal(0, 5, (*cells, 3))
    coarse = Image.fromarray(blotches.clip(0, 255).astype(np.uint8))
    return coarse.resize((width, height), Image.Resampling.BICUBIC)


def _caption(rng: np.random.Generator, names: Sequence[str]) -> str:
    """A sentence that names two of the objects, or the only one."""
    kinds = sorted(set(names))
    named = rng.permutation(kinds)[:2]
    return " and ".join(f"a {name}" for name in named)


def write_built_in(folder: Path, config: ShapesConfig, *, size: int, seed: int) -> None:
    """Write sa_1 and so forth; photos stand at equal distances, so that each split has its part.

    Args:
        folder: where to write; made if it is not there.
        config: how many images of either kind.
        size: pixels of the shorter side.
        seed: of all draws.

    Raises:
        ValueError: there are not as many crops, or a photo is not installed.
    """
    if config.photos > len(TILES):
        raise ValueError(f"sam3.shapes.photos is {config.photos}, expected at most {len(TILES)}")
    folder.mkdir(parents=True, exist_ok=True)
    photos, count = config.photos, config.scenes + config.photos
    crops = np.random.default_rng([seed, 0]).permutation(len(TILES))
    for place in progress(range(count), "shapes and photos", "image"):
        before, after = place * photos // count, (place + 1) * photos // count
        if after > before:
            image = crop_photo(crops[before], size=size)
        else:
            rng = np.random.default_rng([seed, 1, place])
            image = draw_scene(rng, size=size, most_shapes=config.most_shapes)
        write_annotated(folder, place + 1, image)

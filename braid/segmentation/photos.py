"""Crops of the photos that come with scikit-image and scikit-learn, with masks made from them.

The crops of a photo are the tiles of a grid, so that no pixel is in two images: a validation crop
has nothing of a training one. Coins and a horse have masks by threshold, and names. The other
photos have the segments of Felzenszwalb and Huttenlocher (2004), which have no names and are not
all that one could point at. Brick, grass and gravel are surfaces, which count as images without
objects: negative ones.

Photos are read where the packages were installed; nothing is ever downloaded.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from skimage.filters import sobel
from skimage.segmentation import felzenszwalb, find_boundaries, watershed

from braid.segmentation.annotated import Annotated

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
    grey = pixels[..., 0]
    seeds = np.select([grey < 30, grey > 150], [1, 2])
    inside = ndimage.binary_fill_holes(watershed(sobel(grey), seeds) == 2)
    return ndimage.label(ndimage.binary_opening(inside, iterations=2))[0].astype(np.int32)


def silhouette(pixels: Pixels) -> Labels:
    """A dark object before white."""
    return (pixels[..., 0] < 128).astype(np.int32)


def nothing(pixels: Pixels) -> Labels:
    """A surface."""
    return np.zeros(pixels.shape[:2], np.int32)


def segments(pixels: Pixels) -> Labels:
    """Regions of one colour, but those that are rather a background or a contour."""
    labels = felzenszwalb(pixels, scale=200, sigma=0.8, min_size=100).astype(np.int32) + 1
    depth = ndimage.distance_transform_edt(~find_boundaries(labels, mode="inner"))
    thickness = ndimage.maximum(depth, labels, np.arange(labels.max() + 1))
    share = np.bincount(labels.ravel()) / labels.size
    labels[((thickness < _THICKNESS) | (share > _MOST))[labels]] = 0
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
        found = segments(pixels)
    else:
        found = np.array(Image.fromarray(labels).resize(shape, Image.Resampling.NEAREST, box))
    areas = np.bincount(found.ravel())[1:]
    kept = np.flatnonzero(areas >= _FRAGMENT) + 1
    return Annotated(
        pixels=pixels,
        masks=tuple(found == label for label in kept),
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

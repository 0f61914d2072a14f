"""The built-in images in SA-1B's format: drawn scenes, and crops of photos among them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from braid.segmentation.annotated import write_annotated
from braid.segmentation.photos import TILES, crop_photo
from braid.segmentation.shapes import draw_scene


def write_built_in(
    folder: Path, *, scenes: int, photos: int, most_shapes: int, size: int, seed: int
) -> None:
    """Write sa_1 and so forth; photos stand at equal distances, so that each split has its share.

    Args:
        folder: where to write; made if it is not there.
        scenes: how many are drawn.
        photos: how many crops of photos.
        most_shapes: in a scene.
        size: pixels of the shorter side.
        seed: of all draws.

    Raises:
        ValueError: there are not as many crops, or a photo is not installed.
    """
    if photos > len(TILES):
        raise ValueError(f"shapes.photos is {photos}, expected at most {len(TILES)}")
    folder.mkdir(parents=True, exist_ok=True)
    count = scenes + photos
    crops = np.random.default_rng([seed, 0]).permutation(len(TILES))
    for place in range(count):
        before, after = place * photos // count, (place + 1) * photos // count
        if after > before:
            image = crop_photo(crops[before], size=size)
        else:
            rng = np.random.default_rng([seed, 1, place])
            image = draw_scene(rng, size=size, most_shapes=most_shapes)
        write_annotated(folder, place + 1, image)

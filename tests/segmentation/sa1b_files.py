"""Small folders of SA-1B pairs for tests."""

import json

import numpy as np

from braid.segmentation.preparation.built_in import Annotated, write_annotated

HEIGHT, WIDTH = 40, 60


def rectangle(top, bottom, left, right, height=HEIGHT, width=WIDTH):
    """A mask of a rectangle, [height, width]."""
    mask = np.zeros((height, width), bool)
    mask[top:bottom, left:right] = True
    return mask


MASKS = (rectangle(0, 20, 0, 30), rectangle(10, 35, 40, 55))


def smooth_pixels(number, height=HEIGHT, width=WIDTH):
    """A gradient of an own color, which JPEG hardly changes, [height, width, 3]."""
    ramp = np.add.outer(np.arange(height), np.arange(width)) / (height + width)
    color = np.random.default_rng(number).uniform(80, 220, 3)
    return (ramp[..., None] * color).astype(np.uint8)


def some_image(number=0, masks=MASKS, names=(None, None), captions=(), exhaustive=False):
    """An image with two rectangles and, as in SA-1B, no names."""
    return Annotated(smooth_pixels(number), masks, names, captions, exhaustive)


def write_pairs(folder, ids):
    """Write a pair for each id; the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for identity in ids:
        write_annotated(folder, identity, some_image(identity))
    return folder


def change_json(path, change):
    """Let `change` alter the content of a JSON file."""
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))

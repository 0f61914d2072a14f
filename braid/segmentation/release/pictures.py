"""From a picture to what a model takes, and from what it predicts to masks on the picture.

NumPy, Pillow and pycocotools, no PyTorch: the same code serves the model in PyTorch and in ONNX.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageOps
from pycocotools import mask as coco

Box = tuple[float, float, float, float]  # xyxy in pixels of the picture
Array = NDArray[np.float32]

COLORS = ((230, 97, 1), (0, 114, 178), (0, 158, 115), (204, 121, 167), (230, 159, 0))
VEIL = 0.5  # opacity of a mask
LINE = 16  # pixels of a line of the legend, at least
LEAST = 400  # pixels across, of what is drawn


@dataclass(frozen=True)
class Found:
    """What was found of one prompt in a picture, the surest first."""

    prompt: str | Box
    presence: float  # the probability that it is in the picture at all
    scores: Array  # [N]
    boxes: Array  # [N, 4] xyxy in pixels
    masks: NDArray[np.bool_]  # [N, height, width]


def upright(image: Image.Image) -> Image.Image:
    """The picture in RGB, turned as its camera says."""
    return ImageOps.exif_transpose(image).convert("RGB")


def squashed(image: Image.Image, size: int) -> Array:
    """A picture as the model takes it, [1, 3, size, size] in [-1, 1].

    Squashed to a square by Pillow, bilinear and antialiased, as the images of the training were;
    `Sam3ImageProcessor` differs by one level of 255 at 1008 pixels, by more at small sizes.
    """
    pixels = np.asarray(image.resize((size, size), Image.Resampling.BILINEAR), np.float32)
    return (pixels / np.float32(127.5) - 1).transpose(2, 0, 1)[None]


def relative(box: Box, image: Image.Image) -> Box:
    """A box of the picture as cxcywh in [0, 1].

    Raises:
        ValueError: it has no area within the picture.
    """
    x0, y0, x1, y1 = box
    width, height = image.size
    if not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
        raise ValueError(f"box {box}: expected x0 < x1 and y0 < y1 within {width} x {height}")
    return (
        (x0 + x1) / 2 / width,
        (y0 + y1) / 2 / height,
        (x1 - x0) / width,
        (y1 - y0) / height,
    )


def found_of(
    prompt: str | Box,
    masks: Array,  # [Q, h, w] logits
    boxes: Array,  # [Q, 4] xyxy in [0, 1]
    logits: Array,  # [Q]
    presence: float,  # logit
    size: tuple[int, int],  # width and height of the picture
    score: float,
) -> Found:
    """The queries with a higher score, on the picture."""
    scores = _sigmoid(logits) * _sigmoid(np.float32(presence))
    order = [int(query) for query in np.argsort(-scores, kind="stable") if scores[query] > score]
    width, height = size
    drawn = [_enlarged(masks[query], size) > 0 for query in order]
    return Found(
        prompt=prompt,
        presence=float(_sigmoid(np.float32(presence))),
        scores=scores[order],
        boxes=boxes[order] * np.array([width, height, width, height], np.float32),
        masks=np.stack(drawn) if drawn else np.zeros((0, height, width), bool),
    )


def _enlarged(logits: Array, size: tuple[int, int]) -> Array:
    """Logits of a mask on the picture's grid, bilinear."""
    small = Image.fromarray(np.ascontiguousarray(logits, np.float32))
    return np.asarray(small.resize(size, Image.Resampling.BILINEAR))


def _sigmoid(x: Any) -> Any:
    return 1 / (1 + np.exp(-x))


def as_json(picture: str, image: Image.Image, found: Sequence[Found]) -> dict[str, Any]:
    """What was found, with masks as COCO's compressed run lengths."""
    return {
        "picture": picture,
        "width": image.width,
        "height": image.height,
        "prompts": [
            {
                "prompt": part.prompt if isinstance(part.prompt, str) else list(part.prompt),
                "presence": round(part.presence, 6),
                "objects": [
                    {
                        "score": round(float(score), 6),
                        "box": [round(float(side), 2) for side in box],
                        "segmentation": run_lengths(mask),
                    }
                    for score, box, mask in zip(part.scores, part.boxes, part.masks, strict=True)
                ],
            }
            for part in found
        ],
    }


def run_lengths(mask: NDArray[np.bool_]) -> dict[str, Any]:
    """A mask as COCO's compressed run lengths."""
    rle = coco.encode(np.asfortranarray(mask, np.uint8))
    return {"size": list(mask.shape), "counts": rle["counts"].decode("ascii")}


def drawn(image: Image.Image, found: Sequence[Found]) -> Image.Image:
    """The picture with the masks of each prompt in a color, and a legend; a small one enlarged."""
    pixels = np.asarray(image, np.float32).copy()
    for number, part in enumerate(found):
        shade = np.array(COLORS[number % len(COLORS)], np.float32)
        for mask in part.masks:
            pixels[mask] = (1 - VEIL) * pixels[mask] + VEIL * shade
    factor = -(-LEAST // image.width)  # a legend needs its width
    width, height = factor * image.width, factor * image.height
    line = max(LINE, height // 20)
    legend = Image.new("RGB", (width, height + line * len(found)), "white")
    painted = Image.fromarray(pixels.astype(np.uint8))
    legend.paste(painted.resize((width, height), Image.Resampling.NEAREST))
    pen = ImageDraw.Draw(legend)
    for number, part in enumerate(found):
        color, top = COLORS[number % len(COLORS)], height + number * line
        for box in part.boxes:
            pen.rectangle([factor * float(side) for side in box], outline=color, width=line // LINE)
        scores = " ".join(f"{score:.2f}" for score in part.scores) or "nothing"
        name = part.prompt if isinstance(part.prompt, str) else "box"
        text = f"{name} ({part.presence:.2f}): {scores}"
        pen.text((3, top), text, fill=color, font_size=int(0.75 * line))
    return legend

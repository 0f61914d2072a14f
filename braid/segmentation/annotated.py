"""An annotated image that Braid makes itself, written as a pair of SA-1B files."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from braid.segmentation.run_lengths import encode, pixel_box

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
    centre = np.square(rows - rows.mean()) + np.square(columns - columns.mean())
    nearest = int(centre.argmin())
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

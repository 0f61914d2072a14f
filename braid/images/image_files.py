"""Image files to squares of pixels: decoded, cropped and resized, none of them trusted.

The random crop is that of Inception (Szegedy et al. 2015) without its rejection loop: an area of
8 to 100 % and an aspect ratio of 3/4 to 4/3, each side then cut to the image's own. A crop is so a
function of four uniform numbers, and a batch that is asked for again keeps its bytes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

AREA = (0.08, 1.0)  # of the image
RATIO = (3 / 4, 4 / 3)  # width to height

Box = tuple[float, float, float, float]  # left, top, right, bottom, in pixels


class FileImages:
    """Images of a folder, as bytes [3, size, size]; decoded by as many threads as PyTorch has."""

    dtype = torch.uint8

    def __init__(self, root: Path, names: Sequence[str], *, size: int) -> None:
        self._root = root
        self._names = names
        self._size = size

    def read(self, images: NDArray[np.int64], uniforms: Tensor | None) -> Tensor:
        """Squares of the images, [B, 3, size, size] uint8.

        Args:
            images: [B] places in the names.
            uniforms: [B, 4] in [0, 1), one random crop a row; without them the central squares.

        Raises:
            ValueError: an image is gone, or cannot be decoded any more.
        """
        crops = [None] * len(images) if uniforms is None else uniforms.tolist()
        with ThreadPoolExecutor(torch.get_num_threads()) as threads:
            squares = list(threads.map(self._square, images.tolist(), crops))
        shape = (len(squares), 3, self._size, self._size)
        return torch.from_numpy(np.array(squares, np.uint8).reshape(shape))

    def _square(self, image: int, uniforms: Sequence[float] | None) -> NDArray[np.uint8]:
        name = self._names[image]
        try:
            return square(open_picture(inside(self._root, name)), self._size, uniforms)
        except ValueError as error:
            again = "run `dvc repro -f prepare_images` again"
            raise ValueError(f"{self._root / name}: {error}; {again}") from None


def inside(root: Path, name: str) -> Path:
    """The path of a file of the folder, which is given resolved.

    Raises:
        ValueError: the name, or a link that it goes through, leads out of the folder.
    """
    path = root / name
    parts = PurePosixPath(name)
    if parts.is_absolute() or ".." in parts.parts or not path.resolve().is_relative_to(root):
        raise ValueError(f"{name}: leads out of its folder")
    return path


def open_picture(path: Path) -> Image.Image:
    """One image, decoded, in RGB, and upright as its EXIF says; of several frames the first.

    Raises:
        ValueError: it cannot be decoded; the reason in one line.
    """
    try:
        with Image.open(path) as file:
            if file.mode.startswith(("I", "F")):
                raise ValueError(f"its pixels are of mode {file.mode}, expected 8 bits a channel")
            return ImageOps.exif_transpose(file).convert("RGB")
    except UnidentifiedImageError:
        raise ValueError("not an image in a format that can be read") from None
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:  # as Pillow's plugins do
        raise ValueError(" ".join(str(error).split()) or type(error).__name__) from None


def square(
    picture: Image.Image,
    size: int,
    uniforms: Sequence[float] | None = None,  # four in [0, 1); none: the central square
) -> NDArray[np.uint8]:
    """The picture cropped and resized, [3, size, size]; antialiased by Pillow where it shrinks."""
    width, height = picture.size
    box = central_box(width, height) if uniforms is None else random_box(width, height, uniforms)
    resized = picture.resize((size, size), Image.Resampling.BILINEAR, box=box)
    return np.asarray(resized).transpose(2, 0, 1)


def central_box(width: int, height: int) -> Box:
    """The largest central square."""
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    return left, top, left + side, top + side


def random_box(width: int, height: int, uniforms: Sequence[float]) -> Box:
    """A box whose area, aspect ratio, left and top come from four uniform numbers in [0, 1)."""
    area = width * height * (AREA[0] + (AREA[1] - AREA[0]) * uniforms[0])
    low, high = (math.log(each) for each in RATIO)
    ratio = math.exp(low + (high - low) * uniforms[1])
    across = min(math.sqrt(area * ratio), width)
    down = min(math.sqrt(area / ratio), height)
    left, top = (width - across) * uniforms[2], (height - down) * uniforms[3]
    return left, top, left + across, top + down

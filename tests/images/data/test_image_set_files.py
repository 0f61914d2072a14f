from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from braid.images.data.image_set import (
    AREA,
    RATIO,
    FileImages,
    Index,
    central_box,
    linked_path,
    random_box,
    read_picture,
    square,
)
from tests.images.picture_folder import turned_photo, write_picture


def gradient(width: int, height: int) -> Image.Image:
    """Red grows by one a pixel to the right, green downwards."""
    across, down = np.meshgrid(np.arange(width), np.arange(height))
    return Image.fromarray(np.stack([across, down, 0 * down], -1).astype(np.uint8))


def test_the_central_square_is_cropped() -> None:
    assert central_box(10, 6) == (2, 0, 8, 6)
    assert central_box(6, 11) == (0, 2.5, 6, 8.5)
    pixels = square(gradient(10, 6), 6)
    assert pixels.shape == (3, 6, 6)
    assert pixels.dtype == np.uint8
    assert (pixels[0] == np.arange(2, 8)).all()
    assert (pixels[1] == np.arange(6)[:, None]).all()


def test_shrinking_is_antialiased() -> None:
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    pixels = square(Image.fromarray(stripes), 8)
    assert np.abs(pixels.astype(float) - 127.5).max() < 12  # a bilinear sample would give 0 or 255


def test_a_random_box_lies_in_the_image_and_covers_its_ranges() -> None:
    uniforms = torch.rand(500, 4, generator=torch.Generator().manual_seed(0)).tolist()
    boxes = np.array([random_box(400, 400, numbers) for numbers in uniforms])
    left, top, right, bottom = boxes.T
    assert (left >= 0).all()
    assert (top >= 0).all()
    assert (right <= 400 + 1e-9).all()
    assert (bottom <= 400 + 1e-9).all()
    width, height = right - left, bottom - top
    ratio = (width / height)[(width < 400) & (height < 400)]
    assert RATIO[0] - 1e-9 <= ratio.min() < 0.77 < 1.3 < ratio.max() <= RATIO[1] + 1e-9
    area = width * height / 400**2
    assert AREA[0] - 1e-9 <= area.min() < 0.1
    assert area.max() > 0.85
    assert abs(area.mean() - 0.52) < 0.04
    inner = width < 360
    assert (
        np.corrcoef(left[inner] / (400 - width[inner]), np.array(uniforms)[inner, 2])[0, 1] > 0.99
    )


def test_a_box_of_known_numbers() -> None:
    area = (0.25 - AREA[0]) / (AREA[1] - AREA[0])
    box = random_box(100, 80, (area, 0.5, 0.0, 1.0))
    side = (100 * 80 * 0.25) ** 0.5
    assert box == pytest.approx((0, 80 - side, side, 80))
    assert random_box(100, 10, (0.9, 0.5, 0.3, 0.3))[1::2] == (0, 10)  # cut to the image


def test_any_colours_become_three_channels(tmp_path: Path) -> None:
    picture = gradient(9, 9)
    for mode, suffix in (
        ("L", "png"),
        ("P", "png"),
        ("RGBA", "webp"),
        ("CMYK", "jpg"),
        ("1", "bmp"),
    ):
        path = tmp_path / f"{mode}.{suffix}"
        picture.convert(mode).save(path)
        assert read_picture(path)[0].mode == "RGB"


def test_an_image_is_turned_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    gradient(12, 8).save(tmp_path / "turned.png", exif=exif)
    assert read_picture(tmp_path / "turned.png")[0].size == (8, 12)


_AFTER = struct.pack("<I", 8 + 2 + 2 * 12 + 4)  # where the values of the second entry begin


@pytest.mark.parametrize(
    "photo",
    [
        turned_photo(struct.pack("<HHI", 0x11A, 10, 1) + _AFTER, struct.pack("<ii", -1, 0)),
        turned_photo(struct.pack("<HHIi", 0x11A, 9, 1, -123456)),  # a resolution as an integer
        turned_photo(struct.pack("<HHI", 0x11A, 2, 2) + b"7\0\0\0"),  # or as text
        turned_photo(struct.pack("<HHI", 0x10F, 12, 1) + _AFTER, struct.pack("<d", 1.0)),  # maker
        turned_photo(struct.pack("<HHIf", 0x100, 11, 1, 16.0)),  # a width as float
    ],
)
def test_a_photo_is_turned_upright_though_its_exif_cannot_be_written_anew(
    tmp_path: Path, photo: bytes
) -> None:
    (tmp_path / "photo.jpg").write_bytes(photo)
    upright, _ = read_picture(tmp_path / "photo.jpg")
    with Image.open(tmp_path / "photo.jpg") as stored:
        expected = np.rot90(np.asarray(stored), -1)
    np.testing.assert_array_equal(np.asarray(upright), expected)


@pytest.mark.parametrize("orientation", range(10))
def test_orientations_are_pillow_s(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "turned.png"
    gradient(12, 8).save(path, exif=exif)
    with Image.open(path) as stored:
        expected = ImageOps.exif_transpose(stored)
    np.testing.assert_array_equal(np.asarray(read_picture(path)[0]), np.asarray(expected))


@pytest.mark.parametrize("error", [struct.error, TypeError, AttributeError, KeyError, MemoryError])
def test_whatever_a_decoder_raises_is_a_reason_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    def broken(*_: Any) -> None:
        raise error("two\nlines")

    path = write_picture(tmp_path / "a.png")
    monkeypatch.setattr(Image.Image, "getexif", broken)
    with pytest.raises(ValueError, match=rf"cannot be decoded \({error.__name__}: ") as caught:
        read_picture(path)
    assert "\n" not in str(caught.value)


def test_what_cannot_be_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = write_picture(tmp_path / "whole.png", size=(40, 40))
    (tmp_path / "cut.png").write_bytes(whole.read_bytes()[:2000])
    (tmp_path / "text.jpg").write_text("no image")
    (tmp_path / "empty.png").touch()
    Image.fromarray(np.ones((4, 4), np.uint16)).save(tmp_path / "deep.png")
    for name, reason in (
        ("cut.png", "truncated"),
        ("text.jpg", "not an image"),
        ("empty.png", "not an image"),
        ("deep.png", "mode I;16, expected 8 bits"),
        ("none.png", "No such file"),
    ):
        with pytest.raises(ValueError, match=reason) as caught:
            read_picture(tmp_path / name)
        assert "\n" not in str(caught.value)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ValueError, match="decompression bomb"):
        read_picture(whole)


def test_a_name_never_leaves_the_folder_nor_a_link_unless_it_may(tmp_path: Path) -> None:
    root = tmp_path / "root"
    write_picture(tmp_path / "secret.png")
    write_picture(root / "a/0.png")
    (root / "a/link.png").symlink_to(tmp_path / "secret.png")
    (root / "a/near.png").symlink_to(root / "a/0.png")
    for links in ("inside", "follow"):
        assert linked_path(root, "a/0.png", links) == root / "a/0.png"
        linked_path(root, "a/near.png", links)
        for name in ("../secret.png", "a/../../secret.png", str(tmp_path / "secret.png")):
            with pytest.raises(ValueError, match="its name leads out of its folder"):
                linked_path(root, name, links)
    with pytest.raises(ValueError, match=r"a link that leads out of its folder; images\.links: fo"):
        linked_path(root, "a/link.png", "inside")
    assert linked_path(root, "a/link.png", "follow").is_file()


def file_images(root: Path, names: list[str], size: int) -> FileImages:
    """The files as they are now."""
    paths = [root / name for name in names]
    none = np.zeros(len(names), np.int64)
    index = Index(
        np.array(names),
        none,
        none,
        none.astype(np.uint8),
        np.array([path.stat().st_size for path in paths]),
        np.array([read_picture(path)[1] for path in paths], np.uint64),
    )
    return FileImages(root, index, size=size, links="inside")


def test_files_are_read_in_the_order_of_the_indices(tmp_path: Path) -> None:
    names = [f"{number}.png" for number in range(6)]
    for number, name in enumerate(names):
        write_picture(tmp_path / name, number, (7, 7))
    files = file_images(tmp_path, names, size=7)
    batch = files.read(np.array([4, 0, 4]), None)
    assert batch.shape == (3, 3, 7, 7)
    for row, number in zip(batch, (4, 0, 4), strict=True):
        with Image.open(tmp_path / names[number]) as picture:
            np.testing.assert_array_equal(row.permute(1, 2, 0), np.asarray(picture))
    assert files.read(np.array([], np.int64), None).shape == (0, 3, 7, 7)
    (tmp_path / "3.png").unlink()
    with pytest.raises(ValueError, match=r"/3\.png: No such file.*dvc repro -f prepare_images"):
        files.read(np.array([0, 3]), None)


def test_a_file_that_is_not_what_was_indexed_is_refused(tmp_path: Path) -> None:
    names = [f"{number}.bmp" for number in range(3)]
    for number, name in enumerate(names):
        write_picture(tmp_path / name, number, (7, 7))
    files = file_images(tmp_path, names, size=7)
    os.utime(tmp_path / "1.bmp", (0, 0))  # a copy of the same content is no change
    files.require_sizes()
    files.read(np.arange(3), None)
    write_picture(tmp_path / "1.bmp", 9, (7, 7))  # of the same size
    files.require_sizes()
    files.read(np.array([0, 2]), None)
    with pytest.raises(ValueError, match=r"/1\.bmp: the image is another than was indexed; run"):
        files.read(np.arange(3), None)
    write_picture(tmp_path / "2.bmp", 2, (7, 8))
    with pytest.raises(ValueError, match=r"/2\.bmp: the image has 246 bytes, not 222 as indexed;"):
        files.require_sizes()
    (tmp_path / "0.bmp").unlink()
    with pytest.raises(ValueError, match=r"/0\.bmp: the image is gone; run `dvc repro -f prepare"):
        files.require_sizes()

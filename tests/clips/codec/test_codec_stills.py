"""Keyframes from pictures."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from braid.clips.codec.codec import TRANSFORM, decode, encode, still_latents

SHAPE = (16, 4, 2, 3)  # frames of 16 x 24 pixels


def write(path: Path, size: tuple[int, int], color: tuple[int, int, int]) -> Path:
    Image.new("RGB", size, color).save(path)
    return path


def test_a_picture_stands_still_for_the_video_frames_of_its_latent_frame(tmp_path: Path) -> None:
    red = write(tmp_path / "red.png", (24, 16), (255, 0, 0))
    blue = write(tmp_path / "blue.png", (48, 32), (0, 0, 255))
    latents = still_latents([red, blue], [0, 2], TRANSFORM, SHAPE)
    assert latents.shape == (1, *SHAPE)
    still = {}
    for name, color in {"red": (1.0, 0.0, 0.0), "blue": (0.0, 0.0, 1.0)}.items():
        video = torch.tensor(color).view(1, 3, 1, 1, 1).expand(1, 3, 13, 16, 24)
        still[name] = encode(video)
    assert torch.allclose(latents[:, :, 0], still["red"][:, :, 0], atol=1e-5)
    assert torch.allclose(latents[:, :, 2], still["blue"][:, :, 2], atol=1e-5)
    video = decode(latents)
    assert torch.allclose(
        video[0, :, 5:9], torch.tensor([0.0, 0.0, 1.0]).view(3, 1, 1, 1), atol=1e-4
    )


def test_a_picture_is_cropped_around_its_center(tmp_path: Path) -> None:
    wide = Image.new("RGB", (72, 16), (0, 255, 0))
    wide.paste((255, 0, 0), (24, 0, 48, 16))
    wide.save(tmp_path / "wide.png")
    center = write(tmp_path / "red.png", (24, 16), (255, 0, 0))
    found = still_latents([tmp_path / "wide.png"], [1], TRANSFORM, SHAPE)
    assert torch.allclose(found, still_latents([center], [1], TRANSFORM, SHAPE), atol=1e-5)


def test_what_is_wrong_is_named(tmp_path: Path) -> None:
    red = write(tmp_path / "red.png", (24, 16), (255, 0, 0))
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"broken\.png: not a readable picture"):
        still_latents([broken], [0], TRANSFORM, SHAPE)
    with pytest.raises(
        ValueError, match=r"1 pictures at frames \[0, 2\], expected a frame of 0 to 3"
    ):
        still_latents([red], [0, 2], TRANSFORM, SHAPE)
    with pytest.raises(ValueError, match="frame of 0 to 3 for each"):
        still_latents([red], [4], TRANSFORM, SHAPE)
    with pytest.raises(ValueError, match="latents of the codec wan cannot be made here"):
        still_latents([red], [0], "wan", SHAPE)

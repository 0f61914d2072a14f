"""A path of cameras: a circle at the views' height and distance, and files of what is seen."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from braid.radiance.scenes.blender import Views, save_views
from braid.radiance.scenes.cameras import Cameras, gaze, look_at, turntable
from braid.render import open_path, resized, save_pictures

UP = torch.tensor([0.0, 0.0, 1.0])
CENTER = torch.tensor([1.0, 2.0, 3.0])


def ring(count: int, sine: float, radius: float) -> Cameras:
    """Views of CENTER from one height, all around it."""
    angle = 2 * math.pi * (torch.arange(count) + 0.3) / count
    cosine = math.sqrt(1 - sine**2)
    columns = [cosine * angle.cos(), cosine * angle.sin(), torch.full_like(angle, sine)]
    back = torch.stack(columns, dim=1)
    return Cameras(look_at(CENTER + radius * back, back, UP), 20.0, 16, 12)


def test_a_turntable_of_a_ring_is_that_ring_evenly_spaced() -> None:
    path = turntable(ring(7, sine=0.4, radius=2.0), 12)
    offset = path.camera_to_world[:, :3, 3] - CENTER
    assert torch.allclose(offset.norm(dim=1), torch.tensor(2.0), atol=1e-4)
    assert torch.allclose(offset @ UP, torch.tensor(0.8), atol=1e-4)
    angle = torch.atan2(offset[:, 1], offset[:, 0])
    steps = (angle.roll(-1) - angle) % (2 * math.pi)
    assert torch.allclose(steps, torch.tensor(2 * math.pi / 12), atol=1e-4)
    assert torch.allclose(gaze(path), CENTER, atol=1e-4)
    assert torch.allclose(path.camera_to_world[:, :3, 0] @ UP, torch.tensor(0.0), atol=1e-5)
    assert (path.focal, path.width, path.height) == (20.0, 16, 12)


def test_a_wider_image_sees_the_same() -> None:
    cameras = ring(2, sine=0.4, radius=2.0)
    wider = resized(cameras, 32)
    assert (wider.width, wider.height, wider.focal) == (32, 24, 40.0)
    corner = torch.tensor([0]), torch.tensor([0])
    assert torch.allclose(
        cameras.rays(*corner).directions,
        wider.rays(corner[0], torch.tensor([33])).directions,
        atol=0.03,
    )


def test_a_path_is_a_turntable_or_a_split_s_first_views(tmp_path: Path) -> None:
    for split, count in {"train": 5, "test": 3}.items():
        views = Views(ring(count, 0.4, 2.0), torch.zeros(count, 12, 16, 4))
        save_views(tmp_path, split, views)
    assert len(open_path(tmp_path, "turntable", 9)) == 9
    test = open_path(tmp_path, "test", 2, width=8)
    assert (len(test), test.width, test.height) == (2, 8, 6)
    expected = ring(3, 0.4, 2.0).camera_to_world[:2]
    assert torch.allclose(test.camera_to_world, expected, atol=1e-6)
    assert len(open_path(tmp_path, "test", 100)) == 3
    with pytest.raises(ValueError, match="expected 1 or more"):
        open_path(tmp_path, "test", 0)


def test_pictures_are_an_animation_or_a_file_each(tmp_path: Path) -> None:
    images = torch.rand(3, 6, 8, 3, generator=torch.Generator().manual_seed(0))
    save_pictures(tmp_path / "a.gif", images)
    with Image.open(tmp_path / "a.gif") as animation:
        assert (animation.size, getattr(animation, "n_frames", 1)) == ((8, 6), 3)
        assert animation.info["loop"] == 0
    save_pictures(tmp_path / "views", images)
    assert sorted(path.name for path in (tmp_path / "views").iterdir()) == [
        *("000.png", "001.png", "002.png"),
    ]
    with Image.open(tmp_path / "views/001.png") as picture:
        shown = torch.from_numpy(np.array(picture)) / 255
    assert torch.allclose(shown, images[1], atol=0.5 / 255 + 1e-6)
    with pytest.raises(ValueError, match=r"a\.mp4: expected a \.gif, or a folder"):
        save_pictures(tmp_path / "a.mp4", images)

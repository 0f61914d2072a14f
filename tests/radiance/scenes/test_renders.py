"""Stored renders: ray numbers, round trips and the one line that a broken file gets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from braid.radiance.gaussians.field import render_all
from braid.radiance.scenes.blender import Views
from braid.radiance.scenes.cameras import Cameras
from braid.radiance.scenes.renders import (
    Renders,
    load_images,
    load_renders,
    mixed,
    save_images,
    save_renders,
)
from tests.radiance.tiny_teacher import ball, rendered, seeded, views

CPU = torch.device("cpu")


def random_renders(count: int = 3, width: int = 6, height: int = 4) -> Renders:
    random = np.random.default_rng(count)
    cameras = Cameras(views(count).camera_to_world, 9.5, width, height)
    rgba = random.random((count, height, width, 4)).astype(np.float16)
    return Renders(cameras, rgba, random.random((count, height, width)).astype(np.float16))


def test_a_ray_number_is_a_view_and_a_row_major_pixel() -> None:
    renders = random_renders()
    batch = renders.batch(torch.tensor([0, 1 * 24 + 2 * 6 + 5, 71]), CPU)
    for ray, (view, row, column) in enumerate([(0, 0, 0), (1, 2, 5), (2, 3, 5)]):
        rgba = renders.rgba[view, row, column].astype(np.float32)
        assert batch.rgb[ray].tolist() == rgba[:3].tolist()
        assert batch.alpha[ray] == rgba[3]
        assert batch.depth[ray] == float(renders.depth[view, row, column])
        whole = renders.cameras.view_rays(view)
        torch.testing.assert_close(batch.rays.origins[ray], whole.origins[row * 6 + column])
        torch.testing.assert_close(batch.rays.directions[ray], whole.directions[row * 6 + column])
    assert batch.rgb.dtype == batch.depth.dtype == torch.float32


def test_premultiplied_pixels_are_composited_over_white() -> None:
    renders = random_renders()
    rgba = torch.from_numpy(renders.rgba.astype(np.float32))
    torch.testing.assert_close(renders.on_white(), rgba[..., :3] + 1 - rgba[..., 3:])
    clear = Renders(renders.cameras, np.zeros_like(renders.rgba), renders.depth)
    assert (clear.on_white() == 1).all()


def test_a_stored_set_comes_back_exactly_and_memory_mapped(tmp_path: Path) -> None:
    renders = random_renders()
    save_renders(tmp_path / "train", renders)
    again = load_renders(tmp_path / "train")
    assert isinstance(again.rgba, np.memmap)
    assert np.array_equal(again.rgba, renders.rgba)
    assert np.array_equal(again.depth, renders.depth)
    assert torch.equal(again.cameras.camera_to_world, renders.cameras.camera_to_world)
    assert (again.cameras.focal, again.cameras.width, again.cameras.height) == (9.5, 6, 4)


def test_equal_renders_give_equal_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_renders(tmp_path / name, random_renders())
    for file in ("rgba.npy", "depth.npy", "cameras.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_sets_are_read_as_one_in_order(tmp_path: Path) -> None:
    first, second = random_renders(3), random_renders(2)
    save_renders(tmp_path / "train", first)
    save_renders(tmp_path / "random", second)
    both = load_renders(tmp_path / "train", tmp_path / "random")
    assert len(both) == len(first) + len(second)
    ray = torch.tensor([10])
    joint, alone = both.batch(ray + len(first), CPU), second.batch(ray, CPU)
    assert torch.equal(joint.rgb, alone.rgb)
    assert torch.equal(joint.depth, alone.depth)
    assert torch.equal(joint.rays.origins, alone.rays.origins)


def test_sets_of_other_sizes_are_not_joined(tmp_path: Path) -> None:
    save_renders(tmp_path / "train", random_renders())
    save_renders(tmp_path / "random", random_renders(width=8))
    with pytest.raises(ValueError, match=rf"{tmp_path}: expected sets of one focal length"):
        load_renders(tmp_path / "train", tmp_path / "random")


@pytest.mark.parametrize("file", ["rgba.npy", "depth.npy", "cameras.json"])
@pytest.mark.parametrize("content", [None, b"", b"{}", b"[1]"])
def test_a_missing_or_broken_file_is_named(
    tmp_path: Path, file: str, content: bytes | None
) -> None:
    save_renders(tmp_path / "train", random_renders())
    (tmp_path / "train" / file).unlink()
    if content is not None:
        (tmp_path / "train" / file).write_bytes(content)
    with pytest.raises(ValueError, match=r"train: expected rgba\.npy, depth\.npy, cameras\.json"):
        load_renders(tmp_path / "train")


@pytest.mark.parametrize("file", ["rgba.npy", "depth.npy"])
def test_a_truncated_array_and_one_of_another_shape_are_named(tmp_path: Path, file: str) -> None:
    save_renders(tmp_path / "train", random_renders())
    path = tmp_path / "train" / file
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ValueError, match=r"train: expected rgba\.npy"):
        load_renders(tmp_path / "train")
    np.save(path, np.zeros((3, 4, 5), dtype=np.float16))
    with pytest.raises(ValueError, match=r"train: expected \(3, 4, 6\) views, got"):
        load_renders(tmp_path / "train")


def test_stored_images_come_back(tmp_path: Path) -> None:
    images = {
        "truth": torch.rand(2, 4, 5, 3, generator=seeded()),
        "end of training": torch.ones(2, 1),
    }
    save_images(tmp_path / "a.npz", [0, 7], images)
    frames, again = load_images(tmp_path / "a.npz")
    assert frames == [0, 7]
    assert list(again) == ["truth", "end of training"]
    torch.testing.assert_close(again["truth"], images["truth"], atol=1e-3, rtol=0)
    save_images(tmp_path / "b.npz", [0, 7], images)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


@pytest.mark.parametrize("content", [None, b"", b"PK\x03\x04 cut short", b"text"])
def test_missing_or_broken_images_are_named(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.npz: expected stored images"):
        load_images(tmp_path / "a.npz")


def test_images_without_frames_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", truth=np.zeros(3))
    with pytest.raises(ValueError, match=r"a\.npz: expected stored images .*frames"):
        load_images(tmp_path / "a.npz")


def photos(count: int) -> Views:
    cameras = views(count)
    return Views(cameras, torch.full((count, 16, 16, 4), 0.25))


def test_photos_replace_the_teacher_s_train_views_and_random_ones_fill_up() -> None:
    train, random = rendered(3), render_all(ball(), views(7)[[3, 4, 5, 6]])
    everything = mixed(train, random, photos(3), 0.0)
    assert len(everything.cameras) == 7
    assert np.array_equal(everything.rgba[:3], train.rgba)
    for fraction, count in ((1.0, 3), (0.75, 4), (0.5, 6)):
        seen = mixed(train, random, photos(3), fraction)
        assert len(seen.cameras) == count
        assert (seen.rgba[:3] == 0.25).all()
        assert np.array_equal(seen.depth[:3], train.depth)  # a photo has none
        assert np.array_equal(seen.rgba[3:], random.rgba[: count - 3])
        poses = torch.cat([train.cameras.camera_to_world, random.cameras.camera_to_world])
        assert torch.equal(seen.cameras.camera_to_world, poses[:count])
    with pytest.raises(ValueError, match=r"expected 0 or at least 0\.43 with 3 train views"):
        mixed(train, random, photos(3), 0.35)

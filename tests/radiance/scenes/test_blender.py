"""The scene format: conventions, round trip, and one clear line for each kind of bad input."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from braid.radiance.scenes.blender import Views, downsample, load_scene, load_views, save_views
from braid.radiance.scenes.cameras import Cameras
from tests.radiance.blender_scene import ANGLE, edit, pose, write_image, write_scene


def test_straight_alpha_on_disk_becomes_premultiplied_float(tmp_path: Path) -> None:
    write_scene(tmp_path, frames=1)
    write_image(tmp_path / "train/r_0.png", [[[200, 100, 50, 51], [255, 255, 255, 0]]])
    views = load_views(tmp_path, "train")
    assert views.rgba.dtype == torch.float32
    expected = np.array([200, 100, 50, 255]) / 255 * 0.2
    np.testing.assert_allclose(views.rgba[0, 0, 0], expected, atol=1e-7)
    np.testing.assert_array_equal(views.rgba[0, 0, 1], 0)
    np.testing.assert_allclose(views.on_white()[0, 0, 0], expected[:3] + 0.8, atol=1e-6)
    np.testing.assert_array_equal(views.on_white()[0, 0, 1], 1)


def test_a_known_point_falls_on_the_expected_pixel(tmp_path: Path) -> None:
    """OpenGL axes: a point up and to the right of a camera that looks along -z."""
    write_scene(tmp_path, size=(4, 6))
    cameras = load_views(tmp_path, "train").cameras
    assert (cameras.width, cameras.height) == (6, 4)
    assert cameras.focal == pytest.approx(3 / math.tan(0.35))
    column, row, depth = 4, 1, 2.5
    ray = cameras.rays(torch.tensor([1]), torch.tensor([row * 6 + column]))
    point = (ray.origins + ray.directions * depth / -ray.directions[0, 2])[0]
    expected = [(4.5 - 3) * depth / cameras.focal, (2 - 1.5) * depth / cameras.focal, 4 - depth]
    np.testing.assert_allclose(point, expected, atol=1e-6)
    local = cameras.world_to_camera()[1] @ torch.cat([point, torch.ones(1)])
    pixel = cameras.focal * local[:2] / local[2] + torch.tensor([3.0, 2.0])
    np.testing.assert_allclose(pixel, [column + 0.5, row + 0.5], atol=1e-5)


def test_names_with_png_and_without_read_the_same(tmp_path: Path) -> None:
    path = write_scene(tmp_path)
    plain = load_views(tmp_path, "train")
    edit(path, lambda c: [f.update(file_path=f["file_path"] + ".png") for f in c["frames"]])
    torch.testing.assert_close(load_views(tmp_path, "train").rgba, plain.rgba, rtol=0, atol=0)


def test_files_that_the_json_does_not_name_are_never_read(tmp_path: Path) -> None:
    write_scene(tmp_path)
    (tmp_path / "train/r_0_depth_0001.png").write_bytes(b"not an image")
    assert len(load_views(tmp_path, "train")) == 2


def test_a_scene_linked_out_of_a_cache_is_read(tmp_path: Path) -> None:
    write_scene(tmp_path / "scene")
    image = tmp_path / "scene/train/r_0.png"
    image.rename(tmp_path / "cached")
    image.symlink_to(tmp_path / "cached")
    assert len(load_views(tmp_path / "scene", "train")) == 2


def random_views(count: int = 2, height: int = 6, width: int = 8) -> Views:
    generator = torch.Generator().manual_seed(1)
    alpha = torch.rand(count, height, width, 1, generator=generator)
    alpha[:, 0] = 0
    color = torch.rand(count, height, width, 3, generator=generator)
    poses = torch.tensor([pose((0.1 * i, 0.2, 3)) for i in range(count)])
    return Views(Cameras(poses, 11.5, width, height), torch.cat([color * alpha, alpha], dim=-1))


def test_saved_views_load_back_within_eight_bits(tmp_path: Path) -> None:
    views = random_views()
    save_views(tmp_path, "val", views)
    loaded = load_views(tmp_path, "val")
    assert (loaded.rgba - views.rgba).abs().max() <= 1 / 255
    assert torch.equal(loaded.cameras.camera_to_world, views.cameras.camera_to_world)
    assert loaded.cameras.focal == pytest.approx(11.5, abs=1e-12)
    save_views(tmp_path / "again", "val", loaded)
    torch.testing.assert_close(load_views(tmp_path / "again", "val").rgba, loaded.rgba)


def test_equal_views_are_saved_as_equal_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_views(tmp_path / name, "train", random_views())
    files = sorted(p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*.*"))
    assert len(files) == 3
    assert all(
        (tmp_path / "a" / f).read_bytes() == (tmp_path / "b" / f).read_bytes() for f in files
    )


def test_a_scene_has_every_split_that_is_there_in_one_size(tmp_path: Path) -> None:
    for split in ("train", "test"):
        save_views(tmp_path, split, random_views(2, 4, 6))
    assert list(load_scene(tmp_path)) == ["train", "test"]
    save_views(tmp_path, "val", random_views(1, 4, 6))
    assert list(load_scene(tmp_path)) == ["train", "val", "test"]
    save_views(tmp_path, "val", random_views(1, 5, 6))
    with pytest.raises(ValueError, match=r"one image size in all splits.*'val': '6x5'"):
        load_scene(tmp_path)


def test_downsampling_averages_premultiplied_pixels() -> None:
    """Invisible red beside opaque green must stay green: averaging straight color would not."""
    rgba = torch.zeros(1, 2, 2, 4)
    rgba[0, 0, 0] = torch.tensor([0.0, 1.0, 0.0, 1.0])
    small = downsample(Views(Cameras(torch.eye(4)[None], 10.0, 2, 2), rgba), 2)
    np.testing.assert_allclose(small.rgba[0, 0, 0], [0, 0.25, 0, 0.25])


def test_downsampling_keeps_the_rays_of_block_centers() -> None:
    views = random_views(1, 6, 9)
    small = downsample(views, 3)
    assert (small.cameras.width, small.cameras.height) == (3, 2)
    center = small.cameras.rays(torch.tensor([0]), torch.tensor([5])).directions
    fine = views.cameras.rays(torch.tensor([0]), torch.tensor([4 * 9 + 7])).directions
    torch.testing.assert_close(center, fine)
    np.testing.assert_allclose(
        small.rgba[0, 1, 2], views.rgba[0, 3:6, 6:9].mean(dim=(0, 1)), atol=1e-6
    )


@pytest.mark.parametrize("factor", [2, 3, 4, 5, 16])
def test_downsampling_refuses_what_is_no_whole_factor(factor: int) -> None:
    with pytest.raises(ValueError, match=f"downsample: {factor} does not divide .*8x5"):
        downsample(random_views(1, 5, 8), factor)


def breaks(message: str, change: Callable[[dict[str, Any]], object], id: str) -> Any:
    return pytest.param(change, message, id=id)


SKEWED = [[1, 0.1, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
SCALED = [[2, 0, 0, 0], [0, 2, 0, 0], [0, 0, 2, 0], [0, 0, 0, 1]]
MIRRORED = [[-1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
PROJECTIVE = [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 1]]
NAN = [[1, 0, 0, math.nan], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        breaks("expected camera_angle_x", lambda c: c.pop("camera_angle_x"), "no angle"),
        breaks("camera_angle_x must lie", lambda c: c.update(camera_angle_x=0), "angle of zero"),
        breaks("camera_angle_x must lie", lambda c: c.update(camera_angle_x=4.0), "angle over pi"),
        breaks("camera_angle_x must lie", lambda c: c.update(camera_angle_x=math.nan), "angle NaN"),
        breaks("camera_angle_x must lie", lambda c: c.update(camera_angle_x="wide"), "angle text"),
        breaks("frames must be a non-empty", lambda c: c.update(frames=[]), "no frames"),
        breaks("frames must be a non-empty", lambda c: c.pop("frames"), "frames missing"),
        breaks("frame 1 has no file_path", lambda c: c["frames"][1].pop("file_path"), "no path"),
        breaks(
            "frame 1: transform_matrix must be a 4x4",
            lambda c: c["frames"][1].pop("transform_matrix"),
            "no pose",
        ),
        *(
            breaks(
                f"frame 0: .* {text}", lambda c, m=m: c["frames"][0].update(transform_matrix=m), i
            )
            for m, text, i in [
                (SKEWED, "not rigid", "skewed"),
                (SCALED, "not rigid", "scaled"),
                (MIRRORED, "not rigid", "mirrored"),
                (PROJECTIVE, "not rigid", "projective"),
                (NAN, "holds NaN", "NaN pose"),
                ([[1, 2], [3]], "must be a 4x4", "ragged pose"),
            ]
        ),
        *(
            breaks(
                "frame 0: .* leaves the scene folder",
                lambda c, n=n: c["frames"][0].update(file_path=n),
                n,
            )
            for n in ("../train/r_0", "/etc/r_0", "train/../../r_0", "..\\r_0", "C:/r_0", "C:\\r_0")
        ),
        breaks(
            "train/r_9.png: no such image",
            lambda c: c["frames"][0].update(file_path="./train/r_9"),
            "missing image",
        ),
    ],
)
def test_a_bad_transforms_file_is_refused_in_one_line(
    tmp_path: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    edit(write_scene(tmp_path), change)
    with pytest.raises(ValueError, match=message) as error:
        load_views(tmp_path, "train")
    assert str(tmp_path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_split_is_named(tmp_path: Path) -> None:
    write_scene(tmp_path)
    with pytest.raises(ValueError, match=r"transforms_val\.json: no such file"):
        load_views(tmp_path, "val")


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe", b"[1]"])
def test_a_file_that_is_no_json_object_is_named(tmp_path: Path, content: bytes) -> None:
    write_scene(tmp_path).write_bytes(content)
    with pytest.raises(ValueError, match=r"transforms_train\.json"):
        load_views(tmp_path, "train")


@pytest.mark.parametrize(
    ("shape", "mode", "message"),
    [
        ((4, 6, 3), "RGB", "r_1.png: no alpha channel: .* mode RGB"),
        ((4, 6), "L", "r_1.png: no alpha channel: .* mode L"),
        ((4, 7, 4), "RGBA", "r_1.png: image is 7x4, the first of its split is 6x4"),
    ],
)
def test_a_bad_image_is_named(
    tmp_path: Path, shape: tuple[int, ...], mode: str, message: str
) -> None:
    write_scene(tmp_path)
    write_image(tmp_path / "train/r_1.png", np.zeros(shape), mode)
    with pytest.raises(ValueError, match=message):
        load_views(tmp_path, "train")


@pytest.mark.parametrize("keep", [0, 20, 60])
def test_a_truncated_image_is_named(tmp_path: Path, keep: int) -> None:
    write_scene(tmp_path)
    image = tmp_path / "train/r_1.png"
    image.write_bytes(image.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"r_1\.png: not a readable PNG"):
        load_views(tmp_path, "train")


FOCAL = 0.5 * 6 / math.tan(0.5 * ANGLE)  # of the scene written by hand


def each_frame(**lists: list[float]) -> Callable[[dict[str, Any]], None]:
    def change(content: dict[str, Any]) -> None:
        for name, values in lists.items():
            for frame, value in zip(content["frames"], values, strict=True):
                frame[name] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        breaks("frame 0: cx = 1.5: expected the principal", lambda c: c.update(cx=1.5), "cx"),
        breaks("frame 0: cx = 3: expected the principal", lambda c: c.update(cx="3"), "cx as text"),
        breaks("frame 0: cy = 9: expected the principal", lambda c: c.update(cy=9), "cy"),
        breaks("frame 0: fl_y says a focal", lambda c: c.update(fl_y=0.7 * FOCAL), "fl_y"),
        breaks("frame 0: k1 = -0.3: expected undistorted", lambda c: c.update(k1=-0.3), "k1"),
        breaks("frame 0: p2 = 0.01", lambda c: c.update(p2=0.01), "p2"),
        breaks("frame 1: k3 = 0.1", each_frame(k3=[0, 0.1]), "k3 of a frame"),
        breaks(
            "camera_model EQUIRECTANGULAR",
            lambda c: c.update(camera_model="EQUIRECTANGULAR"),
            "model",
        ),
        breaks("frame 0: w = 800, the image has 6", lambda c: c.update(w=800), "size"),
        breaks(
            "frame 1: fl_x says a focal length of 11.00",
            each_frame(fl_x=[10, 11]),
            "fl_x of a frame",
        ),
        breaks(
            "frame 1: camera_angle_x says",
            each_frame(camera_angle_x=[0.7, 0.8]),
            "angle of a frame",
        ),
        breaks("fl_x must be a positive number, got '12'", lambda c: c.update(fl_x="12"), "text"),
    ],
)
def test_intrinsics_that_cannot_be_honored_are_refused_by_name(
    tmp_path: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    edit(write_scene(tmp_path), change)
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        load_views(tmp_path, "train")
    assert "transforms_train.json" in str(error.value)


def test_intrinsics_that_agree_are_read(tmp_path: Path) -> None:
    path = write_scene(tmp_path)
    agreeing = {"fl_x": FOCAL, "fl_y": FOCAL, "cx": 3.0, "cy": 2.0, "w": 6, "h": 4, "aabb_scale": 1}
    edit(path, lambda c: c.update(agreeing, k1=0, k2=0, p1=0, p2=0, camera_model="OPENCV"))
    assert load_views(tmp_path, "train").cameras.focal == pytest.approx(FOCAL)
    edit(path, lambda c: c.pop("camera_angle_x"))
    assert load_views(tmp_path, "train").cameras.focal == pytest.approx(FOCAL)
    edit(path, each_frame(fl_x=[9.0, 9.0], fl_y=[9.0, 9.0]))  # a frame's own come first
    assert load_views(tmp_path, "train").cameras.focal == 9.0


def test_paths_of_windows_are_read(tmp_path: Path) -> None:
    expected = load_views(write_scene(tmp_path).parent, "train").rgba

    def backslashes(content: dict[str, Any]) -> None:
        for frame in content["frames"]:
            frame["file_path"] = frame["file_path"].replace("/", "\\")

    edit(tmp_path / "transforms_train.json", backslashes)
    assert torch.equal(load_views(tmp_path, "train").rgba, expected)


def nerfstudio(folder: Path, frames: int, **more: Any) -> Path:
    """One file for all splits, RGB images with a mask each."""
    rng = np.random.default_rng(0)
    entries = []
    for index in range(frames):
        image, mask = f"images/f_{index:02}.jpg", f"masks/f_{index:02}.png"
        write_image(folder / image, rng.integers(0, 256, (4, 6, 3)), "RGB")
        write_image(folder / mask, np.full((4, 6), 255 * (index % 2)), "L")
        entries.append(
            {"file_path": image, "mask_path": mask, "transform_matrix": pose((index, 0, 4))}
        )
    path = folder / "transforms.json"
    path.write_text(
        json.dumps({"fl_x": 8.0, "fl_y": 8.0, "cx": 3, "cy": 2, "frames": entries, **more})
    )
    return path


def test_one_file_of_all_frames_is_split_and_takes_alpha_from_masks(tmp_path: Path) -> None:
    nerfstudio(tmp_path, 10)
    scene = load_scene(tmp_path)
    assert {split: len(views) for split, views in scene.items()} == {"train": 8, "test": 2}
    assert scene["test"].cameras.camera_to_world[:, 0, 3].tolist() == [0, 8]
    assert scene["train"].cameras.focal == 8.0
    assert scene["train"].alpha[:2].amax(dim=(1, 2)).tolist() == [1, 0]
    assert float(scene["train"].rgba[1].abs().max()) == 0  # premultiplied with an empty mask
    names = [f"images/f_{index:02}.jpg" for index in range(10)]
    nerfstudio(
        tmp_path, 10, train_filenames=names[:6], val_filenames=names[6:7], test_filenames=names[7:]
    )
    parts = {split: len(views) for split, views in load_scene(tmp_path).items()}
    assert parts == {"train": 6, "val": 1, "test": 3}


def test_a_list_of_frames_that_are_not_there_or_stand_in_another_one_is_refused(
    tmp_path: Path,
) -> None:
    names = [f"images/f_{index:02}.jpg" for index in range(4)]
    nerfstudio(tmp_path, 4, train_filenames=[*names[:3], "f_09.jpg"], test_filenames=names[3:])
    with pytest.raises(ValueError, match=r"train_filenames: 'f_09\.jpg' is no frame's file_path"):
        load_scene(tmp_path)
    nerfstudio(tmp_path, 4, train_filenames=names, test_filenames=names[3:])
    with pytest.raises(ValueError, match=r"filenames: 'images/f_03\.jpg' is in another list too"):
        load_scene(tmp_path)


def test_a_mask_of_another_size_or_an_image_without_one_is_refused(tmp_path: Path) -> None:
    path = nerfstudio(tmp_path, 3)
    write_image(tmp_path / "masks/f_01.png", np.zeros((2, 2)), "L")
    with pytest.raises(ValueError, match=r"masks/f_01\.png: mask is 2x2, its image 6x4"):
        load_scene(tmp_path)
    edit(path, lambda c: c["frames"][1].pop("mask_path"))
    with pytest.raises(
        ValueError, match=r"f_01\.jpg: no alpha channel: .* mask_path .*, got mode RGB"
    ):
        load_scene(tmp_path)
    nerfstudio(tmp_path, 1)
    with pytest.raises(ValueError, match=r"transforms\.json: 1 frames leave none for train"):
        load_scene(tmp_path)

"""COLMAP's sparse models: the frames are those of the scene that they were written from."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
import torch
from scipy.spatial.transform import Rotation

from braid.radiance.scenes.blender import Views, load_scene
from braid.radiance.scenes.cameras import Cameras, look_at
from tests.radiance.blender_scene import write_image

WIDTH, HEIGHT, FOCAL = 12, 8, 14.5
PINHOLE = (1, "PINHOLE", (FOCAL, FOCAL, WIDTH / 2, HEIGHT / 2))
NAMES = [f"a b/{index}.png" for index in range(9)]


def scene() -> Views:
    """Nine views from all around, of noise."""
    draw = torch.Generator().manual_seed(0)
    back = torch.nn.functional.normalize(torch.randn(9, 3, generator=draw), dim=1)
    poses = look_at(torch.tensor([1.0, 2.0, 3.0]) + 4 * back, back, torch.tensor([0.0, 0.0, 1.0]))
    pixels = torch.randint(0, 256, (9, HEIGHT, WIDTH, 4), generator=draw)
    return Views(Cameras(poses, FOCAL, WIDTH, HEIGHT), pixels.float() / 255)


def write(
    folder: Path,
    views: Views,
    *,
    binary: bool,
    camera: tuple[int, str, tuple[float, ...]] = PINHOLE,
    sparse: str = "sparse/0",
) -> None:
    """The scene as COLMAP stores it, each image with a keypoint, and masks beside RGB images."""
    model = folder / sparse
    model.mkdir(parents=True)
    number, name, values = camera
    numbers = " ".join(map(str, values))
    cameras = f"# Camera list\n3 {name} {WIDTH} {HEIGHT} {numbers}\n"
    images, text = struct.pack("<Q", len(views)), "# Image list with two lines of data per image\n"
    for index, (file, pose) in enumerate(
        zip(NAMES, views.cameras.world_to_camera().double().numpy(), strict=True)
    ):
        x, y, z, w = Rotation.from_matrix(pose[:3, :3]).as_quat()
        extrinsics = (w, x, y, z, *pose[:3, 3])
        images += struct.pack("<i7di", index, *extrinsics, 3) + file.encode() + b"\0"
        images += struct.pack("<Q2dq", 1, 3.5, 4.5, -1)
        keypoints = "3.5 4.5 -1" if index % 2 else ""
        text += f"{index} {' '.join(map(repr, map(float, extrinsics)))} 3 {file}\n{keypoints}\n"
        pixels = (views.rgba[index] * 255).round().numpy()
        write_image(folder / "images" / file, pixels[..., :3], "RGB")
        write_image(folder / "masks" / f"{file}.png", pixels[..., 3], "L")
    if binary:
        packed = struct.pack(f"<QiiQQ{len(values)}d", 1, 3, number, WIDTH, HEIGHT, *values)
        (model / "cameras.bin").write_bytes(packed)
        (model / "images.bin").write_bytes(images)
    else:
        (model / "cameras.txt").write_text(cameras)
        (model / "images.txt").write_text(text)


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("camera", [PINHOLE, (0, "SIMPLE_PINHOLE", PINHOLE[2][1:])])
def test_a_sparse_model_gives_the_cameras_and_images_it_was_made_of(
    tmp_path: Path, binary: bool, camera: tuple[int, str, tuple[float, ...]]
) -> None:
    views = scene()
    write(tmp_path, views, binary=binary, camera=camera)
    loaded = load_scene(tmp_path)
    assert set(loaded) == {"train", "test"}
    for split, rows in (("test", [0, 8]), ("train", list(range(1, 8)))):
        found, expected = loaded[split], views[rows]
        assert found.cameras.focal == FOCAL
        poses = expected.cameras.camera_to_world
        torch.testing.assert_close(found.cameras.camera_to_world, poses, atol=1e-5, rtol=0)
        torch.testing.assert_close(found.alpha, expected.alpha)
        color = expected.rgba[..., :3] * expected.alpha[..., None]
        torch.testing.assert_close(found.rgba[..., :3], color)


def test_the_model_may_lie_in_sparse_itself(tmp_path: Path) -> None:
    write(tmp_path, scene(), binary=True, sparse="sparse")
    assert len(load_scene(tmp_path)["train"]) == 7


@pytest.mark.parametrize("binary", [True, False])
def test_distorted_images_are_refused_by_the_model_s_name(tmp_path: Path, binary: bool) -> None:
    camera = (4, "OPENCV", (FOCAL, FOCAL, 6.0, 4.0, 0.1, 0.0, 0.0, 0.0))
    write(tmp_path, scene(), binary=binary, camera=camera)
    with pytest.raises(ValueError, match=r"sparse/0/cameras\.(bin|txt): camera 3 is OPENCV: expec"):
        load_scene(tmp_path)


def test_a_principal_point_beside_the_middle_is_refused(tmp_path: Path) -> None:
    write(tmp_path, scene(), binary=True, camera=(1, "PINHOLE", (FOCAL, FOCAL, 7.0, 4.0)))
    with pytest.raises(ValueError, match=r"cx = 7\.0: expected the principal point in the middle"):
        load_scene(tmp_path)


def test_images_without_masks_say_where_masks_belong(tmp_path: Path) -> None:
    write(tmp_path, scene(), binary=True)
    (tmp_path / f"masks/{NAMES[4]}.png").unlink()
    with pytest.raises(ValueError, match=r"4\.png: no alpha channel.*masks/4\.png\.png"):
        load_scene(tmp_path)


@pytest.mark.parametrize("name", ["cameras", "images"])
def test_a_file_that_is_cut_short_is_named(tmp_path: Path, name: str) -> None:
    write(tmp_path, scene(), binary=True)
    path = tmp_path / f"sparse/0/{name}.bin"
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(ValueError, match=rf"{name}\.bin: not a {name} file of COLMAP"):
        load_scene(tmp_path)


def test_a_camera_of_too_few_numbers_is_named(tmp_path: Path) -> None:
    write(tmp_path, scene(), binary=False, camera=(1, "PINHOLE", (6.0, 4.0)))
    with pytest.raises(ValueError, match=r"cameras\.txt: .*PINHOLE has 4 parameters, got 2"):
        load_scene(tmp_path)


def test_the_other_file_of_the_model_is_missed(tmp_path: Path) -> None:
    write(tmp_path, scene(), binary=False)
    (tmp_path / "sparse/0/images.txt").unlink()
    with pytest.raises(ValueError, match=r"images\.txt: no such file, nor images\.bin"):
        load_scene(tmp_path)


def test_an_image_of_no_camera_is_named(tmp_path: Path) -> None:
    write(tmp_path, scene(), binary=False)
    path = tmp_path / "sparse/0/cameras.txt"
    path.write_text(path.read_text().replace("\n3 ", "\n4 "))
    with pytest.raises(ValueError, match=r"a b/0\.png: there is no camera 3"):
        load_scene(tmp_path)

"""COLMAP's sparse models, as text or binary, in the words of a `transforms.json`.

A folder with `sparse/0/` (or `sparse/`) and `images/`: `cameras` and `images` as `.bin` or `.txt`;
`points3D` is not needed. Poses are world to camera, a unit quaternion (w, x, y, z) and a
translation, with OpenCV's axes (x right, y down, z forward). Pixel centers lie at .5, as here.
Images are RGBA, or have masks where COLMAP keeps them: `masks/<name of the image>.png`.

File layouts: https://colmap.github.io/format.html, `src/colmap/sensor/models.h`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

MODELS = {  # number in a binary file -> name and number of parameters
    0: ("SIMPLE_PINHOLE", 3),
    1: ("PINHOLE", 4),
    2: ("SIMPLE_RADIAL", 4),
    3: ("RADIAL", 5),
    4: ("OPENCV", 8),
    5: ("OPENCV_FISHEYE", 8),
    6: ("FULL_OPENCV", 12),
    7: ("FOV", 5),
    8: ("SIMPLE_RADIAL_FISHEYE", 4),
    9: ("RADIAL_FISHEYE", 5),
    10: ("THIN_PRISM_FISHEYE", 12),
    11: ("RAD_TAN_THIN_PRISM_FISHEYE", 16),
}


class Camera(NamedTuple):
    """Intrinsics that images share."""

    model: str
    width: int  # pixels
    height: int
    values: tuple[float, ...]  # SIMPLE_PINHOLE: f, cx, cy; PINHOLE: fx, fy, cx, cy


class Image(NamedTuple):
    """A registered image."""

    name: str  # below images/
    camera: int
    quaternion: tuple[float, ...]  # (w, x, y, z), world to camera
    translation: tuple[float, ...]  # scene units


def model_folder(folder: Path) -> Path | None:
    """Where a scene's sparse model lies, if it has one."""
    for sparse in (folder / "sparse/0", folder / "sparse"):
        if any((sparse / f"cameras.{ending}").exists() for ending in ("bin", "txt")):
            return sparse
    return None


def read_frames(folder: Path, sparse: Path) -> list[dict[str, Any]]:
    """The images of a model as the frames of a `transforms.json` in the scene's folder.

    Raises:
        ValueError: a file is missing, cut short or malformed, or images are distorted; the message
            names it.
    """
    cameras_at, cameras = _read(sparse, "cameras", _binary_cameras, _text_cameras)
    images_at, images = _read(sparse, "images", _binary_images, _text_images)
    if not images:
        raise ValueError(f"{images_at}: expected at least one image")
    by_number = dict(cameras)
    for number, camera in cameras:
        if camera.model not in ("PINHOLE", "SIMPLE_PINHOLE"):
            raise ValueError(
                f"{cameras_at}: camera {number} is {camera.model}: expected undistorted images"
                " (colmap image_undistorter), PINHOLE or SIMPLE_PINHOLE"
            )
    frames = []
    for image in images:
        if image.camera not in by_number:
            raise ValueError(f"{images_at}: {image.name}: there is no camera {image.camera}")
        camera = by_number[image.camera]
        *focal, cx, cy = camera.values
        mask = f"masks/{image.name}.png"
        frames.append(
            {
                "file_path": f"images/{image.name}",
                "transform_matrix": _camera_to_world(image).tolist(),
                **{"fl_x": focal[0], "fl_y": focal[-1], "cx": cx, "cy": cy},
                **{"w": camera.width, "h": camera.height},
                **({"mask_path": mask} if (folder / mask).exists() else {}),
            }
        )
    return frames


def _camera_to_world(image: Image) -> np.ndarray:
    """OpenGL axes, [4, 4]."""
    w, x, y, z = np.asarray(image.quaternion) / np.linalg.norm(image.quaternion)
    rotation = np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )
    pose = np.eye(4)
    pose[:3, :3] = rotation.T * [1, -1, -1]
    pose[:3, 3] = -rotation.T @ image.translation
    return pose


# ---- Files ---------------------------------------------------------------------------------------


def _read(sparse: Path, name: str, binary: Any, text: Any) -> tuple[Path, Any]:
    """A file of the model, and what it holds."""
    path = sparse / f"{name}.bin"
    try:
        if path.exists():
            return path, list(binary(path.read_bytes()))
        path = path.with_suffix(".txt")
        return path, list(text(path.read_text(encoding="utf-8").splitlines()))
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file, nor {name}.bin") from None
    except (struct.error, ValueError, IndexError, KeyError) as error:
        raise ValueError(f"{path}: not a {name} file of COLMAP ({error})") from None


def _binary_cameras(content: bytes) -> Iterator[tuple[int, Camera]]:
    (count,), place = struct.unpack_from("<Q", content), 8
    for _ in range(count):
        number, model, width, height = struct.unpack_from("<iiQQ", content, place)
        name, size = MODELS[model]
        yield (
            number,
            Camera(name, width, height, struct.unpack_from(f"<{size}d", content, place + 24)),
        )
        place += 24 + 8 * size


def _binary_images(content: bytes) -> Iterator[Image]:
    (count,), place = struct.unpack_from("<Q", content), 8
    for _ in range(count):
        _, *pose, camera = struct.unpack_from("<i7di", content, place)
        end = content.index(b"\0", place + 64)
        yield Image(content[place + 64 : end].decode(), camera, tuple(pose[:4]), tuple(pose[4:]))
        (points,) = struct.unpack_from("<Q", content, end + 1)
        place = end + 9 + 24 * points  # x, y and the number of a point, of each keypoint


def _text_cameras(lines: list[str]) -> Iterator[tuple[int, Camera]]:
    for line in lines:
        if line.strip() and not line.startswith("#"):
            number, model, width, height, *values = line.split()
            parameters = dict(MODELS.values()).get(model, len(values))
            if len(values) != parameters:
                raise ValueError(f"{model} has {parameters} parameters, got {len(values)}")
            camera = Camera(model, int(width), int(height), tuple(map(float, values)))
            yield int(number), camera


def _text_images(lines: list[str]) -> Iterator[Image]:
    """Two lines an image: its pose, and its keypoints, a line that may be empty."""
    body = [line for line in lines if not line.startswith("#")]
    for line in body[::2]:
        if line.strip():
            _, *pose, camera, name = line.split(maxsplit=9)
            values = tuple(map(float, pose))
            yield Image(name.strip(), int(camera), values[:4], values[4:])

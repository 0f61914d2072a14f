"""The Blender (NeRF-synthetic) scene format, nerfstudio's with one file for all splits, COLMAP's.

A folder with one `transforms_{split}.json` per split, or a `transforms.json` whose frames are split
by its `train_filenames`, `val_filenames` and `test_filenames`, or else every eighth for test; or a
sparse model of COLMAP, whose images become such frames (braid/radiance/scenes/colmap.py).
Frames name an image (`file_path`; `.png` where it has no ending) and its camera-to-world matrix
(OpenGL axes). The field of view is `camera_angle_x` in radians, or `fl_x` in pixels: one for all
views, centered, without distortion; whatever says otherwise is refused by its name. Images are
8-bit RGBA PNGs, or RGB with a `mask_path`. They hold *straight* alpha; in memory color is
*premultiplied*, since only premultiplied pixels may be averaged. Files that the JSON does not name
are never opened: published scenes keep depth and normal maps in the same folders.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from braid.radiance.scenes import colmap
from braid.radiance.scenes.cameras import Cameras

Entry = dict[str, Any]  # of JSON

SPLITS = ("train", "val", "test")
TEST_EVERY = 8  # frame of a scene without splits, as in Mip-NeRF 360
_FORMATS = (".png", ".jpg", ".jpeg")
RIGID_TOLERANCE = 1e-3  # published poses are float32 exports, rigid to about 1e-6


@dataclass(frozen=True)
class Views:
    """N posed images."""

    cameras: Cameras
    rgba: Tensor  # [N, H, W, 4] float32, premultiplied, in [0, 1]

    def __len__(self) -> int:
        return len(self.cameras)

    def __getitem__(self, views: slice | Tensor | list[int]) -> Views:
        """The chosen views, in that order."""
        return Views(self.cameras[views], self.rgba[views])

    @property
    def alpha(self) -> Tensor:
        """Opacity, [N, H, W]."""
        return self.rgba[..., 3]

    def on_white(self) -> Tensor:
        """The images composited over white, [N, H, W, 3]."""
        return self.rgba[..., :3] + (1 - self.rgba[..., 3:])

    def to(self, device: torch.device) -> Views:
        """The same views on another device."""
        return Views(self.cameras.to(device), self.rgba.to(device))


def load_scene(folder: Path) -> dict[str, Views]:
    """Read every split of a scene; one without validation views is none the less a scene.

    Raises:
        ValueError: as `load_views`, or the splits differ in image size.
    """
    path, sparse = folder / "transforms.json", colmap.model_folder(folder)
    content: Entry = {}
    if not (folder / "transforms_train.json").exists() and (path.exists() or sparse):
        if path.exists():
            content, frames = _read_transforms(path)
        elif sparse:
            path, frames = folder / "sparse", colmap.read_frames(folder, sparse)
        parts = _split(path, content, frames)
        scene = {split: _views(path, content, part) for split, part in parts.items() if part}
    else:
        has_val = (folder / "transforms_val.json").exists()
        scene = {split: load_views(folder, split) for split in SPLITS if has_val or split != "val"}
    cameras = ((split, views.cameras) for split, views in scene.items())
    sizes = {split: f"{camera.width}x{camera.height}" for split, camera in cameras}
    if len(set(sizes.values())) > 1:
        raise ValueError(f"{folder}: expected one image size in all splits, got {sizes}")
    return scene


def load_views(folder: Path, split: str) -> Views:
    """Read one split of a scene.

    Raises:
        ValueError: a file is missing or malformed; the message names it.
    """
    path = folder / f"transforms_{split}.json"
    return _views(path, *_read_transforms(path))


def _views(path: Path, content: Entry, frames: list[Entry]) -> Views:
    names = [_image_path(path, index, frame) for index, frame in enumerate(frames)]
    poses = np.stack([_pose(path, index, frame) for index, frame in enumerate(frames)])
    masks = [_mask_path(path, index, frame) for index, frame in enumerate(frames)]
    rgba = _premultiplied(zip([path.parent / name for name in names], masks, strict=True))
    height, width = rgba.shape[1:3]
    focal = _focal(path, content, frames, width, height)
    return Views(Cameras(torch.from_numpy(poses), focal, width, height), rgba)


def _split(path: Path, content: Entry, frames: list[Entry]) -> dict[str, list[Entry]]:
    """Frames by split: as the file lists them, or every eighth, by name, for test."""
    lists = {split: content.get(f"{split}_filenames") or [] for split in SPLITS}
    if any(lists.values()):
        names = {frame.get("file_path") for frame in frames}
        for split, listed in lists.items():
            for name in listed:
                if name not in names:
                    raise ValueError(f"{path}: {split}_filenames: {name!r} is no frame's file_path")
                if sum(name in of_split for of_split in lists.values()) > 1:
                    raise ValueError(f"{path}: {split}_filenames: {name!r} is in another list too")
        parts = {
            split: [frame for frame in frames if frame.get("file_path") in listed]
            for split, listed in lists.items()
        }
    else:
        ordered = sorted(frames, key=lambda frame: str(frame.get("file_path")))
        test = [frame for index, frame in enumerate(ordered) if index % TEST_EVERY == 0]
        train = [frame for index, frame in enumerate(ordered) if index % TEST_EVERY]
        parts = {"train": train, "val": [], "test": test}
    for split in ("train", "test"):
        if not parts[split]:
            raise ValueError(f"{path}: {len(frames)} frames leave none for {split}")
    return parts


# ---- Intrinsics: what there is must agree, what cannot be honored is refused by name -------------

_DISTORTION = ("k1", "k2", "k3", "k4", "p1", "p2")
_MODELS = ("PINHOLE", "SIMPLE_PINHOLE", "OPENCV", "PERSPECTIVE")
_OFF_CENTER = 0.1  # pixels that a principal point may lie beside the middle
_AGREE = 1e-3  # relative difference of two focal lengths that are one


def _focal(path: Path, content: Entry, frames: list[Entry], width: int, height: int) -> float:
    """The focal length of all frames, pixels."""
    first = None
    for index, frame in enumerate(frames):
        where = f"{path}: frame {index}"
        _check_pinhole(where, content | frame, width, height)
        for name, value in (_focals(path, frame, width) or _focals(path, content, width)).items():
            first = first or value
            if abs(value / first - 1) > _AGREE:
                raise ValueError(
                    f"{where}: {name} says a focal length of {value:.2f} pixels, others say"
                    f" {first:.2f}: one for all views, the same down as across, is expected"
                )
    if first is None:
        raise ValueError(f"{path}: expected camera_angle_x (radians) or fl_x (pixels), got neither")
    return first


def _focals(path: Path, entry: Entry, width: int) -> dict[str, float]:
    """Every focal length that a file or a frame states, by the key's name."""
    found: dict[str, float] = {}
    for name in ("camera_angle_x", "fl_x", "fl_y"):
        value = entry.get(name)
        if value is None:
            continue
        number = _is_number(value)
        if name == "camera_angle_x":
            if not number or not 0 < value < math.pi:
                raise ValueError(
                    f"{path}: camera_angle_x must lie between 0 and pi radians, got {value!r}"
                )
            found[name] = 0.5 * width / math.tan(0.5 * value)
        else:
            if not number or value <= 0:
                raise ValueError(f"{path}: {name} must be a positive number, got {value!r}")
            found[name] = float(value)
    return found


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _check_pinhole(where: str, entry: Entry, width: int, height: int) -> None:
    """That nothing says that the camera is other than a centered pinhole of the image's size."""
    for name in _DISTORTION:
        if entry.get(name):
            raise ValueError(f"{where}: {name} = {entry[name]}: expected undistorted images")
    model = entry.get("camera_model", "PINHOLE")
    if model not in _MODELS or entry.get("is_fisheye"):
        raise ValueError(f"{where}: camera_model {model}: expected undistorted images")
    for name, side in (("cx", width), ("cy", height)):
        value = entry.get(name, side / 2)
        if not _is_number(value) or abs(value - side / 2) > _OFF_CENTER:
            raise ValueError(
                f"{where}: {name} = {value}: expected the principal point in the middle, {side / 2}"
            )
    for name, side in (("w", width), ("h", height)):
        if entry.get(name, side) != side:
            raise ValueError(f"{where}: {name} = {entry[name]}, the image has {side}")


def save_views(folder: Path, split: str, views: Views) -> None:
    """Write one split in the format that `load_views` reads; equal views give equal bytes."""
    (folder / split).mkdir(parents=True, exist_ok=True)
    frames = []
    for index, (pose, rgba) in enumerate(
        zip(views.cameras.camera_to_world, views.rgba, strict=True)
    ):
        name = f"{split}/r_{index}"
        (folder / f"{name}.png").write_bytes(_png(rgba))
        frames.append({"file_path": f"./{name}", "transform_matrix": pose.cpu().tolist()})
    angle = 2 * math.atan(0.5 * views.cameras.width / views.cameras.focal)
    text = json.dumps({"camera_angle_x": angle, "frames": frames}, indent=1)
    (folder / f"transforms_{split}.json").write_text(text + "\n", encoding="utf-8")


def downsample(views: Views, factor: int) -> Views:
    """Shrink by a whole factor: the mean of each block of premultiplied pixels (box filter).

    Raises:
        ValueError: the factor does not divide the image's width and height alike.
    """
    cameras = views.cameras
    if cameras.width % factor or cameras.height % factor:
        raise ValueError(
            f"downsample: {factor} does not divide both sides of {cameras.width}x{cameras.height}"
        )
    width, height = cameras.width // factor, cameras.height // factor
    blocks = views.rgba.reshape(len(views), height, factor, width, factor, 4)
    smaller = Cameras(cameras.camera_to_world, cameras.focal / factor, width, height)
    return Views(smaller, blocks.mean(dim=(2, 4)))


def _read_transforms(path: Path) -> tuple[Entry, list[Entry]]:
    """The whole file, and its frames."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(
            f"{path}: no such file; a scene has one transforms JSON per split, transforms.json,"
            " or COLMAP's sparse/0"
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not JSON ({error})") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected an object with camera_angle_x and frames")
    frames = content.get("frames")
    if not isinstance(frames, list) or not frames or not all(isinstance(f, dict) for f in frames):
        raise ValueError(f"{path}: frames must be a non-empty list of objects")
    return content, frames


def _image_path(path: Path, index: int, frame: Entry) -> PurePosixPath:
    """The frame's image, relative to the scene folder."""
    name = frame.get("file_path")
    if not isinstance(name, str) or not name:
        raise ValueError(f"{path}: frame {index} has no file_path")
    image = _relative(path, index, name)
    return image if image.suffix.lower() in _FORMATS else image.with_name(f"{image.name}.png")


def _mask_path(path: Path, index: int, frame: Entry) -> Path | None:
    """The mask beside the frame's image, where there is one."""
    name = frame.get("mask_path")
    return path.parent / _relative(path, index, str(name)) if name else None


def _relative(path: Path, index: int, name: str) -> PurePosixPath:
    """A path within the scene folder, as tools on Windows write it too.

    Checked by its spelling, not resolved: DVC may link a scene's files out of its cache.
    """
    relative = PurePosixPath(name.replace("\\", "/"))
    if relative.is_absolute() or ".." in relative.parts or ":" in name:
        raise ValueError(f"{path}: frame {index}: {name!r} leaves the scene folder")
    return relative


def _pose(path: Path, index: int, frame: dict[str, Any]) -> NDArray[np.float32]:
    """The frame's camera-to-world matrix, [4, 4]."""
    try:
        pose = np.asarray(frame.get("transform_matrix"), dtype=np.float64)
    except (TypeError, ValueError):
        pose = np.empty(0)
    where = f"{path}: frame {index}: transform_matrix"
    if pose.shape != (4, 4):
        raise ValueError(f"{where} must be a 4x4 matrix of numbers")
    if not np.isfinite(pose).all():
        raise ValueError(f"{where} holds NaN or infinity")
    rotation = pose[:3, :3]
    stretched = np.abs(rotation.T @ rotation - np.eye(3)).max() > RIGID_TOLERANCE
    projective = np.abs(pose[3] - [0, 0, 0, 1]).max() > RIGID_TOLERANCE
    if stretched or projective or np.linalg.det(rotation) < 0:
        raise ValueError(f"{where} is not rigid: expected a proper rotation and last row 0 0 0 1")
    return pose.astype(np.float32)


def _premultiplied(paths: Iterable[tuple[Path, Path | None]]) -> Tensor:
    """All images, each with its mask where it has one, as premultiplied float32, [N, H, W, 4]."""
    images: list[Tensor] = []
    for path, mask in paths:
        rgba = torch.from_numpy(_read_rgba(path, mask)).float() / 255
        rgba[..., :3] *= rgba[..., 3:]
        if images and rgba.shape != images[0].shape:
            size, first = (f"{i.shape[1]}x{i.shape[0]}" for i in (rgba, images[0]))
            raise ValueError(f"{path}: image is {size}, the first of its split is {first}")
        images.append(rgba)
    return torch.stack(images)


def _read_rgba(path: Path, mask: Path | None) -> NDArray[np.uint8]:
    """One image with straight alpha, [H, W, 4]: its own, or that of a mask beside it."""
    mode, pixels = _read_image(path)
    if mask is not None and mode in ("RGB", "RGBA"):
        _, alpha = _read_image(mask, convert="L")
        if alpha.shape != pixels.shape[:2]:
            size = f"{pixels.shape[1]}x{pixels.shape[0]}"
            raise ValueError(f"{mask}: mask is {alpha.shape[1]}x{alpha.shape[0]}, its image {size}")
        return np.dstack([pixels[..., :3], alpha])
    if mode != "RGBA":
        raise ValueError(
            f"{path}: no alpha channel: expected 8-bit RGBA, or RGB with a mask_path"
            f" (of COLMAP: masks/{path.name}.png), got mode {mode}"
        )
    return pixels


def _read_image(path: Path, convert: str | None = None) -> tuple[str, NDArray[np.uint8]]:
    """Mode and pixels of a PNG or JPEG."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise ValueError(
            f"{path}: no such image, but the scene's transforms JSON or sparse model names it"
        ) from None
    try:
        with Image.open(io.BytesIO(content), formats=["PNG", "JPEG"]) as image:
            return image.mode, np.array(image.convert(convert) if convert else image)
    except (OSError, SyntaxError) as error:  # Pillow reports a broken chunk as a SyntaxError
        raise ValueError(f"{path}: not a readable PNG or JPEG ({error})") from None


def _png(
    rgba: Tensor,  # [H, W, 4], premultiplied
) -> bytes:
    """The image as an 8-bit PNG with straight alpha; nothing is known where alpha is 0: black."""
    alpha = rgba[..., 3:]
    color = torch.where(alpha > 0, rgba[..., :3] / alpha.clamp_min(1e-8), 0.0)
    straight = torch.cat([color, alpha], dim=-1).clamp(0, 1)
    pixels = (straight * 255).round().to(torch.uint8).cpu().numpy()
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", compress_level=6)
    return buffer.getvalue()

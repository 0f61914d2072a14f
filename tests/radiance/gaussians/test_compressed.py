"""`.splat`, `.spz`, compressed `.ply`: Gaussians come back as they were, but for their bits."""

from __future__ import annotations

import gzip
import math
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from braid.radiance.gaussians.compressed import load_gaussians, save_spz
from braid.radiance.gaussians.gaussians import (
    C0,
    Gaussians,
    coefficients,
    rotation_matrices,
    save_ply,
)
from braid.radiance.gaussians.splat import render
from tests.radiance.tiny_teacher import views

PACKED = b"ply\nformat binary_little_endian 1.0\nelement vertex 1\n"
HALF_TURN = torch.tensor([1.0, -1.0, -1.0])  # between the axes of a PLY and those of a .spz


def some(degree: int = 0, count: int = 40) -> Gaussians:
    draw = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw)

    return Gaussians(
        means=0.3 * normal(count, 3),
        log_scales=-2.5 + 0.4 * normal(count, 3),
        quaternions=torch.nn.functional.normalize(normal(count, 4), dim=1),
        opacity_logits=normal(count),
        sh=0.3 * normal(count, coefficients(degree), 3).clamp(-2.5, 2.5),
    )


def eight_bits(values: Tensor) -> np.ndarray:
    return values.round().clamp(0, 255).numpy().astype(np.uint8)


def write_splat(path: Path, gaussians: Gaussians) -> None:
    rgb = 255 * (0.5 + C0 * gaussians.sh[:, 0])
    rgba = eight_bits(torch.cat([rgb, 255 * gaussians.opacities[:, None]], dim=1))
    rotation = eight_bits(128 + 128 * gaussians.quaternions)
    with path.open("wb") as file:
        for row in range(len(gaussians)):
            floats = [*gaussians.means[row].tolist(), *gaussians.log_scales[row].exp().tolist()]
            file.write(struct.pack("<6f", *floats) + bytes(rgba[row]) + bytes(rotation[row]))


def first_three(quaternion: Tensor) -> bytes:
    xyz = (quaternion[1:] * (1 if quaternion[0] >= 0 else -1)).tolist()
    return bytes(round(127.5 * (value + 1)) for value in xyz)


def smallest_three(quaternion: Tensor) -> bytes:
    xyzw = quaternion.roll(-1).tolist()
    largest = max(range(4), key=lambda place: abs(xyzw[place]))
    flip = xyzw[largest] < 0
    packed = largest
    for place in range(4):
        if place != largest:
            value = xyzw[place] / math.sqrt(0.5)
            packed = packed << 10 | ((value < 0) != flip) << 9 | round(511 * abs(value))
    return struct.pack("<I", packed)


def spz_arrays(gaussians: Gaussians, version: int, bits: int) -> list[bytes]:
    """In the axes of the format."""
    turned = gaussians.means * HALF_TURN
    quaternions = gaussians.quaternions * torch.cat([torch.ones(1), HALF_TURN])
    # of the real harmonics, those odd in y and z together change sign
    odd = [0, 1, 1, 0, 1, 0, 0, 1, 0, 1, 0, 1, 1, 0, 1, 0][: coefficients(gaussians.degree)]
    sh = gaussians.sh * torch.tensor([1.0 - 2 * sign for sign in odd])[:, None]
    fixed = (turned * 2**bits).round().int()
    positions = b"".join(
        int(value).to_bytes(3, "little", signed=True) for value in fixed.flatten().tolist()
    )
    pack = first_three if version == 2 else smallest_three
    return [
        positions,
        eight_bits(255 * gaussians.opacities).tobytes(),
        eight_bits(255 * (0.5 + 0.15 * sh[:, 0])).tobytes(),
        eight_bits(16 * (gaussians.log_scales + 10)).tobytes(),
        b"".join(pack(quaternion) for quaternion in quaternions),
        eight_bits(128 + 128 * sh[:, 1:]).tobytes(),
    ]


def write_spz(path: Path, gaussians: Gaussians, version: int, bits: int = 12) -> None:
    arrays = spz_arrays(gaussians, version, bits)
    start = struct.pack("<3I2B", 0x5053474E, version, len(gaussians), gaussians.degree, bits)
    if version < 4:
        path.write_bytes(gzip.compress(start + bytes(2) + b"".join(arrays)))
        return
    import zstandard

    frames = [zstandard.ZstdCompressor().compress(array) for array in arrays]
    sizes = [struct.pack("<2Q", len(f), len(a)) for f, a in zip(frames, arrays, strict=True)]
    header = start + bytes([0, len(arrays)]) + struct.pack("<I12x", 32)
    path.write_bytes(header + b"".join(sizes) + b"".join(frames))


def packed(fractions: Tensor, widths: tuple[int, ...]) -> np.ndarray:
    """Numbers of the widths in 32 bits, the first highest."""
    total = torch.zeros(len(fractions), dtype=torch.int64)
    for column, width in enumerate(widths):
        total = total << width | (fractions[:, column] * (2**width - 1)).round().long()
    return total.numpy().astype("<u4")


def write_compressed_ply(path: Path, gaussians: Gaussians) -> None:
    """Chunks of 256 with their boxes, four integers a Gaussian, a byte a harmonic."""
    count, rgb = len(gaussians), 0.5 + C0 * gaussians.sh[:, 0]
    chunks, fractions = [], []
    for first in range(0, count, 256):
        row, here = [], []
        for values in (gaussians.means, gaussians.log_scales, rgb):
            part = values[first : first + 256]
            low, high = part.amin(0), part.amax(0)
            row += [low, high]
            here.append((part - low) / (high - low).clamp_min(1e-9))
        chunks.append(torch.cat(row))
        fractions.append(torch.cat(here, dim=1))
    place = torch.cat(fractions)
    quaternions = gaussians.quaternions
    largest = quaternions.abs().argmax(dim=1)
    quaternions = quaternions * quaternions.gather(1, largest[:, None]).sign()
    others = torch.stack(
        [q[torch.arange(4) != k] for q, k in zip(quaternions, largest, strict=True)]
    )
    rotation = torch.cat([largest[:, None] / 3, others / math.sqrt(2) + 0.5], dim=1)
    color = torch.cat([place[:, 6:], gaussians.opacities[:, None]], dim=1)
    columns = [
        packed(place[:, :3], (11, 10, 11)),
        packed(rotation, (2, 10, 10, 10)),
        packed(place[:, 3:6], (11, 10, 11)),
        packed(color, (8, 8, 8, 8)),
    ]
    ends = [f"{end}_{p}{a}" for p in ("", "scale_") for end in ("min", "max") for a in "xyz"]
    ends += [f"{end}_{a}" for end in ("min", "max") for a in "rgb"]
    rest = gaussians.sh[:, 1:].transpose(1, 2).flatten(1)
    lines = ["ply", "format binary_little_endian 1.0", f"element chunk {len(chunks)}"]
    lines += [f"property float {name}" for name in ends] + [f"element vertex {count}"]
    names = ("position", "rotation", "scale", "color")
    lines += [f"property uint packed_{name}" for name in names]
    if rest.shape[1]:
        lines += [f"element sh {count}"]
        lines += [f"property uchar f_rest_{i}" for i in range(rest.shape[1])]
    content = "\n".join([*lines, "end_header", ""]).encode()
    content += torch.stack(chunks).numpy().astype("<f4").tobytes()
    content += np.stack(columns, axis=1).tobytes()
    path.write_bytes(content + eight_bits(256 * (rest / 8 + 0.5) - 0.5).tobytes())


def close(
    loaded: Gaussians, expected: Gaussians, *, color: float, harmonics: float, turn: float = 0.03
) -> None:
    torch.testing.assert_close(loaded.means, expected.means, atol=3e-4, rtol=0)
    torch.testing.assert_close(loaded.log_scales, expected.log_scales, atol=0.04, rtol=0)
    torch.testing.assert_close(loaded.opacities, expected.opacities, atol=0.003, rtol=0)
    turns = (rotation_matrices(g.quaternions) for g in (loaded, expected))
    torch.testing.assert_close(*turns, atol=turn, rtol=0)
    torch.testing.assert_close(loaded.sh[:, 0], expected.sh[:, 0], atol=color, rtol=0)
    torch.testing.assert_close(loaded.sh[:, 1:], expected.sh[:, 1:], atol=harmonics, rtol=0)


def test_a_splat_is_read(tmp_path: Path) -> None:
    write_splat(tmp_path / "a.splat", some())
    close(load_gaussians(tmp_path / "a.splat"), some(), color=0.01, harmonics=0)


@pytest.mark.parametrize("version", [2, 3, 4])
@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_an_spz_is_read_in_the_frame_of_the_ply_it_was_made_of(
    tmp_path: Path, version: int, degree: int
) -> None:
    if version == 4:
        pytest.importorskip("zstandard")
    write_spz(tmp_path / "a.spz", some(degree), version)
    turn = 0.1 if version == 2 else 0.03  # version 2 leaves a small w to the rounding of the rest
    loaded = load_gaussians(tmp_path / "a.spz")
    close(loaded, some(degree), color=0.02, harmonics=0.005, turn=turn)


@pytest.mark.parametrize("degree", [0, 3])
def test_an_spz_is_written_as_others_write_it(tmp_path: Path, degree: int) -> None:
    gaussians = some(degree)
    write_spz(tmp_path / "a.spz", gaussians, version=3)
    save_spz(tmp_path / "b.spz", gaussians)
    mine, theirs = (gzip.decompress((tmp_path / f"{name}.spz").read_bytes()) for name in "ba")
    assert mine == theirs
    close(load_gaussians(tmp_path / "b.spz"), gaussians, color=0.02, harmonics=0.005)


@pytest.mark.parametrize("degree", [0, 1, 3])
def test_a_compressed_ply_is_read(tmp_path: Path, degree: int) -> None:
    gaussians = some(degree, count=300)  # of two chunks
    write_compressed_ply(tmp_path / "a.ply", gaussians)
    loaded = load_gaussians(tmp_path / "a.ply")
    torch.testing.assert_close(loaded.means, gaussians.means, atol=2e-3, rtol=0)
    close(replace(loaded, means=gaussians.means), gaussians, color=0.02, harmonics=0.017)


def test_packed_gaussians_look_like_those_of_the_ply(tmp_path: Path) -> None:
    gaussians, cameras = some(degree=3), views(1)
    save_ply(tmp_path / "a.ply", gaussians)
    write_spz(tmp_path / "a.spz", gaussians, version=3)
    shown = [render(load_gaussians(tmp_path / f"a.{end}"), cameras, 0) for end in ("ply", "spz")]
    assert shown[0].alpha.max() > 0.5
    assert (shown[0].rgb - shown[1].rgb).abs().max() < 0.04


@pytest.mark.parametrize(
    ("name", "content", "line"),
    [
        ("a.splat", b"", "expected 32 bytes a Gaussian, got 0"),
        ("a.splat", bytes(33), "expected 32 bytes a Gaussian, got 33"),
        ("a.splat", struct.pack("<6f8B", math.nan, *[1] * 13), "means is NaN or infinite"),
        ("a.spz", b"ply", "not a gzip of Gaussians"),
        ("a.spz", gzip.compress(b"NGSP", mtime=0), "not a gzip of Gaussians"),
        (
            "a.spz",
            gzip.compress(struct.pack("<3I4B", 0x5053474E, 4, 1, 0, 12, 0, 0), mtime=0),
            "version 4",
        ),
        ("a.spz", struct.pack("<3I4B", 0x5053474E, 5, 1, 0, 12, 0, 0), "version 5"),
        ("a.ply", b"ply\npacked_position\nend_header\n", "format binary_little_endian"),
        ("a.ply", PACKED + b"property nil packed_position\nend_header\n", "broken compressed PLY"),
        ("a.ply", PACKED + b"property uint packed_position\nend_header\n", "truncated"),
        (
            "a.spz",
            gzip.compress(struct.pack("<3I4B", 0x5053474E, 3, 9, 0, 12, 0, 0), mtime=0),
            "truncated",
        ),
    ],
)
def test_what_is_no_such_file_is_refused_in_a_line(
    tmp_path: Path, name: str, content: bytes, line: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name}: .*{line}"):
        load_gaussians(tmp_path / name)

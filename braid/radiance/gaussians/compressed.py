"""What viewers compress 3D Gaussians to, a tenth of the PLY: `.splat`, `.spz`, compressed `.ply`.

- `.splat` (antimatter15): 32 bytes a Gaussian, without view-dependent color.
- `.spz` (Niantic): a header and one array after another, in versions 2 and 3 within one gzip, in
  version 4 each a frame of zstd behind a table of sizes (https://github.com/nianticlabs/spz). Its
  axes are y up and z back where those of the PLY that it was made of are y down and z forward, so
  that both axes are turned around here; writers that leave axes as they are give what `half_turn`
  turns back.
- Compressed `.ply` (PlayCanvas): a box of positions, scales and colors for every 256 Gaussians,
  each of them 4 unsigned integers within it, and a byte for each harmonic.
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from dataclasses import replace
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from braid.radiance.gaussians.gaussians import (
    MAX_DEGREE,
    SCALAR_TYPES,
    Gaussians,
    base_coefficient,
    basis,
    coefficients,
    degree_of,
    load_ply,
)

_SPLAT = np.dtype(
    [("mean", "<f4", 3), ("scale", "<f4", 3), ("rgba", "u1", 4), ("quaternion", "u1", 4)]
)
_SPZ_MAGIC, _SPZ_HEADER = 0x5053474E, "<3I4B"
_SPZ_TABLE, _SPZ_SIZES = "<I12x", "<2Q"  # version 4: where the sizes are; compressed, whole
_SPZ_BITS = 12  # of a position behind the point, as written
_SPZ_COLOR = 0.15  # color in its units of a harmonic of degree 0
FILES = (".ply", ".splat", ".spz")


def load_gaussians(path: Path) -> Gaussians:
    """Read one of the `FILES`.

    Raises:
        ValueError: not such a file, truncated, no Gaussian, NaN or infinity; the message names it.
    """
    if path.suffix == ".ply":
        with path.open("rb") as file:
            is_compressed = b"packed_position" in file.read(_PLY_HEADER)
        load = load_compressed_ply if is_compressed else load_ply
    else:
        load = load_splat if path.suffix == ".splat" else load_spz
    gaussians = load(path)
    for name, values in vars(gaussians).items():
        if not values.isfinite().all():
            raise ValueError(f"{path}: {name} is NaN or infinite")
    return gaussians


def load_splat(path: Path) -> Gaussians:
    """Read a `.splat`."""
    content = path.read_bytes()
    if not content or len(content) % _SPLAT.itemsize:
        raise ValueError(f"{path}: expected {_SPLAT.itemsize} bytes a Gaussian, got {len(content)}")
    table = np.frombuffer(content, _SPLAT)
    scales, rgba = (_floats(table[name]) for name in ("scale", "rgba"))
    return Gaussians(
        means=_floats(table["mean"]),
        log_scales=scales.clamp_min(1e-9).log(),
        quaternions=normalize((_floats(table["quaternion"]) - 128) / 128, dim=-1),
        opacity_logits=_logit(rgba[:, 3]),
        sh=base_coefficient(rgba[:, None, :3] / 255),
    )


def load_spz(path: Path) -> Gaussians:
    """Read a `.spz` of version 2, 3 or 4."""
    packed = path.read_bytes()
    is_new = packed[:4] == _SPZ_MAGIC.to_bytes(4, "little")
    try:
        content = packed if is_new else gzip.decompress(packed)
        header = struct.unpack_from(_SPZ_HEADER, content)
    except (OSError, EOFError, zlib.error, struct.error) as error:
        raise ValueError(f"{path}: not a gzip of Gaussians ({error})") from None
    magic, version, count, degree, bits, _, _ = header
    known = (4,) if is_new else (2, 3)
    if magic != _SPZ_MAGIC or version not in known or degree > MAX_DEGREE or not count:
        raise ValueError(
            f"{path}: expected Gaussians of SPZ version 2, 3 or 4, with harmonics of degree 0 to 3,"
            f" got {count} of version {version}, degree {degree}"
        )
    rest = coefficients(degree) - 1
    widths = (9, 1, 3, 3, 3 if version == 2 else 4, 3 * rest)  # bytes a Gaussian of each array
    body = _unpacked(path, content) if is_new else content[struct.calcsize(_SPZ_HEADER) :]
    if len(body) < count * sum(widths):
        raise ValueError(f"{path}: truncated SPZ of {count} Gaussians")
    bounds = pairwise(accumulate((count * width for width in widths), initial=0))
    arrays = (np.frombuffer(body[start:end], "u1").reshape(count, -1) for start, end in bounds)
    fixed, alpha, color, scale, rotation, harmonics = arrays
    base = ((_floats(color) / 255 - 0.5) / _SPZ_COLOR)[:, None]
    quaternions = _first_three(rotation) if version == 2 else _smallest_three(rotation)
    gaussians = Gaussians(
        means=_fixed_point(fixed) / 2**bits,
        log_scales=_floats(scale) / 16 - 10,
        quaternions=quaternions,
        opacity_logits=_logit(_floats(alpha)[:, 0]),
        sh=torch.cat([base, (_floats(harmonics).view(count, rest, 3) - 128) / 128], dim=1),
    )
    return half_turn(gaussians)


def _unpacked(path: Path, content: bytes) -> bytes:
    """The arrays of version 4, one after another."""
    try:
        import zstandard
    except ModuleNotFoundError:
        line = f"{path}: SPZ version 4 needs zstandard (the extra spz): expected version 2 or 3"
        raise ValueError(line) from None
    try:
        streams = content[15]
        (table,) = struct.unpack_from(_SPZ_TABLE, content, struct.calcsize(_SPZ_HEADER))
        place, parts = table + streams * struct.calcsize(_SPZ_SIZES), []
        for stream in range(streams):
            at = table + stream * struct.calcsize(_SPZ_SIZES)
            size, whole = struct.unpack_from(_SPZ_SIZES, content, at)
            frame = content[place : place + size]
            parts.append(zstandard.ZstdDecompressor().decompress(frame, max_output_size=whole))
            place += size
    except (struct.error, zstandard.ZstdError, MemoryError) as error:
        raise ValueError(f"{path}: broken SPZ of version 4 ({error})") from None
    return b"".join(parts)


def save_spz(path: Path, gaussians: Gaussians) -> None:
    """Write version 3, in the axes of the format; equal Gaussians give equal bytes.

    Harmonics beyond [-1, 1], colors beyond what 8 bits span and positions beyond 2,048 are clamped.
    """
    turned = half_turn(gaussians)
    fixed = (turned.means * 2**_SPZ_BITS).round().clamp(-(2**23), 2**23 - 1).int()
    little_endian = fixed.cpu().numpy().astype("<i4").view("u1").reshape(-1, 4)[:, :3]
    arrays = [
        little_endian,
        _bytes(255 * turned.opacities),
        _bytes(255 * (0.5 + _SPZ_COLOR * turned.sh[:, 0])),
        _bytes(16 * (turned.log_scales + 10)),
        _largest_left_out(turned.quaternions),
        _bytes(128 + 128 * turned.sh[:, 1:]),
    ]
    sizes = (len(gaussians), gaussians.degree, _SPZ_BITS, 0, 0)
    header = struct.pack(_SPZ_HEADER, _SPZ_MAGIC, 3, *sizes)
    content = header + b"".join(array.tobytes() for array in arrays)
    path.write_bytes(gzip.compress(content, mtime=0))


def _bytes(values: Tensor) -> np.ndarray[Any, Any]:
    return values.detach().round().clamp(0, 255).cpu().numpy().astype(np.uint8)


def _largest_left_out(
    quaternions: Tensor,  # [G, 4], w first
) -> np.ndarray[Any, Any]:  # [G] uint32
    """What `_smallest_three` reads."""
    xyzw = normalize(quaternions.detach().cpu(), dim=-1).roll(-1, dims=1)
    largest = xyzw.abs().argmax(dim=1)
    xyzw = xyzw * xyzw.gather(1, largest[:, None]).sign()
    packed = largest.clone()
    for place in range(4):
        value = xyzw[:, place]
        size = (511 * (value.abs() / math.sqrt(0.5)).clamp_max(1)).round().long()
        packed = torch.where(
            largest == place, packed, packed << 10 | (value < 0).long() << 9 | size
        )
    return packed.numpy().astype("<u4")


def half_turn(gaussians: Gaussians) -> Gaussians:
    """With the axes y and z turned around: half a turn about x."""
    signs = gaussians.means.new_tensor([1.0, -1.0, -1.0])
    direction = signs.new_tensor([0.3, 0.5, math.sqrt(0.66)])  # of no basis function's zeros
    before, after = (basis(d, gaussians.degree) for d in (direction, signs * direction))
    return replace(
        gaussians,
        means=gaussians.means * signs,
        quaternions=gaussians.quaternions * torch.cat([signs.new_ones(1), signs]),
        sh=gaussians.sh * (after / before).round()[:, None],
    )


def _fixed_point(
    fixed: np.ndarray[Any, Any],  # [G, 9] bytes, three signed numbers of 24 bits
) -> Tensor:
    parts = fixed.reshape(-1, 3, 3).astype(np.int32)
    values = parts[..., 0] | parts[..., 1] << 8 | parts[..., 2] << 16
    return torch.from_numpy(((values << 8) >> 8).astype(np.float32))  # the sign is carried up


def _first_three(
    rotation: np.ndarray[Any, Any],  # [G, 3] bytes: x, y, z of a quaternion whose w is positive
) -> Tensor:
    xyz = _floats(rotation) / 127.5 - 1
    w = (1 - xyz.square().sum(dim=1, keepdim=True)).clamp_min(0).sqrt()
    return normalize(torch.cat([w, xyz], dim=1), dim=-1)


def _smallest_three(
    rotation: np.ndarray[Any, Any],  # [G, 4] bytes
) -> Tensor:
    """Two bits say which of x, y, z, w is largest; the others are a sign and 9 bits each."""
    packed = torch.from_numpy(np.ascontiguousarray(rotation).view("<u4")[:, 0].astype(np.int64))
    largest, xyzw = packed >> 30, torch.zeros(len(packed), 4)
    for place in (3, 2, 1, 0):
        is_other = largest != place
        value = math.sqrt(0.5) * (packed & 511) / 511
        value = torch.where((packed >> 9 & 1).bool(), -value, value)
        xyzw[:, place] = torch.where(is_other, value, 0.0)
        packed = torch.where(is_other, packed >> 10, packed)
    rest = (1 - xyzw.square().sum(dim=1)).clamp_min(0).sqrt()
    xyzw[torch.arange(len(xyzw)), largest] = rest
    return normalize(xyzw.roll(1, dims=1), dim=-1)


def _floats(values: np.ndarray[Any, Any]) -> Tensor:
    return torch.from_numpy(values.astype(np.float32))


def _logit(
    alpha: Tensor,  # [G], 0 to 255
) -> Tensor:
    return torch.logit(alpha.clamp(0.5, 254.5) / 255)


# ---- Compressed PLY ------------------------------------------------------------------------------

_PLY_HEADER = 1 << 16  # bytes, at most
_PLY_CHUNK = 256  # Gaussians of a box
_AXES, _CHANNELS = ("x", "y", "z"), ("r", "g", "b")


def load_compressed_ply(path: Path) -> Gaussians:
    """Read PlayCanvas's compressed PLY."""
    tables = _elements(path)
    try:
        chunk, vertex = tables["chunk"], tables["vertex"]
        box = np.repeat(chunk, _PLY_CHUNK)[: len(vertex)]
        packed = {
            name: torch.from_numpy(vertex[f"packed_{name}"].astype(np.int64))
            for name in ("position", "rotation", "scale", "color")
        }
        means, scales = (
            _within(box, prefix, _AXES, _bits(packed[name], (11, 10, 11)))
            for name, prefix in (("position", ""), ("scale", "scale_"))
        )
        color = _bits(packed["color"], (8, 8, 8, 8))
        rgb = color[:, :3]
        if "min_r" in (chunk.dtype.names or ()):  # older files have none: 0 to 1
            rgb = _within(box, "", _CHANNELS, rgb)
    except (KeyError, ValueError) as error:
        raise ValueError(
            f"{path}: expected a compressed PLY of chunks and vertices ({error})"
        ) from None
    sh = base_coefficient(rgb)[:, None]
    if "sh" in tables:
        columns = [_floats(tables["sh"][name]) for name in tables["sh"].dtype.names or ()]
        rest = 8 * ((torch.stack(columns, dim=1) + 0.5) / 256 - 0.5)
        degree_of(1 + rest.shape[1] // 3)
        sh = torch.cat([sh, rest.view(len(rest), 3, -1).transpose(1, 2)], dim=1)
    return Gaussians(means, scales, _rotation(packed["rotation"]), _logit(255 * color[:, 3]), sh)


def _elements(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    """The tables of a binary little-endian PLY by name."""
    content = path.read_bytes()
    head, end, _ = content[:_PLY_HEADER].partition(b"end_header\n")
    lines = [line.split() for line in head.decode("ascii", errors="replace").splitlines()]
    if not end or ["format", "binary_little_endian", "1.0"] not in lines:
        raise ValueError(f"{path}: expected a compressed PLY of format binary_little_endian")
    layouts: dict[str, tuple[int, list[tuple[str, str]]]] = {}
    offset, tables = len(head) + len(end), {}
    try:
        for line in lines:
            if line[:1] == ["element"]:
                layout: list[tuple[str, str]] = []
                layouts[line[1]] = (int(line[2]), layout)
            elif line[:1] == ["property"]:
                layout.append((line[2], "<" + SCALAR_TYPES[line[1]]))
        for name, (count, properties) in layouts.items():
            tables[name] = np.frombuffer(content, np.dtype(properties), count, offset)
            offset += tables[name].nbytes
    except (IndexError, KeyError, ValueError, UnboundLocalError) as error:
        raise ValueError(f"{path}: truncated or broken compressed PLY ({error})") from None
    return tables


def _bits(
    packed: Tensor,  # [G] int64
    widths: tuple[int, ...],  # from the highest bit down
) -> Tensor:
    """Fractions of the largest number of each width, [G, widths]."""
    parts, above = [], 32
    for width in widths:
        above -= width
        most = (1 << width) - 1
        parts.append((packed >> above & most).float() / most)
    return torch.stack(parts, dim=1)


def _within(
    box: np.ndarray[Any, Any],  # [G] rows of chunks
    prefix: str,
    axes: tuple[str, ...],
    fraction: Tensor,  # [G, 3]
) -> Tensor:
    """Fractions of the boxes as values, [G, 3]."""
    low, high = (
        torch.stack([_floats(box[f"{end}_{prefix}{axis}"]) for axis in axes], dim=1)
        for end in ("min", "max")
    )
    return low + fraction * (high - low)


def _rotation(
    packed: Tensor,  # [G] int64
) -> Tensor:
    """Two bits say which of w, x, y, z is largest; the others are 10 bits each, [G, 4]."""
    largest = packed >> 30
    others = (_bits(packed, (2, 10, 10, 10))[:, 1:] - 0.5) * math.sqrt(2)
    left = (1 - others.square().sum(dim=1)).clamp_min(0).sqrt()
    places = torch.arange(4)
    rank = (places - (places > largest[:, None]).long()).clamp_max(2)  # among the others
    wxyz = torch.where(places == largest[:, None], left[:, None], others.gather(1, rank))
    return normalize(wxyz, dim=-1)

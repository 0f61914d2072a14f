"""A 3D Gaussian Splatting scene and its files.

The PLY is the layout of Kerbl et al. 2023: binary little endian, one float32 property after
another: x y z, nx ny nz (zero), f_dc_0..2, f_rest_* (channel-major: all of red, then green, then
blue), opacity (logit), scale_0..2 (log), rot_0..3 (w first, of any length). Degree 3 has 62
properties; degrees 0, 1 and 2 have 0, 9 and 24 `f_rest` instead of 45.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.lib.recfunctions as rfn
import torch
from torch import Tensor
from torch.nn.functional import normalize

# ---- Real spherical harmonics, degrees 0 to 3, in the sign convention of 3D Gaussian Splatting
# The basis is orthonormal over the unit sphere; the Condon-Shortley phase is kept, so that the
# degree-1 functions are (-y, z, -x) up to scale. A splat's color seen along d is
# max(0, 0.5 + sum_k basis_k(d) f_k) (Kerbl et al. 2023).

MAX_DEGREE = 3
C0 = math.sqrt(1 / (4 * math.pi))
C1 = math.sqrt(3 / (4 * math.pi))
C2 = math.sqrt(15 / (4 * math.pi))
C3 = math.sqrt(35 / (32 * math.pi))


def coefficients(degree: int) -> int:
    """Number of basis functions up to and including a degree."""
    return (degree + 1) ** 2


def degree_of(count: int) -> int:
    """The degree that has `count` basis functions.

    Raises:
        ValueError: if no degree from 0 to 3 has so many.
    """
    for degree in range(MAX_DEGREE + 1):
        if coefficients(degree) == count:
            return degree
    raise ValueError(f"expected 1, 4, 9 or 16 harmonic coefficients, got {count}")


def basis(
    directions: Tensor,  # [..., 3], unit length
    degree: int,
) -> Tensor:
    """Basis functions at the given directions, [..., (degree + 1)^2].

    Raises:
        ValueError: if the degree is not from 0 to 3.
    """
    if not 0 <= degree <= MAX_DEGREE:
        raise ValueError(f"harmonic degree must be from 0 to {MAX_DEGREE}, got {degree}")
    x, y, z = directions.unbind(-1)
    terms = [torch.full_like(x, C0)]
    if degree >= 1:
        terms += [-C1 * y, C1 * z, -C1 * x]
    if degree >= 2:
        terms += _second(x, y, z)
    if degree >= 3:
        terms += _third(x, y, z)
    return torch.stack(terms, dim=-1)


def _second(x: Tensor, y: Tensor, z: Tensor) -> list[Tensor]:
    return [
        C2 * x * y,
        -C2 * y * z,
        C2 / math.sqrt(12) * (2 * z * z - x * x - y * y),
        -C2 * x * z,
        C2 / 2 * (x * x - y * y),
    ]


def _third(x: Tensor, y: Tensor, z: Tensor) -> list[Tensor]:
    xx, yy, zz = x * x, y * y, z * z
    return [
        -C3 * y * (3 * xx - yy),
        C3 * math.sqrt(24) * x * y * z,
        -C3 * math.sqrt(0.6) * y * (4 * zz - xx - yy),
        C3 * math.sqrt(0.4) * z * (2 * zz - 3 * xx - 3 * yy),
        -C3 * math.sqrt(0.6) * x * (4 * zz - xx - yy),
        C3 * math.sqrt(6) * z * (xx - yy),
        -C3 * x * (xx - 3 * yy),
    ]


def colors(
    sh: Tensor,  # [G, (degree + 1)^2, 3]
    directions: Tensor,  # [G, 3], unit length, from the camera to the splat
) -> Tensor:
    """RGB of each splat seen along its direction, max(0, 0.5 + SH), [G, 3]."""
    values = basis(directions, degree_of(sh.shape[1]))
    return torch.relu(0.5 + (values[:, :, None] * sh).sum(dim=1))


def base_coefficient(
    rgb: Tensor,  # [..., 3]
) -> Tensor:
    """The degree-0 coefficient that shows a color the same from everywhere, [..., 3]."""
    return (rgb - 0.5) / C0


@dataclass
class Gaussians:
    """G anisotropic Gaussians with view-dependent color."""

    means: Tensor  # [G, 3], scene units
    log_scales: Tensor  # [G, 3], log of the standard deviations along the own axes
    quaternions: Tensor  # [G, 4], w first; any length, used normalized
    opacity_logits: Tensor  # [G]
    sh: Tensor  # [G, (degree + 1)^2, 3]

    def __len__(self) -> int:
        return len(self.means)

    @property
    def degree(self) -> int:
        """Degree of the spherical harmonics."""
        return degree_of(self.sh.shape[1])

    @property
    def parameters(self) -> int:
        """Stored numbers."""
        return sum(tensor.numel() for tensor in vars(self).values())

    @property
    def opacities(self) -> Tensor:
        """Peak opacities in (0, 1), [G]."""
        return torch.sigmoid(self.opacity_logits)

    def to(self, device: torch.device | str) -> Gaussians:
        """The same Gaussians on another device."""
        return Gaussians(*(getattr(self, field.name).to(device) for field in fields(self)))

    def detach(self) -> Gaussians:
        """The same Gaussians, cut off from the graph that made them."""
        return Gaussians(*(getattr(self, field.name).detach() for field in fields(self)))

    def __getitem__(self, rows: Tensor) -> Gaussians:
        """The chosen Gaussians, by boolean mask or index."""
        return Gaussians(*(getattr(self, field.name)[rows] for field in fields(self)))

    def rotations(self) -> Tensor:
        """Rotation matrices, own axes to world, [G, 3, 3]."""
        return rotation_matrices(self.quaternions)

    def covariances(self) -> Tensor:
        """World covariances R diag(s^2) R^T, [G, 3, 3]."""
        axes = self.rotations() * self.log_scales.exp()[:, None, :]
        return axes @ axes.transpose(1, 2)


def concatenate(*parts: Gaussians) -> Gaussians:
    """All Gaussians of the parts, in order."""
    names = [field.name for field in fields(Gaussians)]
    return Gaussians(*(torch.cat([getattr(part, name) for part in parts]) for name in names))


def rotation_matrices(
    quaternions: Tensor,  # [G, 4], w first, any length but 0
) -> Tensor:
    """Rotation matrices of quaternions, [G, 3, 3]."""
    w, x, y, z = normalize(quaternions, dim=-1).unbind(-1)
    rows = [
        *(1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
        *(2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
        *(2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
    ]
    return torch.stack(rows, dim=-1).view(*quaternions.shape[:-1], 3, 3)


# ---- The PLY file ------------------------------------------------------------------------------

_HEADER_LIMIT = 1 << 16
_OPAQUE = 30.0  # largest size of a logit of opacity
_BYTE_ORDERS = {"binary_little_endian": "<", "binary_big_endian": ">", "ascii": "<"}
SCALAR_TYPES = {
    **dict.fromkeys(("char", "int8"), "i1"),
    **dict.fromkeys(("uchar", "uint8"), "u1"),
    **dict.fromkeys(("short", "int16"), "i2"),
    **dict.fromkeys(("ushort", "uint16"), "u2"),
    **dict.fromkeys(("int", "int32"), "i4"),
    **dict.fromkeys(("uint", "uint32"), "u4"),
    **dict.fromkeys(("float", "float32"), "f4"),
    **dict.fromkeys(("double", "float64"), "f8"),
}


def property_names(degree: int) -> list[str]:
    """The PLY properties of one vertex, in file order."""
    rest = 3 * (coefficients(degree) - 1)
    return [
        *("x", "y", "z", "nx", "ny", "nz"),
        *(f"f_dc_{i}" for i in range(3)),
        *(f"f_rest_{i}" for i in range(rest)),
        "opacity",
        *(f"scale_{i}" for i in range(3)),
        *(f"rot_{i}" for i in range(4)),
    ]


def save_ply(path: Path, gaussians: Gaussians) -> None:
    """Write the standard binary PLY (62 properties at degree 3)."""
    names = property_names(gaussians.degree)
    sh = gaussians.sh
    columns = [
        gaussians.means,
        torch.zeros_like(gaussians.means),
        sh[:, 0],
        sh[:, 1:].transpose(1, 2).flatten(1),  # channel-major
        gaussians.opacity_logits[:, None],
        gaussians.log_scales,
        gaussians.quaternions,
    ]
    table = torch.cat(columns, dim=1).detach().cpu().numpy().astype("<f4")
    header = ["ply", "format binary_little_endian 1.0", f"element vertex {len(gaussians)}"]
    header += [f"property float {name}" for name in names] + ["end_header", ""]
    path.write_bytes("\n".join(header).encode() + table.tobytes())


def load_ply(path: Path) -> Gaussians:
    """Read a 3DGS PLY, binary or ASCII; properties are found by name, extra ones skipped.

    Quaternions come back normalized. Mip-Splatting's `filter_3D` is applied to scales and opacities
    and opacities of 0 and 1, whose logits are infinite, are taken as next to that.

    Raises:
        ValueError: not such a PLY, truncated, properties missing, no vertex, NaN or infinity.
    """
    content = path.read_bytes()
    header = _read_header(path, content)
    names = property_names(_degree(path, header.dtype))
    needed = [name for name in names if name not in ("nx", "ny", "nz")]
    present = header.dtype.names or ()
    if missing := [name for name in needed if name not in present]:
        raise ValueError(f"{path}: PLY lacks the property {missing[0]} ({len(missing)} missing)")
    vertices = _read_vertices(path, content, header)
    gaussians = _from_columns({name: _column(path, vertices, name) for name in needed})
    if "filter_3D" in present:
        return _filtered(gaussians, _column(path, vertices, "filter_3D"))
    return gaussians


def _filtered(gaussians: Gaussians, size: Tensor) -> Gaussians:
    """With Mip-Splatting's 3D smoothing filter of a deviation per Gaussian (Yu et al. 2024)."""
    variance = (2 * gaussians.log_scales).exp()
    widened = variance + size[:, None] ** 2
    kept = 0.5 * (variance.log() - widened.log()).sum(dim=1)  # log sqrt(det / det')
    opacities = gaussians.opacities * kept.exp()
    logits = torch.logit(opacities, eps=1e-7)
    return replace(gaussians, log_scales=0.5 * widened.log(), opacity_logits=logits)


class _Header(NamedTuple):
    is_text: bool
    vertices: int
    dtype: np.dtype[Any]  # of a vertex
    offset: int  # bytes, of the data


def _read_header(path: Path, content: bytes) -> _Header:
    head, end, rest = content[:_HEADER_LIMIT].partition(b"end_header")
    if not content.startswith(b"ply") or not end:
        raise ValueError(f"{path}: not a PLY file (expected a header from 'ply' to 'end_header')")
    lines = [line.split() for line in head.decode("ascii", errors="replace").splitlines()]
    form = next((line[1] for line in lines if line[:1] == ["format"] and len(line) > 1), "none")
    if form not in _BYTE_ORDERS:
        raise ValueError(f"{path}: PLY of format {form}, expected one of {list(_BYTE_ORDERS)}")
    elements = [line for line in lines if line[:1] == ["element"]]
    if not elements or elements[0][1:2] != ["vertex"] or not elements[0][-1].isdigit():
        raise ValueError(f"{path}: expected 'element vertex <count>' first in the PLY header")
    if int(elements[0][2]) == 0:
        raise ValueError(f"{path}: PLY has no vertex")
    body = lines[lines.index(elements[0]) + 1 :]
    last = body.index(elements[1]) if len(elements) > 1 else len(body)
    layout = [_property(path, line) for line in body[:last] if line[:1] == ["property"]]
    if len({name for name, _ in layout}) < len(layout):
        raise ValueError(f"{path}: a PLY vertex property is named twice")
    dtype = np.dtype([(name, _BYTE_ORDERS[form] + kind) for name, kind in layout])
    newline = 2 if rest.startswith(b"\r\n") else 1
    return _Header(form == "ascii", int(elements[0][2]), dtype, len(head) + len(end) + newline)


def _read_vertices(path: Path, content: bytes, header: _Header) -> np.ndarray[Any, Any]:
    """The table of vertices, a column a property."""
    count, dtype, offset = header.vertices, header.dtype, header.offset
    width = len(dtype.names or ())
    if header.is_text:
        rows = content[offset:].decode("ascii", errors="replace").splitlines()[:count]
        try:
            table = np.array([row.split() for row in rows], dtype=np.float64)
        except ValueError as error:
            raise ValueError(f"{path}: broken ASCII PLY ({error})") from None
        if table.shape != (count, width):
            raise ValueError(f"{path}: truncated PLY, expected {count} lines of {width} numbers")
        return rfn.unstructured_to_structured(table, dtype)
    if len(content) - offset < count * dtype.itemsize:
        raise ValueError(
            f"{path}: truncated PLY, {count} vertices need {count * dtype.itemsize} bytes"
            f" after the header, found {len(content) - offset}"
        )
    return np.frombuffer(content, dtype, count, offset)


def _property(path: Path, line: list[str]) -> tuple[str, str]:
    if len(line) != 3 or line[1] not in SCALAR_TYPES:
        raise ValueError(f"{path}: expected a scalar PLY vertex property, got '{' '.join(line)}'")
    return line[2], SCALAR_TYPES[line[1]]


def _degree(path: Path, dtype: np.dtype[Any]) -> int:
    """Degree of the harmonics from the number of `f_rest` properties."""
    rest = sum(name.startswith("f_rest_") for name in dtype.names or ())
    known = {3 * (coefficients(degree) - 1): degree for degree in range(MAX_DEGREE + 1)}
    if rest not in known:
        raise ValueError(f"{path}: expected 0, 9, 24 or 45 f_rest properties, got {rest}")
    return known[rest]


def _column(path: Path, vertices: np.ndarray[Any, Any], name: str) -> Tensor:
    values = torch.from_numpy(vertices[name].astype(np.float32))
    if name == "opacity":  # sigmoid(+-30) is 1 and 1e-13
        values = values.clamp(-_OPAQUE, _OPAQUE)
    if not torch.isfinite(values).all():
        bad = int((~torch.isfinite(values)).nonzero()[0])
        raise ValueError(f"{path}: property {name} is NaN or infinite (first at vertex {bad})")
    return values


def _from_columns(columns: dict[str, Tensor]) -> Gaussians:
    def stack(prefix: str) -> Tensor:
        chosen = sorted((n for n in columns if n.startswith(prefix)), key=_number)
        return torch.stack([columns[name] for name in chosen], dim=1)

    base = stack("f_dc_")[:, None, :]
    if "f_rest_0" in columns:
        rest = stack("f_rest_").view(len(base), 3, -1).transpose(1, 2)
        base = torch.cat([base, rest], dim=1)
    return Gaussians(
        means=torch.stack([columns["x"], columns["y"], columns["z"]], dim=1),
        log_scales=stack("scale_"),
        quaternions=normalize(stack("rot_"), dim=-1),
        opacity_logits=columns["opacity"],
        sh=base.contiguous(),
    )


def _number(name: str) -> int:
    return int(name.rsplit("_", 1)[1])

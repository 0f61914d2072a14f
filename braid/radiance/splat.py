"""A differentiable, tiled rasteriser for 3D Gaussians in plain torch, on any device.

The image is cut into small square tiles. Each splat is listed in the tiles where its opacity can
reach 1/255; tiles with lists of similar length are padded to the longest and composited together.
In a tile the exponent of a splat is a quadratic in the pixel's place, so one matrix product gives
it for all splats and pixels.

Small tiles matter on a CPU: a splat that is 3 px wide pays for every pixel of the tiles it
touches. `splat_reference.render` is the same image in plain words, and the oracle for this one.
"""

from __future__ import annotations

import math
from importlib.util import find_spec

import torch
from torch import Tensor

from braid.radiance.compositing import composite
from braid.radiance.gaussians import Gaussians
from braid.radiance.projection import BLUR, NEAR, Splats, project
from braid.radiance.rays import Cameras, Rendered
from braid.radiance.tiles import Tiles, assign_tiles, monomials

_FAINT = 1e-12  # below any alpha that is not 0
_NOTHING = -1e4  # log opacity of the splat that pads short lists


def render(
    gaussians: Gaussians, cameras: Cameras, view: int, *, backend: str = "auto", tile: int = 4
) -> Rendered:
    """Render one view.

    Args:
        gaussians: The scene.
        cameras: The views; they must lie on the Gaussians' device.
        view: Which of them.
        backend: "torch", "gsplat" (needs CUDA and the package), or "auto": gsplat where it can.
        tile: Side of a tile in pixels ("torch" only); the image does not depend on it.

    Raises:
        ValueError: if the backend is unknown or cannot run here.
    """
    if backend not in ("auto", "torch", "gsplat"):
        raise ValueError(f"backend must be auto, torch or gsplat, got {backend!r}")
    can_gsplat = gaussians.means.is_cuda and find_spec("gsplat") is not None
    if backend == "gsplat" and not can_gsplat:
        raise ValueError("backend gsplat needs Gaussians on a CUDA device and the gsplat package")
    if can_gsplat and backend != "torch":
        return _render_gsplat(gaussians, cameras, view)
    return _render_torch(gaussians, cameras, view, tile)


def _render_torch(gaussians: Gaussians, cameras: Cameras, view: int, side: int) -> Rendered:
    splats = project(gaussians, cameras, view)
    tiles = assign_tiles(splats, cameras.width, cameras.height, side)
    columns = math.ceil(cameras.width / side)
    rows = math.ceil(cameras.height / side)
    corner = torch.stack([tiles.tile % columns, tiles.tile // columns]) * side
    middle = (corner + 0.5 * side).to(splats.depths)
    pixels = composite(
        _quadratics(splats, tiles, middle),
        _values(splats).index_select(1, tiles.splat),
        monomials(side, splats.depths),
        tiles.batches,
    )  # [T, 5, side * side]
    image = pixels.new_zeros(rows * columns, 5, side * side).index_copy(0, tiles.tile, pixels)
    image = image.view(rows, columns, 5, side, side).permute(2, 0, 3, 1, 4)
    image = image.reshape(5, rows * side, columns * side)[:, : cameras.height, : cameras.width]
    return _rendered(image[:3].permute(1, 2, 0), image[3], image[4], cameras)


def _values(splats: Splats) -> Tensor:  # [5, V + 1]
    """What a pixel sums up: RGB, 1 and z; the last column is the splat that pads short lists."""
    rows = [splats.colours, torch.ones_like(splats.depths)[None], splats.depths[None]]
    return torch.nn.functional.pad(torch.cat(rows), (0, 1))


def _quadratics(splats: Splats, tiles: Tiles, middle: Tensor) -> Tensor:  # [6, P]
    """Coefficients of log alpha = log opacity - d^T conic d / 2 in u and v, for each place.

    u and v are the pixel's place relative to the middle of its tile, which keeps the terms small.
    """
    xx, xy, yy = splats.covariances
    # The blur bounds the determinant from below, which keeps rounding from making it negative.
    determinant = (xx * yy - xy * xy).clamp_min(BLUR * (xx + yy) - BLUR**2)
    conic = torch.stack([yy, -xy, xx]) / determinant
    table = torch.nn.functional.pad(torch.cat([splats.centres, conic]), (0, 1))
    log_opacity = torch.nn.functional.pad(splats.log_opacities, (0, 1), value=_NOTHING)
    table = torch.cat([table, log_opacity[None]]).index_select(1, tiles.splat)
    x, y = table[:2] - middle.index_select(1, tiles.place)
    xx, xy, yy, log_opacity = table[2:]
    along_x = xx * x + xy * y
    along_y = xy * x + yy * y
    constant = log_opacity - 0.5 * (x * along_x + y * along_y)
    return torch.stack([constant, along_x, along_y, -0.5 * xx, -xy, -0.5 * yy])


def _rendered(
    rgb: Tensor,  # [H, W, 3]
    alpha: Tensor,  # [H, W]
    z: Tensor,  # [H, W], sum of weight * z
    cameras: Cameras,
) -> Rendered:
    """Divide the depth by its weights and turn z into distance along each pixel's ray."""
    x = (torch.arange(cameras.width).to(z) + 0.5 - 0.5 * cameras.width) / cameras.focal
    y = (torch.arange(cameras.height).to(z) + 0.5 - 0.5 * cameras.height) / cameras.focal
    stretch = (1 + x[None, :] ** 2 + y[:, None] ** 2).sqrt()
    return Rendered(rgb, alpha, stretch * z / alpha.clamp_min(_FAINT))


def _render_gsplat(gaussians: Gaussians, cameras: Cameras, view: int) -> Rendered:
    """The same through gsplat's CUDA kernels: it wants activated values and OpenCV cameras."""
    from gsplat import rasterization

    centre = (0.5 * cameras.width, 0.5 * cameras.height)
    intrinsics = [[cameras.focal, 0.0, centre[0]], [0.0, cameras.focal, centre[1]], [0.0, 0.0, 1.0]]
    image, alpha, _ = rasterization(
        means=gaussians.means,
        quats=torch.nn.functional.normalize(gaussians.quaternions, dim=-1),
        scales=gaussians.log_scales.exp(),
        opacities=gaussians.opacities,
        colors=gaussians.sh,
        sh_degree=gaussians.degree,
        viewmats=cameras[[view]].world_to_camera().to(gaussians.means),
        Ks=gaussians.means.new_tensor(intrinsics)[None],
        width=cameras.width,
        height=cameras.height,
        near_plane=NEAR,
        render_mode="RGB+D",  # D: sum of weight * z
    )
    return _rendered(image[0, ..., :3], alpha[0, ..., 0], image[0, ..., 3], cameras)

"""A differentiable, tiled rasterizer for 3D Gaussians in plain torch, on any device.

The image is cut into small square tiles. Each splat is listed in the tiles where its opacity can
reach 1/255; tiles with lists of similar length are padded to the longest and composited together.
In a tile the exponent of a splat is a quadratic in the pixel's place, so one matrix product gives
it for all splats and pixels.

Small tiles matter on a CPU: a splat that is 3 px wide pays for every pixel of the tiles it
touches. `tests/radiance/splat_reference.py` is the same image in plain words, and the oracle for
this one.
"""

from __future__ import annotations

import math
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import threshold

from braid.radiance.gaussians.gaussians import Gaussians, colors
from braid.radiance.scenes.cameras import Cameras, Rendered

# ---- Front-to-back compositing of the splats listed in small tiles, with its gradient written out
# With alpha_k the opacity of splat k at a pixel and T_k = prod_{j < k} (1 - alpha_j) what is left
# for it, the pixel is sum_k w_k value_k, w_k = T_k alpha_k. The gradient is
#
#     dL/dlog alpha_k = w_k q_k - alpha_k / (1 - alpha_k) sum_{j > k} w_j q_j,
#
# with q_k = <value_k, dL/dpixel>.
#
# alpha_k is the exponential of a quadratic in the pixel's place, so that one matrix product gives
# the exponents of all splats at all pixels of a tile.

MAX_ALPHA = 0.99
MIN_ALPHA = 1 / 255  # a splat fainter than this at a pixel is skipped there
MIN_TRANSMITTANCE = 1e-4  # a pixel that lets less than this through takes no further splat
_FLOOR = math.log(MIN_ALPHA) - 1  # exponents are raised to this: skipped, and never denormal


def composite(
    quadratic: Tensor,  # [6, P], coefficients of log alpha in the monomials
    values: Tensor,  # [C, P], what to sum up
    monomials: Tensor,  # [6, N], 1, u, v, u^2, uv, v^2 at the N pixels of a tile
    batches: list[tuple[int, int]],
) -> Tensor:
    """Composite batches of tiles, [T, C, N].

    The P places are those of the first batch, tile by tile and nearest splat first, then those of
    the next; a batch (B, K) has B tiles with K places each, and T is the sum of the B.
    """
    keep = torch.is_grad_enabled() and (quadratic.requires_grad or values.requires_grad)
    out: Tensor = _Composite.apply(quadratic, values, monomials, batches, keep)
    return out


class _Composite(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        quadratic: Tensor,
        values: Tensor,
        monomials: Tensor,
        batches: list[tuple[int, int]],
        keep: bool,
    ) -> Tensor:
        out, kept, begin = [], [], 0
        for count, width in batches:
            stop = begin + count * width
            alpha = _alpha(quadratic[:, begin:stop], monomials).view(count, width, -1)
            through = 1 - alpha
            before = torch.cumprod(through, dim=1).div_(through)
            before = threshold(before, MIN_TRANSMITTANCE, 0.0, inplace=True)
            weight = before.mul_(alpha)
            out.append(torch.bmm(_by_tile(values[:, begin:stop], count), weight))
            if keep:
                kept.append((alpha, weight))
            begin = stop
        ctx.kept, ctx.batches = kept, batches
        ctx.save_for_backward(values, monomials)
        return torch.cat(out) if out else values.new_zeros(0, len(values), monomials.shape[1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        values, monomials = ctx.saved_tensors
        d_quadratic = values.new_empty(len(monomials), values.shape[1])
        d_values = torch.empty_like(values)
        begin = first = 0
        for (count, width), (alpha, weight) in zip(ctx.batches, ctx.kept, strict=True):
            stop, last = begin + count * width, first + count
            out = grad[first:last]  # [B, C, N]
            _by_tile(d_values[:, begin:stop], count).copy_(torch.bmm(out, weight.transpose(1, 2)))
            value = _by_tile(values[:, begin:stop], count)
            pull = torch.bmm(value.transpose(1, 2), out)  # q
            d_exponent = _exponent_gradient(alpha, weight, pull)
            d_quadratic[:, begin:stop] = monomials @ d_exponent.flatten(0, 1).T
            begin, first = stop, last
        return d_quadratic, d_values, None, None, None


def _by_tile(
    values: Tensor,  # [C, B * K]
    count: int,
) -> Tensor:  # [B, C, K], a view
    return values.view(len(values), count, -1).transpose(0, 1)


def _alpha(quadratic: Tensor, monomials: Tensor) -> Tensor:  # [P, N]
    exponent = quadratic.T @ monomials
    alpha = exponent.clamp_min_(_FLOOR).exp_().clamp_max_(MAX_ALPHA)
    return threshold(alpha, MIN_ALPHA, 0.0, inplace=True)


def _exponent_gradient(
    alpha: Tensor,  # [B, K, N]
    weight: Tensor,  # [B, K, N], w
    pull: Tensor,  # [B, K, N], q
) -> Tensor:
    """dL/d(log alpha); nothing passes where alpha was skipped or clamped."""
    weighted = weight * pull
    behind = weighted.flip(1).cumsum(1).flip(1).sub_(weighted)
    odds = alpha / (1 - alpha)
    free = (MAX_ALPHA - alpha).sign_()
    return weighted.sub_(behind.mul_(odds)).mul_(free)


# ---- EWA projection of Gaussians to the screen (Zwicker et al. 2001, as in 3D Gaussian Splatting)

NEAR = 0.2  # scene units; what lies nearer, or behind the camera, is not drawn
BLUR = 0.3  # px^2 added to the screen covariance, so that no splat falls between pixels
FIELD_MARGIN = 1.3  # x/z and y/z are clamped to 1.3 tan(fov / 2) in the Jacobian only


class Splats(NamedTuple):
    """V Gaussians before the camera, in the scene's order. Pixel (0, 0) has its center at 0.5."""

    centers: Tensor  # [2, V] px
    covariances: Tensor  # [3, V] px^2: xx, xy, yy, blur included
    log_opacities: Tensor  # [V]
    colors: Tensor  # [3, V] RGB, >= 0
    depths: Tensor  # [V] along the camera's axis (z), scene units


def project(gaussians: Gaussians, cameras: Cameras, view: int) -> Splats:
    """Project the Gaussians that lie before one camera.

    What lies behind is dropped before anything is computed from it: no attribute of it gets a
    gradient, and no division by its depth can make one infinite.
    """
    pose = cameras[[view]].world_to_camera()[0].to(gaussians.means)
    center = cameras.camera_to_world[view, :3, 3].to(gaussians.means)
    front = gaussians.means @ pose[2, :3] + pose[2, 3] > NEAR
    seen = gaussians if front.all() else gaussians[front]
    local = pose[:3, :3] @ seen.means.T + pose[:3, 3:]  # [3, V]
    slopes, depths = local[:2] / local[2], local[2]
    middle = pose.new_tensor([[0.5 * cameras.width], [0.5 * cameras.height]])
    directions = _unit((seen.means - center).T)
    rows = torch.einsum("vij,jk->kiv", _jacobian(slopes, cameras), pose[:3, :3])
    return Splats(
        centers=cameras.focal * slopes + middle,
        covariances=_screen_covariances(seen, rows * (cameras.focal / depths)),
        log_opacities=torch.nn.functional.logsigmoid(seen.opacity_logits),
        colors=colors(seen.sh, directions.T).T,
        depths=depths,
    )


def _jacobian(
    slopes: Tensor,  # [2, V], x / z and y / z
    cameras: Cameras,
) -> Tensor:
    """Jacobian of the projection at the means, over focal / z, [V, 2, 3]."""
    size = slopes.new_tensor([[cameras.width], [cameras.height]])
    limit = FIELD_MARGIN * 0.5 * size / cameras.focal
    slopes = torch.maximum(torch.minimum(slopes, limit), -limit)
    return torch.cat(
        [torch.eye(2).to(slopes).expand(slopes.shape[1], 2, 2), -slopes.T[:, :, None]], dim=2
    )


def _screen_covariances(
    gaussians: Gaussians,
    rows: Tensor,  # [3, 2, V], J W, world axis first
) -> Tensor:  # [3, V]
    """J W R S S R^T W^T J^T plus the blur.

    The rows t of J W are turned into the Gaussian's own axes by its quaternion (w, u), inverted:
    t - 2 w u x t + 2 u x (u x t), which is half the work of the matrix R and a product with it.
    """
    quaternions = _unit(gaussians.quaternions.T)
    w, u = quaternions[0], quaternions[1:]
    turned = _cross(u, rows)
    rows = rows + 2 * (_cross(u, turned) - w * turned)
    x, y = (rows * gaussians.log_scales.T.exp()[:, None]).unbind(dim=1)
    return torch.stack([(x * x).sum(0) + BLUR, (x * y).sum(0), (y * y).sum(0) + BLUR])


def _unit(
    vectors: Tensor,  # [D, V]
) -> Tensor:
    """Vectors of unit length, component first, in which layout a CPU is quick at it."""
    vectors = vectors.contiguous()
    return vectors * (vectors * vectors).sum(dim=0).add(1e-24).rsqrt()


def _cross(
    u: Tensor,  # [3, V]
    t: Tensor,  # [3, 2, V]
) -> Tensor:
    """u x t; `torch.linalg.cross` with broadcasting is several times slower on a CPU."""
    (ux, uy, uz), (tx, ty, tz) = u, t
    return torch.stack([uy * tz - uz * ty, uz * tx - ux * tz, ux * ty - uy * tx])


# ---- Which splats can show in which small tile of the image, in batches that composite together

_CHUNK = 1 << 16  # (splat, pixel) pairs composited at once: activations stay in the CPU's cache


class Tiles(NamedTuple):
    """The splats of every tile that has any, nearest first, padded to the batch's longest list."""

    tile: Tensor  # [T] tile numbers, row-major, those with the longest lists first
    splat: Tensor  # [P] splat numbers; V stands for "nothing"
    place: Tensor  # [P], which of the T tiles a place belongs to
    batches: list[tuple[int, int]]  # B tiles with K places each; P is the sum of the B * K


@torch.no_grad()
def assign_tiles(splats: Splats, width: int, height: int, side: int) -> Tiles:
    """List for every tile of `side` pixels the splats whose alpha can reach 1/255 in it."""
    columns = math.ceil(width / side)
    reach = 2 * (splats.log_opacities - math.log(MIN_ALPHA))  # squared, in standard deviations
    extent = (reach.clamp_min(0) * splats.covariances[::2]).sqrt()
    # Pixel i has its center at i + 0.5: the first and last one inside the splat's box.
    first = (splats.centers - extent - 0.5).ceil().clamp_min(0)
    last = torch.minimum(
        (splats.centers + extent - 0.5).floor(), extent.new_tensor([[width - 1], [height - 1]])
    )
    visible = (last >= first).all(dim=0) & (reach > 0)
    first = first.div_(side).floor_().long()
    across, down = (last.div_(side).floor_().long() - first + 1).clamp_min_(0) * visible
    nearest = torch.argsort(splats.depths, stable=True)
    rank, number = _expand((across * down).index_select(0, nearest))
    splat = nearest.index_select(0, rank)
    corner = (first[1] * columns + first[0]).index_select(0, splat)
    stride = across.index_select(0, splat)
    tile = corner + number // stride * columns + number % stride
    tile, order = torch.sort(tile.int(), stable=True)
    return _pad(tile, splat.index_select(0, order), len(nearest), max(1, _CHUNK // side**2))


def _expand(
    counts: Tensor,  # [V]
) -> tuple[Tensor, Tensor]:  # [sum], [sum]
    """Repeat index i `counts[i]` times; also the running number within each repetition."""
    index = torch.repeat_interleave(counts)
    starts = counts.cumsum(0) - counts
    number = torch.arange(len(index), device=counts.device)
    return index, number - starts.index_select(0, index)


def _pad(
    tile: Tensor,  # [pairs], ascending
    splat: Tensor,  # [pairs]
    nothing: int,
    budget: int,
) -> Tiles:
    """Batches of at most `budget` places (one tile at the least), longest lists first."""
    numbers, counts = torch.unique_consecutive(tile, return_counts=True)
    starts = counts.cumsum(0) - counts
    counts, order = torch.sort(counts, descending=True, stable=True)
    batches = _batches(counts.tolist(), budget)
    widths = [width for count, width in batches for _ in range(count)]
    place, number = _expand(torch.tensor(widths, dtype=torch.long, device=tile.device))
    source = starts[order].index_select(0, place) + number
    listed = torch.where(number < counts.index_select(0, place), source, len(splat))
    splat = torch.nn.functional.pad(splat, (0, 1), value=nothing)
    return Tiles(numbers[order].long(), splat.index_select(0, listed), place, batches)


def _batches(lengths: list[int], budget: int) -> list[tuple[int, int]]:
    batches, begin = [], 0
    while begin < len(lengths):
        count = min(max(1, budget // lengths[begin]), len(lengths) - begin)
        batches.append((count, lengths[begin]))
        begin += count
    return batches


def monomials(side: int, like: Tensor) -> Tensor:  # [6, side * side]
    """1, u, v, u^2, uv, v^2 at a tile's pixel centers, (u, v) from the middle of the tile."""
    place = torch.arange(side).to(like) + 0.5 - 0.5 * side
    v, u = (grid.flatten() for grid in torch.meshgrid(place, place, indexing="ij"))
    return torch.stack([torch.ones_like(u), u, v, u * u, u * v, v * v])


# ---- The rasterizer: project, list by tile, composite --------------------------------------------

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
    rows = [splats.colors, torch.ones_like(splats.depths)[None], splats.depths[None]]
    return torch.nn.functional.pad(torch.cat(rows), (0, 1))


def _quadratics(splats: Splats, tiles: Tiles, middle: Tensor) -> Tensor:  # [6, P]
    """Coefficients of log alpha = log opacity - d^T conic d / 2 in u and v, for each place.

    u and v are the pixel's place relative to the middle of its tile, which keeps the terms small.
    """
    xx, xy, yy = splats.covariances
    # The blur bounds the determinant from below, which keeps rounding from making it negative.
    determinant = (xx * yy - xy * xy).clamp_min(BLUR * (xx + yy) - BLUR**2)
    conic = torch.stack([yy, -xy, xx]) / determinant
    table = torch.nn.functional.pad(torch.cat([splats.centers, conic]), (0, 1))
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

    center = (0.5 * cameras.width, 0.5 * cameras.height)
    intrinsics = [[cameras.focal, 0.0, center[0]], [0.0, cameras.focal, center[1]], [0.0, 0.0, 1.0]]
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

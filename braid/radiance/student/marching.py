"""Volume rendering by marching through the occupied voxels (Max 1995; Mildenhall et al. 2020).

A ray is cut into equal steps from where it enters the occupancy grid's box to where it leaves it.
Steps whose sample lies in an occupied voxel are kept, packed one after another in the order of
rays; only those reach the field. With delta the length of a step,

    alpha_i = 1 - exp(-sigma_i delta_i),    T_i = prod_{j<i} (1 - alpha_j),    w_i = T_i alpha_i

give the color sum(w c), premultiplied by the coverage sum(w), and the depth sum(w t) / sum(w).
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from braid.radiance.scenes.cameras import Cameras, Rays, Rendered
from braid.radiance.scenes.grids import Occupancy


class Field(NamedTuple):
    """A radiance field at P points."""

    sigma: Tensor  # [P] density per scene unit, >= 0
    rgb: Tensor  # [P, 3] in [0, 1]
    features: Tensor  # [P, hidden] last hidden layer of the trunk, before the heads


class RadianceField(Protocol):
    """What can be marched through: a :class:`KiloNeRF` or any function like it."""

    def __call__(self, points: Tensor, directions: Tensor, features: bool = True) -> Field:
        """The field at points [P, 3] seen along unit directions [P, 3]."""
        ...


class Samples(NamedTuple):
    """M samples on R rays, sorted by ray and then by distance."""

    ray: Tensor  # [M] index of the ray
    points: Tensor  # [M, 3]
    t: Tensor  # [M] distance along the unit ray
    delta: Tensor  # [M] length of the step that the sample stands for


class Marched(NamedTuple):
    """R rendered rays, with the samples they were made of."""

    rgb: Tensor  # [R, 3] premultiplied
    alpha: Tensor  # [R]
    depth: Tensor  # [R] expected distance along the unit ray; 0 where alpha is 0
    samples: Samples
    weights: Tensor  # [M] contribution of each sample
    field: Field  # at the samples


def sample(
    occupancy: Occupancy,
    rays: Rays,
    step: float,
    generator: torch.Generator | None = None,
) -> Samples:
    """Samples in the occupied voxels: one per step, at its middle or jittered by a generator.

    The last step of a ray ends at the box. Runs of steps that the coarse occupancy rules out are
    skipped without looking at them.
    """
    if step <= 0:
        raise ValueError(f"step must be positive, got {step}")
    span = _entry_and_exit(occupancy, rays)
    run = longest_run(occupancy, step)
    ray, index = _candidates(occupancy, rays, span, run * step)
    return _in_runs(occupancy, rays, span, step, run, ray, index, generator)


def longest_run(occupancy: Occupancy, step: float) -> int:
    """Steps that the coarse occupancy can rule out by one look at their middle."""
    return max(1, int(2 * occupancy.coarse_reach / step))


def _in_runs(
    occupancy: Occupancy,
    rays: Rays,
    span: tuple[Tensor, Tensor],  # of each ray, [R] both
    step: float,
    run: int,  # steps
    ray: Tensor,  # [Q] sorted
    index: Tensor,  # [Q] which run of the ray
    generator: torch.Generator | None = None,
) -> Samples:
    """The samples of chosen runs of steps that lie in occupied voxels."""
    near, far = (end.index_select(0, ray).unsqueeze(1) for end in span)
    steps = index.unsqueeze(1) * run + torch.arange(run, device=index.device)
    start = torch.add(near, steps, alpha=step)
    delta = (far - start).clamp(max=step)
    t = torch.addcmul(start, _jitter(start, generator), delta)
    inside = (delta > 0) & occupancy.along(rays, ray, t)
    row, column = torch.nonzero(inside, as_tuple=True)
    chosen = torch.add(column, row, alpha=run)
    t, delta = (values.flatten().index_select(0, chosen) for values in (t, delta))
    ray = ray.index_select(0, row)
    origins, directions = rays.origins.index_select(0, ray), rays.directions.index_select(0, ray)
    points = torch.addcmul(origins, directions, t.unsqueeze(1))
    return Samples(ray, points, t, delta)


def _entry_and_exit(occupancy: Occupancy, rays: Rays) -> tuple[Tensor, Tensor]:
    """Distances at which rays enter and leave the box; entry > exit for those that miss it."""
    inverse = 1 / rays.directions
    first = (occupancy.low - rays.origins) * inverse
    second = (occupancy.high - rays.origins) * inverse
    # 0 * inf: the origin lies in a face that the ray runs along, which does not bound it.
    near = torch.minimum(first, second).nan_to_num(nan=-torch.inf, posinf=torch.inf)
    far = torch.maximum(first, second).nan_to_num(nan=torch.inf, posinf=torch.inf)
    return near.amax(1).clamp_min(0), far.amin(1)


def _candidates(
    occupancy: Occupancy, rays: Rays, span: tuple[Tensor, Tensor], length: float
) -> tuple[Tensor, Tensor]:
    """(ray, run) of the runs of the given length that may meet an occupied voxel."""
    near, far = span
    hit = torch.nonzero(near < far).squeeze(1)
    near, far = near.index_select(0, hit), far.index_select(0, hit)
    runs = int(float((far - near).max()) / length) + 1 if len(hit) else 1
    middle = near.unsqueeze(1) + (torch.arange(runs, device=near.device) + 0.5) * length
    starts_inside = middle - 0.5 * length < far.unsqueeze(1)
    row, run = torch.nonzero(starts_inside & occupancy.near_along(rays, hit, middle), as_tuple=True)
    return hit.index_select(0, row), run


def _jitter(like: Tensor, generator: torch.Generator | None) -> Tensor:
    if generator is None:
        return torch.full_like(like, 0.5)
    return torch.rand(like.shape, generator=generator, device=generator.device).to(like)


def compositing_weights(
    ray: Tensor,  # [M] sorted
    tau: Tensor,  # [M] optical depth sigma * delta of each sample
    rays: int,
) -> Tensor:
    """Contribution w_i = T_i (1 - exp(-tau_i)) of each sample to its ray, [M]."""
    rank = sample_rank(ray, rays)
    columns = int(rank.max()) + 1 if len(rank) else 1
    # A table per ray: a running sum over all rays would cancel in float32.
    place = ray * columns + rank
    table = tau.new_zeros(rays * columns).index_copy(0, place, tau).view(rays, columns)
    before = torch.nn.functional.pad(torch.cumsum(table[:, :-1], dim=1), (1, 0))
    return torch.exp(-before.flatten().index_select(0, place)) * -torch.expm1(-tau)


def sample_rank(
    ray: Tensor,  # [M] sorted
    rays: int,
) -> Tensor:
    """Each sample's place among its ray's samples, from 0, [M]."""
    counts = torch.bincount(ray, minlength=rays)
    first = torch.cumsum(counts, 0) - counts
    return torch.arange(len(ray), device=ray.device) - first.index_select(0, ray)


def march(
    field: RadianceField,
    occupancy: Occupancy,
    rays: Rays,
    step: float,
    generator: torch.Generator | None = None,
    features: bool = True,
) -> Marched:
    """Render rays through every occupied sample; differentiable in the field.

    With a generator the samples are jittered within their steps (training), without one they lie
    in the middle. ``features=False`` leaves the field's features empty. Raises ``ValueError`` for
    a step <= 0.
    """
    samples = sample(occupancy, rays, step, generator)
    values = field(samples.points, rays.directions[samples.ray], features=features)
    count = len(rays.origins)
    weights = compositing_weights(samples.ray, values.sigma * samples.delta, count)
    total = _accumulate(weights, values.rgb, samples, count)
    return Marched(*_image(total), samples, weights, values)


def _accumulate(weights: Tensor, rgb: Tensor, samples: Samples, rays: int) -> Tensor:
    """Sums over each ray of w c, w and w t, [R, 5]."""
    ones = torch.ones_like(samples.t)
    values = torch.cat([rgb, torch.stack([ones, samples.t], dim=1)], dim=1)
    total = values.new_zeros(rays, 5)
    return total.index_add(0, samples.ray, weights.unsqueeze(1) * values)


def _image(total: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    alpha = total[:, 3]
    depth = torch.where(alpha > 1e-6, total[:, 4] / alpha.clamp_min(1e-6), 0.0)
    return total[:, :3], alpha, depth


def draw_points(
    weights: Tensor,  # [S], compositing weight of each packed sample, times its ray's importance
    ray: Tensor,  # [S] int64, the ray of each sample
    alpha: Tensor,  # [R], opacity of each ray
    count: int,
    generator: torch.Generator,
    *,
    solid: float = 0.5,
) -> Tensor:
    """Samples drawn in proportion to weight on rays with alpha >= `solid`, [count] int64.

    Empty if no sample has weight there.
    """
    exact = torch.float32 if weights.device.type == "mps" else torch.float64
    cumulative = (weights * (alpha >= solid)[ray]).detach().to(exact).cumsum(0)
    if len(cumulative) == 0 or cumulative[-1] <= 0:
        return torch.empty(0, dtype=torch.int64, device=weights.device)
    u = torch.rand(count, generator=generator, device=generator.device)
    place = torch.searchsorted(cumulative, u.to(cumulative) * cumulative[-1], right=True)
    return place.clamp_max(len(cumulative) - 1)


@torch.no_grad()
def render_view(
    field: RadianceField,
    occupancy: Occupancy,
    cameras: Cameras,
    view: int,
    step: float,
    chunk: int = 32768,  # rays at once
    stop: float = 1e-2,
    block: int = 8,  # steps of a ray between two looks at its transmittance, at most
) -> Rendered:
    """Render a view front to back, leaving each ray once its transmittance is below ``stop``.

    What lies behind is taken for background, so that over a background b a pixel is wrong by at
    most stop * max|c - b|. Raises ``ValueError`` for a chunk, block or step that is not positive.
    """
    if min(chunk, block) < 1 or step <= 0:
        raise ValueError(f"expected chunk, block, step above 0, got {chunk}, {block}, {step}")
    rays = cameras.view_rays(view)
    rgb, alpha, depth = render_rays(field, occupancy, rays, step, chunk, stop, block)
    size = (cameras.height, cameras.width)
    return Rendered(rgb.view(*size, 3), alpha.view(size), depth.view(size))


def render_rays(
    field: RadianceField,
    occupancy: Occupancy,
    rays: Rays,
    step: float,
    chunk: int = 32768,
    stop: float = 1e-2,
    block: int = 8,
) -> tuple[Tensor, Tensor, Tensor]:
    """Premultiplied rgb [R, 3], alpha [R] and depth [R], with early termination below ``stop``.

    A ray that ends makes room for the next, so that the field always has many points to evaluate.
    """
    block = min(block, longest_run(occupancy, step))
    near, far = _entry_and_exit(occupancy, rays)
    runs = [
        _candidates(occupancy, Rays(*part[:2]), (part[2], part[3]), block * step)
        for part in zip(*(torch.split(x, chunk) for x in (*rays, near, far)), strict=True)
    ]
    ray = torch.cat([ray + part * chunk for part, (ray, _) in enumerate(runs)])
    index = torch.cat([run for _, run in runs])
    count = torch.bincount(ray, minlength=len(near))
    end = count.cumsum(0)
    place = end - count  # of each ray's next run among all
    total = near.new_zeros(len(near), 5)
    waiting = torch.nonzero(count).squeeze(1)
    active = waiting[:0]
    while len(active) or len(waiting):
        room = chunk - len(active)
        active, waiting = torch.cat([active, waiting[:room]]), waiting[room:]
        part = Rays(*(ends.index_select(0, active) for ends in rays))
        own = torch.arange(len(active), device=active.device)
        span = (near.index_select(0, active), far.index_select(0, active))
        samples = _in_runs(occupancy, part, span, step, block, own, index[place[active]])
        directions = part.directions.index_select(0, samples.ray)
        values = field(samples.points, directions, features=False)
        weights = compositing_weights(samples.ray, values.sigma * samples.delta, len(active))
        before = total[active]
        more = _accumulate(weights, values.rgb, samples, len(active))
        total[active] = after = before + (1 - before[:, 3:4]) * more
        place[active] += 1
        going = (place[active] < end[active]) & (after[:, 3] <= 1 - stop)
        active = active[going]
    return _image(total)

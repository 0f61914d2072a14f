"""Fit 3D Gaussians to posed images: hull initialisation, Adam, density control, resumable.

What a step draws depends on the seed and its number only, so a fit that was killed at any step and
started again with the same checkpoint path ends with the same bytes as one that was not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from braid.radiance.density import control_density
from braid.radiance.fit_state import FitState
from braid.radiance.gaussians import Gaussians
from braid.radiance.hull import initial_gaussians, visual_hull
from braid.radiance.rays import Cameras, Rendered
from braid.radiance.splat import render
from braid.training import checkpoint as checkpoints


@dataclass(frozen=True)
class FitSettings:
    """Hyperparameters of a fit; learning rates are for Adam, at the start of the decay."""

    steps: int = 800  # one view a step
    resolution: int = 64  # voxels along the hull's longest side: sets the number of Gaussians
    sh_degree: int = 3  # degree of the view-dependent colour at the end, 0 to 3
    sh_interval: int = 100  # steps after which one more degree is let in
    lr_means: float = 3e-3  # in units of half the hull's longest side
    lr_scales: float = 4e-2
    lr_quaternions: float = 4e-2
    lr_opacities: float = 1e-1
    lr_colour: float = 4e-2  # degree 0
    lr_harmonics: float = 1e-2  # degrees 1 to 3
    lr_decay: float = 0.03  # share of each learning rate that is left at the last step
    alpha_weight: float = 0.5  # of the squared error of alpha, beside the L1 error of colour
    density_interval: int = 0  # steps between rounds of density control; 0: none
    density_start: float = 0.1  # share of the steps before the first round
    density_stop: float = 0.6  # share of the steps after which there is no further round
    density_grow: float = 0.05  # share of the Gaussians that a round doubles
    density_capacity: int = 50_000  # Gaussians beyond which nothing is doubled
    prune_opacity: float = 0.01  # a round removes what is fainter
    split_scale: float = 1.0  # voxels; larger Gaussians are split, smaller ones cloned
    log_interval: int = 20  # steps between two rows of the history


class Fit(NamedTuple):
    """A fitted scene."""

    gaussians: Gaussians
    history: list[dict[str, float]]  # step, loss, psnr (of one train view, on white), count


def fit(
    cameras: Cameras,
    rgba: Tensor,  # [N, H, W, 4], premultiplied
    settings: FitSettings,
    *,
    seed: int,
    checkpoint: Path | None = None,
    checkpoint_interval: int = 200,
    backend: str = "auto",
) -> Fit:
    """Fit Gaussians to the views, on the device that holds them.

    Args:
        cameras: The views' cameras.
        rgba: The views' pixels.
        settings: Hyperparameters.
        seed: Of everything random.
        checkpoint: Where the state is kept; if the file exists, the fit goes on from there.
        checkpoint_interval: Steps between two checkpoints.
        backend: Of the rasteriser, see `braid.radiance.splat.render`.

    Raises:
        ValueError: if the visual hull is empty.
        FloatingPointError: if the loss or a gradient is not finite; the checkpoint stays as it was.
    """
    hull = visual_hull(cameras, rgba[..., 3], settings.resolution)
    radius = 0.5 * float((hull.box[1] - hull.box[0]).max())
    gaussians = initial_gaussians(hull, cameras, rgba, settings.sh_degree)
    state = FitState(gaussians, _rates(settings, radius))
    saved = checkpoints.load(checkpoint) if checkpoint else None
    if saved is not None:
        state.load_state_dict(saved)

    bar = tqdm(total=settings.steps, initial=state.step, desc="teacher", disable=None)
    while state.step < settings.steps:
        _step(state, cameras, rgba, settings, seed, backend)
        if _density_due(state.step, settings):
            _density_round(state, settings, seed, hull.voxel)
        if checkpoint and state.step % checkpoint_interval == 0:
            checkpoints.save(checkpoint, state.state_dict())
        bar.update()
    bar.close()
    return Fit(state.gaussians(settings.sh_degree).detach(), state.history)


def _step(
    state: FitState,
    cameras: Cameras,
    rgba: Tensor,
    settings: FitSettings,
    seed: int,
    backend: str,
) -> None:
    """One view, one update."""
    view = _view(seed, state.step, len(cameras))
    degree = min(settings.sh_degree, state.step // settings.sh_interval)
    rendered = render(state.gaussians(degree), cameras, view, backend=backend)
    loss = photo_loss(rendered, rgba[view], settings.alpha_weight)
    state.optimizer.zero_grad(set_to_none=False)
    loss.backward()
    _check_finite(loss, state)
    for group, rate in zip(state.optimizer.param_groups, state.rates.values(), strict=True):
        group["lr"] = rate * settings.lr_decay ** (state.step / settings.steps)
    state.optimizer.step()
    state.pressure += state.gradient("means").norm(dim=1)
    state.step += 1
    if state.step % settings.log_interval == 0 or state.step == settings.steps:
        state.history.append(_row(state, loss, rendered, rgba[view]))


def photo_loss(
    rendered: Rendered,
    rgba: Tensor,  # [H, W, 4], premultiplied
    alpha_weight: float,
) -> Tensor:
    """L1 of the premultiplied colour + alpha_weight * squared error of alpha."""
    colour = (rendered.rgb - rgba[..., :3]).abs().mean()
    return colour + alpha_weight * (rendered.alpha - rgba[..., 3]).square().mean()


def _rates(settings: FitSettings, radius: float) -> dict[str, float]:
    return {
        "means": settings.lr_means * radius,
        "log_scales": settings.lr_scales,
        "quaternions": settings.lr_quaternions,
        "opacity_logits": settings.lr_opacities,
        "colour": settings.lr_colour,
        "harmonics": settings.lr_harmonics,
    }


def _generator(seed: int, *salt: int) -> torch.Generator:
    """A generator of its own for each (seed, salt)."""
    mixed = hash((seed, *salt))  # of integers only: the same in every process
    return torch.Generator().manual_seed(mixed % (1 << 63))


def _view(seed: int, step: int, count: int) -> int:
    """Every view once per pass, in an order that is shuffled anew for each pass."""
    passed, place = divmod(step, count)
    return int(torch.randperm(count, generator=_generator(seed, 0, passed))[place])


def _check_finite(loss: Tensor, state: FitState) -> None:
    sums = [loss.detach(), *(state.gradient(name).sum() for name in state.parts)]
    if not torch.stack(sums).isfinite().all():
        raise FloatingPointError(
            f"teacher: loss or gradient is not finite at step {state.step}"
            f" (loss {loss.item():g}); the last checkpoint is kept: lower the learning rates"
        )


def _density_due(step: int, settings: FitSettings) -> bool:
    share = step / settings.steps
    within = settings.density_start <= share <= settings.density_stop
    return settings.density_interval > 0 and within and step % settings.density_interval == 0


def _density_round(state: FitState, settings: FitSettings, seed: int, voxel: float) -> None:
    changed = control_density(
        state.gaussians(settings.sh_degree).detach(),
        state.pressure,
        grow=settings.density_grow,
        capacity=settings.density_capacity,
        prune_opacity=settings.prune_opacity,
        split_scale=settings.split_scale * voxel,
        generator=_generator(seed, 1, state.step),
    )
    state.replace(*changed)


@torch.no_grad()
def _row(state: FitState, loss: Tensor, rendered: Rendered, rgba: Tensor) -> dict[str, float]:
    error = rendered.rgb - rendered.alpha[..., None] - (rgba[..., :3] - rgba[..., 3:])
    psnr = -10 * math.log10(max(float(error.square().mean()), 1e-10))
    return {"step": state.step, "loss": loss.item(), "psnr": psnr, "count": len(state.pressure)}

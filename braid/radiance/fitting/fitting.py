"""Fit 3D Gaussians to posed images: hull initialization, Adam, density control, resumable.

What a step draws depends on the seed and its number only, so a fit that was killed at any step and
started again with the same checkpoint path ends with the same bytes as one that was not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from braid.radiance.fitting.hull import initial_gaussians, visual_hull
from braid.radiance.gaussians.gaussians import (
    Gaussians,
    coefficients,
    concatenate,
    rotation_matrices,
)
from braid.radiance.gaussians.splat import render
from braid.radiance.scenes.cameras import Cameras, Rendered
from braid.training import checkpoint as checkpoints

# ---- Density control: clone, split and prune Gaussians during a fit ----------------------------
# After Kerbl et al. 2023, with a budget in place of a gradient threshold: at each round the given
# share of the Gaussians with the largest accumulated position gradient is doubled, so that the
# count is known beforehand. Every change is a choice of rows, which parameters and Adam moments
# follow alike, and edits of the new rows.

_SHRINK = 1.6  # a split Gaussian's children are smaller by this factor


class Round(NamedTuple):
    """The Gaussians after one round of density control."""

    gaussians: Gaussians  # M rows
    source: Tensor  # [M], the row that each came from
    fresh: Tensor  # [M], True for the children of clones and splits


@torch.no_grad()
def control_density(
    gaussians: Gaussians,
    pressure: Tensor,  # [G], accumulated gradient norm of the means
    *,
    grow: float,
    capacity: int,
    prune_opacity: float,
    split_scale: float,
    generator: torch.Generator,
) -> Round:
    """Prune the faint, then double the `grow` share of the others that is under most pressure.

    Args:
        gaussians: All Gaussians.
        pressure: How hard the loss pulls at each mean.
        grow: Share of the Gaussians to double, 0 to 1.
        capacity: Count that is not exceeded by growing.
        prune_opacity: Gaussians fainter than this are removed.
        split_scale: The largest standard deviation (scene units) above which a Gaussian is split
            into two smaller ones within it; the others are cloned in place.
        generator: Where the children of a split lie.
    """
    kept = (gaussians.opacities >= prune_opacity).nonzero()[:, 0]
    count = min(int(grow * len(kept)), max(0, capacity - len(kept)))
    doubled = kept[torch.argsort(pressure[kept], descending=True, stable=True)[:count]]
    stays = torch.ones(len(gaussians), dtype=torch.bool, device=kept.device)
    stays[doubled] = False
    source = torch.cat([kept[stays[kept]], doubled, doubled])
    fresh = torch.arange(len(source), device=kept.device) >= len(kept) - count
    pairs = _children(gaussians[doubled], split_scale, generator)
    chosen = gaussians[kept[stays[kept]]]
    return Round(concatenate(chosen, pairs), source, fresh)


def _children(parents: Gaussians, split_scale: float, generator: torch.Generator) -> Gaussians:
    """First children, then second children of each parent.

    A clone's opacity is such that two of them cover as much as their parent did.
    """
    count = len(parents)
    large = (parents.log_scales.amax(dim=1) > math.log(split_scale))[:, None]
    draw = torch.randn(count, 3, generator=generator).to(parents.means)
    local = draw * parents.log_scales.exp()
    offset = (rotation_matrices(parents.quaternions) @ local[:, :, None])[:, :, 0] * large
    smaller = parents.log_scales - math.log(_SHRINK) * large
    half = 1 - (1 - parents.opacities).sqrt()
    logits = torch.where(large[:, 0], parents.opacity_logits, torch.logit(half, eps=1e-6))
    first = Gaussians(parents.means + offset, smaller, parents.quaternions, logits, parents.sh)
    second = Gaussians(parents.means - offset, smaller, parents.quaternions, logits, parents.sh)
    return concatenate(first, second)


# ---- The state of a fit: leaf tensors, Adam's moments, step number, history --------------------


class FitState:
    """All that a step of a fit changes."""

    def __init__(self, gaussians: Gaussians, rates: dict[str, float]) -> None:
        self.rates = rates
        self.step = 0
        self.history: list[dict[str, float]] = []
        self.pressure = torch.zeros_like(gaussians.opacity_logits)
        self.set_gaussians(gaussians)

    def set_gaussians(self, gaussians: Gaussians) -> None:
        """Make leaf tensors of the Gaussians, and an optimizer with fresh moments."""
        parts = {
            "means": gaussians.means,
            "log_scales": gaussians.log_scales,
            "quaternions": gaussians.quaternions,
            "opacity_logits": gaussians.opacity_logits,
            "color": gaussians.sh[:, :1],
            "harmonics": gaussians.sh[:, 1:],
        }
        self.parts = {k: v.detach().clone().requires_grad_() for k, v in parts.items()}
        groups = [{"params": [self.parts[k]], "lr": rate} for k, rate in self.rates.items()]
        self.optimizer = torch.optim.Adam(groups, betas=(0.9, 0.99), eps=1e-15, fused=True)

    def gaussians(self, degree: int) -> Gaussians:
        """The Gaussians with harmonics up to a degree."""
        parts = self.parts
        higher = parts["harmonics"][:, : coefficients(degree) - 1]
        return Gaussians(
            parts["means"],
            parts["log_scales"],
            parts["quaternions"],
            parts["opacity_logits"],
            torch.cat([parts["color"], higher], dim=1),
        )

    def replace(self, gaussians: Gaussians, source: Tensor, fresh: Tensor) -> None:
        """Take other Gaussians; Adam's moments follow the rows, those of fresh rows are zero."""
        old = [self.optimizer.state[part] for part in self.parts.values()]
        self.set_gaussians(gaussians)
        for part, moments in zip(self.parts.values(), old, strict=True):
            stale = fresh.view(-1, *[1] * (part.dim() - 1))
            self.optimizer.state[part] = {
                name: value[source].masked_fill(stale, 0.0) if value.dim() else value
                for name, value in moments.items()
            }
        self.pressure = torch.zeros_like(gaussians.opacity_logits)

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain numbers, for a checkpoint."""
        return {
            "step": self.step,
            "history": self.history,
            "pressure": self.pressure,
            "parts": {name: part.detach() for name, part in self.parts.items()},
            "optimizer": self.optimizer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to where a checkpoint was made."""
        parts = state["parts"]
        sh = torch.cat([parts.pop("color"), parts.pop("harmonics")], dim=1)
        device = self.pressure.device
        self.set_gaussians(Gaussians(**parts, sh=sh).to(device))
        self.optimizer.load_state_dict(state["optimizer"])
        self.pressure = state["pressure"].to(device)
        self.step, self.history = state["step"], state["history"]

    def gradient(self, name: str) -> Tensor:
        """The gradient of one part, as the last backward pass left it."""
        gradient = self.parts[name].grad
        assert gradient is not None, name
        return gradient


@dataclass(frozen=True)
class FitSettings:
    """Hyperparameters of a fit; learning rates are for Adam, at the start of the decay."""

    steps: int = 800  # one view a step
    resolution: int = 64  # voxels along the hull's longest side: sets the number of Gaussians
    sh_degree: int = 3  # degree of the view-dependent color at the end, 0 to 3
    sh_interval: int = 100  # steps after which one more degree is let in
    lr_means: float = 3e-3  # in units of half the hull's longest side
    lr_scales: float = 4e-2
    lr_quaternions: float = 4e-2
    lr_opacities: float = 1e-1
    lr_color: float = 4e-2  # degree 0
    lr_harmonics: float = 1e-2  # degrees 1 to 3
    lr_decay: float = 0.03  # share of each learning rate that is left at the last step
    alpha_weight: float = 0.5  # of the squared error of alpha, beside the L1 error of color
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
        backend: Of the rasterizer, see `braid.radiance.gaussians.splat.render`.

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
    """L1 of the premultiplied color + alpha_weight * squared error of alpha."""
    color = (rendered.rgb - rgba[..., :3]).abs().mean()
    return color + alpha_weight * (rendered.alpha - rgba[..., 3]).square().mean()


def _rates(settings: FitSettings, radius: float) -> dict[str, float]:
    return {
        "means": settings.lr_means * radius,
        "log_scales": settings.lr_scales,
        "quaternions": settings.lr_quaternions,
        "opacity_logits": settings.lr_opacities,
        "color": settings.lr_color,
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

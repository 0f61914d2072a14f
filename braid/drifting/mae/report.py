"""What a latent MAE rebuilds of clips it has not seen, beside predictors that learnt nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from braid.common.rng import generator
from braid.drifting.interpolation.interpolation import linear
from braid.drifting.mae.latent_mae import LatentMae
from braid.drifting.mae.objective import MODES, Masking, hide, masked_error

COLLAPSED_RANK = 0.05  # of the pooled dimensions; fewer in use are a collapse
TRIVIAL = ("zero", "mean", "average", "interpolation")
CHUNK = 64  # clips at a time
WINDOW = 5  # pixels a side of what a hidden pixel of an image is guessed from


@torch.no_grad()
def mae_report(
    mae: LatentMae,
    masking: Masking,  # its ratios
    latents: Callable[[Tensor], Tensor],  # of clips [B], int64 on the CPU: [B, C, T, H, W]
    clips: Tensor,  # [n], not trained on
    labels: Tensor,  # pseudo-class of every clip, for a model that has a head
    seed: int,  # of the masks
    modes: Sequence[str] = MODES,  # that are judged
    average: Tensor | None = None,  # [C, T, H, W], a trivial prediction too
) -> dict[str, float]:
    """Masked errors, use of the feature space and accuracy of the head.

    For each mode `val_mse_<mode>`, and beside it what trivial predictors score: `_zero`, `_mean`
    (of a channel's visible cells), `_average` where one is given, and `_interpolation`: of frames
    linear between visible ones, of patches of images the mean of the visible pixels around.
    `rank` is RankMe (Garrido et al. 2023) of the pooled last stage and `rank_share` that of its
    dimensions. `head_accuracy` is on whole clips, `head_chance` the share of the largest class.
    """
    figures: dict[str, list[Tensor]] = {}
    pooled = []
    device = next(mae.parameters()).device
    for number, chosen in enumerate(clips.split(CHUNK)):
        values = latents(chosen).to(device)
        for mode in modes:
            draw = generator(seed, "latent_mae", mode, number)
            hidden = masking(values.shape, draw, mode).to(device)
            for name, error in _errors(mae, values, hidden, mode, average).items():
                figures.setdefault(f"val_mse_{name}", []).append(error)
        maps = mae.encode(values)
        pooled.append(maps[f"stage{len(mae.blocks)}"].mean(dim=(2, 3, 4)))
        if mae.head is not None:
            right = mae.logits(maps).argmax(dim=1) == labels[chosen].to(device)
            figures.setdefault("head_accuracy", []).append(right.float())
    report = {name: float(torch.cat(each).mean()) for name, each in figures.items()}
    report["rank"] = rank_me(torch.cat(pooled))
    report["parameters"] = sum(each.numel() for each in mae.parameters())
    report["rank_share"] = report["rank"] / pooled[0].shape[1]
    if mae.head is not None:
        counts = labels[clips].bincount()
        report["head_chance"] = float(counts.max() / counts.sum())
    return report


def mae_status(report: Mapping[str, float]) -> tuple[str, str]:
    """The status and a line with the figures behind it.

    `collapsed`: the pooled features span hardly any dimension; `worse_than_<trivial>`: in some
    mode the error is no lower than a trivial predictor's; `head_at_chance`: the head is no better
    than naming the largest class; otherwise `passed`.
    """
    if report["rank_share"] < COLLAPSED_RANK:
        used = f"{report['rank']:.1f} dimensions, {report['rank_share']:.1%} of them"
        return "collapsed", f"pooled features use {used}, expected {COLLAPSED_RANK:.0%} or more"
    compared = []
    for mode in (each for each in MODES if f"val_mse_{each}" in report):
        bounds = {each: report.get(f"val_mse_{mode}_{each}") for each in TRIVIAL}
        error = report[f"val_mse_{mode}"]
        bound, trivial = min((bound, each) for each, bound in bounds.items() if bound is not None)
        compared.append(f"{mode} {error:.3f} ({trivial}: {bound:.3f})")
        if error >= bound:
            return f"worse_than_{trivial}", f"masked error {compared[-1]}"
    chance = report.get("head_chance", 0.0)
    if report.get("head_accuracy", 1.0) <= chance:
        return "head_at_chance", f"head accuracy {report['head_accuracy']:.3f}, chance {chance:.3f}"
    return "passed", f"masked error below every trivial predictor's: {', '.join(compared)}"


def rank_me(
    features: Tensor,  # [n, D]
) -> float:
    """The exponential of the entropy of the singular values: how many dimensions are in use."""
    singular = torch.linalg.svdvals(features.cpu().double())
    shares = singular / singular.sum().clamp_min(1e-12)
    return float((-shares * shares.clamp_min(1e-12).log()).sum().exp())


def _errors(
    mae: LatentMae, clips: Tensor, hidden: Tensor, mode: str, average: Tensor | None
) -> dict[str, Tensor]:
    """Masked error of each clip, [B], by predictor."""
    visible = hide(clips, hidden)
    seen = (~hidden).sum(dim=(2, 3, 4), keepdim=True).clamp_min(1)
    predictions = {
        mode: mae(visible),
        f"{mode}_zero": torch.zeros_like(clips),
        f"{mode}_mean": (visible.sum(dim=(2, 3, 4), keepdim=True) / seen).expand_as(clips),
    }
    if average is not None:
        predictions[f"{mode}_average"] = average.to(clips).expand_as(clips)
    if mode == "frame":
        keyframes = ~hidden[:, 0, :, 0, 0]
        predictions[f"{mode}_interpolation"] = linear(clips, keyframes)
    if mode == "patch" and clips.shape[2] == 1:
        predictions[f"{mode}_interpolation"] = _around(visible, hidden)
    return {name: masked_error(each, clips, hidden) for name, each in predictions.items()}


def _around(
    visible: Tensor,  # [B, C, 1, H, W], zero where hidden
    hidden: Tensor,  # [B, 1, 1, H, W]
) -> Tensor:
    """The mean of the visible pixels of a window around each pixel; 0 where there is none."""
    seen = (~hidden).to(visible)
    total, count = (F.avg_pool2d(each[:, :, 0], WINDOW, 1, WINDOW // 2) for each in (visible, seen))
    return (total / count.clamp_min(1 / WINDOW**2))[:, :, None]

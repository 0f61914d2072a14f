"""What a latent MAE rebuilds of clips it was not trained on, beside predictors that learnt nothing.

    zero            the mean of normalized latents
    mean            of a channel's visible cells
    average         of training images, where one is given
    interpolation   of frames linear between visible ones, of patches of images the mean around them

Each is scored on the same hidden cells, mode by mode.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from braid.common.rng import generator
from braid.drifting.interpolation.interpolation import linear
from braid.drifting.mae.latent_mae import LatentMae
from braid.drifting.mae.objective import MODES, Masking, hide, masked_error
from braid.metrics.distances import effective_rank

COLLAPSED_RANK = 0.05  # of the pooled dimensions; fewer in use are a collapse
MODEL = "mae"  # the model's own name among the predictors
CHUNK = 64  # clips at a time
WINDOW = 5  # pixels a side of what a hidden pixel of an image is guessed from


@dataclass(frozen=True)
class MaeReport:
    """Figures of a latent MAE on held-out clips."""

    errors: dict[str, dict[str, float]]  # masked error by mode and, within it, predictor
    rank: float  # effective, of the pooled last stage
    rank_fraction: float  # of its dimensions
    parameters: int
    head_accuracy: float | None  # on whole clips; None: there is no head
    head_chance: float | None  # the fraction of the largest class

    def trivial(self, mode: str) -> tuple[float, str]:
        """The lowest error of a trivial predictor, and which one that is."""
        return min((error, name) for name, error in self.errors[mode].items() if name != MODEL)

    def metrics(self) -> dict[str, Any]:
        """The headline: patch mode's error and its best trivial one, and the head."""
        head = {} if self.head_accuracy is None else {"accuracy": {"head": self.head_accuracy}}
        mse = {"patch": self.errors["patch"][MODEL], "trivial": self.trivial("patch")[0]}
        return {"mse": mse, **head}

    def rows(self) -> list[dict[str, Any]]:
        """A row for each predictor, and one for naming the largest class."""
        names = dict.fromkeys(name for errors in self.errors.values() for name in errors)
        rows: dict[str, dict[str, Any]] = {name: {"method": name} for name in names}
        for mode, errors in self.errors.items():
            for name, error in errors.items():
                rows[name][f"mse_{mode}"] = error
        rows[MODEL] |= {
            "head_accuracy": self.head_accuracy,
            "rank": self.rank,
            "rank_fraction": self.rank_fraction,
            "parameters": self.parameters,
        }
        chance = {"method": "largest_class", "head_accuracy": self.head_chance}
        return [*rows.values(), *([] if self.head_chance is None else [chance])]


@torch.no_grad()
def mae_report(
    mae: LatentMae,
    masking: Masking,  # its ratios
    latents: Callable[[Tensor], Tensor],  # of clips [B], int64 on the CPU: [B, C, T, H, W]
    clips: Tensor,  # [n], not trained on
    labels: Tensor,  # pseudo-class of every clip, for a model that has a head
    seed: int,  # of the masks
    modes: Sequence[str] = MODES,  # that are evaluated
    average: Tensor | None = None,  # [C, T, H, W], a trivial prediction too
) -> MaeReport:
    """Masked errors, use of the feature space and accuracy of the head."""
    errors: dict[str, dict[str, list[Tensor]]] = {mode: {} for mode in modes}
    pooled, correct = [], []
    device = next(mae.parameters()).device
    for number, chosen in enumerate(clips.split(CHUNK)):
        values = latents(chosen).to(device)
        for mode in modes:
            draw = generator(seed, "latent_mae", mode, number)
            hidden = masking(values.shape, draw, mode).to(device)
            for name, predicted in _predictions(mae, values, hidden, mode, average).items():
                errors[mode].setdefault(name, []).append(masked_error(predicted, values, hidden))
        maps = mae.encode(values)
        pooled.append(maps[f"stage{len(mae.blocks)}"].mean(dim=(2, 3, 4)))
        if mae.head is not None:
            correct.append(mae.logits(maps).argmax(dim=1) == labels[chosen].to(device))
    rank = effective_rank(torch.cat(pooled).cpu().numpy())
    counts = labels[clips].bincount() if correct else None
    return MaeReport(
        {
            mode: {name: float(torch.cat(parts).mean()) for name, parts in by_name.items()}
            for mode, by_name in errors.items()
        },
        rank,
        rank / pooled[0].shape[1],
        sum(weights.numel() for weights in mae.parameters()),
        float(torch.cat(correct).float().mean()) if correct else None,
        None if counts is None else float(counts.max() / counts.sum()),
    )


def mae_status(report: MaeReport) -> tuple[str, str]:
    """The status and a line with the figures behind it.

    `collapsed`: the pooled features span hardly any dimension; `worse_than_<trivial>`: in some
    mode the error is no lower than a trivial predictor's; `head_at_chance`: the head is no better
    than naming the largest class; otherwise `passed`.
    """
    if report.rank_fraction < COLLAPSED_RANK:
        used = f"{report.rank:.1f} dimensions, {report.rank_fraction:.1%} of them"
        return "collapsed", f"pooled features use {used}, expected {COLLAPSED_RANK:.0%} or more"
    compared = []
    for mode, errors in report.errors.items():
        bound, trivial = report.trivial(mode)
        compared.append(f"{mode} {errors[MODEL]:.3f} ({trivial}: {bound:.3f})")
        if errors[MODEL] >= bound:
            return f"worse_than_{trivial}", f"masked error {compared[-1]}"
    accuracy, chance = report.head_accuracy, report.head_chance
    if accuracy is not None and chance is not None and accuracy <= chance:
        return "head_at_chance", f"head accuracy {accuracy:.3f}, chance {chance:.3f}"
    return "passed", f"masked error below every trivial predictor's: {', '.join(compared)}"


def _predictions(
    mae: LatentMae, clips: Tensor, hidden: Tensor, mode: str, average: Tensor | None
) -> dict[str, Tensor]:
    """What each predictor makes of the clips [B, C, T, H, W] from what is visible."""
    visible = hide(clips, hidden)
    count = (~hidden).sum(dim=(2, 3, 4), keepdim=True).clamp_min(1)
    predictions = {
        MODEL: mae(visible),
        "zero": torch.zeros_like(clips),
        "mean": (visible.sum(dim=(2, 3, 4), keepdim=True) / count).expand_as(clips),
    }
    if average is not None:
        predictions["average"] = average.to(clips).expand_as(clips)
    if mode == "frame":
        predictions["interpolation"] = linear(clips, ~hidden[:, 0, :, 0, 0])
    if mode == "patch" and clips.shape[2] == 1:
        predictions["interpolation"] = _around(visible, hidden)
    return predictions


def _around(
    visible: Tensor,  # [B, C, 1, H, W], zero where hidden
    hidden: Tensor,  # [B, 1, 1, H, W]
) -> Tensor:
    """The mean of the visible pixels of a window around each pixel; 0 where there is none."""
    shown = (~hidden).to(visible)
    total, count = (
        F.avg_pool2d(values[:, :, 0], WINDOW, 1, WINDOW // 2) for values in (visible, shown)
    )
    return (total / count.clamp_min(1 / WINDOW**2))[:, :, None]

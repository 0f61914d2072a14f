"""The training objective of a latent MAE, and how well it meets it on clips it was not trained on.

It rebuilds hidden cells, and at the end also names the class:

    loss = lambda * cross-entropy + (1 - lambda) * masked error

with lambda 0 until the last steps, then climbing to its final weight (the classification
fine-tuning of Deng et al. 2026, A.3, with K-means pseudo-classes in place of labels).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from braid.common.rng import generator
from braid.drifting.config import ImageMaeConfig, LatentMaeConfig, MaeConfig, MaskingConfig
from braid.drifting.interpolation.interpolation import linear
from braid.drifting.mae.latent_mae import LatentMae
from braid.metrics.distances import effective_rank
from braid.training.trainer import Hook, Run, TrainResult, train

Latents = Callable[[Tensor], Tensor]  # of clips [B], int64 on the CPU: [B, C, T, H, W]
CLIMB = 1 / 3  # of the steps that train the head, until lambda is reached


class MaeObjective(nn.Module):
    """Loss terms of one training step on a random batch of clips."""

    def __init__(
        self,
        mae: LatentMae,
        masking: Masking,
        latents: Latents,
        clips: Tensor,  # [n] which clips to train on
        labels: Tensor,  # pseudo-class of every clip, for a model that has a head
        config: MaeConfig,  # steps, batch, and the head's weight and fraction of the steps
    ) -> None:
        """Wire up.

        Raises:
            ValueError: no clips, or a label that is no class of the head.
        """
        super().__init__()
        if not len(clips):
            raise ValueError("there are no clips to train the latent MAE on")
        if mae.head is not None and not 0 <= labels.min() <= labels.max() < mae.classes:
            raise ValueError(
                f"pseudo-classes run from {int(labels.min())} to {int(labels.max())},"
                f" the head has {mae.classes}"
            )
        self.mae, self.masking = mae, masking
        self.latents, self.clips, self.labels = latents, clips, labels
        self.config = config
        self.head_start = round((1 - config.head_fraction) * config.steps)
        self.diagnostics: dict[str, Tensor | float] = {}

    @property
    def outer_layers(self) -> list[str]:
        """Names of the first and last layers, which Muon is not for."""
        return [f"mae.{name}" for name in self.mae.outer_layers]

    def weight(self, step: int) -> float:
        """Lambda at a step."""
        climb = CLIMB * (self.config.steps - self.head_start)
        climbed = (step - self.head_start + 1) / max(1.0, climb)
        return self.config.head_weight * min(1.0, max(0.0, climbed))

    def forward(self, step: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Weighted terms `reconstruction` and, with a head, `classes`; the loss is their sum.

        `diagnostics` then holds the unweighted `masked_mse` and, with a head, `head_accuracy` on
        the masked batch. The head's term is there from the start, weightless, so that every
        process of several has the same gradients to exchange.
        """
        device = generator.device
        drawn = torch.randint(
            len(self.clips), (self.config.batch,), generator=generator, device=device
        )
        chosen = self.clips[drawn.cpu()]
        clips = self.latents(chosen).to(device)
        hidden = self.masking(clips.shape, generator)
        maps = self.mae.encode(hide(clips, hidden))
        error = masked_error(self.mae.decode(maps), clips, hidden).mean()
        self.diagnostics = {"masked_mse": error.detach()}
        weight = self.weight(step)
        terms = {"reconstruction": (1 - weight) * error}
        if self.mae.head is not None:
            labels, logits = self.labels[chosen].to(device), self.mae.logits(maps)
            terms["classes"] = weight * F.cross_entropy(logits, labels)
            self.diagnostics["head_accuracy"] = (logits.argmax(dim=1) == labels).float().mean()
        return terms


# ---- Masks: what is hidden from a masked autoencoder, and its loss there ------------------------
# Modes, a mask being true where a latent cell is hidden:
#
# - `patch`: cells of 1x2x2, each hidden independently (Deng et al. 2026, A.3);
# - `tube`: columns of 2x2 through all frames, a fixed number of them (VideoMAE, Tong et al. 2022);
# - `frame`: whole latent frames; both ends and a random number of others stay, which is what the
#   refinement of interpolated keyframes meets;
# - `mixed`: each clip one of these with equal chances.

CELL = 2  # latent pixels a side of a patch and of a tube
MODES = ("patch", "tube", "frame")


class Masking:
    """Draws masks of one mode or of all."""

    def __init__(self, config: MaskingConfig) -> None:
        self.config = config

    def __call__(
        self,
        shape: Sequence[int],  # of the clips: B, C, T, H, W
        generator: torch.Generator,
        mode: str | None = None,  # None: the configured one
    ) -> Tensor:
        """Masks [B, 1, T, H, W], true where hidden, on the generator's device.

        Raises:
            ValueError: clips too short or too small for the mode.
        """
        batch, _, frames, height, width = shape
        size = (batch, frames, height, width)
        draw = {
            "patch": lambda: patch_masks(size, self.config.patch_ratio, generator),
            "tube": lambda: tube_masks(size, self.config.tube_ratio, generator),
            "frame": lambda: frame_masks(size, generator),
            "mixed": lambda: self._mixed(size, generator),
        }
        return draw[mode or self.config.mode]()[:, None]

    def _mixed(self, size: tuple[int, int, int, int], generator: torch.Generator) -> Tensor:
        device = generator.device
        choice = torch.randint(len(MODES), size[:1], generator=generator, device=device)
        choice = choice[:, None, None, None]
        patches = patch_masks(size, self.config.patch_ratio, generator)
        tubes = tube_masks(size, self.config.tube_ratio, generator)
        frames = frame_masks(size, generator)
        return torch.where(choice == 0, patches, torch.where(choice == 1, tubes, frames))


def patch_masks(
    size: tuple[int, int, int, int],  # B, T, H, W
    ratio: float,
    generator: torch.Generator,
) -> Tensor:
    """Cells of 1x2x2, each hidden with probability `ratio`, [B, T, H, W]."""
    batch, frames, height, width = size
    return _pixels(_draw((batch, frames, *_cells(height, width)), generator) < ratio, size)


def tube_masks(
    size: tuple[int, int, int, int],  # B, T, H, W
    ratio: float,
    generator: torch.Generator,
) -> Tensor:
    """Columns of 2x2 through all frames, [B, T, H, W]; at least one hidden and one visible.

    Raises:
        ValueError: a frame has a single cell.
    """
    batch, _, height, width = size
    rows, columns = _cells(height, width)
    cells = rows * columns
    if cells < 2:
        raise ValueError(f"tube masks: frames of {height}x{width} have a single 2x2 cell")
    count = min(max(round(ratio * cells), 1), cells - 1)
    hidden = _ranks(_draw((batch, cells), generator)) < count
    return _pixels(hidden.view(batch, 1, rows, columns), size)


def frame_masks(
    size: tuple[int, int, int, int],  # B, T, H, W
    generator: torch.Generator,
) -> Tensor:
    """Whole frames, [B, T, H, W]; the ends and 0 to T - 3 others are visible, equally likely.

    Raises:
        ValueError: fewer than three frames.
    """
    batch, frames = size[:2]
    inner = frames - 2
    if inner < 1:
        raise ValueError(f"frame masks: clips have {frames} latent frames, expected 3 or more")
    visible = torch.randint(inner, (batch, 1), generator=generator, device=generator.device)
    hidden = _ranks(_draw((batch, inner), generator)) >= visible
    ends = hidden.new_zeros(batch, 1)
    return torch.cat([ends, hidden, ends], dim=1)[:, :, None, None].expand(size)


def hide(
    clips: Tensor,  # [B, C, T, H, W]
    hidden: Tensor,  # [B, 1, T, H, W]
) -> Tensor:
    """The clips with hidden cells set to zero, the mean of normalized latents."""
    return clips.masked_fill(hidden, 0.0)


def masked_error(
    predicted: Tensor,  # [B, C, T, H, W]
    clips: Tensor,  # [B, C, T, H, W]
    hidden: Tensor,  # [B, 1, T, H, W]
) -> Tensor:
    """Mean squared error over the hidden values of each clip, [B]; 0 where nothing is hidden.

    Each clip is divided by its own count, so that one with few hidden cells weighs as much.
    """
    squared = (predicted - clips).square().mean(dim=1, keepdim=True) * hidden
    counts = hidden.sum(dim=(1, 2, 3, 4)).clamp_min(1)
    return squared.sum(dim=(1, 2, 3, 4)) / counts


def _cells(height: int, width: int) -> tuple[int, int]:
    """Rows and columns of cells that cover a frame; those at the far edges may be narrower."""
    return -(-height // CELL), -(-width // CELL)


def _pixels(cells: Tensor, size: tuple[int, int, int, int]) -> Tensor:
    """Cells [B, T or 1, h, w] enlarged to latent pixels [B, T, H, W]."""
    enlarged = cells.repeat_interleave(CELL, dim=-2).repeat_interleave(CELL, dim=-1)
    return enlarged[..., : size[2], : size[3]].expand(size)


def _draw(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.rand(shape, generator=generator, device=generator.device)


def _ranks(values: Tensor) -> Tensor:
    """The rank of each value in its row, a random permutation if the values are random."""
    return values.argsort(dim=-1).argsort(dim=-1)


# ---- What it rebuilds of clips it was not trained on ---------------------------------------------
# Beside predictors that learnt nothing, each scored on the same hidden cells, mode by mode:
#
#     zero            the mean of normalized latents
#     mean            of a channel's visible cells
#     average         of training images, where one is given
#     interpolation   of frames linear between visible ones, of patches of images the mean around


COLLAPSED_RANK = 0.05  # of the pooled dimensions; fewer in use are a collapse
MODEL = "mae"  # the model's own name among the predictors
CHUNK = 64  # clips at a time
VALUES = 2**22  # of clips at a time, at most: two of Wan's
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
    latents: Latents,
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
    size = latents(clips[:1]).numel()
    for number, chosen in enumerate(clips.split(max(1, min(CHUNK, VALUES // size)))):
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


def fit_mae(
    mae: LatentMae,
    training: tuple[Latents, Tensor],  # what reads clips, and which to train on
    validation: tuple[Latents, Tensor],  # which to evaluate on
    labels: Tensor,  # pseudo-class of every clip, for a model that has a head
    config: LatentMaeConfig | ImageMaeConfig,
    run: Run,
    pace: Hook,
    modes: Sequence[str] = MODES,  # that are evaluated
    average: Tensor | None = None,  # [C, T, H, W], a trivial prediction too
) -> tuple[TrainResult, MaeReport]:
    """Train a masked autoencoder, freeze and evaluate it."""
    masking = Masking(config.masking)
    objective = MaeObjective(mae.to(run.device), masking, *training, labels, config)
    result = train(
        objective,
        config.optimizer,
        run,
        steps=config.steps,
        outer_layers=objective.outer_layers,
        hooks={"pace": pace},
    )
    report = mae_report(mae.freeze(), masking, *validation, labels, run.seed, modes, average)
    return result, report


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

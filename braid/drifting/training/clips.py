"""The training of a refiner of clips: data, objective by the params, curves, best weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from braid.common.rng import generator
from braid.drifting.config import (
    BatchesConfig,
    DriftBatchesConfig,
    DriftLossConfig,
    RefinerConfig,
    RefinerTrainingConfig,
    Target,
)
from braid.drifting.interpolation.interpolation import FRECHET_RATIO, interpolate
from braid.drifting.interpolation.keyframes import nested_masks
from braid.drifting.loss.drift import DriftLoss
from braid.drifting.mae.latent_mae import load_latent_mae
from braid.drifting.training.memory_bank import ReadAhead
from braid.drifting.training.objectives import (
    Branch,
    DriftObjective,
    PairedObjective,
    Refinement,
    compile_deterministic,
    recompute_blocks,
)
from braid.drifting.video.corruption import Corruption
from braid.drifting.video.features import ClipFeatures, vanilla
from braid.drifting.video.motion import Decode
from braid.drifting.video.refiner import AnyRefiner, finish, make_refiner, start_from
from braid.metrics.distances import RandomConvolutions, frechet_distance
from braid.training.distributed import whole
from braid.training.ema import Ema
from braid.training.trainer import Row, Run, TrainResult

EXAMPLES = 64  # clips that a refiner's pictures are fitted to, at most
CHUNK = 64  # validation clips at once


class Clips(Protocol):
    """A data set of clips."""

    def indices(self, split: str) -> NDArray[np.int64]:
        """The clips of a split."""

    def latents(self, indices: Tensor) -> Tensor:
        """Their latents, [B, C, T, H, W]."""

    def anchors(self, indices: Tensor) -> Tensor:
        """A phase-1 model's latents for the same clips."""

    def texts(self, indices: Tensor) -> Tensor:
        """Their text embeddings, [B, L, D]."""


class Classes(Protocol):
    """The classes of all clips."""

    @property
    def labels(self) -> Tensor:
        """[N] int64."""

    @property
    def embedding(self) -> Tensor:
        """What they are cells of, [N, d]."""


@dataclass(frozen=True)
class ClipSplit:
    """The clips of one split and their pseudo-classes, by their positions in it."""

    clips: Clips
    indices: Tensor  # [n]
    classes: Tensor  # [n]
    embedding: Tensor  # [n, d], h of text and keyframes

    @classmethod
    def of(cls, clips: Clips, classes: Classes, split: str) -> ClipSplit:
        """A split of clips that have these classes."""
        indices = torch.from_numpy(clips.indices(split))
        return cls(clips, indices, classes.labels[indices], classes.embedding[indices])

    def __len__(self) -> int:
        return len(self.indices)

    def evenly(self, at_most: int) -> Tensor:
        """Positions of so many clips, evenly spread over the split."""
        count = min(at_most, len(self))
        return torch.arange(count) * len(self) // count

    def latents(self, positions: Tensor) -> Tensor:
        """Latents [B, C, T, H, W] of clips [B]."""
        return self.clips.latents(self.indices[positions])

    def anchors(self, positions: Tensor) -> Tensor:
        """A phase-1 model's latents for the same clips."""
        return self.clips.anchors(self.indices[positions])

    def rows(self, beside: str, positions: Tensor) -> Tensor:
        """What a refiner takes beside the class: text rows [B, L, D], or h as one row [B, 1, d]."""
        if beside == "embedding":
            return self.embedding[positions][:, None]
        return self.clips.texts(self.indices[positions])

    def row_dim(self, beside: str) -> int:
        """Channels of these rows; 0: there are none."""
        return 0 if beside == "none" else self.rows(beside, torch.zeros(1).long()).shape[2]

    def fresh_refiner(
        self, classes: int, corruption: Corruption, config: RefinerConfig, target: Target
    ) -> AnyRefiner:
        """An untrained refiner of such clips and their levels, level 0 being one of them."""
        channels = self.latents(torch.zeros(1, dtype=torch.long)).shape[1]
        shape = channels, classes, corruption.levels + 1
        return make_refiner(*shape, config, self.row_dim(config.beside), target)


def clip_objective(
    settings: RefinerTrainingConfig,
    batches: BatchesConfig,
    loss: DriftLossConfig,
    refiner: AnyRefiner,
    corruption: Corruption,
    split: ClipSplit,  # what is trained on
    encoder: Path | None,  # folder of the latent MAE whose features count too
    start: Path | None,  # folder of a refiner to go on from
    decode: Decode,
    run: Run,
) -> Refinement:
    """Regression, or drifting on the latents themselves and on a frozen encoder's features.

    A fresh refiner's pictures are fitted; it is compiled where its settings say so.

    Raises:
        ValueError: the latent MAE or the start cannot be read, a start of other shapes, an unknown
            family of features, patches that do not divide the clips' frames, or pictures that do
            not show all channels.
    """
    sides, patch = split.latents(torch.zeros(1, dtype=torch.long)).shape[-2:], refiner.config.patch
    if refiner.config.backbone == "transformer" and any(side % patch for side in sides):
        raise ValueError(
            f"drift.refiner.patch is {patch}, expected a divisor of the sides of a latent frame, "
            f"{sides[0]} and {sides[1]}"
        )
    refiner.to(run.device)
    if start is None:
        examples = split.latents(torch.arange(min(EXAMPLES, len(split))))
        refiner.fit_pictures(examples.to(run.device), decode)
    else:
        start_from(refiner, start)
    if settings.recompute_blocks:
        recompute_blocks(refiner)
    if settings.compile:
        compile_deterministic(refiner)
    anchors = split.anchors if corruption.config.student_replace_prob > 0 else None
    drawn = DriftBatchesConfig(**batches.model_dump(), generated=settings.generated)
    latents = ReadAhead(split.latents) if settings.read_ahead else split.latents
    base = refiner, corruption, latents, split.classes, drawn, anchors
    more: dict[str, Any] = {"chunk": settings.chunk}
    if refiner.takes_text:
        more["texts"] = partial(split.rows, refiner.config.beside)
    if settings.target == "finer":
        more["finer"] = corruption.finer
    features, every = settings.features, run.log_every
    if features is None:
        return PairedObjective(*base, **more)
    if settings.target == "finer":  # what clips are compared with is of one level
        more["level_of"] = "step"
    branches: dict[str, Branch] = {"vanilla": (features.vanilla_weight, vanilla(features.vanilla))}
    if encoder is not None:
        phi = ClipFeatures(load_latent_mae(encoder), features.families, features.locations)
        branches["encoder"] = (features.encoder_weight, phi.to(run.device))
    return DriftObjective(*base, branches=branches, loss=DriftLoss(loss), log_every=every, **more)


def curves(result: TrainResult) -> dict[str, list[Row]]:
    """The rows of a training, by the folder of plots that they belong to.

    `drift` has loss, terms and counts, `drift_validation` the hook's figures; `drift_kernel` and
    `drift_field` have the statistics of the drift (drift.py), `drift_norm` and `drift_cosine` the
    balance of its groups (`balance`); these have no rows if nothing drifts.
    """
    marks = {"kernel": "_kernel_", "field": "_field_"}
    marks |= {"norm": "_balance_norm_", "cosine": "_balance_cosine_"}
    tables: dict[str, list[Row]] = {"drift": [], **{f"drift_{part}": [] for part in marks}}
    for row in result.history:
        parts: dict[str, Row] = {folder: {} for folder in tables}
        for name, value in row.items():
            own = [f"drift_{part}" for part, mark in marks.items() if mark in name]
            parts[own[0] if own else "drift"][name] = value
        for folder, figures in parts.items():
            if figures:
                tables[folder].append({"step": row["step"], **figures})
    return {**tables, "drift_validation": result.probes["validation"]}


# ---- Which checkpoint of a refiner to keep: the best on the validation split --------------------
# The drifting loss cannot tell: it is normalized and does not fall. Nor is the Frechet distance
# monotone in time, so validation clips are scored every so often, with averaged weights, in a
# feature space that the loss does not know. A training whose end is worse than its best by more
# than scores waver is said to diverge: its best would not be there had it been validated less
# often.

Network = TypeVar("Network", bound=nn.Module)

DIVERGENCE = 1.25  # last score over best; scores of neighboring validations differ by a tenth


class KeepBest:
    """A hook of the step loop that scores validation samples and keeps the best weights.

    They are scored every so often and at the end.
    """

    reference, plain = "interpolation", "interpolated"  # what the best must beat, and its row

    def __init__(
        self,
        every: int,  # updates
        steps: int,  # of the training
        score: str,  # which of the figures counts, less being better
        interpolated: dict[str, float],  # the figures of plain interpolation
        slack: float = 0.0,  # by which a score wavers beside `DIVERGENCE`, where it nears 0
    ) -> None:
        self.every, self.steps, self.slack = every, steps, slack
        self.score, self.interpolated = score, interpolated
        self.best: dict[str, float] = {}  # its step and figures
        self.last: dict[str, float] = {}
        self.weights: dict[str, Tensor] = {}

    def scores(self, refiner: nn.Module) -> dict[str, float]:
        """The figures of a refiner on the validation samples."""
        raise NotImplementedError

    def __call__(self, done: int, objective: nn.Module, ema: Ema | None) -> dict[str, float] | None:
        """Figures of the validation samples, when they are due."""
        due = done % self.every == 0 or done == self.steps
        if not due or not isinstance(objective, Refinement):
            return None
        if ema is None:
            return self.evaluate(done, objective)
        with ema.applied(objective):
            return self.evaluate(done, objective)

    def evaluate(self, done: int, objective: Refinement) -> dict[str, float]:
        """Score the weights as they are; keep them if they are the best so far."""
        figures = self.scores(objective.refiner)
        self.last = {"step": done, **figures}
        if not self.best or figures[self.score] < self.best[self.score]:
            self.best = self.last
            state = whole(objective.refiner.state_dict())
            self.weights = {name: value.detach().cpu().clone() for name, value in state.items()}
        return {f"val_{name}": value for name, value in figures.items()}

    def restored(self, refiner: Network) -> Network:
        """The refiner with its best weights."""
        refiner.load_state_dict(self.weights)
        return refiner

    def rows(self, objective: Refinement) -> list[dict[str, Any]]:
        """All figures of the best, of the last and of interpolation, a row each."""
        size = sum(weights.numel() for weights in objective.refiner.parameters())
        counts = {"parameters": size, "classes": len(objective.sampler.occupied)}
        return [
            {"method": "refined", **self.best, **counts},
            {"method": "last", **self.last},
            {"method": self.plain, "step": None, **self.interpolated},
        ]

    def status(self) -> tuple[str, str]:
        """`passed` or what is wrong, and a line with the figures behind it.

        The best must beat plain interpolation, a Frechet distance as clearly as in the evaluation,
        and the last must not be much worse than the best.
        """
        refined, plain = self.best[self.score], self.interpolated[self.score]
        last = self.last[self.score]
        if last > DIVERGENCE * refined + self.slack:
            return "diverging", (
                f"validation {self.score} {last:.4g} at the end, step {self.last['step']}, is more "
                f"than {DIVERGENCE} times the best {refined:.4g}, of step {self.best['step']}"
            )
        ratio = FRECHET_RATIO if self.score == "frechet" else 1.0
        passed = refined < ratio * plain
        relation = "below" if passed else "not below"
        return "passed" if passed else f"no_better_than_{self.reference}", (
            f"validation {self.score} {refined:.4g} at step {self.best['step']} is {relation} "
            f"{ratio} of {self.reference}'s {plain:.4g}"
        )

    def state_dict(self) -> dict[str, Any]:
        """The best so far, and the last."""
        return {"best": self.best, "last": self.last, "weights": self.weights}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self.best, self.last, self.weights = state["best"], state["last"], state["weights"]


class BestOnValidation(KeepBest):
    """The same for clips.

    Drifting is scored by the Frechet distance, paired training by the error of missing frames.
    """

    def __init__(
        self,
        split: ClipSplit,  # validation clips
        corruption: Corruption,
        config: RefinerTrainingConfig,
        run: Run,
        beside: str = "none",  # the class: what the refiner takes
    ) -> None:
        self.split, self.chosen = split, split.evenly(config.validation_clips)
        self.corruption, keyframes, self.beside = corruption, corruption.config, beside
        self.chunk = config.chunk or CHUNK
        first = split.latents(self.chosen[:1])
        self.mask = nested_masks(len(self.chosen), first.shape[2], corruption.counts)[-1]
        self.seed = run.seed
        self.space = RandomConvolutions(first.shape[1]).to(run.device)
        parts = self.chosen.split(self.chunk)
        self.real = np.concatenate([self.space.points(split.latents(part)) for part in parts])
        score = "mse_missing" if config.objective == "paired" else "frechet"
        plain = self.figures(lambda rows, truth: interpolate(truth, self.mask[rows], keyframes))
        super().__init__(config.validate_every, config.steps, score, plain)

    def scores(self, refiner: nn.Module) -> dict[str, float]:
        """The figures of refined validation clips."""
        draw = generator(self.seed, "validation")  # of the corruption's noise: the same each time

        def refined(rows: Tensor, truth: Tensor) -> Tensor:
            chosen = self.chosen[rows]
            corrupted = self.corruption.impute(truth, self.mask[rows], rows, draw)
            texts = None if self.beside == "none" else self.split.rows(self.beside, chosen)
            given = self.split.classes[chosen], self.corruption.levels, 1.0, None, texts
            return finish(refiner, self.corruption, corrupted, *given, draw)

        return self.figures(refined)

    def figures(self, complete: Callable[[Tensor, Tensor], Tensor]) -> dict[str, float]:
        """`frechet` and `mse_missing` of validation clips made anew from their true ones.

        `complete` takes rows [b] of the validation clips and these, [b, C, T, H, W]; they are read
        again each time, a chunk at once, since full-size ones would fill the memory.
        """
        errors, points = [], []
        for rows in torch.arange(len(self.chosen)).split(self.chunk):
            truth = self.split.latents(self.chosen[rows])
            clips = complete(rows, truth)
            errors.append((clips - truth).square().mean(dim=(1, 3, 4)))
            points.append(self.space.points(clips))
        return {
            "frechet": frechet_distance(self.real, np.concatenate(points)),
            "mse_missing": float(torch.cat(errors)[~self.mask].mean()),
        }

    def metrics(self) -> dict[str, Any]:
        """The best score beside interpolation's, and the status."""
        name = {"frechet": "frechet", "mse_missing": "mse"}[self.score]
        scores = {"refined": self.best[self.score], "interpolated": self.interpolated[self.score]}
        return {name: scores, "status": self.status()[0]}

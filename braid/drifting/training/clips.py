"""The training of a refiner of clips: its data, its objective by the params, its curves."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from braid.drifting.config import (
    BatchesConfig,
    DriftBatchesConfig,
    DriftLossConfig,
    RefinerTrainingConfig,
)
from braid.drifting.loss.drift import DriftLoss
from braid.drifting.mae.latent_mae import load_latent_mae
from braid.drifting.training.objectives import (
    Branch,
    DriftObjective,
    PairedObjective,
    Refinement,
    compile_deterministic,
)
from braid.drifting.video.corruption import Corruption
from braid.drifting.video.features import ClipFeatures, vanilla
from braid.drifting.video.motion import Decode
from braid.drifting.video.refiner import Refiner, start_from
from braid.training.trainer import Row, Run, TrainResult

EXAMPLES = 64  # clips that a refiner's pictures are fitted to, at most


class Clips(Protocol):
    """A data set of clips."""

    def indices(self, split: str) -> NDArray[np.int64]:
        """The clips of a split."""

    def latents(self, indices: Tensor) -> Tensor:
        """Their latents, [B, C, T, H, W]."""

    def anchors(self, indices: Tensor) -> Tensor:
        """A phase-1 model's latents for the same clips."""


@dataclass(frozen=True)
class ClipSplit:
    """The clips of one split and their pseudo-classes, by their positions in it."""

    clips: Clips
    indices: Tensor  # [n]
    classes: Tensor  # [n]

    @classmethod
    def of(cls, clips: Clips, labels: Tensor, split: str) -> ClipSplit:
        """A split of clips that have these labels, [N] in the order of all clips."""
        indices = torch.from_numpy(clips.indices(split))
        return cls(clips, indices, labels[indices])

    def __len__(self) -> int:
        return len(self.indices)

    def latents(self, positions: Tensor) -> Tensor:
        """Latents [B, C, T, H, W] of clips [B]."""
        return self.clips.latents(self.indices[positions])

    def anchors(self, positions: Tensor) -> Tensor:
        """A phase-1 model's latents for the same clips."""
        return self.clips.anchors(self.indices[positions])


def clip_objective(
    settings: RefinerTrainingConfig,
    batches: BatchesConfig,
    loss: DriftLossConfig,
    refiner: Refiner,
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
            family of features, or pictures that do not show all channels.
    """
    refiner.to(run.device)
    if start is None:
        examples = split.latents(torch.arange(min(EXAMPLES, len(split))))
        refiner.fit_pictures(examples.to(run.device), decode)
    else:
        start_from(refiner, start)
    if settings.compile:
        compile_deterministic(refiner)
    anchors = split.anchors if corruption.config.student_replace_prob > 0 else None
    drawn = DriftBatchesConfig(**batches.model_dump(), generated=settings.generated)
    base = refiner, corruption, split.latents, split.classes, drawn, anchors
    features, every = settings.features, run.log_every
    if features is None:
        return PairedObjective(*base)
    branches: dict[str, Branch] = {"vanilla": (features.vanilla_weight, vanilla(features.vanilla))}
    if encoder is not None:
        phi = ClipFeatures(load_latent_mae(encoder), features.families, features.locations)
        branches["encoder"] = (features.encoder_weight, phi.to(run.device))
    return DriftObjective(*base, branches=branches, loss=DriftLoss(loss), log_every=every)


def curves(result: TrainResult) -> dict[str, list[Row]]:
    """The rows of a training, by the folder of plots that they belong to.

    `drift` has loss, terms and counts, `drift_validation` the hook's figures; `drift_kernel` and
    `drift_field` have the statistics of the drift (statistics.py), `drift_norm` and `drift_cosine`
    the balance of its groups (`balance`); these have no rows if nothing drifts.
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

"""What networks of keyframes are trained for: prompts and keyframes, objective, best weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from braid.common.rng import generator
from braid.drifting.config import DriftLossConfig, KeyframeNetworkConfig, KeyframeTrainingConfig
from braid.drifting.loss.drift import DriftLoss
from braid.drifting.training.clips import KeepBest
from braid.drifting.training.objectives import DriftObjective, PairedObjective, Refinement
from braid.drifting.video.keyframes import (
    FromPrompt,
    KeyframeGenerator,
    PromptRegression,
    keyframes_of,
    prompted,
    start_from,
    with_prompt,
)
from braid.metrics.distances import RandomConvolutions, energy_score, frechet_distance
from braid.training.trainer import Run

Embed = Callable[[Tensor | None, Tensor | None], Tensor]  # texts and clips to h [n, d]
Label = Callable[[Tensor], Tensor]  # h [n, d] to pseudo-classes [n]

REPEATS = 2  # samples of a validation prompt
AT_MOST = 512  # of these
_CHUNK = 256  # texts read at a time


class Clips(Protocol):
    """A data set of clips."""

    def indices(self, split: str) -> NDArray[np.int64]:
        """The clips of a split."""

    def latents(self, indices: Tensor) -> Tensor:
        """Their latents, [B, C, T, H, W]."""

    def texts(self, indices: Tensor) -> Tensor:
        """Their text embeddings, [B, L, D]."""


class KeyframeSplit:
    """The prompts and keyframes of one split, by their positions in it.

    A prompt is the condition embedding of the text alone, and its class that of the same.

    Raises:
        ValueError: conditions without text.
    """

    def __init__(
        self,
        clips: Clips,
        split: str,
        frames: Tensor,  # [K] latent frames that are keyframes
        embed: Embed,
        label: Label,
    ) -> None:
        self.clips, self.frames = clips, frames
        self.indices = torch.from_numpy(clips.indices(split))
        parts = [embed(clips.texts(part), None) for part in self.indices.split(_CHUNK)]
        self.prompts = torch.cat(parts)  # [n, d]
        self.classes = label(self.prompts)  # [n]

    def __len__(self) -> int:
        return len(self.indices)

    def keyframes(self, positions: Tensor) -> Tensor:
        """Keyframes [B, C, K, H, W] of clips [B]."""
        return self.clips.latents(self.indices[positions])[:, :, self.frames]

    def samples(self, positions: Tensor) -> Tensor:
        """Prompts and keyframes, [B, C, 1 + K, H, W]."""
        return with_prompt(self.prompts[positions], self.keyframes(positions))


class Predictions:
    """What regression predicts for the clips of a training split, of each without itself."""

    def __init__(self, network: KeyframeGenerator, split: KeyframeSplit) -> None:
        """Fits the network's regression to evenly spread clips of the split."""
        self.regression, self.split = network.regression, split
        count = len(self.regression.keys)
        self.fitted = torch.arange(count) * len(split) // count
        fit = split.prompts[self.fitted], split.keyframes(self.fitted)
        self.held_out = self.regression.fit(*fit)  # [M, C, K, H, W]

    def __call__(self, positions: Tensor) -> Tensor:
        """Predicted keyframes [B, C, K, H, W]."""
        place = torch.searchsorted(self.fitted, positions).clamp(max=len(self.fitted) - 1)
        known = self.fitted[place] == positions
        keys = self.regression.keys
        predicted = self.regression(self.split.prompts[positions].to(keys)).cpu()
        return torch.where(known[:, None, None, None, None], self.held_out[place], predicted)


def untrained(
    split: KeyframeSplit,
    shape: tuple[int, int, int, int],  # C, T, H, W of clips
    classes: int,
    settings: KeyframeTrainingConfig,
    config: KeyframeNetworkConfig,
) -> KeyframeGenerator:
    """A fresh network for a split's clips and prompts.

    Raises:
        ValueError: params that do not fit one another or the clips.
    """
    keyframes = shape[0], len(split.frames), shape[2], shape[3]
    count = min(config.clips, len(split))
    sizes = keyframes, split.prompts.shape[1], classes, count, settings.sigma
    return KeyframeGenerator(*sizes, config)


def keyframe_objective(
    settings: KeyframeTrainingConfig,
    prompt_weight: float,
    loss: DriftLossConfig,
    network: KeyframeGenerator,
    split: KeyframeSplit,  # what is trained on
    start: Path | None,  # folder of a network to go on from
    run: Run,
) -> Refinement:
    """Regression by gradient, or drifting on keyframes joined with their prompts.

    Raises:
        ValueError: the start cannot be read or is of other shapes.
    """
    predictions = Predictions(network, split)
    if start is not None:
        start_from(network, start)
    process = FromPrompt(network.config.noise, settings.sigma)
    drawn = split.samples, split.classes, settings.batches, predictions
    base = network.to(run.device), process, *drawn
    if settings.objective == "paired":
        return PairedObjective(*base)
    features = prompted(settings.features, split.prompts.shape[1], prompt_weight)
    branches = {"vanilla": (1.0, features)}
    return DriftObjective(*base, branches=branches, loss=DriftLoss(loss), log_every=run.log_every)


class KeyframeValidation(KeepBest):
    """Scores keyframes of validation prompts by the energy score.

    E|x - y| - E|x - x'| / 2 of samples x and x' and real keyframes y, which is least for the right
    distribution given the prompt (Gneiting and Raftery 2007). What has to be beaten is regression
    in closed form, which the network corrects.
    """

    reference, plain = "regression", "regression"

    def __init__(
        self,
        split: KeyframeSplit,  # validation clips
        regression: PromptRegression,  # fitted
        settings: KeyframeTrainingConfig,
        run: Run,
    ) -> None:
        count = min(AT_MOST, len(split))
        chosen = torch.arange(count) * len(split) // count
        self.prompts, self.classes = split.prompts[chosen], split.classes[chosen]
        self.truth, self.seed = split.keyframes(chosen), run.seed
        self.space = RandomConvolutions(self.truth.shape[1]).to(run.device)
        self.real = self.space.points(self.truth)
        score = "mse_missing" if settings.objective == "paired" else "energy_score"
        plain = self.figures(torch.stack([regression(self.prompts)] * REPEATS))
        super().__init__(settings.validate_every, settings.steps, score, plain)

    def scores(self, refiner: nn.Module) -> dict[str, float]:
        """The figures of a network."""
        assert isinstance(refiner, KeyframeGenerator)
        given = refiner, self.prompts, self.classes
        draws = [generator(self.seed, "validation", number) for number in range(REPEATS)]
        return self.figures(torch.stack([keyframes_of(*given, d, 1.0)[1] for d in draws]))

    def figures(
        self,
        samples: Tensor,  # [S, n, C, K, H, W]
    ) -> dict[str, float]:
        """Of some samples of each prompt."""
        return {
            "energy_score": energy_score(samples, self.truth),
            "frechet": frechet_distance(self.real, self.space.points(samples[0])),
            "mse_missing": float((samples[0] - self.truth).square().mean()),
        }

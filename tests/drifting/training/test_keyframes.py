"""Training of phase 1: held-out predictions, both objectives, which weights are kept."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from braid.common.rng import generator
from braid.drifting.config import KeyframeTrainingConfig
from braid.drifting.training.keyframes import (
    KeyframeSplit,
    KeyframeValidation,
    Predictions,
    keyframe_objective,
    untrained,
)
from braid.drifting.training.objectives import DriftObjective, PairedObjective
from braid.training.trainer import Run, train
from tests.drifting import configs
from tests.drifting.video.test_keyframes import config

RUN = Run(seed=0, device=torch.device("cpu"), log_every=4)


class Clips:
    """Forty clips whose keyframes are told by their texts."""

    def __init__(self) -> None:
        self.kind = torch.arange(40) % 4
        draw = generator(0, "clips")
        self.patterns = 2 * torch.randn(4, 3, 5, 4, 4, generator=draw)
        self.noise = 0.3 * torch.randn(40, 3, 5, 4, 4, generator=draw)

    def indices(self, split: str) -> np.ndarray[Any, np.dtype[np.int64]]:
        return np.arange(32) if split == "train" else np.arange(32, 40)

    def latents(self, indices: Tensor) -> Tensor:
        return self.patterns[self.kind[indices]] + self.noise[indices]

    def texts(self, indices: Tensor) -> Tensor:
        return torch.nn.functional.one_hot(self.kind[indices], 6).float()[:, None]


def split(name: str) -> KeyframeSplit:
    frames = torch.tensor([0, 4])
    return KeyframeSplit(Clips(), name, frames, lambda t, _: t[:, 0], lambda h: h.argmax(1))


def settings(**changes: Any) -> KeyframeTrainingConfig:
    usual = {"start": "none", "objective": "drift", "sigma": 1.0, "steps": 8, "lr_scale": 1.0}
    usual |= {"validate_every": 4, "features": ("tokens", "clip")}
    return KeyframeTrainingConfig(**usual | {"batches": configs.batches()} | changes)


def made(**changes: Any) -> tuple[Any, Any]:
    torch.manual_seed(0)
    chosen, training = settings(**changes), split("train")
    network = untrained(training, (3, 5, 4, 4), 4, chosen, config(clips=20, ridge=20.0))
    parts = chosen, 1.0, configs.loss(), network, training, None, RUN
    return network, keyframe_objective(*parts)


def test_a_fitted_clip_is_predicted_from_the_others_and_another_one_from_all() -> None:
    training = split("train")
    network = untrained(training, (3, 5, 4, 4), 4, settings(), config(clips=20))
    predictions = Predictions(network, training)
    fitted, other = predictions.fitted[3:4], torch.tensor([2])
    assert 2 not in predictions.fitted
    assert torch.equal(predictions(fitted)[0], predictions.held_out[3])
    torch.testing.assert_close(
        predictions(other), network.regression(training.prompts[other]), rtol=1e-5, atol=1e-5
    )


def test_regression_by_gradient_lowers_the_error_of_held_out_predictions() -> None:
    network, objective = made(objective="paired", features=(), sigma=0.0)
    assert isinstance(objective, PairedObjective)
    chosen = settings(objective="paired", features=(), steps=40, validate_every=40)
    best = KeyframeValidation(split("val"), network.regression, chosen, RUN)
    train(objective, configs.optimizer(lr=1e-2), RUN, steps=40, hooks={"validation": best})
    assert best.best["mse_missing"] < 0.8 * best.interpolated["mse_missing"]
    assert best.status()[0] == "passed"


def test_drifting_trains_and_the_best_weights_are_kept_beside_regressions_score() -> None:
    network, objective = made()
    assert isinstance(objective, DriftObjective)
    best = KeyframeValidation(split("val"), network.regression, settings(), RUN)
    before = [weights.clone() for weights in network.parameters()]
    train(objective, configs.optimizer(lr=1e-3), RUN, steps=8, hooks={"validation": best})
    assert any(not torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))
    rows = {row["method"]: row for row in best.rows(objective)}
    assert set(rows) == {"refined", "last", "regression"}
    assert rows["refined"]["energy_score"] <= rows["last"]["energy_score"]
    assert best.status()[0] in ("passed", "no_better_than_regression", "diverging")


def test_only_drifting_has_features() -> None:
    with pytest.raises(ValueError, match="expected no features beside it"):
        settings(objective="paired")

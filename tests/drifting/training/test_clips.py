"""The training of a refiner of clips: splits, objectives by their params, curves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from braid.drifting.config import DriftFeaturesConfig
from braid.drifting.mae.latent_mae import LatentMae, save_latent_mae
from braid.drifting.training.clips import ClipSplit, clip_objective, curves
from braid.drifting.training.objectives import DriftObjective, PairedObjective
from braid.drifting.video.corruption import Corruption
from braid.training.trainer import Run, TrainResult
from tests.drifting import configs
from tests.drifting.toy_refinement import toy_clips, toy_refiner

FEATURES = DriftFeaturesConfig(
    families=["location"], locations=4, encoder_weight=1.0, vanilla=["tokens"], vanilla_weight=2.0
)


class InMemory:
    """Clips of which every fourth is a validation clip; anchors are nines."""

    def __init__(self) -> None:
        self.clips, self.labels = toy_clips()

    def indices(self, split: str) -> np.ndarray:
        validation = np.arange(len(self.clips)) % 4 == 0
        return np.flatnonzero(validation if split == "val" else ~validation)

    def latents(self, indices: torch.Tensor) -> torch.Tensor:
        return self.clips[indices]

    def anchors(self, indices: torch.Tensor) -> torch.Tensor:
        return torch.full_like(self.clips[indices], 9.0)


def split(name: str = "train") -> ClipSplit:
    data = InMemory()
    return ClipSplit.of(data, data.labels, name)


def objective(folder: Path, replaced: float = 0.0, **settings):
    corruption = Corruption(5, configs.corruption(levels=1, student_replace_prob=replaced))
    parts = configs.refiner_training(**settings), configs.batches(), FEATURES, configs.loss()
    run = Run(seed=0, device=torch.device("cpu"), log_every=7)
    return clip_objective(*parts, toy_refiner(), corruption, split(), folder, run)


def test_a_split_counts_its_own_clips() -> None:
    data, validation = InMemory(), split("val")
    assert len(validation) == 10
    assert torch.equal(validation.latents(torch.tensor([0, 2])), data.clips[[0, 8]])
    assert torch.equal(validation.classes, data.labels[::4])


def test_drifting_has_the_branches_of_its_params(tmp_path: Path) -> None:
    save_latent_mae(tmp_path, LatentMae(2, 8, (1,)))
    drift = objective(tmp_path)
    assert isinstance(drift, DriftObjective)
    assert {name: weight for name, (weight, _) in drift.branches.items()} == {
        "encoder": 1.0,
        "vanilla": 2.0,
    }
    assert drift.log_every == 7
    assert set(drift(0, torch.Generator().manual_seed(0))) == {"encoder", "vanilla"}
    assert drift.clips_per_step == 2 * 4


def test_paired_training_reads_no_encoder(tmp_path: Path) -> None:
    assert isinstance(objective(tmp_path, objective="paired"), PairedObjective)
    with pytest.raises(ValueError, match="of a latent MAE"):
        objective(tmp_path)


def test_anchors_are_read_where_the_corruption_replaces_keyframes(tmp_path: Path) -> None:
    assert objective(tmp_path, objective="paired").anchors is None
    anchors = objective(tmp_path, replaced=0.5, objective="paired").anchors
    assert anchors(torch.tensor([0])).unique().tolist() == [9.0]


def test_a_history_is_split_by_what_its_columns_are_about() -> None:
    row = {"step": 0, "loss": 1.0, "vanilla": 1.0, "short_banks": 0.0}
    statistics = {"vanilla_kernel_distance_0.2": 2.0, "vanilla_field_sq_tokens_0.2": 3.0}
    validation = [{"step": 1, "val_frechet": 0.5}]
    drift = curves(TrainResult([row | statistics], {"validation": validation}))
    assert drift == {
        "drift": [row],
        "drift_kernel": [{"step": 0, "vanilla_kernel_distance_0.2": 2.0}],
        "drift_field": [{"step": 0, "vanilla_field_sq_tokens_0.2": 3.0}],
        "drift_validation": validation,
    }
    paired = curves(TrainResult([row], {"validation": validation}))
    assert paired["drift_kernel"] == paired["drift_field"] == []

"""The training of a refiner of clips: splits, objectives by their params, curves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from braid.drifting.mae.latent_mae import LatentMae, save_latent_mae
from braid.drifting.training.clips import ClipSplit, clip_objective, curves
from braid.drifting.training.objectives import DriftObjective, PairedObjective
from braid.drifting.video.corruption import Corruption
from braid.drifting.video.refiner import Refiner, save_refiner
from braid.pseudo_classes.quantizer import PseudoClasses
from braid.training.trainer import Run, TrainResult
from tests.drifting import configs
from tests.drifting.toy_refinement import toy_clips, toy_refiner

ENCODER = {"features": configs.features(encoder_weight=1.0), "encoder": "models/latent_mae"}


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

    def texts(self, indices: torch.Tensor) -> torch.Tensor:
        return indices[:, None, None].expand(-1, 2, 4).float()


def split(name: str = "train") -> ClipSplit:
    data = InMemory()
    h = functional.one_hot(data.labels, 3).float()
    return ClipSplit.of(data, PseudoClasses(data.labels, 2, h, {}), name)


def enlarge(clips: torch.Tensor) -> torch.Tensor:
    """Channels and their sum as colors, 4 x 4 pixels a cell, 4 frames a frame but the first."""
    colors = torch.stack([clips[:, 0], clips[:, 1], clips.sum(1)], -1)  # [n, T, H, W, 3]
    frames = torch.cat([colors[:, :1], colors[:, 1:].repeat_interleave(4, 1)], 1)
    return frames.repeat_interleave(4, 2).repeat_interleave(4, 3)


def no_decoder(clips: torch.Tensor) -> torch.Tensor:
    raise AssertionError("nothing is moved, so nothing need be decoded")


def objective(
    folder: Path | None,
    replaced: float = 0.0,
    start: Path | None = None,
    refiner: Refiner | None = None,
    **settings,
):
    corruption = Corruption(5, configs.corruption(levels=1, student_replace_prob=replaced))
    parts = configs.refiner_training(**settings), configs.class_batches(), configs.loss()
    run = Run(seed=0, device=torch.device("cpu"), log_every=7)
    return clip_objective(
        *parts, refiner or toy_refiner(), corruption, split(), folder, start, no_decoder, run
    )


def test_a_split_counts_its_own_clips() -> None:
    data, validation = InMemory(), split("val")
    assert len(validation) == 10
    assert torch.equal(validation.latents(torch.tensor([0, 2])), data.clips[[0, 8]])
    assert torch.equal(validation.classes, data.labels[::4])


def test_patches_that_do_not_divide_a_frame_are_refused_before_training() -> None:
    refiner = Refiner(2, 2, 2, configs.refiner(patch=3))  # of clips whose frames are 4 x 4
    with pytest.raises(ValueError, match=r"^drift.refiner.patch is 3, expected .* 4 and 4$"):
        objective(None, objective="paired", refiner=refiner)


def test_drifting_has_the_branches_of_its_params(tmp_path: Path) -> None:
    save_latent_mae(tmp_path, LatentMae(2, 8, (1,)))
    drift = objective(tmp_path, **ENCODER)
    assert isinstance(drift, DriftObjective)
    assert {name: weight for name, (weight, _) in drift.branches.items()} == {
        "encoder": 1.0,
        "vanilla": 2.0,
    }
    assert drift.log_every == 7
    assert set(drift(0, torch.Generator().manual_seed(0))) == {"encoder", "vanilla"}
    assert drift.clips_per_step == 2 * 4
    assert objective(None, generated=3).clips_per_step == 2 * 3


def test_an_encoder_is_read_only_where_its_features_count(tmp_path: Path) -> None:
    assert isinstance(objective(None, objective="paired"), PairedObjective)
    drift = objective(None)
    assert set(drift.branches) == {"vanilla"}
    assert drift.card(16)["encoder"] == objective(None, objective="paired").card(16)["encoder"]
    assert drift.card(16)["encoder"] == "none"
    assert drift.card(16)["effective batch"] == "16, 8 at once"
    with pytest.raises(ValueError, match="of a latent MAE"):
        objective(tmp_path, **ENCODER)


def test_a_target_one_level_finer_is_that_of_clips_or_of_the_step_where_sets_are_compared() -> None:
    for kind, level_of in (("paired", "clip"), ("drift", "step")):
        finer = objective(None, objective=kind, target="finer")
        assert finer.finer is not None
        assert finer.level_of == level_of
        clip = objective(None, objective=kind)
        assert clip.finer is None
        assert clip.level_of == "clip"


@pytest.mark.parametrize(("beside", "dim"), [("none", 0), ("text", 4), ("embedding", 3)])
def test_a_refiner_has_the_rows_of_its_params_beside_the_class(beside: str, dim: int) -> None:
    corruption = Corruption(5, configs.corruption(levels=1))
    refiner = split().fresh_refiner(2, corruption, configs.refiner(beside=beside), "finer")
    assert refiner.shape == {"channels": 2, "classes": 2, "levels": 2, "row_dim": dim}
    assert refiner.target == "finer"
    texts = objective(None, refiner=refiner, objective="paired").texts
    assert (texts is None) == (beside == "none")
    if texts is not None:
        rows = texts(torch.tensor([0, 3]))  # the second and the fifth of all clips
        expected = {"text": [[1.0] * 4, [5.0] * 4], "embedding": [[0.0, 1, 0], [0, 1, 0]]}
        assert rows[:, 0].tolist() == expected[beside]


def test_a_training_goes_on_from_another_refiner_s_weights(tmp_path: Path) -> None:
    other = toy_refiner()
    with torch.no_grad():
        other.out.bias += 3
    save_refiner(tmp_path / "other", other)
    for kind in ("paired", "drift"):
        assert objective(None, objective=kind).refiner.out.bias.abs().max() == 0
        started = objective(None, start=tmp_path / "other", objective=kind).refiner
        for name, weights in other.state_dict().items():
            assert torch.equal(weights, started.state_dict()[name]), name


def test_a_start_of_other_shapes_or_none_is_named_in_one_line(tmp_path: Path) -> None:
    save_refiner(tmp_path / "wide", Refiner(2, 2, 2, configs.refiner(dim=36)))
    with pytest.raises(ValueError, match=r"wide: a refiner of .*'dim': 36.*expected .*'dim': 24"):
        objective(None, start=tmp_path / "wide")
    with pytest.raises(ValueError, match="of a refiner"):
        objective(None, start=tmp_path / "missing")


def test_drifting_has_features_and_regression_has_none() -> None:
    with pytest.raises(ValueError, match="objective is drift, expected features beside it"):
        configs.refiner_training(features=None)
    with pytest.raises(ValueError, match="objective is paired, expected no features beside it"):
        configs.refiner_training(objective="paired", features=configs.features())
    with pytest.raises(ValueError, match="encoder_weight and vanilla_weight are both 0"):
        configs.features(vanilla_weight=0.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vanilla": ("tokens", "tokens")}, r"vanilla\n.*expected each once"),
        ({"families": ("clip", "clip")}, r"families\n.*expected each once"),
        ({"families": ("edges",)}, "families"),
        ({"vanilla": ("edges",)}, "vanilla"),
    ],
)
def test_features_are_known_and_named_once(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        configs.features(**changes)


def test_an_encoder_and_the_weight_of_its_features_agree() -> None:
    with pytest.raises(ValueError, match=r"encoder is none, expected models/latent_mae.* 1\.0"):
        configs.refiner_training(features=configs.features(encoder_weight=1.0))
    with pytest.raises(ValueError, match="encoder is models/latent_mae, expected none"):
        configs.refiner_training(encoder="models/latent_mae")
    with pytest.raises(ValueError, match="encoder is models/latent_mae, expected none"):
        configs.refiner_training(encoder="models/latent_mae", objective="paired")


def test_a_fresh_refiner_s_pictures_are_fitted_and_a_started_one_keeps_its_own(
    tmp_path: Path,
) -> None:
    def objective_of(start: Path | None):
        corruption = Corruption(5, configs.corruption(levels=1))
        refiner = Refiner(2, 2, 2, configs.refiner(detail=2))
        parts = (
            configs.refiner_training(objective="paired"),
            configs.class_batches(),
            configs.loss(),
        )
        run = Run(seed=0, device=torch.device("cpu"))
        return clip_objective(*parts, refiner, corruption, split(), None, start, enlarge, run)

    fresh = objective_of(None).refiner
    picture = fresh.moved.picture
    assert picture.first.abs().sum() > 0
    assert torch.allclose(picture.back @ picture.later, torch.eye(2), atol=1e-5)
    with torch.no_grad():
        picture.back += 1
    save_refiner(tmp_path, fresh)
    assert torch.equal(objective_of(tmp_path).refiner.moved.picture.back, picture.back)


def test_anchors_are_read_where_the_corruption_replaces_keyframes(tmp_path: Path) -> None:
    assert objective(None, objective="paired").anchors is None
    anchors = objective(None, replaced=0.5, objective="paired").anchors
    assert anchors(torch.tensor([0])).unique().tolist() == [9.0]


def test_a_history_is_split_by_what_its_columns_are_about() -> None:
    row = {"step": 0, "loss": 1.0, "vanilla": 1.0, "short_banks": 0.0}
    statistics = {"vanilla_kernel_distance_0.2": 2.0, "vanilla_field_sq_tokens_0.2": 3.0}
    statistics |= {"vanilla_balance_norm_tokens": 4.0, "vanilla_balance_cosine_tokens": 0.5}
    validation = [{"step": 1, "val_frechet": 0.5}]
    drift = curves(TrainResult([row | statistics], {"validation": validation}))
    assert drift == {
        "drift": [row],
        "drift_kernel": [{"step": 0, "vanilla_kernel_distance_0.2": 2.0}],
        "drift_field": [{"step": 0, "vanilla_field_sq_tokens_0.2": 3.0}],
        "drift_norm": [{"step": 0, "vanilla_balance_norm_tokens": 4.0}],
        "drift_cosine": [{"step": 0, "vanilla_balance_cosine_tokens": 0.5}],
        "drift_validation": validation,
    }
    paired = curves(TrainResult([row], {"validation": validation}))
    assert paired["drift_kernel"] == paired["drift_field"] == []

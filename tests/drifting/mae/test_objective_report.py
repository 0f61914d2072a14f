"""The figures of a masked autoencoder, beside trivial predictors', and the names of failures."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.metrics import silhouette_score
from torch import nn

from braid.common.rng import generator as stream
from braid.drifting.mae.objective import (
    MODES,
    MaeReport,
    Masking,
    SeparationProbe,
    mae_report,
    mae_status,
)
from braid.training.ema import Ema
from braid.training.trainer import Run, train
from tests.drifting import configs
from tests.drifting.toy_mae import MASKING, generator
from tests.drifting.toy_mae import toy_mae_objective as make


def trained(**changes):
    objective, values = make(steps=150, **changes)
    optimizer = configs.optimizer(lr_floor=0.1, warmup=0.07, clip_norm=1.0)
    train(objective, optimizer, Run(seed=0, device=torch.device("cpu")), steps=150)
    return objective, values


def test_training_beats_every_trivial_predictor_and_teaches_the_head():
    objective, values = trained()
    clips = torch.arange(len(values))
    report = mae_report(
        objective.mae.freeze(), MASKING, objective.latents, clips, objective.labels, 0
    )
    frame = {**report.errors["frame"], "interpolation": 1.0}
    status, reason = mae_status(replace(report, errors={**report.errors, "frame": frame}))
    assert status == "passed", reason  # but for the line in time, which interpolation knows
    assert report.errors["frame"]["interpolation"] < 1e-10
    assert report.errors["patch"]["mae"] < 0.3 * report.errors["patch"]["mean"]
    assert report.head_accuracy > 0.9
    assert report.head_chance == 0.25
    assert report.parameters == sum(weights.numel() for weights in objective.mae.parameters())


def test_the_report_says_what_trivial_predictors_score():
    objective, values = make(classes=0)
    constant = torch.full_like(values, 2.0)
    clips = torch.arange(len(values))
    report = mae_report(
        objective.mae.freeze(), MASKING, lambda i: constant[i], clips, objective.labels, 0
    )
    for mode in ("patch", "tube", "frame"):
        assert report.errors[mode]["zero"] == pytest.approx(4.0)
        assert report.errors[mode]["mean"] == pytest.approx(0.0, abs=1e-10)
        assert report.errors[mode]["mae"] == pytest.approx(4.0)  # untrained: predicts zero
    assert report.errors["frame"]["interpolation"] == pytest.approx(0.0, abs=1e-10)
    assert report.head_accuracy is None
    again = mae_report(objective.mae, MASKING, lambda i: constant[i], clips, objective.labels, 0)
    assert again == report


class Copier(nn.Module):
    """Predicts its input."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.head, self.blocks = None, (1,)

    def forward(self, clips):
        return clips

    def encode(self, clips):
        return {"stage1": clips}


def test_the_model_and_the_visible_mean_read_no_hidden_cell():
    values = torch.randn(6, 3, 5, 4, 4, generator=generator(2)) + 1
    report = mae_report(Copier(), MASKING, lambda i: values[i], torch.arange(6), torch.zeros(6), 5)
    for mode in ("patch", "tube", "frame"):
        assert report.errors[mode]["mae"] == report.errors[mode]["zero"] > 1
        hidden = Masking(configs.masking(mode))(values.shape, stream(5, "latent_mae", mode, 0))
        errors = []
        for clip, where in zip(values, hidden.expand_as(values), strict=True):
            means = torch.stack([c[~w].mean() for c, w in zip(clip, where, strict=True)])
            errors.append((clip - means[:, None, None, None])[where].square().mean())
        expected = torch.stack(errors).mean().item()
        assert report.errors[mode]["mean"] == pytest.approx(expected, rel=1e-5)


def figures(**changes):
    errors = {mode: {"mae": 0.5, "zero": 1.0, "mean": 1.0} for mode in MODES}
    errors["frame"]["interpolation"] = 0.8
    usual = {"rank": 20.0, "rank_fraction": 0.3, "head_accuracy": None, "head_chance": None}
    for mode in MODES:
        errors[mode] |= changes.pop(mode, {})
    return MaeReport(errors, parameters=10, **{**usual, **changes})


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({}, "passed"),
        ({"rank": 1.2, "rank_fraction": 0.01}, "collapsed"),
        ({"frame": {"mae": 0.9}}, "worse_than_interpolation"),
        ({"tube": {"mae": 0.6, "mean": 0.55}}, "worse_than_mean"),
        ({"patch": {"mae": 1.0, "mean": 2.0}}, "worse_than_zero"),
        ({"head_accuracy": 0.1, "head_chance": 0.1}, "head_at_chance"),
        ({"head_accuracy": 0.2, "head_chance": 0.1}, "passed"),
    ],
)
def test_failures_have_names(change, status):
    actual, reason = mae_status(figures(**change))
    assert actual == status
    assert "\n" not in reason
    assert any(character.isdigit() for character in reason)


def test_the_headline_and_the_table_hold_all_figures():
    report = figures(head_accuracy=0.2, head_chance=0.1, patch={"mean": 0.9})
    assert report.metrics() == {
        "mse": {"patch": 0.5, "trivial": 0.9},
        "accuracy": {"head": 0.2},
    }
    assert "accuracy" not in figures().metrics()
    mae, zero, mean, interpolation, chance = report.rows()
    assert mae["mse_frame"] == 0.5
    assert (mae["rank_fraction"], mae["parameters"]) == (0.3, 10)
    assert mean == {"method": "mean", "mse_patch": 0.9, "mse_tube": 1.0, "mse_frame": 1.0}
    assert interpolation == {"method": "interpolation", "mse_frame": 0.8}
    assert chance == {"method": "largest_class", "head_accuracy": 0.1}
    assert zero["method"] == "zero"
    assert len(figures().rows()) == 4


def test_the_probe_says_how_averaged_features_separate_validation_clips():
    objective, values = make(validate_every=4, steps=6)
    probe = SeparationProbe(
        objective.latents, torch.arange(1, 39), objective.labels, objective.config
    )
    ema = Ema(objective, 0.9)
    row = probe(4, objective, ema)
    points = objective.mae.encode(values[1:39])["stage2"].mean((2, 3, 4)).detach().numpy()
    assert row["silhouette"] == pytest.approx(
        silhouette_score(points, objective.labels[1:39]), abs=1e-5
    )
    assert 1 < row["rank"] < points.shape[1]
    assert row["intra_inter"] < 1  # a class is one picture
    assert probe(5, objective, ema) is None
    torch.nn.init.normal_(next(objective.mae.parameters()))
    assert probe(6, objective, ema) == row != probe(6, objective, None)
    probe.labels = np.roll(probe.labels, 1) // 2 % 2
    assert probe(4, objective, ema)["silhouette"] < row["silhouette"]

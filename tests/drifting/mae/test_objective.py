"""Training of the masked autoencoder, and the figures by which it is evaluated."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from braid.common.rng import generator as stream
from braid.drifting.mae.latent_mae import LatentMae
from braid.drifting.mae.objective import MODES, MaeObjective, Masking
from braid.drifting.mae.report import MaeReport, mae_report, mae_status, rank_me
from braid.training.trainer import Run, train
from tests.drifting import configs

MASKING = Masking(configs.masking())


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def data(count=40, classes=4):
    """Clips of one random picture a class, at a random place of a line in time."""
    pictures = torch.randn(classes, 3, 1, 4, 4, generator=generator(1))
    labels = torch.arange(count) % classes
    ramp = torch.linspace(0.5, 1.5, 5)[None, None, :, None, None]
    return pictures[labels] * ramp, labels


def make(classes=4, **changes):
    torch.manual_seed(0)
    values, labels = data()
    mae = LatentMae(3, 8, (1, 1), classes)
    clips = changes.pop("clips", torch.arange(len(values)))
    labels = changes.pop("labels", labels)
    config = configs.mae(**changes)
    return MaeObjective(mae, MASKING, lambda i: values[i], clips, labels, config), values


def test_terms_are_weighted_errors_and_the_same_draw_gives_the_same():
    objective, _ = make()
    with torch.no_grad():
        early, late = objective(0, generator(3)), objective(99, generator(3))
        again = objective(0, generator(3))
    assert early["classes"] == 0
    torch.testing.assert_close(late["reconstruction"], 0.5 * early["reconstruction"])
    assert late["classes"].item() == pytest.approx(0.5 * math.log(4), rel=0.5)
    assert torch.equal(again["reconstruction"], early["reconstruction"])
    assert torch.equal(objective.diagnostics["masked_mse"], early["reconstruction"])


def test_the_head_is_trained_at_the_end_its_weight_climbing_for_a_third():
    objective, _ = make(steps=100, head_fraction=0.3, head_weight=0.2)
    weights = [objective.weight(step) for step in range(100)]
    assert not any(weights[:70])
    assert weights[70:79] == pytest.approx([0.02 * (i + 1) for i in range(9)])
    assert weights[80:] == [0.2] * 20
    never, _ = make(head_fraction=0.0)
    assert not any(never.weight(step) for step in range(100))
    always, _ = make(head_fraction=1.0, steps=3, head_weight=1.0)
    assert [always.weight(step) for step in range(3)] == [1.0, 1.0, 1.0]


def test_without_a_head_there_is_one_term():
    objective, _ = make(classes=0, head_weight=0.0)
    assert list(objective(99, generator())) == ["reconstruction"]
    assert list(objective.diagnostics) == ["masked_mse"]


def test_batches_come_from_the_given_clips_alone():
    seen = []
    objective, values = make(clips=torch.tensor([3, 5, 8]))
    objective.latents = lambda chosen: (seen.append(chosen), values[chosen])[1]
    for step in range(5):
        objective(step, generator(step))
    assert set(torch.cat(seen).tolist()) == {3, 5, 8}


def test_hidden_cells_never_reach_the_network():
    objective, values = make()
    seen = []
    encode = objective.mae.encode
    objective.mae.encode = lambda clips: (seen.append(clips), encode(clips))[1]
    objective.latents = lambda chosen: torch.full_like(values[chosen], 7.0)
    objective(0, generator())
    assert set(seen[0].unique().tolist()) == {0.0, 7.0}


def test_the_outer_layers_are_named_for_muon():
    objective, _ = make()
    assert set(objective.outer_layers) <= set(dict(objective.named_modules()))
    assert objective.outer_layers == ["mae.stem.0", "mae.out", "mae.head"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"clips": torch.tensor([], dtype=torch.int64)}, "no clips to train the latent MAE on"),
        ({"labels": torch.full((40,), 4)}, "pseudo-classes run from 4 to 4, the head has 4"),
        ({"labels": torch.full((40,), -1)}, "pseudo-classes run from -1"),
    ],
)
def test_impossible_data_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        make(**change)


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
    assert report.parameters == sum(each.numel() for each in objective.mae.parameters())


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


def test_rank_counts_the_dimensions_in_use():
    assert rank_me(torch.eye(8)) == pytest.approx(8)
    assert rank_me(torch.ones(20, 8)) == pytest.approx(1)
    assert rank_me(torch.diag(torch.tensor([1.0, 1.0, 0.0, 0.0]))) == pytest.approx(2)
    assert rank_me(torch.zeros(5, 4)) == pytest.approx(1)


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
    found, reason = mae_status(figures(**change))
    assert found == status
    assert "\n" not in reason
    assert any(character.isdigit() for character in reason)


def test_the_headline_and_the_table_hold_all_figures():
    report = figures(head_accuracy=0.2, head_chance=0.1, patch={"mean": 0.9})
    assert report.metrics() == {
        "mse": {"patch": 0.5, "tube": 0.5, "frame": 0.5, "trivial": 0.9},
        "accuracy": {"head": 0.2},
        "rank": 20.0,
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

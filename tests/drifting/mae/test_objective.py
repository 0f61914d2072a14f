"""Training of the masked autoencoder, and the figures by which it is judged."""

import math

import pytest
import torch
from torch import nn

from braid.common.rng import generator as stream
from braid.drifting.mae.latent_mae import LatentMae
from braid.drifting.mae.objective import MaeObjective, Masking
from braid.drifting.mae.report import mae_report, mae_verdict, rank_me
from braid.training.optimizers import adamw, warmup_cosine
from braid.training.trainer import LoopSettings, train

MASKING = Masking("mixed", 0.5, 0.5)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def data(count=40, classes=4):
    """Clips of one random picture a class, at a random place of a line in time."""
    pictures = torch.randn(classes, 3, 1, 4, 4, generator=generator(1))
    labels = torch.arange(count) % classes
    ramp = torch.linspace(0.5, 1.5, 5)[None, None, :, None, None]
    return pictures[labels] * ramp, labels


def made(classes=4, **changes):
    torch.manual_seed(0)
    values, labels = data()
    mae = LatentMae(3, 8, (1, 1), classes)
    settings = {"steps": 100, "batch": 8, "head_weight": 0.5, "head_share": 0.4, **changes}
    clips = settings.pop("clips", torch.arange(len(values)))
    labels = settings.pop("labels", labels)
    return MaeObjective(mae, MASKING, lambda i: values[i], clips, labels, **settings), values


def test_terms_are_weighted_errors_and_the_same_draw_gives_the_same():
    objective, _ = made()
    with torch.no_grad():
        early, late = objective(0, generator(3)), objective(99, generator(3))
        again = objective(0, generator(3))
    assert early["classes"] == 0
    torch.testing.assert_close(late["reconstruction"], 0.5 * early["reconstruction"])
    assert late["classes"].item() == pytest.approx(0.5 * math.log(4), rel=0.5)
    assert torch.equal(again["reconstruction"], early["reconstruction"])
    assert torch.equal(objective.diagnostics["masked_mse"], early["reconstruction"])


def test_the_head_is_trained_at_the_end_its_weight_climbing_for_a_third():
    objective, _ = made(steps=100, head_share=0.3, head_weight=0.2)
    weights = [objective.weight(step) for step in range(100)]
    assert not any(weights[:70])
    assert weights[70:79] == pytest.approx([0.02 * (i + 1) for i in range(9)])
    assert weights[80:] == [0.2] * 20
    never, _ = made(head_share=0.0)
    assert not any(never.weight(step) for step in range(100))
    always, _ = made(head_share=1.0, steps=3, head_weight=1.0)
    assert [always.weight(step) for step in range(3)] == [1.0, 1.0, 1.0]


def test_without_a_head_there_is_one_term():
    objective, _ = made(classes=0, head_weight=0.0)
    assert list(objective(99, generator())) == ["reconstruction"]
    assert list(objective.diagnostics) == ["masked_mse"]


def test_batches_come_from_the_given_clips_alone():
    seen = []
    objective, values = made(clips=torch.tensor([3, 5, 8]))
    objective.latents = lambda chosen: (seen.append(chosen), values[chosen])[1]
    for step in range(5):
        objective(step, generator(step))
    assert set(torch.cat(seen).tolist()) == {3, 5, 8}


def test_the_network_sees_nothing_of_hidden_cells():
    objective, values = made()
    seen = []
    encode = objective.mae.encode
    objective.mae.encode = lambda clips: (seen.append(clips), encode(clips))[1]
    objective.latents = lambda chosen: torch.full_like(values[chosen], 7.0)
    objective(0, generator())
    assert set(seen[0].unique().tolist()) == {0.0, 7.0}


def test_muon_is_told_of_the_outer_layers():
    objective, _ = made()
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
        made(**change)


def trained(**changes):
    objective, values = made(steps=150, **changes)
    train(
        objective,
        adamw(objective, lr=1e-2),
        warmup_cosine(steps=150, warmup=10, floor=0.1),
        LoopSettings(steps=150, clip_norm=1.0),
        seed=0,
        device=torch.device("cpu"),
    )
    return objective, values


def test_training_beats_every_trivial_predictor_and_teaches_the_head():
    objective, values = trained()
    clips = torch.arange(len(values))
    report = mae_report(
        objective.mae.freeze(), MASKING, objective.latents, clips, objective.labels, 0
    )
    status, reason = mae_verdict({**report, "val_mse_frame_interpolation": 1.0})
    assert status == "passed", reason  # but for the line in time, which interpolation knows
    assert report["val_mse_frame_interpolation"] < 1e-10
    assert report["val_mse_patch"] < 0.3 * report["val_mse_patch_mean"]
    assert report["head_accuracy"] > 0.9
    assert report["head_chance"] == 0.25
    assert report["parameters"] == sum(each.numel() for each in objective.mae.parameters())


def test_the_report_says_what_trivial_predictors_score():
    objective, values = made(classes=0)
    constant = torch.full_like(values, 2.0)
    clips = torch.arange(len(values))
    report = mae_report(
        objective.mae.freeze(), MASKING, lambda i: constant[i], clips, objective.labels, 0
    )
    for mode in ("patch", "tube", "frame"):
        assert report[f"val_mse_{mode}_zero"] == pytest.approx(4.0)
        assert report[f"val_mse_{mode}_mean"] == pytest.approx(0.0, abs=1e-10)
        assert report[f"val_mse_{mode}"] == pytest.approx(4.0)  # untrained: predicts zero
    assert report["val_mse_frame_interpolation"] == pytest.approx(0.0, abs=1e-10)
    assert "head_accuracy" not in report
    again = mae_report(objective.mae, MASKING, lambda i: constant[i], clips, objective.labels, 0)
    assert again == report


class Copier(nn.Module):
    """Predicts what it sees."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.head, self.blocks = None, (1,)

    def forward(self, seen):
        return seen

    def encode(self, seen):
        return {"stage1": seen}


def test_the_model_and_the_visible_mean_are_judged_without_a_look_at_hidden_cells():
    values = torch.randn(6, 3, 5, 4, 4, generator=generator(2)) + 1
    report = mae_report(Copier(), MASKING, lambda i: values[i], torch.arange(6), torch.zeros(6), 5)
    for mode in ("patch", "tube", "frame"):
        assert report[f"val_mse_{mode}"] == report[f"val_mse_{mode}_zero"] > 1
        hidden = Masking(mode, 0.5, 0.5)(values.shape, stream(5, "latent_mae", mode, 0))
        errors = []
        for clip, where in zip(values, hidden.expand_as(values), strict=True):
            means = torch.stack([c[~w].mean() for c, w in zip(clip, where, strict=True)])
            errors.append((clip - means[:, None, None, None])[where].square().mean())
        expected = torch.stack(errors).mean().item()
        assert report[f"val_mse_{mode}_mean"] == pytest.approx(expected, rel=1e-5)


def test_rank_counts_the_dimensions_in_use():
    assert rank_me(torch.eye(8)) == pytest.approx(8)
    assert rank_me(torch.ones(20, 8)) == pytest.approx(1)
    assert rank_me(torch.diag(torch.tensor([1.0, 1.0, 0.0, 0.0]))) == pytest.approx(2)
    assert rank_me(torch.zeros(5, 4)) == pytest.approx(1)


def figures(**changes):
    errors = {f"val_mse_{mode}": 0.5 for mode in ("patch", "tube", "frame")}
    trivial = {f"{name}_{each}": 1.0 for name in errors for each in ("zero", "mean")}
    rank = {"rank": 20.0, "rank_share": 0.3, "val_mse_frame_interpolation": 0.8}
    return {**errors, **trivial, **rank, **changes}


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({}, "passed"),
        ({"rank": 1.2, "rank_share": 0.01}, "collapsed"),
        ({"val_mse_frame": 0.9}, "worse_than_interpolation"),
        ({"val_mse_tube": 0.6, "val_mse_tube_mean": 0.55}, "worse_than_mean"),
        ({"val_mse_patch": 1.0, "val_mse_patch_mean": 2.0}, "worse_than_zero"),
        ({"head_accuracy": 0.1, "head_chance": 0.1}, "head_at_chance"),
        ({"head_accuracy": 0.2, "head_chance": 0.1}, "passed"),
    ],
)
def test_failures_have_names(change, status):
    found, reason = mae_verdict(figures(**change))
    assert found == status
    assert "\n" not in reason
    assert any(character.isdigit() for character in reason)

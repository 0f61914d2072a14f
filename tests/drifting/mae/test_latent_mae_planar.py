"""The planar masked autoencoder, which images are one-frame clips for, and its trivial rivals."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from braid.common.rng import generator as stream
from braid.drifting.mae.latent_mae import LatentMae, load_latent_mae, save_latent_mae
from braid.drifting.mae.objective import MaeObjective, Masking, hide, mae_report, mae_status
from tests.drifting import configs

MASKING = Masking(configs.masking("patch"))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def images(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed))[:, :, None]


def planar(**changes):
    torch.manual_seed(0)
    mae = LatentMae(**{"channels": 1, "width": 8, "blocks": (1, 1, 1), "planar": True, **changes})
    for name, weights in mae.named_parameters():  # as after a training
        if name.endswith("norm2.weight") or name == "out.weight":
            nn.init.normal_(weights)
    return mae


def test_the_order_of_frames_does_not_matter_and_none_is_skipped():
    mae, clips = planar(), torch.randn(2, 1, 5, 9, 8, generator=generator())
    order, maps = torch.tensor([3, 0, 4, 1, 2]), mae.encode(clips)
    assert maps["stage3"].shape == (2, 32, 5, 3, 2)
    torch.testing.assert_close(mae(clips[:, :, order]), mae(clips)[:, :, order])
    assert not torch.allclose(mae(clips), mae(clips[:, :, order]), atol=1e-2)


def test_a_block_is_two_convolutions_over_space():
    mae, pictures = planar(blocks=(1,)), images(2, 1, 6, 6)
    block, inside = mae.stages[0][0], mae.stem(pictures)
    kernel = lambda conv: conv.weight.view(8, 3, 3, 8).permute(0, 3, 1, 2)  # noqa: E731
    x = inside[:, :, 0]
    first = F.relu(block.norm1(F.conv2d(x, kernel(block.conv1), padding=1)))
    expected = F.relu(block.norm2(F.conv2d(first, kernel(block.conv2), padding=1)) + x)
    torch.testing.assert_close(block(inside)[:, :, 0], expected, rtol=1e-4, atol=1e-4)


def test_every_weight_is_trained_by_images():
    mae = planar(classes=3)
    pictures, labels = images(12, 1, 8, 8), torch.arange(12) % 3
    config = configs.mae(steps=10, batch=6, head_fraction=1.0)
    objective = MaeObjective(mae, MASKING, pictures.__getitem__, torch.arange(12), labels, config)
    sum(objective(9, generator()).values()).backward()
    for name, weights in mae.named_parameters():
        assert (weights.grad != 0).float().mean() > 0.8, name  # a few rest behind a ReLU


def test_a_stored_planar_model_is_planar(tmp_path):
    mae, pictures = planar(), images(2, 1, 8, 8)
    save_latent_mae(tmp_path / "mae", mae)
    assert torch.equal(load_latent_mae(tmp_path / "mae")(pictures), mae(pictures))


def report(mae, pictures, **more):
    every, labels = torch.arange(len(pictures)), torch.arange(len(pictures)) % 3
    return mae_report(
        mae, MASKING, pictures.__getitem__, every, labels, 0, modes=("patch",), **more
    )


def test_trivial_predictors_of_images_are_what_loops_compute():
    pictures, average = images(3, 2, 6, 4), images(1, 2, 6, 4, seed=1)[0]
    actual = report(planar(channels=2), pictures, average=average)
    hidden = MASKING(pictures.shape, stream(0, "latent_mae", "patch", 0))
    visible = hide(pictures, hidden)
    errors = {"interpolation": [], "average": []}
    for b in range(3):
        around, typical = [], []
        for y, x in hidden[b, 0, 0].nonzero().tolist():
            window = (slice(max(y - 2, 0), y + 3), slice(max(x - 2, 0), x + 3))
            visible_there = ~hidden[b, 0, 0][window]
            guess = visible[b, :, 0][:, *window].sum((1, 2)) / max(int(visible_there.sum()), 1)
            around.append((guess - pictures[b, :, 0, y, x]).square().mean())
            typical.append((average[:, 0, y, x] - pictures[b, :, 0, y, x]).square().mean())
        errors["interpolation"].append(torch.stack(around).mean())
        errors["average"].append(torch.stack(typical).mean())
    for name, parts in errors.items():
        expected = float(torch.stack(parts).mean())
        assert actual.errors["patch"][name] == pytest.approx(expected, rel=1e-4)


def test_a_model_no_better_than_the_average_image_is_told_so():
    pictures = images(1, 1, 8, 8).expand(6, -1, -1, -1, -1)
    actual = report(planar(), pictures, average=pictures[0])
    assert actual.errors["patch"]["average"] == 0
    assert mae_status(replace(actual, rank_fraction=1.0))[0] == "worse_than_average"


def test_the_networks_error_is_evaluated_in_the_given_modes():
    errors = report(planar(), images(6, 1, 8, 8)).errors
    assert {mode: set(by_name) for mode, by_name in errors.items()} == {
        "patch": {"mae", "zero", "mean", "interpolation"}
    }

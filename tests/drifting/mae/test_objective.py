"""The objective of the masked autoencoder: terms, weights, batches."""

import math

import pytest
import torch

from tests.drifting.toy_mae import generator
from tests.drifting.toy_mae import toy_mae_objective as make


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
    batches = []
    objective, values = make(clips=torch.tensor([3, 5, 8]))
    objective.latents = lambda chosen: (batches.append(chosen), values[chosen])[1]
    for step in range(5):
        objective(step, generator(step))
    assert set(torch.cat(batches).tolist()) == {3, 5, 8}


def test_hidden_cells_never_reach_the_network():
    objective, values = make()
    inputs = []
    encode = objective.mae.encode
    objective.mae.encode = lambda clips: (inputs.append(clips), encode(clips))[1]
    objective.latents = lambda chosen: torch.full_like(values[chosen], 7.0)
    objective(0, generator())
    assert set(inputs[0].unique().tolist()) == {0.0, 7.0}


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

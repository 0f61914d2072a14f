from dataclasses import replace

import pytest
import torch

from braid.drifting.loss.drift import Samples, effective_number, kernel_rows
from braid.drifting.loss.reference import compute_v
from tests.drifting import configs
from tests.drifting.drift_example import WEIGHT, drift_loss, example, normal


def test_the_effective_number_counts_equal_weights():
    weights = torch.tensor(
        [[2.0, 2.0, 2.0, 0.0], [5.0, 0.0, 0.0, 0.0], [0.0] * 4, [1.0, 3.0, 0, 0]]
    )
    assert effective_number(weights).tolist() == pytest.approx([3, 1, 0, 1.6])


def test_rows_of_a_kernel_by_hand():
    affinity = torch.tensor([[[1.0, 1.0, 2.0], [0.0, 3.0, 1.0]]])  # [1, N, M], one positive
    distance = torch.tensor([[0.0, 1.0, 2.0], [1.0, 0.0, 3.0]])
    rows = kernel_rows(distance, affinity, positives=1)
    assert rows.positive_mass.tolist() == [[2, 1]]
    assert rows.negative_mass.tolist() == [[2, 3]]
    assert rows.positive_neighbors.tolist() == [[1, 1]]
    assert rows.negative_neighbors.tolist() == [[2, 1]]
    assert rows.moment.tolist() == [[5, 3]]


def test_they_are_computed_only_when_asked_for_and_change_nothing():
    quiet = drift_loss()({"layer1/mean": example()}, WEIGHT)
    asked = drift_loss()({"layer1/mean": example()}, WEIGHT, statistics=True)
    assert quiet.statistics == {}
    assert torch.equal(quiet.loss, asked.loss)


def test_names_are_few_and_finite():
    groups = {"layer1/mean": example(0), "layer1/std": example(4), "vanilla": example(8)}
    actual = drift_loss()(groups, WEIGHT, statistics=True).statistics
    for name in (
        "field_scale_layer1",
        "field_sq_vanilla_0.05",
        "kernel_neighbors_positive_0.2_p90",
    ):
        assert name in actual
    assert len(actual) == 3 * 10 + 2 * 4
    assert all(figure.ndim == 0 and figure.isfinite() for figure in actual.values())


def test_scale_and_squared_drift_are_those_of_the_formula():
    samples = replace(example(locations=1), negatives=None, unconditional=None)
    actual = drift_loss(temperatures=[0.2])({"x": samples}, WEIGHT, statistics=True).statistics
    columns = torch.cat([samples.generated, samples.positives], 1)[:, :, 0]
    distance = torch.cdist(samples.generated[:, :, 0], columns).clamp(min=1e-4)
    torch.testing.assert_close(actual["field_scale_x"], distance.mean())
    unit = distance.mean() / 4
    fields = [
        compute_v(
            distances / distance.mean(),
            torch.ones(12).double(),
            column / unit,
            7,
            0.2,
            configs.loss(),
        )
        for distances, column in zip(distance, columns, strict=True)
    ]
    torch.testing.assert_close(actual["field_sq_x_0.2"], torch.stack(fields).square().mean())


def test_families_are_means_over_their_groups():
    groups = {"layer1/mean": example(0), "layer1/std": example(4)}
    both = drift_loss()(groups, WEIGHT, statistics=True).statistics
    single = [
        drift_loss()({name: samples}, WEIGHT, statistics=True).statistics
        for name, samples in groups.items()
    ]
    for name in ("field_scale_layer1", "field_sq_layer1_0.02", "kernel_mass_positive_0.2"):
        torch.testing.assert_close(both[name], (single[0][name] + single[1][name]) / 2)


def test_a_wide_kernel_sees_all_neighbors_and_a_narrow_one_few():
    x, y = normal(0, 1, 40, 1, 8), normal(1, 1, 30, 1, 8)
    loss = drift_loss(temperatures=(0.01, 100.0), floor=0.0)
    actual = loss({"x": Samples(x, y)}, WEIGHT[:1], statistics=True).statistics
    # The mask of 100 mean distances is one temperature here, so that a row counts itself a little.
    assert actual["kernel_neighbors_positive_100_p10"] > 29.9
    assert actual["kernel_neighbors_positive_0.01_p50"] < 3
    assert actual["kernel_distance_0.01"] < 0.9 < actual["kernel_distance_100"]
    assert actual["kernel_mass_ratio_100"] == pytest.approx(30 / 39.6, rel=0.02)


def test_no_mass_between_samples_far_apart():
    near = Samples(normal(0, 1, 10, 1, 8), 30 + normal(1, 1, 10, 1, 8))
    actual = drift_loss(floor=0.0)({"x": near}, WEIGHT[:1], statistics=True).statistics
    assert actual["kernel_mass_ratio_0.02"] < 1e-6

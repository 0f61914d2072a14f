import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from braid.drifting.loss import reference
from braid.drifting.loss.drift import DriftLoss, Samples
from braid.drifting.loss.reference import compute_v
from braid.drifting.loss.samples import lay_out
from tests.drifting import configs
from tests.drifting.drift_example import (
    TAUS,
    WEIGHT,
    differentiate,
    drift_loss,
    example,
    moved,
    normal,
)


def by_reference(samples: Samples, **switches: object) -> tuple[Tensor, ...]:
    leaf = samples.generated.detach().clone().requires_grad_()
    loss = reference.drift_loss(replace(samples, generated=leaf), WEIGHT, configs.loss(**switches))
    return loss.detach(), *torch.autograd.grad(loss, leaf)


@pytest.mark.parametrize(
    "switches",
    [
        {},
        {"weighting": "logit"},
        {"reduction": "sum"},
        {"scale_scope": "class"},
        {"scale_scope": "class", "reduction": "sum", "weighting": "logit"},
        {"attraction": 1.5},
        {"floor": 0.0},
        {"self_mask": 0.5},
        {"normalization": "separate"},
        {"normalization": "separate", "weighting": "logit", "attraction": 1.5},
        {"coupling": "sinkhorn"},
        {"coupling": "sinkhorn", "normalization": "separate"},
        {"coupling": "sinkhorn", "weighting": "logit", "scale_scope": "class"},
    ],
)
def test_all_classes_at_once_are_the_loops_over_them(switches):
    actual = differentiate(drift_loss(temperatures=TAUS, **switches), example())
    expected = by_reference(example(), **switches)
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-12)
    if switches:
        assert not torch.allclose(expected[1], by_reference(example())[1], rtol=1e-3)


@pytest.mark.parametrize(
    "missing", [["negatives"], ["unconditional"], ["negatives", "unconditional"]]
)
def test_banked_and_unconditional_negatives_may_be_absent(missing):
    samples = example(**dict.fromkeys(missing))
    actual = differentiate(drift_loss(temperatures=TAUS), samples)
    torch.testing.assert_close(actual, by_reference(samples), rtol=1e-9, atol=1e-12)


def test_in_single_precision_the_gradient_is_that_of_the_reference_far_from_the_origin():
    single = moved(example(dims=256, locations=3), lambda vectors: (vectors + 30).float())
    _, actual = differentiate(drift_loss(temperatures=TAUS), single)
    _, expected = by_reference(moved(single, Tensor.double))
    assert actual.dtype == torch.float32
    assert (actual - expected).norm() < 1e-5 * expected.norm()


def test_in_single_precision_a_sample_is_at_no_distance_from_itself():
    double = Samples(normal(0, 1, 5, 1, 512), normal(1, 1, 2, 1, 512))
    single = Samples(double.generated.float(), double.positives.float())
    actual, expected = (
        drift_loss()({"x": samples}, WEIGHT[:1], statistics=True).statistics["field_scale_x"].item()
        for samples in (single, double)
    )
    assert actual == pytest.approx(expected, rel=1e-6)


def test_many_locations_are_taken_in_parts(monkeypatch):
    whole = differentiate(drift_loss(), example(locations=7))
    monkeypatch.setattr("braid.drifting.loss.samples.CACHED", 2 * 3 * 20 * 16)
    torch.testing.assert_close(differentiate(drift_loss(), example(locations=7)), whole)


def test_one_temperature_costs_one_whatever_the_samples_are():
    for seed in (0, 10):
        loss, _ = differentiate(drift_loss(temperatures=[0.05]), example(seed))
        torch.testing.assert_close(loss, torch.ones_like(loss))
    summed, _ = differentiate(drift_loss(temperatures=[0.05], reduction="sum"), example())
    torch.testing.assert_close(summed, 4 * torch.ones_like(summed))


def test_groups_add_up_and_each_carries_its_gradient():
    groups = {"a": example(0), "b": example(5, locations=1, dims=8)}
    leaves = {name: samples.generated.clone().requires_grad_() for name, samples in groups.items()}
    result = drift_loss()(
        {name: replace(samples, generated=leaves[name]) for name, samples in groups.items()}, WEIGHT
    )
    torch.testing.assert_close(result.loss, result.per_group["a"] + result.per_group["b"])
    for name, samples in groups.items():
        loss, gradient = differentiate(drift_loss(), samples)
        torch.testing.assert_close(result.per_group[name].detach(), loss)
        (actual,) = torch.autograd.grad(3 * result.per_group[name], leaves[name])
        torch.testing.assert_close(actual, 3 * gradient)


def test_only_what_is_generated_gets_a_gradient():
    positives = example().positives.requires_grad_()
    leaf = example().generated.requires_grad_()
    samples = example(generated=leaf, positives=positives)
    drift_loss()({"group": samples}, WEIGHT.clone().requires_grad_()).loss.backward()
    assert leaf.grad is not None
    assert positives.grad is None


@pytest.mark.parametrize("attraction", [1.0, 1.5])
def test_the_drift_follows_translation_rotation_and_scale(attraction):
    loss = drift_loss(attraction=attraction)
    value, gradient = differentiate(loss, example())
    shifted = differentiate(loss, moved(example(), lambda vectors: vectors + 7))
    torch.testing.assert_close(shifted, (value, gradient))
    rotation = torch.linalg.qr(normal(9, 16, 16)).Q
    turned = differentiate(loss, moved(example(), lambda vectors: vectors @ rotation))
    torch.testing.assert_close(turned, (value, gradient @ rotation))
    scaled = differentiate(loss, moved(example(), lambda vectors: 50 * vectors))
    torch.testing.assert_close(scaled, (value, gradient / 50), rtol=1e-5, atol=1e-9)


def test_the_order_of_samples_and_classes_is_free():
    value, gradient = differentiate(drift_loss(), example())
    rows, classes = torch.randperm(5), torch.tensor([2, 0, 1])
    samples = example()
    mixed = replace(
        samples,
        generated=samples.generated[classes][:, rows],
        positives=samples.positives[classes].flip(1),
        negatives=samples.negatives[classes],
        unconditional=samples.unconditional.flip(0),
    )
    actual = differentiate(drift_loss(), mixed, WEIGHT[classes])
    torch.testing.assert_close(actual, (value, gradient[classes][:, rows]))


def test_the_field_is_antisymmetric_in_the_two_distributions():
    x, p, q = normal(0, 6, 64), normal(1, 8, 64), normal(2, 8, 64) + 0.3

    unmasked = configs.loss(self_mask=0.0)

    def field(positives: Tensor, negatives: Tensor) -> Tensor:
        columns = torch.cat([negatives, positives])
        weight = torch.ones(16, dtype=torch.float64)
        return compute_v(torch.cdist(x, columns) / 11, weight, columns, 8, 0.2, unmasked)

    assert field(p, q).abs().max() > 1e-2
    torch.testing.assert_close(field(p, q), -field(q, p), rtol=0, atol=1e-14)


def test_without_the_mask_samples_that_are_the_data_stay():
    same = normal(0, 2, 9, 1, 32)
    kwargs = {"temperatures": [0.2], "self_mask": 0.0}
    sq = drift_loss(**kwargs)({"x": Samples(same, same)}, WEIGHT[:2], statistics=True).statistics
    assert sq["field_sq_x_0.2"] < 1e-28
    other = Samples(same, normal(1, 2, 9, 1, 32))
    sq = drift_loss(**kwargs)({"x": other}, WEIGHT[:2], statistics=True).statistics
    assert sq["field_sq_x_0.2"] > 1e-3


def affinities(loss: DriftLoss, weight: Tensor) -> Tensor:
    (group,) = lay_out(example(), weight)
    return loss.affinity(group, group.distances() / 5, loss.config.temperatures)


def test_affinities_are_linear_in_the_weight_of_unconditional_samples():
    ones = torch.ones(3, dtype=torch.float64)
    once, thrice = (affinities(drift_loss(), factor * ones) for factor in (1, 3))
    torch.testing.assert_close(thrice[..., :6], 3 * once[..., :6])
    torch.testing.assert_close(thrice[..., 6:], once[..., 6:])
    once, thrice = (affinities(drift_loss(weighting="logit"), factor * ones) for factor in (1, 3))
    assert not torch.allclose(thrice[..., :6], 3 * once[..., :6], rtol=0.1)


def test_without_guidance_unconditional_samples_pull_nothing_but_slow_each_drift():
    zero = torch.zeros(3, dtype=torch.float64)
    loss = drift_loss(temperatures=[0.2], floor=0.0)
    assert (affinities(loss, zero)[..., :6] == 0).all()
    _, with_them = differentiate(loss, example(), zero)
    _, without = differentiate(loss, example(unconditional=None), zero)
    torch.testing.assert_close(
        torch.cosine_similarity(with_them, without, dim=-1), torch.ones(3, 5, 4).double()
    )
    assert not torch.allclose(with_them, without, rtol=0.01)
    logit = drift_loss(weighting="logit")
    torch.testing.assert_close(
        differentiate(logit, example(), zero),
        differentiate(logit, example(unconditional=None), zero),
    )


@pytest.mark.parametrize("normalization", ["joint", "separate"])
def test_a_sinkhorn_coupling_gives_rows_one_and_columns_what_they_weigh(normalization):
    loss = drift_loss(temperatures=[0.2], coupling="sinkhorn", normalization=normalization)
    coupled = affinities(loss, WEIGHT)[:, :, 0]  # [L, C, N, M]: 6 unconditional, 5 + 2, 7 positive
    weight = torch.cat([WEIGHT[:, None].expand(3, 6), torch.ones(3, 14)], 1)
    sides = [slice(0, 20)] if normalization == "joint" else [slice(0, 13), slice(13, 20)]
    for side in sides:
        part, columns = coupled[..., side], weight[:, side]
        torch.testing.assert_close(part.sum(-1), torch.ones(4, 3, 5).double())
        expected = 5 * columns / columns.sum(1, keepdim=True)
        torch.testing.assert_close(part.sum(-2), expected.expand(4, -1, -1), rtol=0, atol=2e-3)


def test_with_separate_sinkhorn_sides_the_force_is_between_two_barycenters():
    loss = drift_loss(temperatures=[0.2], coupling="sinkhorn", normalization="separate")
    (group,) = lay_out(example(), WEIGHT)
    affinity = loss.affinity(group, group.distances() / 5, [0.2])
    columns = group.columns[:, :, None]
    barycenters = (
        affinity[..., 13:] @ columns[..., 13:, :],
        affinity[..., :13] @ columns[..., :13, :],
    )
    force = loss.coefficients(group, affinity.clone()) @ columns
    torch.testing.assert_close(force, barycenters[0] - barycenters[1])


@pytest.mark.parametrize("coupling", ["softmax", "sinkhorn"])
def test_one_positive_draws_alike_when_sides_are_normalized_apart(coupling):
    samples = Samples(normal(0, 1, 6, 1, 8), normal(1, 1, 1, 1, 8) + 20)
    (group,) = lay_out(samples, WEIGHT[:1])
    distance = group.distances() / 30
    separate = drift_loss(floor=0.0, coupling=coupling, normalization="separate")
    drawn = separate.affinity(group, distance, [0.02])[..., -1]
    if coupling == "sinkhorn":
        torch.testing.assert_close(drawn, torch.ones_like(drawn))
    else:  # the softmax over one column is 1: what is left is the one over rows
        rows = (-distance[..., -1] / 0.02).softmax(-1)
        torch.testing.assert_close(drawn[:, :, 0], rows.sqrt())
    joint = drift_loss(floor=0.0).affinity(group, distance, [0.02])[..., -1]
    assert joint.max() < 1e-3  # far positives lose against near negatives


@pytest.mark.parametrize("normalization", ["joint", "separate"])
@pytest.mark.parametrize("coupling", ["softmax", "sinkhorn"])
def test_padding_has_no_effect_on_any_coupling(coupling, normalization):
    switches = {"coupling": coupling, "normalization": normalization}
    few = example(unconditional=None, negatives=None)
    wide = {
        "generated": torch.cat([few.generated, normal(7, 3, 2, 4, 16)], 1),
        "positives": torch.cat([few.positives, normal(8, 3, 3, 4, 16)], 1),
        "generated_count": torch.tensor([5, 5, 5]),
        "positive_count": torch.tensor([7, 7, 7]),
    }
    value, gradient = differentiate(drift_loss(**switches), few)
    padded = differentiate(drift_loss(**switches), replace(few, **wide))
    torch.testing.assert_close(padded[0], value)
    torch.testing.assert_close(padded[1][:, :5], gradient)
    assert (padded[1][:, 5:] == 0).all()


def test_temperatures_fall_exponentially_to_the_configured_ones():
    loss = drift_loss(temperatures=[0.1, 0.2], annealing=8.0, annealing_steps=30)
    assert loss.temperatures(0) == pytest.approx([0.8, 1.6])
    assert loss.temperatures(10) == pytest.approx([0.4, 0.8])
    assert loss.temperatures(20) == pytest.approx([0.2, 0.4])
    assert (
        loss.temperatures(30) == loss.temperatures(99) == loss.temperatures(math.inf) == [0.1, 0.2]
    )
    samples = {"x": example()}
    early = loss(samples, WEIGHT, step=10, statistics=True).statistics
    hot = drift_loss(temperatures=[0.4, 0.8])(samples, WEIGHT, statistics=True).statistics
    torch.testing.assert_close(early["field_sq_x_0.1"], hot["field_sq_x_0.4"])
    torch.testing.assert_close(early["kernel_mass_ratio_0.2"], hot["kernel_mass_ratio_0.8"])


def test_half_precision_comes_in_and_single_precision_is_computed():
    half = moved(example(dims=32), Tensor.bfloat16)
    single = moved(half, Tensor.float)
    expected = differentiate(drift_loss(), single)
    with torch.autocast("cpu", torch.bfloat16):
        inside = differentiate(drift_loss(), single)
        loss, gradient = differentiate(drift_loss(), half)
    assert torch.equal(inside[1], expected[1])
    assert gradient.dtype == torch.bfloat16
    torch.testing.assert_close(loss, expected[0])
    torch.testing.assert_close(gradient, expected[1].bfloat16())


def test_the_compiler_takes_it():
    compiled = torch.compile(drift_loss(), backend="eager")
    torch.testing.assert_close(
        differentiate(compiled, example()), differentiate(drift_loss(), example())
    )


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("temperatures", []),
        ("temperatures", [0.1, 0.0]),
        ("attraction", 0.0),
        ("floor", -1.0),
        ("self_mask", -1.0),
        ("weighting", "log"),
        ("reduction", "none"),
        ("scale_scope", "group"),
        ("coupling", "transport"),
        ("normalization", "both"),
        ("annealing", 0.5),
    ],
)
def test_impossible_settings_are_named(key, value):
    with pytest.raises(ValueError, match=key):
        configs.loss(**{key: value})


@pytest.mark.parametrize(("annealing", "steps", "wanted"), [(2.0, 0, "1 or more"), (1.0, 9, "0")])
def test_annealing_without_steps_is_named(annealing, steps, wanted):
    with pytest.raises(ValueError, match=f"annealing_steps is {steps}, expected {wanted}: anneal"):
        configs.loss(annealing=annealing, annealing_steps=steps)

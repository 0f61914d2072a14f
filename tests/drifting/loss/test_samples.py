from dataclasses import replace

import pytest
import torch

from braid.drifting.loss.drift import Samples
from tests.drifting.drift_example import WEIGHT, differentiate, drift_loss, example, normal

COUNTS = {
    "generated_count": torch.tensor([5, 3, 2]),
    "positive_count": torch.tensor([4, 7, 1]),
    "negative_count": torch.tensor([0, 2, 1]),
}


def poisoned(value: float) -> Samples:
    """Ragged classes with a value in all padding."""
    samples = example(**COUNTS)
    for name in ("generated", "positives", "negatives"):
        block = getattr(samples, name)
        count = COUNTS[f"{name.removesuffix('s') if name != 'generated' else name}_count"]
        block[torch.arange(block.shape[1]) >= count[:, None]] = value
    return samples


@pytest.mark.parametrize("switches", [{}, {"weighting": "logit"}, {"scale_scope": "class"}])
def test_padding_has_no_effect_whatever_it_holds(switches):
    loss = drift_loss(**switches)
    value, gradient = differentiate(loss, poisoned(float("nan")))
    torch.testing.assert_close((value, gradient), differentiate(loss, poisoned(3.0)))
    padding = torch.arange(5) >= COUNTS["generated_count"][:, None]
    assert (gradient[padding] == 0).all()
    assert (gradient[~padding].abs().sum((-1, -2)) > 0).all()
    both = [
        loss({"g": poisoned(value)}, WEIGHT, statistics=True).statistics
        for value in (float("nan"), 3.0)
    ]
    torch.testing.assert_close(*both)


def test_a_ragged_class_is_the_class_without_its_padding():
    loss = drift_loss(scale_scope="class")
    value, gradient = differentiate(loss, poisoned(float("nan")))
    fraction = COUNTS["generated_count"] / COUNTS["generated_count"].sum()
    total = torch.zeros_like(value)
    for c in range(3):
        n, p, q = (COUNTS[f"{name}_count"][c] for name in ("generated", "positive", "negative"))
        samples = example()
        alone = replace(
            samples,
            generated=samples.generated[c : c + 1, :n],
            positives=samples.positives[c : c + 1, :p],
            negatives=samples.negatives[c : c + 1, :q],
        )
        single, expected = differentiate(loss, alone, WEIGHT[c : c + 1])
        torch.testing.assert_close(gradient[c, :n], expected[0] * fraction[c])
        total += single * fraction[c]
    torch.testing.assert_close(value, total)


def test_equal_counts_are_shorter_blocks():
    counts = dict.fromkeys(("generated_count", "positive_count"), torch.tensor([4, 4, 4]))
    padded, samples = example(**counts), example()
    short = replace(samples, generated=samples.generated[:, :4], positives=samples.positives[:, :4])
    value, gradient = differentiate(drift_loss(), padded)
    torch.testing.assert_close((value, gradient[:, :4]), differentiate(drift_loss(), short))
    figures = [
        drift_loss()({"x": samples}, WEIGHT, statistics=True).statistics
        for samples in (padded, short)
    ]
    torch.testing.assert_close(*figures)


def test_a_class_without_samples_stays_where_it_is():
    counts = {"positive_count": torch.tensor([7, 0, 7]), "generated_count": torch.tensor([5, 5, 0])}
    value, gradient = differentiate(drift_loss(), example(**counts))
    assert value.isfinite()
    assert gradient[0].abs().sum() > 0
    assert (gradient[1:] == 0).all()


@pytest.mark.parametrize(
    "changes",
    [
        {"positives": normal(0, 2, 7, 4, 16)},
        {"positives": normal(0, 3, 7, 5, 16)},
        {"negatives": normal(0, 3, 7, 4, 8)},
        {"unconditional": normal(0, 6, 4, 8)},
        {"generated": normal(0, 3, 0, 4, 16)},
        {"generated_count": torch.tensor([1, 2])},
    ],
)
def test_samples_that_do_not_fit_are_named(changes):
    with pytest.raises(ValueError, match="group 'layer1/mean': expected samples"):
        drift_loss()({"layer1/mean": example(**changes)}, WEIGHT)
    with pytest.raises(ValueError, match="one group"):
        drift_loss()({}, WEIGHT)

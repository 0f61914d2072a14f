"""Masks at other resolutions, and their overlap."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from braid.segmentation.sam3.geometry import area_means, dice, resized


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def means_by_area(image, size):
    """Each cell's integral over the piecewise constant image, one source pixel after the other."""
    height, width = image.shape
    result = np.zeros((size, size))
    for i, j in np.ndindex(size, size):
        for y, x in np.ndindex(height, width):
            down = min(y + 1, (i + 1) * height / size) - max(y, i * height / size)
            across = min(x + 1, (j + 1) * width / size) - max(x, j * width / size)
            if down > 0 and across > 0:
                result[i, j] += down * across * image[y, x]
    return result * size**2 / (height * width)


@pytest.mark.parametrize(("shape", "size"), [((7, 7), 4), ((9, 6), 4), ((5, 5), 8), ((12, 12), 8)])
def test_area_means_are_integrals_over_cells(shape, size):
    image = random(*shape).sigmoid()
    expected = torch.from_numpy(means_by_area(image.double().numpy(), size)).float()
    torch.testing.assert_close(area_means(image, size), expected)


@pytest.mark.parametrize(("side", "size"), [(252, 64), (288, 64), (252, 144), (28, 32)])
def test_area_means_keep_constants_and_the_mean(side, size):
    torch.testing.assert_close(
        area_means(torch.ones(2, side, side), size), torch.ones(2, size, size)
    )
    image = random(3, side, side).sigmoid()
    torch.testing.assert_close(area_means(image, size).mean((1, 2)), image.mean((1, 2)))


def test_whole_cells_are_pooled():
    image = random(2, 3, 12, 12)
    torch.testing.assert_close(area_means(image, 4), F.avg_pool2d(image, 3))


def test_coarser_logits_are_those_of_the_mean_probability():
    logits = 4 * random(2, 3, 9, 9)
    expected = area_means(logits.double().sigmoid(), 4).logit()
    torch.testing.assert_close(resized(logits, 4).double(), expected, atol=1e-5, rtol=1e-5)


def test_coarser_logits_are_exact_where_probabilities_are_not():
    for value in (-60.0, -20.0, 20.0, 60.0):  # sigmoid(20) is 1 in float32
        logits = torch.full((1, 1, 9, 9), value)
        torch.testing.assert_close(resized(logits, 4), torch.full((1, 1, 4, 4), value))
    assert resized(torch.full((1, 1, 9, 9), 1e4), 4).isfinite().all()


def test_coarser_logits_have_a_finite_gradient_everywhere():
    logits = (1e3 * random(1, 1, 9, 9)).requires_grad_()
    resized(logits, 4).sum().backward()
    assert logits.grad.isfinite().all()


def test_finer_logits_are_bilinear_and_the_same_size_is_itself():
    logits = random(2, 3, 7, 7)
    finer = F.interpolate(logits, (8, 8), mode="bilinear", align_corners=False)
    assert torch.equal(resized(logits, 8), finer)
    assert resized(logits, 7) is logits
    assert resized(logits.half(), 7).dtype == torch.float32


def test_dice_is_that_of_the_formula():
    p, q = random(4, 50).sigmoid(), random(4, 50, seed=1).sigmoid()
    a, b = p.double().numpy(), q.double().numpy()
    expected = 1 - (2 * (a * b).sum(1) + 1) / ((a**2).sum(1) + (b**2).sum(1) + 1)
    torch.testing.assert_close(dice(p, q).double(), torch.from_numpy(expected))


def test_soft_masks_agree_with_themselves():
    p = random(4, 50).sigmoid().requires_grad_()
    value = dice(p, p.detach())
    assert torch.equal(value, torch.zeros(4))
    value.sum().backward()
    assert p.grad.abs().max() < 1e-7


def test_dice_of_empty_and_of_disjoint_masks():
    empty, full = torch.zeros(100), torch.ones(100)
    assert dice(empty, empty) == 0
    assert dice(full, empty).item() == pytest.approx(100 / 101)

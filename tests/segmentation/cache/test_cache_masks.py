"""Masks in a byte a pixel: what is lost, and what they take on disk."""

import math

import numpy as np
import pytest
import torch

from braid.segmentation.cache.cache import logit_table, pack, quantize, unpack
from braid.segmentation.sam3.geometry import resized


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_levels_are_equal_steps_of_the_angle_of_a_proportion():
    p = torch.linspace(1e-4, 1 - 1e-4, 1001, dtype=torch.float64)
    expected = (torch.asin(p.sqrt()) / (math.pi / 2) * 255).round()
    assert torch.equal(quantize(p.logit()).double(), expected)
    assert torch.equal(quantize(logit_table()), torch.arange(256).to(torch.uint8))


def test_a_soft_target_loses_the_same_little_divergence_whatever_its_probability():
    logits = torch.linspace(-12, 12, 24001, dtype=torch.float64)
    p, q = logits.sigmoid(), logit_table()[quantize(logits).int()].double().sigmoid()
    divergence = p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()
    assert divergence.max() < 2.0 * (math.pi / 1020) ** 2 * 1.2
    assert divergence.max() < 2.5e-5
    assert (p - q).abs().max() < 0.0032


def test_the_table_is_odd_rising_and_finite_and_so_is_what_cannot_be_told_apart():
    table = logit_table()
    torch.testing.assert_close(table, -table.flip(0), rtol=1e-6, atol=1e-6)
    assert (table.diff() > 0).all()
    assert table[0].item() == pytest.approx(-12.95, abs=0.01)
    extremes = torch.tensor([-math.inf, -1e4, 1e4, math.inf])
    assert quantize(extremes).tolist() == [0, 0, 255, 255]
    assert quantize(extremes.half()).tolist() == [0, 0, 255, 255]


def test_what_was_packed_is_unpacked_to_the_last_bit():
    levels = torch.randint(0, 256, (2, 3, 5, 7), generator=generator(), dtype=torch.uint8)
    blobs = [np.frombuffer(pack(grids), np.uint8) for grids in levels]
    assert torch.equal(unpack(blobs, (3, 5, 7)), levels)


def test_damaged_and_foreign_masks_are_refused():
    blob = pack(torch.arange(24, dtype=torch.uint8).view(2, 3, 4))
    whole = np.frombuffer(blob, np.uint8)
    with pytest.raises(ValueError, match="masks of 24 pixels, expected 12"):
        unpack([whole], (1, 3, 4))
    with pytest.raises(ValueError, match="damaged masks"):
        unpack([whole[:-3]], (2, 3, 4))
    with pytest.raises(ValueError, match="damaged masks"):
        unpack([np.zeros(20, np.uint8)], (2, 3, 4))


def wobbly_discs(count, size):
    """Logits of discs with waves in their outline, 20 pixels soft, [1, count, size, size]."""
    draw = torch.rand(5, count, 1, 1, generator=generator(1))
    line = torch.linspace(0, 1, size)
    y, x = line[:, None] - draw[0], line - draw[1]
    radius = 0.02 + 0.2 * draw[2].square()
    angle = torch.atan2(y, x)
    outline = 1 + 0.2 * torch.sin(3 * angle + 6 * draw[3]) + 0.1 * torch.sin(7 * angle)
    return (size * (outline * radius - torch.hypot(x, y))).clamp(-12, 8)[None]


@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_an_image_at_full_size_takes_less_than_300_kb(noise):
    """100 of SAM3's masks and the semantic map, at half of their 288 pixels."""
    masks = wobbly_discs(101, 288)
    masks += noise * torch.randn(masks.shape, generator=generator(2))
    levels = quantize(resized(masks, 144))[0]
    rest = 100 * (4 + 1) * 4 + 4 + 8 + 200  # boxes, logits; presence, size, queries in use
    assert len(pack(levels)) + rest < 300_000
    assert levels.numel() > 2_000_000

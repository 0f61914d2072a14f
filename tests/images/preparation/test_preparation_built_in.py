from __future__ import annotations

import numpy as np
import torch
from sklearn.datasets import load_digits

from braid.common.splits import split_of
from braid.images.preparation.preparation import digits, fake


def test_digits_are_split_by_a_fixed_rule() -> None:
    listing, pixels = digits(val_share=0.075, test_share=0.25)
    assert pixels.shape == (1797, 1, 8, 8)
    for digits_of in (slice(0, 900), slice(900, 1797)):  # early and late writers alike
        splits = np.array(listing.splits)[digits_of]
        assert 0.21 < (splits == "test").mean() < 0.29
        assert 0.05 < (splits == "val").mean() < 0.10
    assert digits(0.15, 0.25)[0].splits.count("val") > 1797 * 0.12
    assert digits(0.075, 0.5)[0].splits.count("test") > 1797 * 0.45
    assert digits(0.075, 0.25)[0] == listing


def test_digits_are_scikit_learn_s() -> None:
    listing, pixels = digits(0.075, 0.25)
    np.testing.assert_array_equal(pixels[:, 0].numpy(), load_digits().images / 8 - 1)
    assert torch.equal(pixels.half().double(), pixels)  # kept as half floats, nothing is lost
    assert listing.labels == load_digits().target.tolist()
    assert listing.label_names == [str(digit) for digit in range(10)]


def test_noise_is_labelled_in_turn_and_repeats() -> None:
    def made(seed: int) -> torch.Tensor:
        draw = torch.Generator().manual_seed(seed)
        return torch.cat(list(fake(300, 7, (3, 4, 5), draw, val_share=0.1, test_share=0.2)[1]))

    listing, _ = fake(300, 7, (3, 4, 5), torch.Generator(), val_share=0.1, test_share=0.2)
    noise = made(0)
    assert noise.shape == (300, 3, 4, 5)
    assert listing.labels == [place % 7 for place in range(300)]
    assert len(set(listing.names)) == 300
    assert torch.equal(noise, made(0))
    assert not torch.equal(noise, made(1))
    assert -1 <= noise.min() < -0.99 < 0.99 < noise.max() < 1


def test_an_image_s_name_alone_decides_its_split() -> None:
    names = [f"class/{place}.png" for place in range(4000)]
    splits = [split_of(name, 0.1, 0.25) for name in names]
    assert abs(splits.count("test") / 4000 - 0.25) < 0.02
    assert abs(splits.count("val") / 4000 - 0.1) < 0.02
    wider = [split_of(name, 0.1, 0.3) for name in names]
    kept = [now == "test" for now, before in zip(wider, splits, strict=True) if before == "test"]
    assert all(kept)

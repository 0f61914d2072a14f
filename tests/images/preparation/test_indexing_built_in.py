from __future__ import annotations

import numpy as np
import torch
from sklearn.datasets import load_digits

from braid.data.splits import split_of
from braid.images.preparation.indexing import digits, noise
from tests.images.configs import images_config


def test_digits_are_split_by_a_fixed_rule() -> None:
    listing, pixels = digits(images_config())
    assert pixels.shape == (1797, 1, 8, 8)
    for digits_of in (slice(0, 900), slice(900, 1797)):  # early and late writers alike
        splits = np.array(listing.splits)[digits_of]
        assert 0.21 < (splits == "test").mean() < 0.29
        assert 0.05 < (splits == "val").mean() < 0.10
    assert digits(images_config(val_fraction=0.15))[0].splits.count("val") > 1797 * 0.12
    assert digits(images_config(test_fraction=0.49))[0].splits.count("test") > 1797 * 0.45
    assert digits(images_config())[0] == listing


def test_digits_are_scikit_learn_s() -> None:
    listing, pixels = digits(images_config())
    np.testing.assert_array_equal(pixels[:, 0].numpy(), load_digits().images / 8 - 1)
    assert torch.equal(pixels.half().double(), pixels)  # kept as half floats, nothing is lost
    assert listing.labels == load_digits().target.tolist()
    assert listing.label_names == [str(digit) for digit in range(10)]


def test_noise_is_labelled_in_turn_and_repeats() -> None:
    config = images_config(source="noise", noise_images=300, K=7, size=4)

    def drawn(seed: int) -> torch.Tensor:
        draw = torch.Generator().manual_seed(seed)
        return torch.cat(list(noise(config, draw)[1]))

    listing, _ = noise(config, torch.Generator())
    values = drawn(0)
    assert values.shape == (300, 3, 4, 4)
    assert listing.labels == [place % 7 for place in range(300)]
    assert len(set(listing.names)) == 300
    assert torch.equal(values, drawn(0))
    assert not torch.equal(values, drawn(1))
    assert -1 <= values.min() < -0.99 < 0.99 < values.max() < 1


def test_an_image_s_name_alone_decides_its_split() -> None:
    names = [f"class/{place}.png" for place in range(4000)]
    splits = [split_of(name, 0.1, 0.25) for name in names]
    assert abs(splits.count("test") / 4000 - 0.25) < 0.02
    assert abs(splits.count("val") / 4000 - 0.1) < 0.02
    wider = [split_of(name, 0.1, 0.3) for name in names]
    kept = [now == "test" for now, before in zip(wider, splits, strict=True) if before == "test"]
    assert all(kept)

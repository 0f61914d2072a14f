"""Given patches stay, others are interpolated, and an image of which none is given is noise."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from braid.common.rng import generator
from braid.drifting.image.refiner import KeypatchCorruption, patchify, per_pixel
from braid.drifting.interpolation.interpolation import Laplacian
from tests.drifting.image.configs import keypatch_config

SIZE, PATCH, COUNT = (6, 8), 2, 16
IDS = 100 + torch.arange(COUNT)
LEVEL = torch.arange(COUNT) % 4
GIVEN = [6, 3, 0]
every_method = pytest.mark.parametrize("interpolator", ["inverse_distance", "harmonic"])


def images(seed: int = 0, count: int = COUNT) -> Tensor:
    return torch.randn(count, 2, *SIZE, generator=generator(seed))


def make(**params: Any) -> KeypatchCorruption:
    return KeypatchCorruption(
        SIZE, PATCH, keypatch_config(**({"given": GIVEN, "noise": 0.0} | params))
    )


def corrupted(seed: int = 7, **params: Any) -> Tensor:
    return make(**params)(images(), LEVEL, IDS, generator(seed)).latents


def masks(fraction: float = 0.4) -> Tensor:
    mask = torch.rand(COUNT, 3, 4, generator=generator(1)) < fraction
    mask[:, 0, 0] = True
    return mask


@every_method
@pytest.mark.parametrize("size", [1, 5])
def test_the_batch_split_does_not_change_the_bytes(interpolator: str, size: int) -> None:
    corruption, draw = make(interpolator=interpolator, noise=0.3), generator(7)
    whole = corruption(images(), LEVEL, IDS, draw)
    parts = [
        corruption(images()[at], LEVEL[at], IDS[at], draw) for at in torch.arange(COUNT).split(size)
    ]
    for joined, expected in zip(zip(*parts, strict=True), whole, strict=True):
        assert torch.equal(torch.cat(joined), expected)


@every_method
def test_given_patches_keep_their_bits_and_missing_ones_are_not_read(interpolator: str) -> None:
    corruption = make(interpolator=interpolator, noise=0.3)
    mask = masks()
    mask[3] = False
    kept = per_pixel(mask, PATCH).expand_as(images())
    given = torch.where(kept, images(), torch.nan)
    imputed = corruption.impute(given, mask, IDS, generator(7))
    assert torch.equal(imputed.latents[kept], images()[kept])
    assert imputed.latents.isfinite().all()
    assert torch.equal(imputed.mask, mask)
    assert torch.equal(imputed.confidence, mask.float())


def test_each_image_is_at_its_own_level_and_level_0_is_the_image() -> None:
    noisy = make(noise=0.5)(images(), LEVEL, IDS, generator(7))
    assert noisy.mask.sum((1, 2)).tolist() == [[12, *GIVEN][s] for s in LEVEL.tolist()]
    assert torch.equal(noisy.latents[LEVEL == 0], images()[LEVEL == 0])


@every_method
def test_an_image_of_which_nothing_is_given_is_white_noise(interpolator: str) -> None:
    ids, level = torch.arange(500), torch.full((500,), 3)
    corruption = make(interpolator=interpolator, noise=0.3)
    draw = generator(7)
    noise = corruption(images(0, 500) + 5, level, ids, draw).latents
    assert torch.equal(noise, corruption(images(1, 500), level, ids, draw).latents)
    assert noise.mean().abs() < 0.02
    covariance = torch.cov(noise.flatten(1).T)
    assert (covariance - torch.eye(96)).abs().max() < 0.3
    assert not torch.equal(noise[:10], corruption(images(0, 10), level[:10], ids[10:20], draw)[0])


def test_noise_is_added_to_interpolated_patches() -> None:
    corruption, mask = make(noise=0.3), masks()
    plain = corruption.interpolate(images(), mask)
    added = corruption.impute(images(), mask, IDS, generator(7)).latents - plain
    missing = ~per_pixel(mask, PATCH).expand_as(images())
    assert float(added[missing].std()) == pytest.approx(0.3, rel=0.1)
    assert torch.equal(make(noise=0.0).impute(images(), mask, IDS, generator(7)).latents, plain)


def test_where_nothing_is_given_interpolation_is_zero() -> None:
    mask = torch.zeros(COUNT, 3, 4, dtype=torch.bool)
    assert make().interpolate(images(), mask).count_nonzero() == 0


@every_method
@pytest.mark.parametrize("sigma_feature", [0.1, 1.0])
def test_constants_come_back(interpolator: str, sigma_feature: float) -> None:
    flat = torch.full((COUNT, 2, *SIZE), 0.7)
    corruption = make(interpolator=interpolator, sigma_feature=sigma_feature)
    torch.testing.assert_close(corruption.interpolate(flat, masks()), flat, atol=1e-5, rtol=0)


@every_method
def test_the_maximum_principle(interpolator: str) -> None:
    corruption, mask = make(interpolator=interpolator), masks()
    filled = patchify(corruption.interpolate(images(), mask), PATCH)
    given = mask[:, None].expand_as(filled)
    low = filled.masked_fill(~given, torch.inf).amin((2, 3), keepdim=True)
    high = filled.masked_fill(~given, -torch.inf).amax((2, 3), keepdim=True)
    assert (filled >= low - 1e-5).all()
    assert (filled <= high + 1e-5).all()


def test_the_system_on_the_patch_grid_is_symmetric_and_positive() -> None:
    graph = Laplacian(patchify(images(0, 1), PATCH), keypatch_config())
    matrix = graph(torch.eye(12).view(1, 12, 3, 4)).reshape(12, 12)
    assert torch.equal(matrix, matrix.T)
    assert torch.linalg.eigvalsh(matrix.double()).min() > -1e-6
    torch.testing.assert_close(matrix.sum(1), torch.zeros(12), atol=1e-6, rtol=0)


@every_method
def test_gradients_of_given_pixels_match_finite_differences(interpolator: str) -> None:
    corruption = make(interpolator=interpolator)
    values, mask = images(0, 1).double(), masks()[:1]
    assert torch.autograd.gradcheck(
        lambda x: corruption.interpolate(x, mask), values.requires_grad_(), atol=1e-3
    )


def test_a_patch_is_the_mean_of_given_ones_by_distance() -> None:
    mask = torch.zeros(COUNT, 3, 4, dtype=torch.bool)
    mask[:, 0, 0] = mask[:, 2, 3] = True
    filled = patchify(make().interpolate(images(), mask), PATCH)
    first, last, middle = filled[..., 0, 0], filled[..., 2, 3], filled[..., 1, 1]
    torch.testing.assert_close(middle, (first / 2 + last / 5) / (1 / 2 + 1 / 5))


@pytest.mark.parametrize(
    ("base", "change"),
    [
        ({}, {"given": [5, 3, 0]}),
        ({}, {"interpolator": "harmonic"}),
        ({"interpolator": "harmonic"}, {"sigma_feature": 0.3}),
        ({"interpolator": "harmonic"}, {"sigma_space": 0.9}),
        ({"interpolator": "harmonic"}, {"lambda_reg": 0.1}),
        ({}, {"noise": 0.4}),
    ],
)
def test_every_param_counts(base: dict[str, Any], change: dict[str, Any]) -> None:
    assert not torch.equal(corrupted(**base), corrupted(**{**base, **change}))


def test_the_seed_counts() -> None:
    assert torch.equal(corrupted(noise=0.1), corrupted(noise=0.1))
    assert not torch.equal(corrupted(noise=0.1), corrupted(noise=0.1, seed=8))


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match=r"interpolator\s+Input should be 'inverse_distance' or"):
        make(interpolator="cubic")
    with pytest.raises(ValueError, match=r"image_drift\.corruption\.given is \[12, 3\]"):
        make(given=[12, 3])
    with pytest.raises(ValueError, match=r"expected images \[B, C, 6, 8\]"):
        make()(images()[..., :4], LEVEL, IDS, generator(0))

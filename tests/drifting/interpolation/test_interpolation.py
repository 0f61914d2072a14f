from typing import get_args

import pytest
import torch

from braid.common.rng import generator
from braid.drifting.config import Interpolator
from braid.drifting.interpolation.interpolation import METHODS, interpolate, linear
from tests.drifting import configs

SHAPES = [(3, 4, 9, 8, 8), (2, 3, 21, 5, 7), (2, 2, 3, 1, 1), (2, 5, 6, 1, 4)]
every_method = pytest.mark.parametrize("method", METHODS)
not_harmonic = pytest.mark.parametrize("method", [m for m in METHODS if m != "harmonic"])


def clips(shape, seed=0):
    return torch.randn(shape, generator=generator(seed))


def bits(values):
    return values.view(torch.int32)


def masks(shape, seed=1):
    """Random keyframes, another number in each clip, not always at the ends."""
    mask = torch.rand(shape[0], shape[2], generator=generator(seed)) < 0.4
    mask[:, 1] |= ~mask.any(1)
    mask[0, [0, -1]] = True
    return mask


def run(latents, mask, method):
    return interpolate(latents, mask, configs.corruption(interpolator=method))


@every_method
@pytest.mark.parametrize("shape", SHAPES)
def test_keyframes_keep_their_bits_and_missing_frames_are_not_read(method, shape):
    latents, mask = clips(shape), masks(shape)
    latents.view(-1)[::5] = -0.0
    result = run(latents, mask, method)
    kept = mask[:, None, :, None, None].expand(shape)
    assert torch.equal(bits(result[kept]), bits(latents[kept]))
    assert result.isfinite().all()
    assert not torch.equal(result, latents)
    poisoned = torch.where(kept, latents, torch.nan)
    assert torch.equal(run(poisoned, mask, method), result)


@not_harmonic  # which smooths in space too
def test_a_clip_that_stands_still_is_restored(method):
    latents = clips((2, 4, 1, 6, 6)).expand(-1, -1, 9, -1, -1)
    torch.testing.assert_close(run(latents, masks((2, 4, 9)), method), latents)


@every_method
def test_a_full_mask_changes_nothing(method):
    latents = clips(SHAPES[0])
    assert torch.equal(run(latents, torch.ones(3, 9, dtype=torch.bool), method), latents)


@not_harmonic
def test_a_single_keyframe_is_held(method):
    latents, mask = clips((1, 3, 5, 4, 4)), torch.zeros(1, 5, dtype=torch.bool)
    mask[0, 2] = True
    expected = latents[:, :, 2:3].expand_as(latents)
    torch.testing.assert_close(run(latents, mask, method), expected)


@every_method
def test_the_batch_split_keeps_the_bytes(method):
    latents = clips((10, 4, 9, 6, 6))
    mask = masks(latents.shape)
    whole = run(latents, mask, method)
    for size in (1, 3):
        pairs = zip(latents.split(size), mask.split(size), strict=True)
        assert torch.equal(torch.cat([run(*pair, method) for pair in pairs]), whole)


def test_many_clips_are_made_a_few_at_a_time(monkeypatch):
    sizes = []

    def counted(latents, *_):
        sizes.append(len(latents))
        return linear(latents, *_)

    monkeypatch.setitem(METHODS, "harmonic", counted)
    latents = clips((150, 2, 5, 1, 1))
    mask = masks(latents.shape)
    assert torch.equal(run(latents, mask, "harmonic"), run(latents, mask, "linear"))
    assert sizes == [64, 64, 22]


def test_linear_frame_by_frame():
    latents, mask = clips(SHAPES[0]), masks(SHAPES[0])
    result = run(latents, mask, "linear")
    for clip in range(3):
        keys = mask[clip].nonzero()[:, 0].tolist()
        for t in range(9):
            left = max((k for k in keys if k <= t), default=keys[0])
            right = min((k for k in keys if k >= t), default=keys[-1])
            part = (t - left) / max(right - left, 1) if left < right else 0
            expected = (1 - part) * latents[clip, :, left] + part * latents[clip, :, right]
            torch.testing.assert_close(result[clip, :, t], expected)


def at(frames, keys):
    mask = torch.zeros(1, frames, dtype=torch.bool)
    mask[0, keys] = True
    return mask


def test_cubic_is_exact_on_parabolas_between_interior_keyframes():
    time = torch.arange(13.0)
    latents = (0.3 * time**2 - 2 * time + 1)[None, None, :, None, None]
    result = run(latents, at(13, [0, 2, 5, 9, 12]), "cubic")
    torch.testing.assert_close(result[:, :, 2:10], latents[:, :, 2:10])
    assert not torch.allclose(result[:, :, 1], latents[:, :, 1])


def test_cubic_is_smooth_where_linear_has_a_corner():
    latents = clips((1, 1, 401, 1, 1), seed=2)
    mask = at(401, [0, 100, 250, 400])

    def corner(method):
        return run(latents, mask, method)[0, 0, :, 0, 0].diff().diff()[[99, 249]].abs().max()

    assert corner("cubic") < 0.1 * corner("linear")


def test_cubic_between_two_keyframes_is_the_line():
    latents, mask = clips(SHAPES[0]), at(9, [0, 8]).expand(3, -1)
    torch.testing.assert_close(run(latents, mask, "cubic"), run(latents, mask, "linear"))


def test_inverse_distance_frame_by_frame():
    latents, mask = clips(SHAPES[0]), masks(SHAPES[0])
    result = run(latents, mask, "inverse_distance")
    for clip in range(3):
        keys = mask[clip].nonzero()[:, 0]
        for t in set(range(9)) - set(keys.tolist()):
            weight = 1 / (keys - t).float() ** 2
            expected = (latents[clip][:, keys] * weight[:, None, None]).sum(1) / weight.sum()
            torch.testing.assert_close(result[clip, :, t], expected)


def test_harmonic_of_a_single_cell_is_the_line():
    latents, mask = clips((4, 3, 9, 1, 1)), masks((4, 3, 9))
    settings = {"sigma_feature": 1e6, "sigma_space": 1.0, "lambda_reg": 0.0}
    config = configs.corruption(interpolator="harmonic", **settings)
    result = interpolate(latents, mask, config)
    torch.testing.assert_close(result, run(latents, mask, "linear"), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("latents", "mask", "message"),
    [
        (clips(SHAPES[0]), masks(SHAPES[0])[:, :5], r"a mask \[B, T\]"),
        (clips(SHAPES[0])[0], masks(SHAPES[0]), r"latents \[B, C, T, H, W\]"),
        (clips(SHAPES[0]), masks(SHAPES[0]) & False, "at least one keyframe"),
    ],
)
def test_bad_input_is_refused(latents, mask, message):
    with pytest.raises(ValueError, match=message):
        run(latents, mask, "linear")


def test_every_interpolator_that_params_may_name_is_there():
    assert tuple(METHODS) == get_args(Interpolator)

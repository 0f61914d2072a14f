from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.fft import dctn

from braid.clips.codec.codec import CHANNELS, DETAIL_ROWS, MEAN, ROWS, STD, decode, encode


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def raw(latents: torch.Tensor) -> torch.Tensor:
    scale, shift = (torch.tensor(values).view(-1, 1, 1, 1).to(latents) for values in (STD, MEAN))
    return latents * scale + shift


def test_geometry_is_that_of_the_wan_vae() -> None:
    assert encode(torch.rand(2, 3, 81, 48, 64)).shape == (2, 16, 21, 6, 8)
    assert encode(torch.rand(1, 3, 5, 8, 8)).shape == (1, 16, 2, 1, 1)
    assert decode(torch.rand(2, 16, 21, 6, 8)).shape == (2, 3, 81, 48, 64)


@pytest.mark.parametrize("shape", [(1, 8, 8), (4, 8, 8), (6, 8, 8), (5, 9, 8), (5, 8, 12)])
def test_sizes_that_do_not_divide(shape: tuple[int, ...]) -> None:
    with pytest.raises(
        ValueError, match=r"expected 4 n \+ 1 frames, n > 0, of sides divisible by 8"
    ):
        encode(torch.zeros(1, 3, *shape))


def test_latents_of_a_block_are_coefficients_of_its_cosine_transform() -> None:
    video = noise(1, 3, 9, 16, 16)
    latents = raw(encode(video))
    block = video[0, :, 5:9, 8:16, :8].numpy()
    expected = [dctn(block, norm="ortho")[row] for row in ROWS]
    np.testing.assert_allclose(latents[0, :, 2, 1, 0], expected, atol=1e-6)
    first = video[0, :, :1, 8:16, :8].numpy()
    rows = [*ROWS[: -len(DETAIL_ROWS)], *DETAIL_ROWS]
    expected = [2 * dctn(first, norm="ortho")[row] for row in rows]
    np.testing.assert_allclose(latents[0, :, 0, 1, 0], expected, atol=1e-6)


def test_rows_are_orthonormal() -> None:
    """Of a one-frame block and of a four-frame one: unit latents decode to unit videos."""
    for frame, weight in ((0, 2.0), (1, 1.0)):
        units = torch.zeros(CHANNELS, CHANNELS, 2, 1, 1)
        units[range(CHANNELS), range(CHANNELS), frame] = weight
        shift, scale = (torch.tensor(values).view(-1, 1, 1, 1) for values in (MEAN, STD))
        videos = decode((units - shift) / scale).flatten(1)
        torch.testing.assert_close(videos @ videos.T, torch.eye(CHANNELS), atol=1e-5, rtol=0)


def test_encoding_a_decoded_clip_gives_its_latents_back() -> None:
    latents = noise(2, 16, 4, 3, 2)
    torch.testing.assert_close(encode(decode(latents)), latents, atol=1e-6, rtol=0)


def test_the_residual_is_orthogonal_to_the_reconstruction() -> None:
    video, other = noise(1, 3, 5, 8, 8), noise(1, 3, 5, 8, 8, seed=1)
    residual = video - decode(encode(video))
    reconstruction = decode(encode(other)) - decode(encode(torch.zeros_like(video)))
    for frames in (slice(0, 1), slice(1, 5)):
        assert abs((residual[:, :, frames] * reconstruction[:, :, frames]).sum()) < 1e-5
        assert residual[:, :, frames].square().sum() > 10


def test_blocks_are_causal_and_independent() -> None:
    video = noise(1, 3, 9, 16, 16)
    changed = video.clone()
    changed[:, :, 5:, 8:] += 1
    difference = encode(changed) - encode(video)
    assert (difference[:, :, 2, 1] != 0).any()
    difference[:, :, 2, 1] = 0
    assert (difference == 0).all()


def test_a_still_picture_has_the_same_latents_in_all_frames() -> None:
    latents = encode(noise(1, 3, 1, 16, 16).expand(1, 3, 9, 16, 16))
    still = CHANNELS - len(DETAIL_ROWS)
    torch.testing.assert_close(latents[:, :still, :1], latents[:, :still, 1:2])
    torch.testing.assert_close(latents[:, :, 1], latents[:, :, 2])
    torch.testing.assert_close(raw(latents)[:, still:, 1], torch.zeros(1, 4, 2, 2).double())

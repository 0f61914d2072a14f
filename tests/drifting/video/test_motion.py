"""Keyframes are moved by the module's equations, in pictures that show what decodes."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from braid.clips.codec import codec
from braid.clips.codec.codec import decoder
from braid.drifting.interpolation.interpolation import interpolate
from braid.drifting.video.motion import REACH, MovedKeyframes, Picture, enlarged
from braid.drifting.video.refiner import Refiner
from tests.drifting import configs

DETAIL, MOMENTS, CELLS = 4, 2, 4
decode = decoder(codec.TRANSFORM, torch.zeros(1, 16, 2, 1, 1))


def latents(count: int = 6, frames: int = 4) -> Tensor:
    return torch.randn(count, 16, frames, CELLS, CELLS, generator=torch.Generator().manual_seed(0))


def fitted(moments: int = MOMENTS) -> Picture:
    picture = Picture(16, DETAIL, moments)
    picture.fit(latents(), decode)
    return picture


def moved(patch: int = 2, dim: int = 8) -> MovedKeyframes:
    torch.manual_seed(0)
    network = MovedKeyframes(16, dim, patch, DETAIL, MOMENTS)
    network.picture.fit(latents(), decode)
    return network


def pooled(frames: Tensor) -> Tensor:
    """Video frames [F, h, w, 3] at the pictures' size, [F, 3, r H, r W]."""
    return functional.avg_pool2d(frames.movedim(-1, 1), 8 // DETAIL)


def test_a_picture_is_the_last_moment_of_what_a_frame_decodes_to() -> None:
    clip, picture = latents(1), fitted()
    linear = codec.decode(clip)[0].movedim(0, -1)  # `decode` clamps to [0, 1]
    for frame, last in ((0, slice(0, 1)), (2, slice(7, 9))):
        picture.fit(0.05 * latents(), decode)
        shown = picture.show(clip[:, :, frame], torch.tensor([frame == 0]))
        constant = codec.decode(torch.zeros_like(clip))[0].movedim(0, -1)
        expected = pooled((linear - constant)[last].mean(0, keepdim=True))
        torch.testing.assert_close(shown, expected, rtol=1e-3, atol=2e-3)


def test_pictures_of_all_moments_give_the_latents_back() -> None:
    picture = Picture(16, DETAIL, 2)
    picture.fit(0.05 * latents(), decode)
    clip = latents(1)
    frames = codec.decode(clip)[0] - codec.decode(torch.zeros_like(clip))[0]
    pictures = pooled(frames[:, 5:9].movedim(0, -1)).unflatten(0, (2, 2)).mean(1)
    back = picture.latents(pictures[None])
    torch.testing.assert_close(back[0], clip[0, :, 2], rtol=1e-3, atol=1e-3)


def test_a_picture_that_hides_channels_and_odd_moments_are_refused() -> None:
    with pytest.raises(ValueError, match=r"detail is 4.*all of their 16 channels.*detail 0"):
        Picture(16, DETAIL, 2).fit(latents(), decoder("wan", latents()))
    with pytest.raises(ValueError, match=r"drift.refiner.detail is 100, expected at most 8, the"):
        Picture(16, 100, 2).fit(latents(), decode)
    with pytest.raises(ValueError, match=r"moments is 3, expected a divisor of the 4"):
        Picture(16, DETAIL, 3).fit(latents(), decode)


def slow(network: MovedKeyframes, tokens: Tensor, clip: Tensor, frame: int, near: tuple) -> Tensor:
    """One missing frame's addend, pixel by pixel: tokens [h, w, D], clip [C, T, H, W]."""
    left, right, fraction = near
    side, picture = DETAIL * CELLS, network.picture
    heads = network.of_cells(tokens).unflatten(-1, (MOMENTS, 5, network.patch, network.patch))
    affine = network.of_frame(tokens.mean((0, 1))).view(MOMENTS, 2, 2, 3)
    change = torch.zeros(1, MOMENTS, 3, side, side)
    shown = [picture.show(clip[None, :, k], torch.tensor([k == 0]))[0] for k in (left, right)]

    def cell(moment: int, channel: int, y: int, x: int) -> float:
        """The heads' output of a cell, held at the border."""
        y, x = (min(max(v, 0), CELLS - 1) for v in (y, x))
        token = heads[y // network.patch, x // network.patch]
        return token[moment, channel, y % network.patch, x % network.patch].item()

    def bilinear(read, y: float, x: float):
        y0, x0 = math.floor(y), math.floor(x)
        dy, dx = y - y0, x - x0
        rows = [(1 - dx) * read(y0 + i, x0) + dx * read(y0 + i, x0 + 1) for i in (0, 1)]
        return (1 - dy) * rows[0] + dy * rows[1]

    for moment in range(MOMENTS):
        for y in range(side):
            for x in range(side):
                v, u = ((2 * p + 1) / side - 1 for p in (y, x))
                at = (y + 0.5) / DETAIL - 0.5, (x + 0.5) / DETAIL - 0.5
                five = [
                    bilinear(lambda i, j, c=c: cell(moment, c, i, j), *at)  # noqa: B023
                    for c in range(5)
                ]
                odds = math.log(fraction / (1 - fraction)) + five[4]
                weight = 1 / (1 + math.exp(-odds))
                for k, (part, still) in enumerate(((1 - weight, 1 - fraction), (weight, fraction))):
                    a = affine[moment, k] @ torch.tensor([u, v, 1.0])
                    to = (
                        (u + REACH * (a[0].item() + five[2 * k])),
                        (v + REACH * (a[1].item() + five[2 * k + 1])),
                    )
                    column, row = (min(max((p + 1) * side / 2 - 0.5, 0), side - 1) for p in to)
                    value = bilinear(
                        lambda i, j, k=k: shown[k][:, min(i, side - 1), min(j, side - 1)],
                        row,
                        column,
                    )
                    change[0, moment, :, y, x] += part * value - still * shown[k][:, y, x]
    return picture.latents(change)[0]


def test_keyframes_are_moved_as_a_loop_over_pixels_moves_them() -> None:
    network = moved()
    for layer in (network.of_cells, network.of_frame):
        torch.nn.init.normal_(layer.weight, std=0.3)
        torch.nn.init.normal_(layer.bias, std=0.3)
    tokens = torch.randn(2, 4, 2, 2, 8, generator=torch.Generator().manual_seed(1))
    clips = latents(2)
    mask = torch.tensor([[True, False, False, True], [True, True, False, True]])
    with torch.no_grad():
        added = network(tokens, clips, mask)
        near = {(0, 1): (0, 3, 1 / 3), (0, 2): (0, 3, 2 / 3), (1, 2): (1, 3, 1 / 2)}
        for (clip, frame), around in near.items():
            expected = slow(network, tokens[clip, frame], clips[clip], frame, around)
            torch.testing.assert_close(added[clip, :, frame], expected, rtol=1e-3, atol=1e-4)
    assert added.transpose(1, 2)[mask].abs().max() == 0


def test_untrained_or_without_pictures_nothing_moves() -> None:
    tokens, clips = torch.randn(2, 4, 2, 2, 8), latents(2)
    mask = torch.tensor([True, False, False, True]).expand(2, -1)
    assert moved()(tokens, clips, mask).abs().max() < 1e-5
    unfitted = MovedKeyframes(16, 8, 2, DETAIL, MOMENTS)
    torch.nn.init.normal_(unfitted.of_cells.weight)
    assert unfitted(tokens, clips, mask).abs().max() == 0


def test_where_all_frames_are_given_nothing_is_added() -> None:
    clips, given = torch.randn(2, 16, 4, 4, 4), torch.ones(2, 4, dtype=torch.bool)
    assert not moved()(torch.randn(2, 4, 2, 2, 8), clips, given).any()


def video(places: Tensor, size: float = 4.0) -> Tensor:
    """Latents of a spot that is at x in each video frame, [1, 16, T, 4, 4]."""
    pixel = torch.arange(8 * CELLS) + 0.5
    across = (-((pixel - places[:, None]) / size).square()).exp()
    down = (-((pixel - 16) / size).square()).exp()
    spot = across[:, None] * down[:, None]
    return codec.encode((0.1 + 0.8 * spot).expand(1, 3, -1, -1, -1))


def test_a_spot_between_keyframes_is_one_spot_where_it_should_be() -> None:
    # Six pixels a latent frame; the middle one of three is missing.
    places = 10 + 1.5 * torch.arange(9)
    truth = video(places)
    mask = torch.tensor([[True, False, True]])
    start = interpolate(truth, mask, configs.corruption())
    network = moved()
    # Each moment is some pixels away from the keyframes' last ones; a picture's unit is 16 pixels.
    last = places[0], places[7:].mean()
    for moment in range(MOMENTS):
        at = places[1 + 2 * moment : 3 + 2 * moment].mean()
        for side in range(2):
            shift = (last[side] - at) / 16
            bias = network.of_frame.bias.data.view(MOMENTS, 2, 2, 3)
            bias[moment, side, 0, 2] = shift / REACH
    refined = start + network(torch.zeros(1, 3, 2, 2, 8), start, mask)
    error, plain = ((clip - truth)[:, :, 1].square().mean() for clip in (refined, start))
    assert error < 0.2 * plain


def error_of_another_spot(detail: int) -> float:
    """Of the middle frame, over interpolation's, after training on spots of another size."""
    refiner = Refiner(16, 1, 2, configs.refiner(detail=detail, moments=MOMENTS, dim=12))
    refiner.fit_pictures(0.05 * latents(), decode)
    optimizer = torch.optim.Adam(refiner.parameters(), 1e-2)
    mask = torch.tensor([True, False, True]).expand(3, -1)
    conditions = mask, mask.float(), torch.zeros(3).long(), torch.ones(3).long(), torch.ones(3)
    for step in range(61):
        size = 2.5 if step == 60 else 4.0
        truth = torch.cat([video(x + 1.5 * torch.arange(9), size) for x in (9, 13, 17)])
        start = interpolate(truth, mask, configs.corruption())
        error = (refiner(start, *conditions) - truth)[:, :, 1].square().mean()
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
    return error.item() / (start - truth)[:, :, 1].square().mean().item()


def test_what_is_moved_may_be_unlike_what_was_trained_on() -> None:
    torch.manual_seed(0)
    assert error_of_another_spot(DETAIL) < 0.5 * error_of_another_spot(0)


def test_frames_beyond_the_outermost_keyframes_move_with_the_nearest() -> None:
    network, clips = moved(), latents(1)
    network.of_frame.bias.data.fill_(0.5)
    added = network(torch.zeros(1, 4, 2, 2, 8), clips, torch.tensor([[False, True, True, False]]))
    changed = added.abs().amax((0, 1, 3, 4)) > 0
    assert changed.tolist() == [True, False, False, True]


def test_cells_are_enlarged_bilinearly() -> None:
    cells = torch.randn(2, 3, 5)
    expected = functional.interpolate(cells[None], scale_factor=4, mode="bilinear")[0]
    torch.testing.assert_close(enlarged(cells, 4), expected)

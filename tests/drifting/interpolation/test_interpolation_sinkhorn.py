import pytest
import torch

from braid.common.rng import generator
from braid.drifting.interpolation import interpolation as sinkhorn
from braid.drifting.interpolation.interpolation import (
    Motion,
    at_time,
    interpolate,
    motions,
    transport,
)
from tests.drifting import configs
from tests.drifting.moving_blob import blob_clip

SINKHORN = configs.corruption(interpolator="sinkhorn", sinkhorn_reach=3.0)
LINEAR = configs.corruption(interpolator="linear")
ENDS = torch.tensor([[True, False, False, False, True]])


def random(*shape, seed=0):
    return torch.randn(shape, generator=generator(seed))


def test_every_cell_gives_and_takes_a_mass_of_one():
    plan = transport(random(3, 5, 7), dustbin=0.5)
    assert (plan > 0).all()
    torch.testing.assert_close(plan.sum(1)[:, :-1], torch.ones(3, 7))
    torch.testing.assert_close(plan.sum(2)[:, :-1], torch.ones(3, 5), atol=1e-3, rtol=0)
    torch.testing.assert_close(plan[:, -1].sum(1), torch.full((3,), 7.0), atol=1e-2, rtol=0)


def test_the_plan_scales_rows_and_columns_of_the_kernel_only():
    logits = random(1, 4, 4)
    padded = torch.nn.functional.pad(logits, (0, 1, 0, 1), value=0.3)
    ratio = (transport(logits, dustbin=0.3).log() - padded)[0]
    cross = ratio - ratio[:1] - ratio[:, :1] + ratio[0, 0]
    torch.testing.assert_close(cross, torch.zeros(5, 5), atol=1e-5, rtol=0)


def test_large_logits_do_not_overflow():
    assert transport(1e4 * random(1, 6, 6), dustbin=-2.0).isfinite().all()


def test_a_full_dustbin_leaves_nothing_matched():
    matched = transport(random(1, 6, 6), dustbin=40.0)[:, :-1, :-1]
    assert matched.max() < 1e-6


@pytest.mark.parametrize("velocity", [(0, 1), (1, 0), (-1, 0), (1, 1)])
def test_a_blob_that_moves_by_whole_cells_is_followed(velocity):
    latents = blob_clip(velocity)
    warped = interpolate(latents, ENDS, SINKHORN)
    straight = interpolate(latents, ENDS, LINEAR)
    assert (warped - latents).square().mean() < 0.5 * (straight - latents).square().mean()


def test_flow_points_to_where_the_blob_went():
    latents = blob_clip((1, 1))
    forward, backward = motions(latents[:, :, 0], latents[:, :, 2], SINKHORN)
    torch.testing.assert_close(forward.flow[0, :, 4, 3], torch.tensor([2.0, 2.0]), atol=0.3, rtol=0)
    torch.testing.assert_close(
        backward.flow[0, :, 6, 5], torch.tensor([-2.0, -2.0]), atol=0.3, rtol=0
    )
    assert forward.confidence[0, 0, 4, 3] > 0.7
    assert forward.confidence[0, 0, 11, 0] == 0  # ground that nothing happened to


def test_what_only_one_keyframe_knows_counts_by_its_nearness():
    still = torch.zeros(1, 2, 3, 3)
    sure, unsure = (Motion(still, torch.full((1, 1, 3, 3), c)) for c in (1.0, 0.0))
    part = torch.full((1, 1, 1, 1), 0.3)
    torch.testing.assert_close(at_time(sure, unsure, part).confidence, 0.7 * sure.confidence)
    torch.testing.assert_close(at_time(unsure, sure, part).confidence, 0.3 * sure.confidence)
    torch.testing.assert_close(at_time(sure, sure, part).confidence, sure.confidence)


def test_motion_has_a_confidence_between_0_and_1():
    for motion in motions(random(4, 3, 6, 5), random(4, 3, 6, 5, seed=1), configs.corruption()):
        assert motion.flow.shape == (4, 2, 6, 5)
        assert motion.confidence.min() >= 0
        assert motion.confidence.max() <= 1
        assert motion.confidence.max() > 0


def test_identical_keyframes_give_the_line_to_the_bit():
    frame = random(2, 4, 1, 6, 6)
    latents = torch.cat([frame, random(2, 4, 3, 6, 6, seed=1), frame], 2)
    mask = ENDS.expand(2, -1)
    warped = interpolate(latents, mask, SINKHORN)
    assert torch.equal(warped, interpolate(latents, mask, LINEAR))


def test_without_confidence_the_line_stays():
    latents = blob_clip((0, 1))
    warped = interpolate(latents, ENDS, SINKHORN.model_copy(update={"dustbin": 60.0}))
    assert torch.equal(warped, interpolate(latents, ENDS, LINEAR))


def test_backward_in_time_is_the_mirror_image():
    latents = blob_clip((1, 1))
    forth = interpolate(latents, ENDS, SINKHORN)
    back = interpolate(latents.flip(2), ENDS, SINKHORN).flip(2)
    assert (forth - back).abs().mean() < 0.005  # the last scaling is of columns, not of rows


@pytest.mark.parametrize(
    "change", [{"sinkhorn_temperature": 0.2}, {"dustbin": 5.0}, {"sinkhorn_reach": 0.7}]
)
def test_every_setting_counts(change):
    latents = blob_clip((0, 1))
    usual = interpolate(latents, ENDS, SINKHORN)
    assert not torch.equal(interpolate(latents, ENDS, SINKHORN.model_copy(update=change)), usual)


def test_chunks_of_pairs_do_not_show(monkeypatch):
    latents = random(5, 4, 9, 6, 6)
    mask = torch.zeros(5, 9, dtype=torch.bool)
    mask[:, [0, 3, 8]] = True
    whole = interpolate(latents, mask, SINKHORN)
    monkeypatch.setattr(sinkhorn, "_CHUNK", 3 * 36**2)
    assert torch.equal(interpolate(latents, mask, SINKHORN), whole)

import pytest
import torch

from braid.common.rng import generator
from braid.drifting.interpolation.interpolation import METHODS, interpolate
from braid.drifting.interpolation.keyframes import nested_masks
from braid.drifting.video.corruption import Corruption, bridge
from tests.drifting import configs

FRAMES, CLIPS = 9, 12
IDS = 100 + torch.arange(CLIPS)
LEVEL = torch.arange(CLIPS) % 3
EVERYTHING = {"placement": "random", "noise": "dist", "sigma": 0.3, "student_replace_prob": 0.5}


def clips(seed=0, count=CLIPS):
    return torch.randn(count, 4, FRAMES, 5, 6, generator=generator(seed))


def corrupted(latents=None, level=LEVEL, ids=IDS, seed=7, **params):
    latents = clips() if latents is None else latents
    anchors = clips(1)[: len(latents)] + 10
    return Corruption(FRAMES, configs.corruption(**params))(
        latents, level, ids, generator(seed), anchors
    )


@pytest.mark.parametrize("interpolator", METHODS)
@pytest.mark.parametrize("size", [1, 5, 6])
def test_the_batch_split_does_not_change_the_bytes(interpolator, size):
    corruption = Corruption(FRAMES, configs.corruption(interpolator=interpolator, **EVERYTHING))
    latents, anchors = clips(), clips(1)
    whole = corruption(latents, LEVEL, IDS, generator(7), anchors)
    draw = generator(7)
    parts = [
        corruption(latents[at], LEVEL[at], IDS[at], draw, anchors[at])
        for at in torch.arange(CLIPS).split(size)
    ]
    for joined, expected in zip(zip(*parts, strict=True), whole, strict=True):
        assert torch.equal(torch.cat(joined), expected)


def test_only_the_generators_seed_counts():
    usual = corrupted(**EVERYTHING)
    torch.rand(5)  # the global stream moves on
    assert all(torch.equal(*pair) for pair in zip(corrupted(**EVERYTHING), usual, strict=True))
    assert not torch.equal(corrupted(seed=8, **EVERYTHING).latents, usual.latents)
    others = corrupted(ids=IDS + 1, **EVERYTHING)
    assert not torch.equal(others.latents, usual.latents)
    assert not torch.equal(others.mask, usual.mask)


def test_each_clip_is_at_its_own_level():
    for placement in ("even", "random"):
        mask = corrupted(placement=placement).mask
        assert mask.sum(1).tolist() == [[9, 6, 3][s] for s in LEVEL.tolist()]
        assert mask[:, [0, -1]].all()


def test_a_clips_coarser_keyframes_are_among_its_finer_ones():
    masks = [corrupted(level=torch.full((CLIPS,), s), placement="random").mask for s in range(3)]
    assert (masks[1] <= masks[0]).all()
    assert (masks[2] <= masks[1]).all()


def test_without_noise_it_is_interpolation():
    actual = corrupted()
    mask = nested_masks(CLIPS, FRAMES, [9, 6, 3])[LEVEL, torch.arange(CLIPS)]
    assert torch.equal(actual.mask, mask)
    assert torch.equal(actual.latents, interpolate(clips(), mask, configs.corruption()))


def test_level_0_is_the_clip_itself():
    actual = corrupted(level=torch.zeros(CLIPS, dtype=torch.int64))
    assert torch.equal(actual.latents, clips())


def noise_scale(**params):
    """Standard deviation of what the noise adds to each frame, [B, T]."""
    flat = torch.zeros(CLIPS, 4, FRAMES, 60, 50)
    level = torch.full((CLIPS,), 2)
    return corrupted(flat, level, sigma=0.3, **params).latents.std((1, 3, 4))


def test_gaussian_noise_is_alike_on_all_missing_frames_and_the_ends_have_none():
    expected = torch.tensor([0, 1, 1, 1, 0.25, 1, 1, 1, 0]) * 0.3
    actual = noise_scale(noise="gauss", keyframe_noise=0.25)
    torch.testing.assert_close(actual, expected.expand(CLIPS, -1), rtol=0.05, atol=0)


def test_noise_grows_with_the_distance_to_keyframes():
    expected = torch.tensor([0, 0.5, 1, 0.5, 0, 0.5, 1, 0.5, 0]) * 0.3
    actual = noise_scale(noise="dist", keyframe_noise=0.0)
    torch.testing.assert_close(actual, expected.expand(CLIPS, -1), rtol=0.05, atol=0)


@pytest.mark.parametrize("noise", ["gauss", "dist"])
def test_a_noisy_keyframe_is_a_proposal(noise):
    plain, actual = corrupted(), corrupted(noise=noise, sigma=0.5, keyframe_noise=0.5)
    ends = torch.zeros_like(plain.mask)
    ends[:, [0, -1]] = True
    assert torch.equal(actual.mask, plain.mask & ends)
    assert torch.equal(actual.confidence == 0.5, plain.mask & ~ends)
    as_it_was = (actual.latents == clips()).movedim(2, 1).flatten(2).all(2)
    assert torch.equal(as_it_was, actual.mask)
    for none in ({"sigma": 0.0}, {"keyframe_noise": 0.0}, {"noise": "bridge"}):
        settings = {"noise": noise, "sigma": 0.5, "keyframe_noise": 0.5, **none}
        assert torch.equal(corrupted(**settings).mask, plain.mask)


def test_bends_of_neighboring_gaps_are_independent():
    white = torch.randn(4000, 1, FRAMES, 1, 1, generator=generator(0))
    for keyframes in ([0, 2, 4, 6, 8], [0, 3, 6, 8]):
        mask = torch.zeros(4000, FRAMES, dtype=torch.bool)
        mask[:, keyframes] = True
        bends = bridge(white, mask)[:, 0, :, 0, 0]
        assert (bends[:, keyframes] == 0).all()
        correlation = torch.corrcoef(bends[:, ~mask[0]].mT)
        gap = torch.tensor([sum(k < t for k in keyframes) for t in (~mask[0]).nonzero()])
        assert correlation[gap[:, None] != gap].abs().max() < 0.06


def test_frames_without_noise_keep_their_bits():
    latents = torch.full(clips().shape, -0.0)
    actual = corrupted(latents, noise="gauss", keyframe_noise=0.0)
    kept = actual.mask[:, None, :, None, None].expand(latents.shape)
    bits, expected = (values[kept].view(torch.int32) for values in (actual.latents, latents))
    assert torch.equal(bits, expected)
    assert (actual.latents[~kept] != 0).all()


def test_anchors_take_the_place_of_keyframes_before_interpolation():
    actual = corrupted(student_replace_prob=0.5)
    replaced, keyframes = actual.confidence == 0.5, corrupted().mask
    assert 0.3 < float(replaced[:, 1:-1].sum() / keyframes[:, 1:-1].sum()) < 0.7
    assert not replaced[:, [0, -1]].any()
    assert (replaced <= keyframes).all()
    assert torch.equal(actual.mask, keyframes & ~replaced)  # what may be wrong is not kept
    source = torch.where(replaced[:, None, :, None, None], clips(1) + 10, clips())
    assert torch.equal(actual.latents, interpolate(source, keyframes, configs.corruption()))


def test_all_interior_keyframes_can_be_replaced():
    actual = corrupted(student_replace_prob=1.0)
    assert torch.equal(actual.confidence[:, 1:-1] == 0.5, corrupted().mask[:, 1:-1])
    assert not actual.mask[:, 1:-1].any()


def test_confidence_of_every_kind_of_frame():
    coarsest = corrupted(level=torch.full((CLIPS,), 2)).confidence
    expected = torch.tensor([1, 0, 0, 0, 0.95, 0, 0, 0, 1])
    assert torch.equal(coarsest, expected.expand(CLIPS, -1))
    replaced = corrupted(level=torch.full((CLIPS,), 2), student_replace_prob=1.0).confidence
    assert torch.equal(replaced[0], torch.tensor([1, 0, 0, 0, 0.5, 0, 0, 0, 1]))


@pytest.mark.parametrize("noise", ["none", "gauss", "dist"])
@pytest.mark.parametrize("interpolator", METHODS)
def test_imputation_keeps_what_is_given_bit_for_bit(noise, interpolator):
    config = configs.corruption(noise=noise, sigma=0.5, interpolator=interpolator)
    corruption = Corruption(FRAMES, config)
    mask = torch.rand(CLIPS, FRAMES, generator=generator(3)) < 0.4
    mask[:, 2] = True
    kept = mask[:, None, :, None, None].expand(clips().shape)
    storyboard = torch.where(kept, clips(), torch.nan)
    actual = corruption.impute(storyboard, mask, IDS, generator(7))
    assert torch.equal(actual.latents[kept], clips()[kept])
    assert actual.latents.isfinite().all()
    assert torch.equal(actual.mask, mask)
    assert torch.equal(actual.confidence > 0, mask)
    plain = interpolate(clips(), mask, config)
    assert torch.equal(actual.latents, plain) == (noise == "none")


def test_noise_beyond_the_last_given_frame_is_full():
    mask = torch.zeros(CLIPS, FRAMES, dtype=torch.bool)
    mask[:, :4] = True
    flat = torch.zeros(CLIPS, 4, FRAMES, 60, 50)
    corruption = Corruption(FRAMES, configs.corruption(noise="dist", sigma=0.3))
    scale = corruption.impute(flat, mask, IDS, generator(7)).latents.std((1, 3, 4))
    torch.testing.assert_close(scale[:, 4:], torch.full((CLIPS, 5), 0.3), rtol=0.05, atol=0)


def test_imputation_as_in_training():
    corruption = Corruption(FRAMES, configs.corruption(noise="dist", keyframe_noise=0.0, sigma=0.5))
    trained = corruption(clips(), LEVEL, IDS, generator(7))
    imputed = corruption.impute(clips(), trained.mask, IDS, generator(7))
    assert all(torch.equal(*pair) for pair in zip(trained, imputed, strict=True))


@pytest.mark.parametrize(
    ("base", "change"),
    [
        ({}, {"levels": 3}),
        ({}, {"min_keyframes": 4}),
        ({"levels": 3}, {"schedule": "linear"}),
        ({"min_keyframes": 2, "levels": 3}, {"schedule": "geometric"}),
        ({}, {"placement": "random"}),
        *(({}, {"interpolator": method}) for method in METHODS if method != "linear"),
        ({"interpolator": "harmonic"}, {"sigma_feature": 0.5}),
        ({"interpolator": "harmonic"}, {"sigma_space": 0.9}),
        ({"interpolator": "harmonic"}, {"lambda_reg": 0.1}),
        ({"interpolator": "sinkhorn"}, {"sinkhorn_temperature": 0.2}),
        ({"interpolator": "sinkhorn"}, {"sinkhorn_reach": 0.5}),
        ({"interpolator": "sinkhorn"}, {"dustbin": 3.0}),
        ({}, {"noise": "gauss"}),
        ({"noise": "gauss"}, {"noise": "dist"}),
        ({"noise": "gauss"}, {"sigma": 0.1}),
        ({"noise": "gauss"}, {"keyframe_noise": 0.5}),
        ({}, {"student_replace_prob": 0.9}),
    ],
)
def test_every_param_counts(base, change):
    assert not torch.equal(corrupted(**base).latents, corrupted(**{**base, **change}).latents)


@pytest.mark.parametrize("params", [{"levels": 7}, {"min_keyframes": 10}])
def test_params_that_clips_are_too_short_for_are_refused_early(params):
    with pytest.raises(ValueError, match=f"corruption.{next(iter(params))}"):
        Corruption(FRAMES, configs.corruption(**params))


@pytest.mark.parametrize(
    ("key", "value"),
    [("schedule", "halving"), ("placement", "odd"), ("interpolator", "spline"), ("noise", "pink")],
)
def test_impossible_params_are_named(key, value):
    with pytest.raises(ValueError, match=key):
        configs.corruption(**{key: value})


def test_bad_clips_are_refused():
    corruption = Corruption(FRAMES, configs.corruption(student_replace_prob=0.1, noise="gauss"))
    with pytest.raises(
        ValueError, match=r"^drift.corruption.student_replace_prob is positive.*no anchors"
    ):
        corruption(clips(), LEVEL, IDS, generator(0))
    with pytest.raises(ValueError, match=r"expected latents \[B, C, 9, H, W\]"):
        corruption(clips()[:, :, :5], LEVEL, IDS, generator(0), clips())
    with pytest.raises(ValueError, match="expected ids and a generator"):
        corruption.impute(clips(), torch.ones(CLIPS, FRAMES, dtype=torch.bool))

import numpy as np
import pytest
import torch

from braid.common.rng import generator
from braid.drifting.interpolation.keyframes import (
    even_ranks,
    frames_at,
    level_counts,
    masks_of,
    neighbors,
    nested_masks,
    random_ranks,
)
from tests.drifting import configs


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("doubling", [21, 12, 6, 3]),
        ("linear", [21, 15, 9, 3]),
        ("geometric", [21, 11, 6, 3]),  # 3 * 7^(1/3) = 5.74, 3 * 7^(2/3) = 10.98
    ],
)
def test_schedules(schedule, expected):
    assert level_counts(21, configs.corruption(levels=3, schedule=schedule)) == expected


@pytest.mark.parametrize("schedule", ["doubling", "linear", "geometric"])
def test_levels_differ_wherever_they_can(schedule):
    for frames in range(3, 15):
        for minimum in range(2, frames):
            for levels in range(1, frames - minimum + 1):
                changes = {"min_keyframes": minimum, "levels": levels, "schedule": schedule}
                counts = level_counts(frames, configs.corruption(**changes))
                assert len(counts) == levels + 1
                assert (counts[0], counts[-1]) == (frames, minimum)
                assert (np.diff(counts) < 0).all()


@pytest.mark.parametrize(
    ("key", "changes"),
    [
        ("drift.corruption.levels", {"levels": 7}),
        ("drift.corruption.levels", {"levels": 1, "min_keyframes": 9}),
        ("drift.corruption.min_keyframes", {"min_keyframes": 10}),
    ],
)
def test_a_schedule_that_a_clip_is_too_short_for_is_refused(key, changes):
    with pytest.raises(ValueError, match=f"^{key} is"):
        level_counts(9, configs.corruption(**{"schedule": "linear", **changes}))


@pytest.mark.parametrize(
    ("key", "value"), [("levels", 0), ("min_keyframes", 1), ("schedule", "halving")]
)
def test_an_impossible_schedule_is_refused(key, value):
    with pytest.raises(ValueError, match=key):
        configs.corruption(**{key: value})


def random_masks(batch, frames, counts):
    scores = torch.rand(batch, frames - 2, generator=generator(0))
    return masks_of(random_ranks(scores), counts)


@pytest.mark.parametrize("place", [nested_masks, random_masks])
@pytest.mark.parametrize("schedule", ["doubling", "linear", "geometric"])
def test_masks_are_nested_and_keep_both_ends(place, schedule):
    counts = level_counts(21, configs.corruption(levels=4, schedule=schedule))
    masks = place(6, 21, counts)
    assert masks.shape == (5, 6, 21)
    assert masks.dtype == torch.bool
    assert torch.equal(masks.sum(2), torch.tensor(counts)[:, None].expand(-1, 6))
    assert (masks[1:] <= masks[:-1]).all()
    assert masks[..., [0, -1]].all()


@pytest.mark.parametrize(("frames", "count"), [(9, 3), (9, 5), (21, 3), (21, 5), (13, 4), (16, 6)])
def test_the_coarsest_even_level_is_the_rounded_linspace(frames, count):
    coarsest = nested_masks(1, frames, [frames, count])[1, 0]
    exact = np.linspace(0, frames - 1, count)
    assert coarsest.nonzero()[:, 0].tolist() == np.floor(exact + 0.5).astype(int).tolist()


def test_finer_even_levels_split_the_widest_gaps():
    masks = nested_masks(1, 21, [21, 9, 6, 5, 3])
    assert [mask[0].nonzero()[:, 0].tolist() for mask in masks[1:]] == [
        [0, 3, 5, 8, 10, 13, 15, 18, 20],
        [0, 3, 5, 10, 15, 20],
        [0, 5, 10, 15, 20],
        [0, 10, 20],
    ]
    unequal = nested_masks(1, 8, [8, 5, 3])[1:, 0]  # gaps of 4 and 3 get one frame each
    assert [mask.nonzero()[:, 0].tolist() for mask in unequal] == [[0, 2, 4, 6, 7], [0, 4, 7]]


def test_even_placement_is_the_same_in_every_clip():
    masks = nested_masks(3, 9, [9, 6, 3])
    assert (masks == masks[:, :1]).all()
    assert masks[2, 0].nonzero()[:, 0].tolist() == [0, 4, 8]


def test_random_placement_is_each_clips_own_and_uniform():
    masks = random_masks(4000, 7, [7, 4])[1]
    fraction = masks.float().mean(0)
    torch.testing.assert_close(fraction[1:-1], torch.full((5,), 2 / 5), atol=0.03, rtol=0)


@pytest.mark.parametrize("counts", [[9, 3, 6], [10, 3], [9, 1], [3, 6, 9]])
def test_counts_that_do_not_descend_are_refused(counts):
    with pytest.raises(ValueError, match="keyframe counts"):
        nested_masks(2, 9, counts)
    with pytest.raises(ValueError, match="keyframe counts"):
        masks_of(even_ranks(9, [9, 3]).expand(2, -1), counts)


def by_search(mask):
    """Neighboring keyframes of one clip, frame by frame."""
    keys = [t for t, kept in enumerate(mask) if kept]
    for t in range(len(mask)):
        left = max((k for k in keys if k <= t), default=keys[0])
        right = min((k for k in keys if k >= t), default=keys[-1])
        yield left, right, (t - left) / (right - left) if left < t < right else 0.0


def test_neighbors_by_search():
    mask = torch.rand(40, 11, generator=generator(1)) < 0.4
    mask[:, 5] |= ~mask.any(1)
    actual = neighbors(mask)
    for clip in range(40):
        left, right, fraction = zip(*by_search(mask[clip].tolist()), strict=True)
        assert actual.left[clip].tolist() == list(left)
        assert actual.right[clip].tolist() == list(right)
        assert actual.fraction[clip].tolist() == pytest.approx(fraction)


def test_a_clip_without_keyframes_is_refused():
    mask = torch.ones(3, 5, dtype=torch.bool)
    mask[1] = False
    with pytest.raises(ValueError, match="at least one keyframe"):
        neighbors(mask)


def test_frames_are_taken_clip_by_clip():
    latents = torch.randn(2, 3, 5, 2, 2, generator=generator(2))
    index = torch.tensor([[4, 0], [1, 1]])
    expected = torch.stack([latents[0][:, [4, 0]], latents[1][:, [1, 1]]])
    assert torch.equal(frames_at(latents, index), expected)

"""The selector: greedy against dynamic programme, and that against every choice."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch
from torch import Tensor

from braid.common.rng import generator
from braid.drifting.interpolation.interpolation import interpolate
from braid.drifting.interpolation.keyframes import (
    even_ranks,
    greedy_ranks,
    masks_of,
    optimal_mask,
    segment_errors,
)
from braid.drifting.video.corruption import Corruption
from tests.drifting.configs import corruption

FRAMES = 9


def walks(count: int) -> Tensor:
    steps = torch.randn(count, 2, FRAMES, 1, 1, generator=generator(0, "walks"))
    return steps.cumsum(2)


def errors(clips: Tensor, mask: Tensor) -> Tensor:
    filled = interpolate(clips, mask, corruption())
    return (filled - clips).square().flatten(1).sum(1)


@pytest.mark.parametrize("count", [2, 3, 4, 5])
def test_the_dynamic_programme_finds_the_best_of_all_choices(count: int) -> None:
    clips = walks(6)
    found = optimal_mask(clips, count)
    assert (found.sum(1) == count).all()
    choices = []
    for interior in combinations(range(1, FRAMES - 1), count - 2):
        mask = torch.zeros(6, FRAMES, dtype=torch.bool)
        mask[:, [0, *interior, FRAMES - 1]] = True
        choices.append(errors(clips, mask))
    best = torch.stack(choices).amin(0)
    torch.testing.assert_close(errors(clips, found), best)


def test_greedy_is_between_even_placement_and_the_best() -> None:
    clips = walks(64)
    counts = [FRAMES, 5, 3]
    even = masks_of(even_ranks(FRAMES, counts).expand(64, -1), counts)
    greedy = masks_of(greedy_ranks(clips, counts[1]), counts)
    for level in (1, 2):
        best = errors(clips, optimal_mask(clips, counts[level]))
        ours = errors(clips, greedy[level])
        assert (ours >= best - 1e-4).all()
        assert best.mean() < ours.mean() < errors(clips, even[level]).mean()
    assert (greedy[1] & greedy[2] == greedy[2]).all()  # nested


def test_segment_errors_by_hand() -> None:
    frames = torch.tensor([[[0.0], [2.0], [2.0]]])
    cost = segment_errors(frames)[0]
    assert cost[0, 1] == cost[1, 2] == 0
    assert cost[0, 2] == 1
    assert cost[1, 0] == torch.inf


def test_corruption_places_selected_keyframes() -> None:
    clips = walks(4)
    process = Corruption(FRAMES, corruption(placement="selected", min_keyframes=3, levels=2))
    level, ids = torch.full((4,), 2), torch.arange(4)
    made = process(clips, level, ids, generator(0, "noise"))
    expected = greedy_ranks(clips, process.counts[1]) < 3
    assert (made.mask == expected).all()
    assert (
        made.mask != Corruption(FRAMES, corruption()).mask(clips, level, ids, generator(0))
    ).any()

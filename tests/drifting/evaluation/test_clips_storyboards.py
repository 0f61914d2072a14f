"""A storyboard: only its given frames count, and what is wrong with them is named in one line."""

from __future__ import annotations

import pytest
import torch

from braid.common.rng import generator
from braid.drifting.config import StoryboardConfig
from braid.drifting.evaluation.clips import given_frames, impute_given, level_of
from tests.drifting.toy_refinement import toy_clips, toy_corruption


def test_keyframes_make_the_mask_and_impossible_ones_are_refused() -> None:
    assert given_frames([4, 0, 1], 5).tolist() == [[True, True, False, False, True]]
    for keyframes in ([3, 3], [0, 5]):
        with pytest.raises(ValueError, match="expected two or more of 0 to 4"):
            given_frames(keyframes, 5)


def test_only_given_frames_are_read_and_they_are_kept() -> None:
    clips, _ = toy_clips()
    mask = given_frames([0, 2, 4], 5)
    poisoned = torch.where(mask[:, None, :, None, None], clips[:1], torch.nan)
    imputed = [
        impute_given(values, mask, toy_corruption(), generator(0)).latents
        for values in (clips[:1], poisoned)
    ]
    assert torch.equal(*imputed)
    assert torch.equal(imputed[0][:, :, [0, 2, 4]], clips[:1, :, [0, 2, 4]])
    with pytest.raises(ValueError, match="a given latent frame holds NaN"):
        impute_given(poisoned, given_frames([0, 1], 5), toy_corruption(), generator(0))


def test_the_level_is_the_one_with_as_many_keyframes() -> None:
    counts = [9, 6, 4, 2]
    assert [level_of(count, counts) for count in (9, 6, 5, 4, 3, 2)] == [1, 1, 2, 2, 3, 3]


@pytest.mark.parametrize("keyframes", [[0, 8, 3], [8, 0]])
def test_keyframes_out_of_order_are_refused_with_the_params(keyframes: list[int]) -> None:
    with pytest.raises(ValueError, match=r"expected (them to ascend|each once)"):
        StoryboardConfig(source="data/clips", clip=0, keyframes=keyframes, alpha=1.0)

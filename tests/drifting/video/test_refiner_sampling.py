"""One step and cold diffusion: in chunks as at once, from the given keyframes alone."""

from __future__ import annotations

import torch

from braid.common.rng import generator
from braid.drifting.interpolation.keyframes import nested_masks
from braid.drifting.video.corruption import Corruption
from braid.drifting.video.refiner import cold_sample, refine
from tests.drifting import configs
from tests.drifting.toy_refinement import toy_clips, toy_corruption, toy_refiner


def corrupted():
    clips, _ = toy_clips()
    ids = torch.arange(len(clips))
    return toy_corruption()(clips, torch.ones_like(ids), ids, generator(0))


def test_refining_in_chunks_is_refining_at_once(monkeypatch) -> None:
    refiner, (_, labels) = toy_refiner(), toy_clips()
    torch.nn.init.normal_(refiner.out.weight)
    whole = refine(refiner, corrupted(), labels, 1, 1.0)
    monkeypatch.setattr("braid.drifting.video.refiner.CHUNK", 7)
    torch.testing.assert_close(refine(refiner, corrupted(), labels, 1, 1.0), whole)


def test_cold_sampling_with_a_perfect_refiner_gives_the_truth() -> None:
    clips, labels = toy_clips()
    config = configs.corruption(levels=2, min_keyframes=2, schedule="linear")
    corruption = Corruption(5, config)
    masks = nested_masks(len(clips), 5, corruption.counts)
    refiner = toy_refiner()

    def perfect(corrupted, mask, confidence, classes, level, alpha, clamp):
        levels.append(int(level[0]))
        return clips

    levels: list[int] = []
    refiner.forward = perfect  # type: ignore[method-assign]
    sampled = cold_sample(refiner, corruption, clips, masks, labels, 1.0, generator(0))
    torch.testing.assert_close(sampled, clips)
    assert levels == [2, 1]


def test_cold_sampling_reads_nothing_but_the_given_keyframes() -> None:
    clips, labels = toy_clips()
    masks = nested_masks(len(clips), 5, toy_corruption().counts)
    poisoned = torch.where(masks[-1][:, None, :, None, None], clips, torch.nan)
    sampled = [
        cold_sample(toy_refiner(), toy_corruption(), values, masks, labels, 1.0, generator(0))
        for values in (clips, poisoned)
    ]
    assert torch.equal(*sampled)


def test_of_large_clips_few_are_refined_at_once(monkeypatch) -> None:
    refiner, corruption = toy_refiner(), toy_corruption()
    clips, labels = toy_clips(5)
    corrupted = corruption(clips, torch.ones(5, dtype=torch.long), torch.arange(5), generator(0))
    whole, sizes = refine(refiner, corrupted, labels, 1, alpha=1.0), []
    refiner.register_forward_pre_hook(lambda _, given: sizes.append(len(given[0])))
    monkeypatch.setattr("braid.drifting.video.refiner.VALUES", 2 * clips[0].numel() + 1)
    assert torch.allclose(refine(refiner, corrupted, labels, 1, alpha=1.0), whole)
    assert sizes == [2, 2, 1]

"""Class-balanced batches: no clip twice unless its class is too small, and that is counted."""

from __future__ import annotations

import pytest
import torch

from braid.drifting.training.objectives import ClassSampler

LABELS = torch.tensor([2, 0, 2, 2, 0, 5, 2, 2])  # sizes 2, 0, 5, 0, 0, 1


def draw(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_members_belong_to_their_class_and_differ() -> None:
    for seed in range(20):
        batch = ClassSampler(LABELS).draw(2, 2, draw(seed))
        assert len(set(batch.classes.tolist())) == 2
        assert torch.equal(LABELS[batch.members], batch.classes[:, None].expand(2, 2))
        for row, label in zip(batch.members.tolist(), batch.classes.tolist(), strict=True):
            assert len(set(row)) == min(2, int((label == LABELS).sum()))


def test_a_small_class_repeats_evenly_and_is_counted() -> None:
    batch = ClassSampler(LABELS).members(torch.tensor([0, 2, 5]), 4, draw(0))
    assert batch.repeated == 2 + 0 + 3
    assert sorted(batch.members[0].tolist()) == [1, 1, 4, 4]
    assert batch.members[2].tolist() == [5, 5, 5, 5]


def test_more_classes_than_there_are_repeat_classes() -> None:
    classes = ClassSampler(LABELS).draw(6, 1, draw(0)).classes
    assert torch.bincount(classes, minlength=6).tolist() == [2, 0, 2, 0, 0, 2]


def test_every_class_and_every_member_has_the_same_chance() -> None:
    sampler = ClassSampler(LABELS)
    drawn = [sampler.draw(1, 2, draw(seed)) for seed in range(900)]
    classes = torch.bincount(torch.cat([batch.classes for batch in drawn]), minlength=6)
    assert classes[[0, 2, 5]].min() > 240
    assert classes[[1, 3, 4]].sum() == 0
    members = torch.cat([batch.members[0] for batch in drawn if batch.classes[0] == 2])
    counts = torch.bincount(members, minlength=8)[LABELS == 2].double()
    assert counts.min() > 0.75 * counts.mean()


def test_no_clips_are_refused() -> None:
    with pytest.raises(ValueError, match="no training clips"):
        ClassSampler(torch.tensor([], dtype=torch.long))

"""Feature spaces that no training uses: the same each time, and of motion too."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from braid.metrics.distances import PcaSpace, RandomConvolutions

CLIPS = torch.randn(12, 2, 5, 4, 4, generator=torch.Generator().manual_seed(0))


def test_random_convolutions_are_the_same_each_time_and_depend_on_motion() -> None:
    first, again = (RandomConvolutions(2).points(CLIPS) for _ in range(2))
    assert np.array_equal(first, again)
    shuffled = CLIPS[:, :, [0, 3, 1, 2, 4]]
    assert not np.allclose(RandomConvolutions(2).points(shuffled), first, atol=1e-3)


def test_random_convolutions_are_computed_chunk_by_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = RandomConvolutions(2).points(CLIPS)
    monkeypatch.setattr("braid.metrics.distances.CHUNK", 5)
    assert np.allclose(RandomConvolutions(2).points(CLIPS), whole, rtol=1e-5)


def test_leading_components_keep_distances_and_too_many_are_refused() -> None:
    points = PcaSpace(CLIPS, 12).points(CLIPS)
    between = torch.cdist(CLIPS.flatten(1).double(), CLIPS.flatten(1).double()).numpy()
    own = np.linalg.norm(points[:, None] - points, axis=2)
    assert np.allclose(own, between, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="components is 13, expected at most 12"):
        PcaSpace(CLIPS, 13)

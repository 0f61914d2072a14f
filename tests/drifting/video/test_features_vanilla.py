"""The vanilla branch's vectors against plain indexing."""

from __future__ import annotations

import pytest
import torch

from braid.drifting.video.features import vanilla

CLIPS = torch.randn(2, 3, 4, 4, 6, generator=torch.Generator().manual_seed(0))


def test_tokens_are_patches_in_order_of_time_row_and_column() -> None:
    tokens = vanilla(["tokens"])(CLIPS)["tokens"]
    assert tokens.shape == (2, 4 * 2 * 3, 12)
    assert torch.equal(tokens[1, 2 * 6 + 1 * 3 + 2], CLIPS[1, :, 2, 2:4, 4:6].flatten())


def test_pairs_are_a_patch_and_the_one_after_it() -> None:
    features = vanilla(["tokens", "pairs"])(CLIPS)
    assert list(features) == ["tokens", "pairs"]
    assert features["pairs"].shape == (2, 3 * 6, 24)
    expected = torch.cat([features["tokens"][:, :-6], features["tokens"][:, 6:]], dim=-1)
    assert torch.equal(features["pairs"], expected)


def test_columns_are_a_place_of_all_frames() -> None:
    features = vanilla(["tokens", "columns"])(CLIPS)
    assert features["columns"].shape == (2, 6, 4 * 12)
    place = features["tokens"].unflatten(1, (4, 6))[:, :, 4]  # row 1, column 1
    assert torch.equal(features["columns"][:, 4], place.flatten(1))


def test_the_clip_is_one_vector_and_odd_sizes_are_padded() -> None:
    assert torch.equal(vanilla(["clip"])(CLIPS)["clip"][:, 0], CLIPS.flatten(1))
    odd = vanilla(["tokens"])(CLIPS[..., :3, :5])["tokens"]
    assert odd.shape == (2, 24, 12)
    assert odd[0, 5].view(3, 2, 2)[:, 1, 1].abs().max() == 0


@pytest.mark.parametrize("families", [[], ["tokens", "cubes"]])
def test_unknown_families_are_refused(families: list[str]) -> None:
    with pytest.raises(ValueError, match="expected some of tokens, pairs, columns, clip"):
        vanilla(families)

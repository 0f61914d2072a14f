"""A storyboard: only its given frames count, and what is wrong with it is named in one line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from braid.common.rng import generator
from braid.drifting.config import StoryboardConfig
from braid.drifting.evaluation.storyboard import (
    given_frames,
    impute_given,
    level_of,
    load_storyboard,
    open_storyboard,
)
from tests.drifting.toy_refinement import toy_clips, toy_corruption


def test_a_storyboard_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "mine.safetensors"
    tensors = {"latents": torch.rand(2, 5, 4, 4), "embedding": torch.rand(3, 6)}
    save_file(tensors, path)
    latents, embedding = load_storyboard(path)
    assert torch.equal(latents[0], tensors["latents"])
    assert embedding is not None
    assert torch.equal(embedding[0], tensors["embedding"])
    save_file({"latents": tensors["latents"]}, path)
    assert load_storyboard(path)[1] is None


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"embedding": torch.rand(3, 6)}, "expected safetensors with latents"),
        ({"latents": torch.rand(2, 5, 4), "embedding": torch.rand(3, 6)}, r"got \[2, 5, 4\]"),
        ({"latents": torch.rand(2, 5, 4, 4), "embedding": torch.rand(3)}, r"\[L, D\], got \[3\]"),
    ],
)
def test_a_wrong_storyboard_is_refused(tmp_path: Path, tensors: dict, message: str) -> None:
    path = tmp_path / "mine.safetensors"
    save_file(tensors, path)
    with pytest.raises(ValueError, match=message):
        load_storyboard(path)


def test_a_broken_or_missing_storyboard_is_named(tmp_path: Path) -> None:
    path = tmp_path / "mine.safetensors"
    for content in (None, b"broken"):
        if content:
            path.write_bytes(content)
        with pytest.raises(ValueError, match=r"mine\.safetensors: expected safetensors"):
            load_storyboard(path)


class HeldOut:
    """Two held-out clips, 3 and 5, that are numbers."""

    def indices(self, split: str) -> np.ndarray:
        return np.array({"test": [3, 5]}[split])

    def latents(self, indices: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(indices)

    texts = latents


def test_a_held_out_clip_may_be_the_storyboard() -> None:
    board = {"source": "data/clips", "keyframes": (0, 1), "alpha": 1.0}
    latents, text = open_storyboard(StoryboardConfig(clip=1, **board), HeldOut())
    assert latents.tolist() == text.tolist() == [5]
    with pytest.raises(ValueError, match="clip is 2, expected below 2"):
        open_storyboard(StoryboardConfig(clip=2, **board), HeldOut())


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


@pytest.mark.parametrize("keyframes", [[0, 8, 3], [0, 3, 3, 8]])
def test_keyframes_out_of_order_are_refused_with_the_params(keyframes: list[int]) -> None:
    with pytest.raises(ValueError, match=r"keyframes are .*, expected them to ascend"):
        StoryboardConfig(source="data/clips", clip=0, keyframes=keyframes, alpha=1.0)

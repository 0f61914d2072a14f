from __future__ import annotations

from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor

from braid.clips.config import PoolingConfig
from braid.clips.shards.dataset import Clips
from braid.common.rng import generator
from braid.pseudo_classes.quantizer import Pooling, PseudoClasses
from braid.representation.evaluation import (
    OTHER,
    encoder_spaces,
    pixels,
    pool_groups,
    prompt_family,
    read_images,
    read_sample,
    stratified,
)
from tests.representation.clustered_sample import config, evaluated

FAMILIES = {"drifts": "drift", "grows": "scale", "shrinks": "scale"}


class Stored:
    """Clips in memory, in place of shards."""

    def __init__(self, count: int) -> None:
        draw = generator(0, "clips")
        self.all_latents = torch.randn(count, 2, 3, 4, 4, generator=draw)
        self.all_texts = torch.randn(count, 5, 6, generator=draw)

    def latents(self, indices: Any) -> Tensor:
        return self.all_latents[torch.as_tensor(indices)]

    def texts(self, indices: Any) -> Tensor:
        return self.all_texts[torch.as_tensor(indices)]

    def prompts(self, indices: Any) -> list[str]:
        return [f"number {clip} grows" for clip in indices]


def test_a_stratified_sample_takes_as_many_of_each_class_as_there_are() -> None:
    labels = np.repeat([0, 1, 2], [50, 3, 10])
    chosen = stratified(labels, 18, generator(0))
    assert sorted(np.bincount(labels[chosen])) == [3, 7, 8]
    assert (np.diff(chosen) > 0).all()
    assert set(np.bincount(labels[stratified(labels, 9, generator(0))])) == {3}


def test_a_stratified_sample_is_random_within_classes_and_may_be_all() -> None:
    labels = np.repeat([0, 1], 100)
    first, again, other = (stratified(labels, 20, generator(seed)) for seed in (0, 0, 1))
    assert first.tolist() == again.tolist() != other.tolist()
    assert stratified(labels, 500, generator(0)).tolist() == list(range(200))


@pytest.mark.parametrize(
    ("prompt", "family"),
    [
        ("a red seven drifts left, slowly", "drift"),
        ("It GROWS.", "scale"),
        ("a snowdrifts scene", OTHER),
        ("", OTHER),
        ("it shrinks, then drifts", "drift"),  # the first keyword, not the first word
    ],
)
def test_families_are_whole_words(prompt: str, family: str) -> None:
    assert prompt_family(prompt, FAMILIES) == family


def test_groups_are_pooled_to_means_and_deviations() -> None:
    many, one = torch.randn(4, 3, 5), torch.randn(4, 1, 2)
    pooled = pool_groups({"many": many, "one": one})
    slow = torch.cat([many.mean(1), (many - many.mean(1, keepdim=True)).square().mean(1).sqrt()], 1)
    torch.testing.assert_close(pooled, torch.cat([slow, one[:, 0]], 1))


def test_reading_keeps_order_whatever_the_chunks_and_the_mode() -> None:
    clips, count = Stored(80), 80
    labels = torch.arange(count) % 5
    splits = {name: np.arange(start, count, 4) for name, start in (("train", 0), ("val", 1))}
    pseudo = PseudoClasses(labels, 5, torch.zeros(count, 2), splits)
    sample, features = read_sample(
        cast(Clips, clips),
        pseudo,
        Pooling(PoolingConfig(mode="text", text="shards", keyframes=2, grid=2)),
        {"mean": lambda latents: {"all": latents.flatten(2).mean(2)[:, None]}},
        config(clips=70, families=FAMILIES),
        generator(0),
        torch.device("cpu"),
    )
    assert len(sample.indices) == 70
    assert sample.counts.tolist() == [16] * 5
    assert sample.labels.tolist() == (sample.indices % 5).tolist()
    assert sample.is_query.tolist() == (sample.indices % 4 != 0).tolist()
    assert sample.prompts[7] == f"number {sample.indices[7]} grows"
    assert set(sample.families) == {"scale"}
    torch.testing.assert_close(
        torch.from_numpy(features["mean"]), clips.latents(sample.indices).flatten(2).mean(2)
    )
    np.testing.assert_allclose(sample.texts, clips.texts(sample.indices).mean(1), atol=1e-6)
    assert sample.keyframes.shape == (70, 2 * 2 * 2 * 2)


class Pictures:
    """Sixty images whose values follow their condition, in two labels and one without."""

    def __init__(self, pseudo: bool) -> None:
        self.conditions = torch.arange(60) % 3
        self.labels = torch.arange(60) % 2 - (torch.arange(60) == 59).long() * 2
        self.label_names = ["cat", "dog"]
        self.class_names = ["a", "b", "c"] if pseudo else self.label_names
        self.names = [f"{number}.png" for number in range(60)]
        self.values = torch.randn(60, 1, 1, 40, 4, generator=generator(0))
        self.values += 3 * self.conditions.view(-1, 1, 1, 1, 1)

    def indices(self, split: str) -> np.ndarray:
        ends = {"train": (0, 40), "val": (40, 50), "test": (50, 60)}
        return np.arange(*ends[split])

    def clips(self, indices: Any) -> Tensor:
        return self.values[torch.as_tensor(indices)]


def test_images_are_read_with_their_conditions_and_each_encoder_s_features() -> None:
    images = Pictures(pseudo=True)
    encoders = {"pixels": pixels, "mean": lambda clips: {"a": clips.mean((2, 3, 4))[:, None]}}
    sample, features = read_images(
        images, encoders, config(clips=45), generator(0), torch.device("cpu")
    )
    assert len(sample.indices) == 45
    assert sample.labels.tolist() == images.conditions[sample.indices].tolist()
    assert sample.counts.tolist() == [20, 20, 20]
    assert sample.is_query.tolist() == (sample.indices >= 40).tolist()
    assert sample.prompts == [f"{number}.png" for number in sample.indices]
    assert features["pixels"].shape == (45, 32 * 4)  # averaged down to 32 a side
    expected = images.clips(sample.indices).mean((1, 2, 3, 4)).numpy()
    assert np.allclose(features["mean"][:, 0], expected)


def test_images_have_no_text_and_labels_that_are_the_classes_are_not_counted_again() -> None:
    for pseudo in (False, True):
        images = Pictures(pseudo)
        sample, features = read_images(
            images, {"pixels": pixels}, config(), generator(0), torch.device("cpu")
        )
        space = encoder_spaces(features, 8)["pixels"]
        metrics = evaluated(space, sample).metrics
        assert metrics["status"] == "ok"
        assert metrics["linear_probe"] > 0.9 > metrics["linear_probe_random"]
        assert ("family_agreement" in metrics) == pseudo
        assert sample.families == (["cat", "dog"] * 29 + ["cat", OTHER] if pseudo else None)
        assert not {"text_cosine", "text_cosine_chance", "keyframe_mse"} & set(metrics)

"""Phase 1: regression in closed form, what is given to the network, joint features."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from braid.common.rng import generator
from braid.drifting.config import KeyframeNetworkConfig
from braid.drifting.video.features import vanilla
from braid.drifting.video.keyframes import (
    FromPrompt,
    KeyframeGenerator,
    PromptRegression,
    keyframes_of,
    load_keyframe_generator,
    prompted,
    prompts_of,
    save_keyframe_generator,
    start_from,
    with_prompt,
)

SHAPE = 3, 2, 4, 4  # C, K, H, W
NETWORK: dict[str, Any] = {"clips": 9, "bandwidth": 0.5, "ridge": 0.1, "noise": 5}
NETWORK |= {"patch": 2, "dim": 8, "depth": 1, "heads": 2}


def config(**changes: Any) -> KeyframeNetworkConfig:
    return KeyframeNetworkConfig(**NETWORK | changes)


def prompts(count: int = 9, size: int = 6) -> Tensor:
    rows = torch.randn(count, size, generator=generator(0, "prompts"))
    return torch.nn.functional.normalize(rows, dim=1)


def keyframes(count: int = 9) -> Tensor:
    return torch.randn(count, *SHAPE, generator=generator(0, "keyframes"))


def network(**changes: Any) -> KeyframeGenerator:
    torch.manual_seed(0)
    made = KeyframeGenerator(SHAPE, 6, 4, 9, 1.0, config(**changes))
    made.regression.fit(prompts(), keyframes())
    return made


def test_each_held_out_prediction_is_that_of_a_regression_on_the_others() -> None:
    held_out = PromptRegression(9, 6, SHAPE, config()).fit(prompts(), keyframes())
    mean, rest = keyframes().mean(0), torch.arange(1, 9)
    other = PromptRegression(8, 6, SHAPE, config())
    # The mean stays that of all, so that the closed form is exact.
    other.fit(prompts()[rest], keyframes()[rest])
    kernel = other._kernel(prompts()[rest], prompts()[rest]) + 0.1 * torch.eye(8)
    weights = torch.linalg.solve(kernel, (keyframes()[rest] - mean).flatten(1))
    expected = other._kernel(prompts()[:1], prompts()[rest]) @ weights
    torch.testing.assert_close(held_out[0], mean + expected.view(SHAPE), rtol=1e-3, atol=1e-4)


def test_with_little_ridge_regression_gives_the_clips_that_it_was_fitted_to() -> None:
    made = PromptRegression(9, 6, SHAPE, config(ridge=1e-6))
    held_out = made.fit(prompts(), keyframes())
    torch.testing.assert_close(made(prompts()), keyframes(), rtol=1e-2, atol=1e-2)
    assert (held_out - keyframes()).square().mean() > 0.5


def test_the_prompt_is_given_and_the_noise_depends_on_the_id_alone() -> None:
    samples, predicted = with_prompt(prompts(), keyframes()), torch.zeros(9, *SHAPE)
    level, ids = torch.ones(9, dtype=torch.long), torch.arange(9)
    process = FromPrompt(5, 2.0)
    start = process(samples, level, ids, generator(3), predicted)
    assert start.mask[:, 0].all()
    assert not start.mask[:, 1:].any()
    assert torch.equal(prompts_of(start.latents, 6), prompts())
    assert torch.equal(start.latents[:, :, 1:], predicted)  # nothing is left of true keyframes
    some = process(samples[4:], level[4:], ids[4:], generator(3), predicted[4:])
    assert torch.equal(some.latents, start.latents[4:])
    other = process(samples, level, ids + 1, generator(3), predicted)
    assert not torch.equal(other.latents[:, :, 0], start.latents[:, :, 0])
    silent = FromPrompt(5, 0.0)(samples, level, ids, generator(3), predicted)
    assert torch.equal(silent.latents[:, :, 0].flatten(1)[:, 6:], torch.zeros(9, 42))


def test_an_untrained_network_returns_the_prediction_and_a_trained_one_reads_what_it_is_given() -> (
    None
):
    made = network()
    given = made, prompts(), torch.zeros(9, dtype=torch.long), generator(1), 1.0
    predicted, refined = keyframes_of(*given)
    assert torch.equal(predicted, refined)
    torch.testing.assert_close(predicted, made.regression(prompts()))
    for layer in (made.out, made.modulate, *(block.modulate for block in made.blocks)):
        torch.nn.init.normal_(layer.weight, std=0.3)
    _, first = keyframes_of(*given)
    for changed in (
        (made, prompts().roll(1, 0), given[2], generator(1), 1.0),
        (made, prompts(), given[2] + 1, generator(1), 1.0),
        (made, prompts(), given[2], generator(2), 1.0),
        (made, prompts(), given[2], generator(1), 2.0),
    ):
        assert not torch.allclose(keyframes_of(*changed)[1], first, atol=1e-4)


def test_features_are_joined_with_their_prompts_and_move_keyframes_alone() -> None:
    samples = with_prompt(prompts(), keyframes()).requires_grad_()
    groups = prompted(("tokens", "clip"), 6, 0.5)(samples)
    plain = vanilla(("tokens", "clip"))(keyframes())
    for name, vectors in groups.items():
        width = plain[name].shape[2]
        torch.testing.assert_close(vectors[..., :width], plain[name])
        expected = 0.5 * width**0.5 * prompts()[:, None].expand(-1, vectors.shape[1], -1)
        torch.testing.assert_close(vectors[..., width:], expected)


def test_a_saved_network_is_read_as_it_was(tmp_path: Path) -> None:
    save_keyframe_generator(tmp_path, network())
    read, other = (
        load_keyframe_generator(tmp_path),
        KeyframeGenerator(SHAPE, 6, 4, 9, 0.0, config()),
    )
    start_from(other, tmp_path)
    for name, value in network().state_dict().items():
        assert torch.equal(read.state_dict()[name], value)
        assert torch.equal(other.state_dict()[name], value)
    assert (read.sigma, other.sigma) == (1.0, 0.0)
    with pytest.raises(ValueError, match="to start from, expected"):
        start_from(KeyframeGenerator(SHAPE, 6, 4, 8, 0.0, config()), tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"), [({"dim": 9}, "dim"), ({"patch": 3}, "patch"), ({"noise": 43}, "noise")]
)
def test_params_that_do_not_fit_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=rf"drift\.keyframes\.network\.{message} is"):
        network(**changes)


def test_a_prompt_must_fit_into_a_frame() -> None:
    with pytest.raises(ValueError, match=r"clips\.conditions: h has 49 numbers"):
        with_prompt(torch.zeros(1, 49), keyframes(1))

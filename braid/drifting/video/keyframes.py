"""Phase 1: from a prompt to keyframes, in one network call.

A sample [C, 1 + K, H, W] is a clip whose frames are the *prompt* and K keyframes. The prompt frame
holds h, the condition embedding of the text alone, and noise; it is always given, so that
objectives, memory banks and step loop are those of refinement: what is missing is all keyframes.

The forward process keeps nothing of keyframes but what their prompt says: kernel ridge regression
from h over training clips,

    z(h) = mean + k(h, H) (k(H, H) + r I)^-1 (Y - mean),    k(a, b) = exp(-|a - b|^2 / 2 s^2),

which interpolates between the keyframes Y of like prompts. A training clip gets the prediction of
the others alone (leave one out, in closed form), as a prompt that nobody has trained on does. The
network corrects z, which is a mean and so blurred, given prompt, noise, pseudo-class and guidance.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from braid.common.io import load_model, save_model
from braid.common.rng import normals
from braid.drifting.config import KeyframeNetworkConfig
from braid.drifting.video.corruption import GIVEN_END, MISSING, Corrupted
from braid.drifting.video.features import vanilla
from braid.drifting.video.refiner import (
    FREQUENCIES,
    Block,
    guidance_waves,
    normalized,
    patchify,
    positions,
    refine,
    unpatchify,
)


def with_prompt(
    prompts: Tensor,  # [B, d]
    keyframes: Tensor,  # [B, C, K, H, W]
) -> Tensor:
    """Samples [B, C, 1 + K, H, W].

    Raises:
        ValueError: a prompt has more numbers than a latent frame.
    """
    room = keyframes[0, :, 0].numel()
    if prompts.shape[1] > room:
        raise ValueError(
            f"clips.conditions: h has {prompts.shape[1]} numbers, expected at most {room}, those "
            "of a latent frame"
        )
    frame = functional.pad(prompts, (0, room - prompts.shape[1])).view_as(keyframes[:, :, 0])
    return torch.cat([frame[:, :, None], keyframes], 2)


def prompts_of(
    samples: Tensor,  # [B, C, 1 + K, H, W]
    size: int,
) -> Tensor:
    """Their prompts, [B, size]."""
    return samples[:, :, 0].flatten(1)[:, :size]


class FromPrompt:
    """The forward process of phase 1: prompts and noise are given, keyframes are predictions."""

    levels = 1

    def __init__(
        self,
        noise: int,  # normal numbers beside a prompt
        sigma: float,  # their standard deviation
    ) -> None:
        self.noise, self.sigma = noise, sigma

    def __call__(
        self,
        samples: Tensor,  # [B, C, 1 + K, H, W]
        level: Tensor,  # [B]; there is one
        ids: Tensor,  # [B] int64, whose noise each sample gets
        generator: torch.Generator,  # its seed counts
        anchors: Tensor,  # [B, C, K, H, W] predicted keyframes
    ) -> Corrupted:
        """Prompts with noise after their own numbers, and predictions."""
        seed, ids = generator.initial_seed(), ids.to(samples.device)
        frame = samples[:, :, 0].flatten(1).clone()
        frame[:, -self.noise :] = self.sigma * normals(seed, "phase 1", ids, self.noise)
        latents = torch.cat([frame.view_as(samples[:, :, 0])[:, :, None], anchors], 2)
        mask = torch.zeros(len(samples), samples.shape[2], dtype=torch.bool, device=samples.device)
        mask[:, 0] = True
        return Corrupted(latents, mask, torch.where(mask, GIVEN_END, MISSING))


class PromptRegression(nn.Module):
    """Kernel ridge regression from prompts to keyframes, fitted in closed form, not trained."""

    keys: Tensor
    weights: Tensor
    mean: Tensor

    def __init__(
        self,
        clips: int,  # M, that it is fitted to
        prompt: int,  # numbers of a prompt
        keyframes: tuple[int, int, int, int],  # C, K, H, W
        config: KeyframeNetworkConfig,
    ) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("keys", torch.zeros(clips, prompt))
        self.register_buffer("weights", torch.zeros(clips, *keyframes))
        self.register_buffer("mean", torch.zeros(keyframes))

    def fit(
        self,
        prompts: Tensor,  # [M, d]
        keyframes: Tensor,  # [M, C, K, H, W]
    ) -> Tensor:
        """Fit, and give each clip's prediction from the others, [M, C, K, H, W]."""
        self.keys.copy_(prompts)
        self.mean.copy_(keyframes.mean(0))
        inverse = self._kernel(prompts.double(), prompts.double())
        inverse.diagonal().add_(self.config.ridge)
        inverse = torch.linalg.inv(inverse)
        away = (keyframes - self.mean).double().flatten(1)
        weights = inverse @ away
        self.weights.copy_(weights.view_as(keyframes))
        held_out = away - weights / inverse.diagonal()[:, None]
        return self.mean + held_out.float().view_as(keyframes)

    def forward(
        self,
        prompts: Tensor,  # [B, d]
    ) -> Tensor:
        """Predicted keyframes, [B, C, K, H, W]."""
        return self.mean + torch.tensordot(self._kernel(prompts, self.keys), self.weights, 1)

    def _kernel(self, first: Tensor, second: Tensor) -> Tensor:
        return (-torch.cdist(first, second).square() / (2 * self.config.bandwidth**2)).exp()


class KeyframeGenerator(nn.Module):
    """x_hat = z + f(z, prompt, noise, class, alpha); untrained it returns z."""

    def __init__(
        self,
        keyframes: tuple[int, int, int, int],  # C, K, H, W
        prompt: int,  # numbers of a prompt
        classes: int,  # pseudo-classes
        fitted: int,  # clips that the regression is fitted to
        sigma: float,  # of the noise that it is trained on
        config: KeyframeNetworkConfig,
    ) -> None:
        """Fresh weights.

        Raises:
            ValueError: heads do not divide dim, the patch does not divide the frame, or prompt and
                noise have more numbers than it.
        """
        super().__init__()
        dim, heads, patch = config.dim, config.heads, config.patch
        channels, _, *sides = keyframes
        if dim % heads:
            raise ValueError(
                f"drift.keyframes.network.dim is {dim}, expected a multiple of heads: {heads}"
            )
        if any(side % patch for side in sides):
            raise ValueError(
                f"drift.keyframes.network.patch is {patch}, expected a divisor of the sides of a "
                f"latent frame, {sides[0]} and {sides[1]}"
            )
        if prompt + config.noise > channels * sides[0] * sides[1]:
            raise ValueError(
                f"drift.keyframes.network.noise is {config.noise}, expected at most "
                f"{channels * sides[0] * sides[1] - prompt}: a prompt frame has no more numbers"
            )
        self.shape = {"keyframes": list(keyframes), "prompt": prompt, "classes": classes}
        self.shape |= {"fitted": fitted}
        self.sigma, self.config = sigma, config
        self.regression = PromptRegression(fitted, prompt, keyframes, config)
        self.embed = nn.Linear(channels * patch**2, dim)
        self.prompt, self.noise = nn.Linear(prompt, dim), nn.Linear(config.noise, dim)
        self.meaning = nn.Sequential(nn.GELU("tanh"), nn.Linear(dim, dim))
        self.class_table = nn.Embedding(classes, dim)
        self.alpha = nn.Sequential(nn.Linear(2 * FREQUENCIES, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.blocks = nn.ModuleList(Block(dim, heads, text=False) for _ in range(config.depth))
        self.modulate = nn.Linear(dim, 2 * dim)
        self.out = nn.Linear(dim, channels * patch**2)
        for layer in (self.modulate, self.out):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(
        self,
        samples: Tensor,  # [B, C, 1 + K, H, W] prompts with noise, and predictions
        mask: Tensor,  # [B, 1 + K] true at prompts alone
        confidence: Tensor,  # [B, 1 + K]
        classes: Tensor,  # [B]
        level: Tensor,  # [B]; there is one
        alpha: Tensor,  # [B] guidance, 1: none
        clamp: bool | None = None,  # prompts are always kept
    ) -> Tensor:
        """Prompts and keyframes, [B, C, 1 + K, H, W]."""
        frame, start = samples[:, :, 0].flatten(1), samples[:, :, 1:]
        size = self.prompt.in_features
        condition = self.prompt(math.sqrt(size) * frame[:, :size])
        condition = self.meaning(condition + self.noise(frame[:, -self.config.noise :]))
        condition = condition + self.class_table(classes) + self.alpha(guidance_waves(alpha))
        x = self.embed(patchify(start, self.config.patch))
        x = x + positions(x) + condition[:, None, None, None]
        condition = functional.silu(condition)
        for block in self.blocks:
            x = block(x, condition, None, mask)
        shift, scale = self.modulate(condition)[:, None, None, None].chunk(2, dim=-1)
        x = normalized(x) * (1 + scale) + shift
        keyframes = start + unpatchify(self.out(x), self.config.patch, samples.shape[-2:])
        return torch.cat([samples[:, :, :1], keyframes], 2)

    @property
    def outer_layers(self) -> list[str]:
        """The first and the last layers, which Muon leaves to AdamW."""
        return ["embed", "prompt", "noise", "out"]


def start_from(network: KeyframeGenerator, folder: Path) -> None:
    """Take over the weights of a saved network.

    Raises:
        ValueError: it cannot be read, or its shapes are others; the message names the folder.
    """
    other = load_keyframe_generator(folder)
    has, wanted = (
        {**each.shape, **each.config.model_dump(exclude={"heads"})} for each in (other, network)
    )
    if has != wanted:
        raise ValueError(f"{folder}: a network of {has} to start from, expected {wanted}")
    network.load_state_dict(other.state_dict())


def save_keyframe_generator(folder: Path, network: KeyframeGenerator) -> None:
    """Write `model.safetensors` and `config.json`."""
    config = {**network.shape, "sigma": network.sigma, **network.config.model_dump()}
    save_model(folder, network, config)


def load_keyframe_generator(folder: Path) -> KeyframeGenerator:
    """Read a network.

    Raises:
        ValueError: a file is missing or broken; the message names the folder.
    """
    shape = "keyframes", "prompt", "classes", "fitted", "sigma"

    def build(**stored: Any) -> KeyframeGenerator:
        sizes = [stored.pop(name) for name in shape]
        return KeyframeGenerator(*sizes, KeyframeNetworkConfig(**stored))

    return load_model(folder, build, "network of keyframes")[1].eval()


def keyframes_of(
    network: KeyframeGenerator,
    prompts: Tensor,  # [B, d]
    classes: Tensor,  # [B]
    draw: torch.Generator,  # its seed counts
    alpha: float,  # guidance, 1: none
) -> tuple[Tensor, Tensor]:
    """Keyframes [B, C, K, H, W] that regression predicts, and those of one network call.

    The noise of a row depends on its number.
    """
    device = network.regression.keys.device
    predicted = torch.cat([network.regression(part.to(device)).cpu() for part in prompts.split(64)])
    level, ids = torch.ones_like(classes), torch.arange(len(prompts))
    process = FromPrompt(network.config.noise, network.sigma)
    start = process(with_prompt(prompts, predicted), level, ids, draw, predicted)
    return predicted, refine(network, start, classes, 1, alpha)[:, :, 1:]


def prompted(
    families: Sequence[str],  # of `vanilla`
    size: int,  # numbers of a prompt
    weight: float,  # of the prompt: 1, as much as all latents of a vector
) -> Callable[[Tensor], dict[str, Tensor]]:
    """Features of samples [B, C, 1 + K, H, W] in which the drift is conditional.

    To each vector of the keyframes [B, L, D] their prompt is joined: what is compared is the joint
    distribution of keyframes and prompts, so that a sample's neighbors are real keyframes of like
    prompts. Prompts themselves are given, and not moved.
    """
    features = vanilla(families)

    def joint(samples: Tensor) -> dict[str, Tensor]:
        prompt, groups = prompts_of(samples, size), features(samples[:, :, 1:])
        scaled = {name: weight * math.sqrt(x.shape[2]) * prompt for name, x in groups.items()}
        return {
            name: torch.cat([x, scaled[name][:, None].expand(-1, x.shape[1], -1)], 2)
            for name, x in groups.items()
        }

    return joint

"""A stand-in for diffusers and its AutoencoderKL, which need weights that are not at hand."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn.functional import avg_pool2d, interpolate

SCALE, SHIFT = 0.18215, 0.5


class StandInVae(torch.nn.Module):
    """Latents are means of 8 x 8 pixels and of their luma, four times as large."""

    def __init__(self, **config: float) -> None:
        super().__init__()
        self.config = SimpleNamespace(**config)
        self.weight = torch.nn.Parameter(torch.tensor(4.0))
        self.shapes: list[tuple[int, ...]] = []

    def encode(self, pixels: torch.Tensor) -> SimpleNamespace:
        assert not self.training
        assert -1 <= pixels.min() <= pixels.max() <= 1
        self.shapes.append(tuple(pixels.shape))
        small = avg_pool2d(pixels, 8)
        latents = self.weight * torch.cat([small, small.mean(1, keepdim=True)], 1)
        latents = latents.contiguous(memory_format=torch.channels_last)  # as convolutions give them
        return SimpleNamespace(latent_dist=SimpleNamespace(mode=lambda: latents))

    def decode(self, latents: torch.Tensor) -> SimpleNamespace:
        assert len(latents) == 1
        return SimpleNamespace(sample=interpolate(latents[:, :3] / self.weight, scale_factor=8))


def install(patch: pytest.MonkeyPatch) -> list[Any]:
    """Put a stand-in in diffusers' place; its loader's options and models as they are made."""
    calls: list[Any] = []

    def from_pretrained(folder: Path, **options: Any) -> StandInVae:
        if not (Path(folder) / "config.json").exists():
            raise OSError("no\nconfig")
        calls.append((options, StandInVae(scaling_factor=SCALE, shift_factor=SHIFT)))
        return calls[-1][1]

    module = ModuleType("diffusers")
    module.AutoencoderKL = SimpleNamespace(from_pretrained=from_pretrained)  # type: ignore[attr-defined]
    patch.setitem(sys.modules, "diffusers", module)
    return calls

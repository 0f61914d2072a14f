"""Fixed feature spaces to evaluate clips in, which no training uses.

`RandomConvolutions` is a network with random weights of a fixed seed: as a feature extractor for
Frechet distances it ranks generators much as trained ones do (Naeem et al. 2020, section 5.2), and
it takes latents of any size. `PcaSpace` is linear and of the whole clip at once.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from torch import Tensor, nn
from torch.nn import functional

from braid.common.rng import generator

CHUNK = 256  # clips at once


class RandomConvolutions(nn.Module):
    """Space-time convolutions with fixed random weights; means over a clip of three layers."""

    def __init__(self, channels: int, width: int = 24) -> None:
        super().__init__()
        draw = generator(0, "random convolutions")
        widths = (channels, width, width, width)
        self.weights = nn.ParameterList(
            nn.Parameter(
                torch.randn(out, fan, 3, 3, 3, generator=draw) * (2 / (27 * fan)) ** 0.5,
                requires_grad=False,
            )
            for fan, out in pairwise(widths)
        )

    def forward(self, clips: Tensor) -> Tensor:
        """Features [B, 3 width] of clips [B, C, T, H, W]."""
        pooled = []
        for layer, weight in enumerate(self.weights):
            stride = (1, 1, 1) if layer == 0 else (1, 2, 2)
            clips = functional.relu(functional.conv3d(clips, weight, stride=stride, padding=1))
            pooled.append(clips.mean(dim=(2, 3, 4)))
        return torch.cat(pooled, dim=1)

    @torch.no_grad()
    def points(self, clips: Tensor) -> NDArray[np.float64]:
        """Features of many clips, [n, 3 width]."""
        device = self.weights[0].device
        parts = [self(chunk.to(device)).cpu() for chunk in clips.split(CHUNK)]
        return torch.cat(parts).double().numpy()


class PcaSpace:
    """The leading principal components of real clips or images.

    Raises:
        ValueError: more components than clips, or than a clip has values.
    """

    def __init__(self, clips: Tensor, components: int) -> None:  # [n, C, ...]
        most = min(len(clips), clips[0].numel())
        if components > most:
            raise ValueError(
                f"components is {components}, expected at most {most}: "
                f"{len(clips)} samples of {clips[0].numel()} values"
            )
        self._pca = PCA(components, svd_solver="randomized", random_state=0)
        self._pca.fit(clips.flatten(1).numpy())

    def points(self, clips: Tensor) -> NDArray[np.float64]:
        """Coordinates of clips, [n, components]."""
        coordinates: NDArray[np.float64] = self._pca.transform(clips.flatten(1).numpy())
        return coordinates.astype(np.float64)

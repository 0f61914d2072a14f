"""A masked autoencoder of video latents whose features the drift is computed in.

The latent MAE of Deng et al. 2026 (arXiv 2602.04770, A.3: a ResNet with GroupNorm, a U-Net decoder
and masked inputs set to zero) carried from images to clips. Convolutions are factorized into space
and time, (2+1)D as in Tran et al. 2018: a basic block is a 1x3x3 and a 3x1x1 convolution. From the
second stage on a stage halves height and width, from the third on the frames too, rounding up, so
that sizes such as 21x60x104 pass; the decoder goes back to the size of each skip. A `planar` one
is the paper's own, for images: both convolutions of a block are over space.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from braid.common.io import load_model, save_model

MAX_GROUPS = 32  # of a GroupNorm, as in the paper
MIN_PER_GROUP = 4  # channels


class LatentMae(nn.Module):
    """Stem, residual stages of doubling width, U-Net decoder, and a head for pseudo-classes."""

    def __init__(
        self,
        channels: int = 16,  # of a latent
        width: int = 32,  # of the first stage
        blocks: Sequence[int] = (2, 2, 2, 2),  # a stage
        classes: int = 0,  # 0: no head
        planar: bool = False,  # no convolution over time
    ) -> None:
        """Fresh weights.

        Raises:
            ValueError: the width does not split into groups, or a stage has no block.
        """
        super().__init__()
        if width < 1 or width % MIN_PER_GROUP:
            raise ValueError(f"width is {width}, expected a multiple of {MIN_PER_GROUP}")
        if not blocks or min(blocks) < 1:
            raise ValueError(f"blocks is {list(blocks)}, expected one or more for every stage")
        self.channels, self.width = channels, width
        self.blocks, self.classes, self.planar = tuple(blocks), classes, planar
        widths = [width * 2**stage for stage in range(len(blocks))]
        self.stem = nn.Sequential(_Conv(channels, width, (1, 3, 3)), _norm(width), nn.ReLU())
        self.stages = nn.ModuleList(
            _stage(widths[max(stage - 1, 0)], widths[stage], count, _stride(stage, planar), planar)
            for stage, count in enumerate(blocks)
        )
        self.norms = nn.ModuleList(_norm(channels) for channels in widths)
        self.ups = nn.ModuleList(
            _Up(below, here, planar)
            for here, below in zip(widths[-2::-1], widths[:0:-1], strict=True)
        )
        self.out = _Conv(width, channels, (1, 1, 1))
        nn.init.zeros_(self.out.weight)  # the first prediction is the mean of the latents
        self.head = nn.Linear(widths[-1], classes) if classes else None

    @property
    def outer_layers(self) -> list[str]:
        """Names of the first and last layers, which Muon is not for."""
        return ["stem.0", "out", *(["head"] if self.head is not None else [])]

    def encode(
        self,
        clips: Tensor,  # [B, C, T, H, W], hidden cells set to zero
    ) -> dict[str, Tensor]:
        """Maps [B, D, T', H', W'] by name, from fine to coarse.

        `stem`, then for each stage `stage<i>_block<j>` after every second block but the last, and
        `stage<i>`, its normalized output.
        """
        clips = clips.contiguous(memory_format=torch.channels_last_3d)
        maps = {"stem": (inside := self.stem(clips))}
        for i, (stage, norm) in enumerate(zip(self.stages, self.norms, strict=True), start=1):
            for j, block in enumerate(stage.children(), start=1):
                inside = block(inside)
                if j % 2 == 0 and j < self.blocks[i - 1]:
                    maps[f"stage{i}_block{j}"] = inside
            maps[f"stage{i}"] = norm(inside)
        return maps

    def decode(
        self,
        maps: dict[str, Tensor],  # of `encode`
    ) -> Tensor:
        """Clips [B, C, T, H, W] from the stages' outputs."""
        skips = [maps[f"stage{i}"] for i in range(1, len(self.blocks) + 1)]
        inside = skips.pop()
        for up in self.ups:
            inside = up(inside, skips.pop())
        return self.out(inside)

    def logits(
        self,
        maps: dict[str, Tensor],  # of `encode`
    ) -> Tensor:
        """Pseudo-class scores [B, K] of the pooled last stage.

        Raises:
            ValueError: the model was made without classes.
        """
        if self.head is None:
            raise ValueError("this latent MAE has no pseudo-class head")
        return self.head(maps[f"stage{len(self.blocks)}"].mean(dim=(2, 3, 4)))

    def forward(self, clips: Tensor) -> Tensor:
        """Reconstruction [B, C, T, H, W] of clips whose hidden cells are zero."""
        return self.decode(self.encode(clips))

    def freeze(self) -> LatentMae:
        """This model with weights that take no gradient; gradients still pass through it."""
        return self.requires_grad_(False).eval()


class _Conv(nn.Linear):
    """A convolution over space or over time whose kernel is a matrix [out, k * in].

    As an `nn.Linear` it is one of the matrices that Muon orthogonalises. With clips in memory as
    [B, T, H, W, C] both kinds are two-dimensional convolutions of views, several times faster on
    a CPU than `nn.Conv3d`, and the matrix needs no reordering either.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: tuple[int, int, int],  # T, H, W: 1 in time or 1 in space
        stride: tuple[int, int] = (1, 1),  # time, space
    ) -> None:
        super().__init__(inputs * math.prod(kernel), outputs, bias=False)
        nn.init.kaiming_normal_(self.weight, nonlinearity="relu")
        self.inputs, self.kernel, self.stride = inputs, kernel, stride

    def forward(self, clips: Tensor) -> Tensor:
        time, *space = self.kernel
        if time == 1:
            return _over_space(clips, self._weight(*space), self.stride[1])
        return _over_time(clips, self._weight(time, 1), self.stride[0])

    def _weight(self, *kernel: int) -> Tensor:
        """[out, in, k, k], last in memory the inputs."""
        return self.weight.unflatten(1, (*kernel, self.inputs)).movedim(-1, 1)


def _over_space(clips: Tensor, weight: Tensor, stride: int) -> Tensor:
    """Convolve every frame: [B, C, T, H, W] as [B T, C, H, W]."""
    frames = clips.transpose(1, 2)
    convolved = F.conv2d(frames.flatten(0, 1), weight, None, stride, weight.shape[-1] // 2)
    return convolved.unflatten(0, frames.shape[:2]).transpose(1, 2)


def _over_time(clips: Tensor, weight: Tensor, stride: int) -> Tensor:
    """Convolve along time: [B, C, T, H, W] as [B, C, T, H W]."""
    padding = (weight.shape[2] // 2, 0)
    convolved = F.conv2d(clips.flatten(3), weight, None, (stride, 1), padding)
    return convolved.unflatten(3, clips.shape[3:])


class _Block(nn.Module):
    """A basic block (He et al. 2016), its two convolutions over space and over time or space."""

    def __init__(self, inputs: int, outputs: int, stride: tuple[int, int], planar: bool) -> None:
        super().__init__()
        time, space = stride
        self.conv1 = _Conv(inputs, outputs, (1, 3, 3), (1, space))
        self.conv2 = _Conv(outputs, outputs, _second(planar), (time, 1))
        self.norm1, self.norm2 = _norm(outputs), _norm(outputs)
        nn.init.zeros_(self.norm2.weight)  # the block starts as its shortcut
        self.time, self.space = time, space
        same = inputs == outputs and stride == (1, 1)
        self.project = None if same else _Conv(inputs, outputs, (1, 1, 1))

    def forward(self, clips: Tensor) -> Tensor:
        inside = F.relu(self.norm1(self.conv1(clips)))
        shortcut = clips[:, :, :: self.time, :: self.space, :: self.space]
        if self.project is not None:
            shortcut = self.project(shortcut)
        return F.relu(self.norm2(self.conv2(inside)) + shortcut)


class _Up(nn.Module):
    """One step of the decoder: enlarge to the skip's size, join, convolve twice."""

    def __init__(self, inputs: int, outputs: int, planar: bool) -> None:
        super().__init__()
        self.narrow = _Conv(inputs, outputs, (1, 1, 1))
        self.conv1 = _Conv(2 * outputs, outputs, (1, 3, 3))
        self.conv2 = _Conv(outputs, outputs, _second(planar))
        self.norm1, self.norm2 = _norm(outputs), _norm(outputs)

    def forward(self, below: Tensor, skip: Tensor) -> Tensor:
        enlarged = F.interpolate(self.narrow(below), skip.shape[2:])  # nearest: deterministic
        inside = F.relu(self.norm1(self.conv1(torch.cat([enlarged, skip], dim=1))))
        return F.relu(self.norm2(self.conv2(inside)))


def save_latent_mae(folder: Path, mae: LatentMae) -> None:
    """Write `model.safetensors` and `config.json`."""
    names = ("channels", "width", "blocks", "classes", "planar")
    save_model(folder, mae, {name: getattr(mae, name) for name in names})


def load_latent_mae(folder: Path) -> LatentMae:
    """Read a latent MAE, frozen.

    Raises:
        ValueError: a file is missing or broken; the message names the folder.
    """
    return load_model(folder, LatentMae, "latent MAE")[1].freeze()


def _stage(
    inputs: int, outputs: int, blocks: int, stride: tuple[int, int], planar: bool
) -> nn.ModuleList:
    first = _Block(inputs, outputs, stride, planar)
    others = (_Block(outputs, outputs, (1, 1), planar) for _ in range(blocks - 1))
    return nn.ModuleList([first, *others])


def _stride(stage: int, planar: bool) -> tuple[int, int]:
    """Of a stage counted from 0, in time and in space."""
    return (2 if stage >= 2 and not planar else 1), (2 if stage >= 1 else 1)


def _second(planar: bool) -> tuple[int, int, int]:
    """The kernel of a block's second convolution."""
    return (1, 3, 3) if planar else (3, 1, 1)


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(math.gcd(MAX_GROUPS, channels // MIN_PER_GROUP), channels)

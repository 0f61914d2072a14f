"""The student's image encoder: a small backbone of timm under a feature pyramid for SAM3's heads.

SAM3's heads take feature maps of four sizes and their sine position encodings
(`Sam3VisionEncoderOutput`). The teacher makes all of them from the one grid of its ViT; here they
are the stages of a convolutional backbone, RepViT (Wang et al. 2023) in the first place, at strides
4, 8, 16 and 32, joined by a feature pyramid (Lin et al. 2017, Feature Pyramid Networks).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional as F

from braid.common.torchvision import mend_torchvision

STRIDES = (4, 8, 16, 32)
TEACHER_MEAN, TEACHER_STD = 0.5, 0.5  # of all three channels, as SAM3's processor has them


class Pyramid(nn.Module):
    """Feature maps of several sizes, each with what the coarser ones have; all `width` wide."""

    def __init__(self, channels: list[int], width: int) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(nn.Conv2d(count, width, 1) for count in channels)
        self.output = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in channels)

    def forward(self, levels: list[Tensor]) -> list[Tensor]:
        """Levels finest first, [I, C_k, h_k, w_k] to [I, width, h_k, w_k]."""
        inner = [lateral(level) for lateral, level in zip(self.lateral, levels, strict=True)]
        for fine in range(len(inner) - 2, -1, -1):
            above = F.interpolate(inner[fine + 1], inner[fine].shape[2:])  # nearest: deterministic
            inner[fine] = inner[fine] + above
        return [output(level) for output, level in zip(self.output, inner, strict=True)]


class ChannelScale(nn.Conv2d):
    """A depthwise convolution with a 1 x 1 kernel as what it is: a scale and a shift of channels.

    On one CPU thread torch's own takes channel after channel.
    """

    def forward(self, features: Tensor) -> Tensor:
        """Features [I, C, h, w] to the same shape."""
        scaled = features * self.weight.view(-1, 1, 1)
        return scaled if self.bias is None else scaled + self.bias.view(-1, 1, 1)


class StudentVision(nn.Module):
    """What stands in a `Sam3Model` where `Sam3VisionModel` was."""

    gain: Tensor  # [3, 1, 1] from the teacher's normalization to the backbone's own
    offset: Tensor

    def __init__(
        self,
        backbone: str,  # of timm
        options: Mapping[str, Any],  # of its constructor
        width: int,  # channels of the heads
    ) -> None:
        """Build with random weights; nothing is downloaded.

        Raises:
            ValueError: timm has no such backbone, option or strides.
        """
        super().__init__()
        mend_torchvision()
        from transformers.models.sam3.modeling_sam3 import (
            Sam3SinePositionEmbedding,
            Sam3VisionEncoderOutput,
        )

        self.backbone, self.levels = make_backbone(backbone, options)
        channels = self.backbone.feature_info.channels()
        self.pyramid = Pyramid([channels[level] for level in self.levels], width)
        self.position = Sam3SinePositionEmbedding(width // 2, normalize=True)
        self.output_class = Sam3VisionEncoderOutput
        gain, offset = normalization(backbone)
        self.register_buffer("gain", gain, persistent=False)
        self.register_buffer("offset", offset, persistent=False)

    def forward(self, pixel_values: Tensor, **kwargs: Any) -> Any:
        """Images [I, 3, S, S] in the teacher's normalization to a `Sam3VisionEncoderOutput`."""
        pixels = pixel_values.to(self.gain.dtype) * self.gain + self.offset
        features = self.backbone(pixels)
        levels = self.pyramid([features[level] for level in self.levels])
        positions = [
            self.position((1, *level.shape[1:]), level.device, level.dtype).expand_as(level)
            for level in levels
        ]
        return self.output_class(
            fpn_hidden_states=tuple(levels), fpn_position_encoding=tuple(positions)
        )


def make_backbone(name: str, options: Mapping[str, Any]) -> tuple[Any, list[int]]:
    """A feature extractor of timm with random weights, and where in its list the strides are.

    Raises:
        ValueError: timm has no such backbone, option or strides.
    """
    import timm

    if not timm.is_model(name):  # nor a hub's: those would be fetched
        raise ValueError(f"sam3.student.backbone {name!r} is no model of timm {timm.__version__}")
    try:
        backbone: Any = timm.create_model(name, pretrained=False, features_only=True, **options)
    except (RuntimeError, TypeError, ValueError, IndexError, AssertionError) as error:
        message = " ".join(str(error).split())
        raise ValueError(
            f"sam3.student.backbone {name!r} with options {dict(options)}: timm says «{message}»"
        ) from None
    strides = backbone.feature_info.reduction()
    layout = str(getattr(backbone, "output_fmt", "NCHW")).rpartition(".")[2]
    if layout != "NCHW" or not set(STRIDES) <= set(strides):
        raise ValueError(
            f"sam3.student.backbone {name!r} has {layout} features at strides {strides}, "
            f"expected NCHW features at strides {list(STRIDES)}"
        )
    for module in backbone.modules():
        if type(module) is nn.Conv2d and _is_channel_scale(module):
            module.__class__ = ChannelScale  # the same weights by the same names
    return backbone, [strides.index(stride) for stride in STRIDES]


def _is_channel_scale(layer: nn.Conv2d) -> bool:
    depthwise = layer.groups == layer.in_channels == layer.out_channels
    return depthwise and layer.kernel_size == layer.stride == (1, 1) and layer.padding == (0, 0)


def normalization(backbone: str) -> tuple[Tensor, Tensor]:
    """Gain and offset, [3, 1, 1], that turn the teacher's pixels into those of the backbone."""
    import timm

    config: Any = timm.get_pretrained_cfg(backbone)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (config.mean, config.std))
    return TEACHER_STD / std, (TEACHER_MEAN - mean) / std


def load_backbone(backbone: nn.Module, path: Path) -> None:
    """Give a feature extractor the weights of timm's classifier, a .safetensors or .pth file.

    Raises:
        ValueError: the file is missing or broken, or lacks a weight of the backbone.
    """
    from timm.models import load_state_dict

    try:
        weights = load_state_dict(str(path), weights_only=True)
    except (OSError, SafetensorError, RuntimeError, ValueError, KeyError, EOFError) as error:
        raise ValueError(f"sam3.student.backbone_weights {path}: unreadable ({error})") from None
    # Where timm cuts the features out of a classifier, `stages.0` becomes `stages_0`.
    weights |= {name.replace(".", "_", 1): tensor for name, tensor in weights.items()}
    own = backbone.state_dict()
    wrong = [
        name
        for name, tensor in own.items()
        if name not in weights or weights[name].shape != tensor.shape
    ]
    if wrong:
        raise ValueError(
            f"sam3.student.backbone_weights {path}: {len(wrong)} of the backbone's {len(own)} "
            f"tensors are missing or have another shape, the first is {wrong[0]}"
        )
    backbone.load_state_dict({name: weights[name] for name in own})

"""phi of images: groups of vectors from a frozen encoder, a latent MAE or a ResNet of timm.

An image is a clip of one frame, so the families are those of `braid.drifting.video.features` that
need no time. The number of vectors follows from them, for four maps such as a ResNet has (each half
as large as the one before; the window families of maps that are no larger than a window left out):

    families                   locations  64 x 64 pixels  256 x 256 pixels
    clip, rms                  any        9               9
    clip, patch2, patch4, rms  16         121             241
    clip, patch2, patch4, rms  18         125             261

Statistics of several scales and places are what Deng et al. 2026 (arXiv 2602.04770, A.5) drift in.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from braid.common.torchvision import mend_torchvision
from braid.drifting.mae.latent_mae import load_latent_mae
from braid.drifting.video.features import ClipFeatures

FAMILIES = ("location", "clip", "patch2", "patch4", "rms")
ENCODERS = ("latent_mae", "resnet")
STAGES = (1, 2, 3, 4)  # of a ResNet, without its stem
HEAD = "fc."  # the classifier, which is not needed


class ImageFeatures(nn.Module):
    """Images to groups of vectors; gradients pass through to the images alone."""

    def __init__(self, features: ClipFeatures) -> None:
        super().__init__()
        self.features = features

    def forward(
        self,
        images: Tensor,  # [B, C, H, W]
    ) -> dict[str, Tensor]:
        """Groups [B, L, D] by name."""
        return self.features(images[:, :, None])

    def vectors(
        self,
        shape: tuple[int, int, int],  # C, H, W of an image
    ) -> int:
        """The vectors of an image in all groups together."""
        channels, height, width = shape
        return sum(count for count, _ in self.features.sizes((channels, 1, height, width)).values())


class ResNet(nn.Module):
    """A residual network of timm as an encoder: the output of each stage is a map."""

    mean: Tensor  # [3, 1, 1] of pixels in [0, 1]
    std: Tensor

    def __init__(
        self,
        weights: Path,
        name: str,  # in timm, such as resnet50 or resnet50.a1_in1k
        side: int | None = None,  # pixels that an image is resized to; None: as it comes
    ) -> None:
        """Read a file of timm's weights, .safetensors or .pth; a pickle is not executed.

        Raises:
            ValueError: no such network, or a file that does not hold its weights.
        """
        super().__init__()
        mend_torchvision()
        timm = import_module("timm")  # takes a second, and few need it
        known = timm.list_models("resnet*")
        if name.partition(".")[0] not in known:
            raise ValueError(
                f"image_features.resnet_name is {name!r}, expected a ResNet of timm, as resnet50"
            )
        self.network = timm.create_model(name, features_only=True, out_indices=STAGES)
        self._load(weights, name)
        self.names = self.network.feature_info.module_name()
        self.side = side
        usual = self.network.pretrained_cfg
        self.register_buffer("mean", torch.tensor(usual["mean"])[:, None, None])
        self.register_buffer("std", torch.tensor(usual["std"])[:, None, None])

    def encode(
        self,
        clips: Tensor,  # [B, 1 or 3, 1, H, W] in [-1, 1]
    ) -> dict[str, Tensor]:
        """Maps [B, D, 1, h, w] by name, from fine to coarse.

        Raises:
            ValueError: images that are neither grey nor RGB, such as latents.
        """
        images = clips.squeeze(2)
        if images.shape[1] not in (1, 3):
            raise ValueError(
                f"image_features.encoder resnet: images have {images.shape[1]} channels, "
                "expected pixels, 1 or 3 (images.input_space pixel)"
            )
        if self.side is not None and images.shape[2:] != (self.side, self.side):
            images = _resized(images, self.side)
        normalised = ((images + 1) / 2 - self.mean) / self.std  # grey becomes three channels
        maps = self.network(normalised)
        return {name: each[:, :, None] for name, each in zip(self.names, maps, strict=True)}

    def freeze(self) -> ResNet:
        """This network with weights that take no gradient; gradients still pass through it."""
        return self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> ResNet:
        """Stay as it is: batch statistics would change what is measured while it is measured."""
        return super().train(False)

    def _load(self, weights: Path, name: str) -> None:
        wanted = self.network.state_dict()
        try:
            stored = import_module("timm.models").load_state_dict(
                str(weights), device="cpu", weights_only=True
            )
            kept = {key: each for key, each in stored.items() if not key.startswith(HEAD)}
            if wrong := sorted(wanted.keys() ^ kept.keys()):
                raise ValueError(f"{len(wrong)} tensors are missing or too many, first {wrong[0]}")
            self.network.load_state_dict(kept)
        except Exception as error:  # of pickle, zip, safetensors, torch: each has its own
            line = str(error).strip().partition("\n")[0]
            raise ValueError(f"{weights}: expected weights of timm's {name} ({line})") from None


def image_features(
    encoder: str,  # latent_mae or resnet
    *,
    mae: Path,  # folder of the latent MAE
    resnet: str | None,  # file of timm's weights
    resnet_name: str,
    resnet_side: int | None,
    families: Sequence[str],
    locations: int,  # vectors of a group, at most
) -> ImageFeatures:
    """What the drift of images is computed in, on the CPU.

    Raises:
        ValueError: an unknown encoder or family, or an encoder that cannot be read.
    """
    if encoder not in ENCODERS:
        raise ValueError(
            f"image_features.encoder is {encoder!r}, expected one of {', '.join(ENCODERS)}"
        )
    if not families or not set(families) <= set(FAMILIES):
        expected = ", ".join(FAMILIES)
        raise ValueError(
            f"image_features.families are {list(families)}, expected some of {expected}"
        )
    if encoder == "latent_mae":
        return ImageFeatures(ClipFeatures(load_latent_mae(mae), families, locations))
    if resnet is None:
        raise ValueError("image_features.resnet is not set, expected a file of timm's weights")
    network = ResNet(Path(resnet), resnet_name, resnet_side)
    return ImageFeatures(ClipFeatures(network, families, locations))


def _resized(
    images: Tensor,  # [B, C, H, W]
    side: int,
) -> Tensor:
    """Bilinearly with antialiasing, [B, C, side, side].

    As two products with matrices: their gradient is deterministic on every device.
    """
    rows, columns = (_weights(length, side).to(images) for length in images.shape[2:])
    return rows @ images @ columns.mT


def _weights(length: int, side: int) -> Tensor:
    """The triangle filter from `length` to `side` pixels, [side, length]."""
    unit = torch.eye(length)[None, None]  # resized along one axis it is the matrix itself
    return F.interpolate(unit, (side, length), mode="bilinear", antialias=True)[0, 0]

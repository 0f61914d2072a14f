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

from importlib import import_module
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from braid.common.torchvision import mend_torchvision
from braid.drifting.config import ImageFeaturesConfig
from braid.drifting.mae.latent_mae import LatentMae, load_latent_mae
from braid.drifting.training.objectives import Branch
from braid.drifting.video.features import ClipFeatures, vanilla

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
        side: int = 0,  # pixels that an image is resized to; 0: as it comes
    ) -> None:
        """Read a file of timm's weights, .safetensors or .pth; a pickle is not executed.

        Raises:
            ValueError: no such network, or a file that does not hold its weights.
        """
        super().__init__()
        mend_torchvision()
        timm = import_module("timm")  # takes a second, and few need it
        if name.partition(".")[0] not in timm.list_models("resnet*"):
            raise ValueError(
                f"image_drift.features.resnet_name is {name!r}, "
                "expected a ResNet of timm, as resnet50"
            )
        self.network = timm.create_model(name, features_only=True, out_indices=STAGES)
        self._load(weights, name)
        self.names = self.network.feature_info.module_name()
        self.side = side
        trained = self.network.pretrained_cfg
        self.register_buffer("mean", torch.tensor(trained["mean"])[:, None, None])
        self.register_buffer("std", torch.tensor(trained["std"])[:, None, None])

    def encode(
        self,
        clips: Tensor,  # [B, 1 or 3, 1, H, W] in [-1, 1]
    ) -> dict[str, Tensor]:
        """Maps [B, D, 1, h, w] by name, from fine to coarse.

        Raises:
            ValueError: images that are neither gray nor RGB, such as latents.
        """
        images = clips.squeeze(2)
        if images.shape[1] not in (1, 3):
            raise ValueError(
                f"image_drift.features.encoder resnet: images have {images.shape[1]} channels, "
                "expected pixels, 1 or 3 (images.input_space pixel)"
            )
        if self.side and images.shape[2:] != (self.side, self.side):
            images = _resized(images, self.side)
        normalized = ((images + 1) / 2 - self.mean) / self.std  # gray becomes three channels
        maps = self.network(normalized)
        return {name: values[:, :, None] for name, values in zip(self.names, maps, strict=True)}

    def freeze(self) -> ResNet:
        """This network with weights that take no gradient; gradients still pass through it."""
        return self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> ResNet:
        """Stay as it is: batch statistics would change what is measured while it is measured."""
        return super().train(False)

    def _load(self, weights: Path, name: str) -> None:
        expected = self.network.state_dict()
        try:
            stored = import_module("timm.models").load_state_dict(
                str(weights), device="cpu", weights_only=True
            )
            kept = {key: value for key, value in stored.items() if not key.startswith(HEAD)}
            if wrong := sorted(expected.keys() ^ kept.keys()):
                raise ValueError(f"{len(wrong)} tensors are missing or too many, first {wrong[0]}")
            self.network.load_state_dict(kept)
        except Exception as error:  # of pickle, zip, safetensors, torch: each has its own
            line = str(error).strip().partition("\n")[0]
            raise ValueError(f"{weights}: expected weights of timm's {name} ({line})") from None


def image_features(
    config: ImageFeaturesConfig,
    mae: Path,  # folder of the latent MAE
    resnet: Path | None,  # file of timm's weights
) -> ImageFeatures:
    """What the drift of images is computed in, on the CPU.

    Raises:
        ValueError: an encoder that cannot be read.
    """
    encoder: LatentMae | ResNet
    if config.encoder == "latent_mae":
        encoder = load_latent_mae(mae)
    elif resnet is None:
        raise ValueError("image_drift.features.resnet is none, expected a file of timm's weights")
    else:
        encoder = ResNet(resnet, config.resnet_name, config.resnet_side)
    return ImageFeatures(ClipFeatures(encoder, config.families, config.locations))


def image_branches(
    config: ImageFeaturesConfig,
    mae: Path,  # folder of the latent MAE
    resnet: Path | None,  # file of timm's weights
    device: torch.device,
) -> dict[str, Branch]:
    """The drift in the flattened images themselves and in the frozen encoder's features.

    An encoder whose weight is 0 is not read.

    Raises:
        ValueError: an encoder that cannot be read.
    """
    branches: dict[str, Branch] = {"vanilla": (config.vanilla_weight, vanilla(["clip"]))}
    if config.encoder_weight:
        features = image_features(config, mae, resnet).to(device)
        branches["encoder"] = (config.encoder_weight, features)
    return branches


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

"""What a refiner of images is trained in and for, and how good it is by measures outside its loss.

The drifting loss is normalized and does not fall, and a collapsed generator has as low a loss as a
good one. Every so often validation images of each level are refined with averaged weights and
compared with the real ones: Frechet distance, recall, and how much images of one class differ.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from braid.common.rng import generator
from braid.common.torchvision import mend_torchvision
from braid.drifting.config import DriftBatchesConfig, DriftLossConfig
from braid.drifting.image.config import ImageFeaturesConfig, ImageTrainingConfig
from braid.drifting.image.refiner import ImageRefiner, KeypatchCorruption
from braid.drifting.loss.drift import DriftLoss
from braid.drifting.mae.latent_mae import LatentMae, load_latent_mae
from braid.drifting.training.objectives import (
    Branch,
    DriftObjective,
    Refinement,
    compile_deterministic,
)
from braid.drifting.video.features import ClipFeatures, vanilla
from braid.drifting.video.refiner import refine
from braid.metrics.distances import (
    RECALL,
    VARIANCE,
    PcaSpace,
    class_separation,
    frechet_distance,
    manifold,
    spread_failure,
    variance_ratio,
)
from braid.training.ema import Ema
from braid.training.trainer import Run

OUTER_LAYERS = ("refiner.embed", "refiner.squeeze", "refiner.out")  # of the objective below

Figures = dict[str, float]  # frechet, recall, variance_ratio


class Images(Protocol):
    """A set of images."""

    conditions: Tensor  # [N] the class of each image

    def indices(self, split: str) -> NDArray[np.int64]:
        """The images of a split."""

    def images(self, indices: Tensor) -> Tensor:
        """Images [B, C, H, W]."""


def image_objective(
    refiner: ImageRefiner,
    corruption: KeypatchCorruption,
    images: Images,
    branches: Mapping[str, Branch],  # of `image_branches`
    loss: DriftLossConfig,
    batches: DriftBatchesConfig,
    config: ImageTrainingConfig,
    run: Run,
) -> DriftObjective:
    """Drifting, one level a class in a step: mixed, levels would only make up for one another.

    The refiner is compiled where its config says so.
    """
    training = torch.from_numpy(images.indices("train"))
    if config.compile:
        compile_deterministic(refiner)
    return DriftObjective(
        refiner.to(run.device),
        corruption,
        lambda positions: images.images(training[positions]),
        images.conditions[training],
        batches,
        branches=branches,
        loss=DriftLoss(loss),
        log_every=run.log_every,
        level_of="class",
    )


class ImageProbe:
    """A hook of the step loop that evaluates refined validation images, level by level.

    A row has `frechet_<given>`, `recall_<given>`, `variance_ratio_<given>`, and of the classes
    `intra_inter_<given>` and `silhouette_<given>`, for the number of patches that are given at each
    level (given 0 is generation), and the state of the memory bank, `queue_...`.
    """

    def __init__(
        self,
        truth: Tensor,  # [n, C, H, W] validation images
        classes: Tensor,  # [n]
        corruption: KeypatchCorruption,
        space: PcaSpace,  # of training images
        neighbors: int,  # of recall
        config: ImageTrainingConfig,
        seed: int,
    ) -> None:
        self.truth, self.classes, self.counts = truth, classes, corruption.counts
        self.space, self.neighbors = space, neighbors
        self.every, self.steps = config.validate_every, config.steps
        ids, draw = torch.arange(len(truth)), generator(seed, "validation")
        self.corrupted = {
            level: corruption(truth, torch.full_like(ids, level), ids, draw)
            for level in range(1, corruption.levels + 1)
        }
        self.real = self.space.points(truth)
        self.interpolated = {
            self.counts[level]: self.figures(corruption.interpolate(truth, corrupted.mask))
            for level, corrupted in self.corrupted.items()
        }

    def __call__(self, done: int, objective: nn.Module, ema: Ema | None) -> Figures | None:
        """Figures of the validation images, when they are due."""
        due = done % self.every == 0 or done == self.steps
        if not due or not isinstance(objective, Refinement):
            return None
        with nullcontext() if ema is None else ema.applied(objective):
            levels = self.refined(objective.refiner)
        row = {
            f"{measure}_{given}": value
            for given, images in levels.items()
            for measure, value in (self.figures(images) | self.separation(images)).items()
        }
        return row | objective.bank_figures()

    def evaluate(self, refiner: nn.Module) -> dict[int, Figures]:
        """Refine the validation images of all levels; their figures by the given patches."""
        return {given: self.figures(images) for given, images in self.refined(refiner).items()}

    def refined(self, refiner: nn.Module) -> dict[int, Tensor]:
        """The refined validation images [n, C, H, W] by the given patches."""
        return {
            self.counts[level]: refine(refiner, corrupted, self.classes, level, alpha=1.0)
            for level, corrupted in self.corrupted.items()
        }

    def separation(self, images: Tensor) -> Figures:
        """How far apart the classes of images [n, C, H, W] lie: whether conditions have a say."""
        return class_separation(self.space.points(images), self.classes.numpy())

    def figures(self, images: Tensor) -> Figures:
        """What images [n, C, H, W] in the place of the validation images score."""
        points = self.space.points(images)
        return {
            "frechet": frechet_distance(self.real, points),
            "recall": manifold(self.real, points, self.neighbors)["recall"],
            "variance_ratio": variance_ratio(images, self.truth, self.classes),
        }

    def rows(
        self, refined: Mapping[int, Figures], objective: DriftObjective
    ) -> list[dict[str, Any]]:
        """A row for each level and method, `interpolated` and `refined`."""
        size = sum(weights.numel() for weights in objective.refiner.parameters())
        counts = {"parameters": size, "classes": len(objective.sampler.occupied)}
        rows: list[dict[str, Any]] = []
        for given, figures in refined.items():
            plain = {"given": given, "method": "interpolated", **self.interpolated[given]}
            rows += [plain, {"given": given, "method": "refined", **figures, **counts}]
        return rows

    def metrics(self, refined: Mapping[int, Figures]) -> dict[str, Any]:
        """The headline: Frechet distance and recall (None if noise is no level), and the status."""
        generated = refined.get(0, {})
        return {
            "frechet": {"generated": generated.get("frechet")},
            "recall": generated.get("recall"),
            "status": self.status(refined)[0],
        }

    def status(self, refined: Mapping[int, Figures]) -> tuple[str, str]:
        """`passed` or what is wrong with the coarsest level, and a line with the figures behind it.

        It must neither repeat itself nor scatter, and come nearer to real images than its start.
        """
        given, (low, high) = self.counts[-1], VARIANCE
        figures, start = refined[given], self.interpolated[given]["frechet"]
        frechet, recall, ratio = figures["frechet"], figures["recall"], figures["variance_ratio"]
        spread = f"variance ratio {ratio:.3g}, recall {recall:.3g}"
        failure = spread_failure(recall, ratio)
        if failure:
            expected = f"expected a variance ratio of {low} to {high} and a recall of {RECALL}"
            return failure, f"{failure}: {spread}, {expected}"
        passed = frechet < start
        relation = "below" if passed else "not below"
        return "passed" if passed else "no_better_than_start", (
            f"Frechet distance {frechet:.4g} with {given} patches given is {relation} the start's "
            f"{start:.4g}; {spread}"
        )


# ---- phi of images -------------------------------------------------------------------------------
# Groups of vectors from a frozen encoder, a latent MAE or a ResNet of timm. An image is a clip of
# one frame, so the families are those of `braid.drifting.video.features` that need no time. The
# number of vectors follows from them, for four maps such as a ResNet has (each half as large as the
# one before; the window families of maps that are no larger than a window left out):
#
#     families                   locations  64 x 64 pixels  256 x 256 pixels
#     clip, rms                  any        9               9
#     clip, patch2, patch4, rms  16         121             241
#     clip, patch2, patch4, rms  18         125             261
#
# Deng et al. 2026 (arXiv 2602.04770, A.5) drift in statistics of several scales and places.


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

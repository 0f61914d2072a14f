"""What batching the loss is worth to a whole training step of the image refiner.

    python -m benchmarks.image_drift

Noise of 64x64 pixels, 8 classes of 4 generated and 8 positive samples, 3 temperatures, 125 vectors
of a small network with a ResNet's four maps: mean and std of maps and of windows, rms. A step
draws, corrupts, refines, encodes, drifts and updates the refiner; the two runs differ in the loss
alone, `drift` against the loops of `drift_reference`. Their steps are interleaved and the fastest
of each counts. One CPU thread, or a GPU where there is one.

Expected: a ratio of 4.8 to 5.0 on a CPU, and the same losses. The larger the networks and the more
positive samples, the less it is, for both runs spend the same on those.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn

from braid.drifting.image.refiner import ImageRefiner, KeypatchCorruption
from braid.drifting.image.training import ImageFeatures
from braid.drifting.loss import reference as drift_reference
from braid.drifting.loss.drift import DriftLoss, DriftResult
from braid.drifting.loss.samples import Samples
from braid.drifting.training.objectives import DriftObjective
from braid.drifting.video.features import ClipFeatures
from braid.stage.params import load_params

SHAPE, CLASSES, VECTORS = (3, 64, 64), 8, 125
COMMITTED = load_params(Path(__file__).parents[1] / "params.yaml").image_drift
CORRUPTION = COMMITTED.corruption.model_copy(update={"given": (32, 16, 0), "noise": 0.0})
REFINER = COMMITTED.refiner.model_copy(update={"patch": 8, "style": 64, "spread": 1.0})
BATCHES = COMMITTED.batches.model_copy(
    update={
        **{"classes": CLASSES, "generated": 4, "positives": 8, "unconditional": 8},
        **{"bank": 8, "bank_unconditional": 64, "alpha_max": 4.0},
    }
)
_REPEATS = 5


class SmallNetwork(nn.Module):
    """A strided convolution a map, of the sizes that a ResNet's stages have: 16, 8, 4, 2."""

    def __init__(self) -> None:
        super().__init__()
        widths = (32, 64, 128, 256)
        self.stages = nn.ModuleList([nn.Conv2d(SHAPE[0], widths[0], 4, 4)])
        self.stages.extend(nn.Conv2d(a, b, 3, 2, 1) for a, b in pairwise(widths))

    def encode(
        self,
        clips: Tensor,  # [B, 3, 1, H, W]
    ) -> dict[str, Tensor]:
        """Maps [B, D, 1, h, w] by name."""
        inside, maps = clips[:, :, 0], {}
        for number, stage in enumerate(self.stages):
            inside = torch.relu(stage(inside))
            maps[f"layer{number + 1}"] = inside[:, :, None]
        return maps

    def freeze(self) -> Self:
        """This network with weights that take no gradient."""
        return self.requires_grad_(False)


class LoopedLoss(DriftLoss):
    """The reference in the place of the loss that trains."""

    def __call__(
        self,
        groups: Mapping[str, Samples],
        unconditional_weight: Tensor,  # [C]
        *,
        step: float = math.inf,
        statistics: bool = False,
    ) -> DriftResult:
        """The same loss, class by class and vector by vector."""
        losses = {
            name: drift_reference.drift_loss(samples, unconditional_weight, self.config)
            for name, samples in groups.items()
        }
        return DriftResult(torch.stack(list(losses.values())).sum(), losses, {})


class Training:
    """A refiner, its objective with one of the losses, and its optimizer."""

    def __init__(self, loss: DriftLoss, device: torch.device) -> None:
        torch.manual_seed(0)
        draw = torch.Generator().manual_seed(0)
        images = 2 * torch.rand(64 * CLASSES, *SHAPE, generator=draw) - 1
        corruption = KeypatchCorruption(SHAPE[1:], REFINER.patch, CORRUPTION)
        refiner = ImageRefiner(SHAPE, CLASSES, corruption.levels + 1, REFINER)
        families = ("clip", "patch2", "patch4", "rms")
        network = SmallNetwork().to(device)
        features = ImageFeatures(ClipFeatures(network, families, locations=18))
        if (vectors := features.vectors(SHAPE)) != VECTORS:
            raise AssertionError(f"{vectors} vectors, expected {VECTORS}")
        self.objective = DriftObjective(
            refiner.to(device),
            corruption,
            images.__getitem__,
            torch.arange(len(images)) % CLASSES,
            BATCHES,
            branches={"encoder": (1.0, features)},
            loss=loss,
            log_every=10**9,
        )
        self.optimizer = torch.optim.AdamW(refiner.parameters(), lr=1e-4)

    def step(self, number: int) -> float:
        """Train one step and return the loss."""
        terms = self.objective(number, torch.Generator().manual_seed(number))
        loss = torch.stack(list(terms.values())).sum()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return float(loss.detach())  # waits for the device


def compare(device: torch.device) -> str:
    """The table."""
    losses = {"batched": DriftLoss(COMMITTED.loss), "looped": LoopedLoss(COMMITTED.loss)}
    trainings = {name: Training(loss, device) for name, loss in losses.items()}
    best, last = dict.fromkeys(trainings, math.inf), {}
    for number in range(1, _REPEATS + 2):  # the first one fills the memory banks
        for name, training in trainings.items():
            start = time.perf_counter() if device.type != "cpu" else time.thread_time()
            last[name] = training.step(number)
            seconds = time.perf_counter() if device.type != "cpu" else time.thread_time()
            if number > 1:
                best[name] = min(best[name], seconds - start)
    times = "  ".join(f"{name} {1e3 * seconds:6.1f} ms" for name, seconds in best.items())
    ratio = best["looped"] / best["batched"]
    return (
        f"{device.type}: {VECTORS} vectors, a step  {times}  looped / batched {ratio:4.1f}  "
        f"losses of the last step {last['batched']:.4f} {last['looped']:.4f}"
    )


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    print(compare(torch.device("cuda" if torch.cuda.is_available() else "cpu")))


if __name__ == "__main__":
    main()

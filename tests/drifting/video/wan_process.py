"""A tiny `WanRefiner` that regresses four clips; run as a script it has its part of them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from braid.drifting.video.wan import WanRefiner
from braid.training import checkpoint, distributed
from braid.training.distributed import ALONE, Process
from braid.training.trainer import train
from tests.drifting import configs
from tests.training.toy import CPU, one_run, optimizer_config

STEPS = 3


def clips(count: int = 4, size: tuple[int, int] = (4, 6), frames: int = 5) -> list[Tensor]:
    """What a refiner is called with: clips of 3 channels, 5 classes, 3 levels."""
    draw = torch.Generator().manual_seed(1)
    mask = torch.zeros(count, frames, dtype=torch.bool)
    mask[:, [0, -1]] = True
    values = torch.randn(count, 3, frames, *size, generator=draw)
    classes, levels = torch.arange(count) % 5, torch.arange(count) % 2 + 1
    return [values, mask, mask.float(), classes, levels, torch.linspace(1, 2, count)]


def texts(count: int = 4) -> Tensor:
    """Rows of 10 channels, the first text shorter by three."""
    text = torch.randn(count, 7, 10, generator=torch.Generator().manual_seed(2))
    text[0, 4:] = 0
    return text


def fresh(**changes: Any) -> WanRefiner:
    torch.manual_seed(0)
    return WanRefiner(3, 5, 3, configs.wan_refiner(**{"clamp": False} | changes), 10)


class Regression(nn.Module):
    """Towards zero clips, of one process or of each its own."""

    def __init__(self, process: Process) -> None:
        super().__init__()
        self.refiner = fresh(recompute=True)
        self.own = slice(process.rank, None, process.world_size)
        self.kinds: set[str] = set()

    def forward(self, step: int, generator: torch.Generator) -> dict[str, Tensor]:
        self.kinds |= {type(weights).__name__ for weights in self.refiner.parameters()}
        given = [values[self.own] for values in clips()]
        return {"error": self.refiner(*given, text=texts()[self.own]).square().mean()}


def trained(process: Process = ALONE, folder: Path | None = None, steps: int = STEPS) -> Any:
    """Weights after some steps, the kinds of parameters that steps saw, and the last row."""
    objective = Regression(process)
    run = one_run(process=process, log_every=1, scratch=folder, checkpoint_every=1)
    config = optimizer_config(lr=0.01, clip_norm=0.5, ema_decay=0.9)
    parts = objective.refiner.parts
    result = train(objective, config, run, steps=steps, name="state", shard=parts)
    weights = {name: each.detach() for name, each in objective.refiner.named_parameters()}
    return {"weights": weights, "kinds": sorted(objective.kinds), "row": result.history[-1]}


if __name__ == "__main__":
    torch.set_num_threads(1)
    process, folder = distributed.launched(), Path(sys.argv[1])
    with distributed.joined(process, CPU):
        checkpoint.save(folder / f"whole{process.rank}.pt", trained(process))
        trained(process, folder / "scratch", steps=STEPS - 1)
        checkpoint.save(folder / f"resumed{process.rank}.pt", trained(process, folder / "scratch"))

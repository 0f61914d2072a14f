"""Where does the time of a drifting step go, at batches as the literature has them?

    python -m benchmarks.drift_step

needs what `dvc repro` makes. 2 classes, 32 generated clips and 64 positives of each, the default's
network and features: CPU seconds a step by part, in docs/results/drift_step.csv.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import pandas as pd
import torch

from benchmarks.seeds import ROOT
from braid.clips.codec.codec import decoder_of
from braid.clips.shards.dataset import open_clips
from braid.common.rng import generator
from braid.drifting.training.clips import ClipSplit, clip_objective
from braid.drifting.training.objectives import DriftObjective
from braid.drifting.video.corruption import Corruption
from braid.pseudo_classes.quantizer import load_pseudo_classes
from braid.stage.params import load_params
from braid.training.device import set_up
from braid.training.trainer import Run

TABLE = ROOT / "docs/results/drift_step.csv"
BATCHES = {"classes": 2, "positives": 64, "unconditional": 16, "bank": 128}
GENERATED = 32
WARM_UP, STEPS = 2, 5


def main() -> None:
    """Measure, tabulate, print."""
    objective = at_batches()
    optimizer = torch.optim.AdamW(objective.refiner.parameters(), lr=1e-6)
    seconds: dict[str, float] = defaultdict(float)
    watch(objective, seconds)
    for step in range(1, WARM_UP + STEPS + 1):  # 0 would be a logging step
        if step == WARM_UP + 1:
            seconds.clear()
        began = time.process_time()
        loss = sum(objective(step, generator(0, "step", step)).values())
        timed(seconds, "backward", loss.backward)
        timed(seconds, "optimizer", optimizer.step)
        optimizer.zero_grad()
        seconds["step"] += time.process_time() - began
    seconds["rest"] = 2 * seconds["step"] - sum(seconds.values())
    table = pd.Series(seconds).div(STEPS).rename("seconds").rename_axis("part").reset_index()
    table["fraction"] = table["seconds"] / seconds["step"] * STEPS
    table = table.sort_values("seconds", ascending=False)
    table.to_csv(TABLE, index=False, float_format="%.3f")
    print(table.to_string(index=False))


def at_batches() -> DriftObjective:
    """The default's drifting objective, untrained, at these batches."""
    params = load_params(ROOT / "params.yaml")
    device = set_up("cpu", params.hardware.threads, params.seed)
    drift, clips = params.drift, open_clips(ROOT / "data/clips", cache_mib=params.clips.cache_mib)
    pseudo = load_pseudo_classes(ROOT / "data/pseudo_classes")
    split = ClipSplit.of(clips, pseudo, "train")
    corruption = Corruption(clips.shape[1], drift.corruption)
    refiner = split.new_refiner(pseudo.classes, corruption, drift.refiner, "clip")
    settings = drift.refiners["drift"].model_copy(update={"generated": GENERATED})
    batches = drift.batches.model_copy(update=BATCHES)
    parts = settings, batches, drift.loss, refiner, corruption, split
    run = Run(seed=params.seed, device=device, log_every=10**6)
    objective = clip_objective(*parts, None, None, None, decoder_of(clips, None), run)
    assert isinstance(objective, DriftObjective)
    return objective


class Watched:
    """Something that is called, with the CPU seconds of its calls."""

    def __init__(self, inner: Any, part: str, seconds: dict[str, float]) -> None:
        self.inner, self.part, self.seconds = inner, part, seconds

    def __call__(self, *given: Any, **more: Any) -> Any:
        """Call it."""
        return timed(self.seconds, self.part, lambda: self.inner(*given, **more))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


def watch(objective: Any, seconds: dict[str, float]) -> None:
    """Time what a step calls: the parts of a `DriftObjective`, none of which calls another."""
    objective.latents = Watched(objective.latents, "reading", seconds)
    objective.corruption = Watched(objective.corruption, "corruption", seconds)
    objective.refiner.forward = Watched(objective.refiner.forward, "refiner", seconds)
    objective.loss = Watched(objective.loss, "field", seconds)
    for name, (weight, features) in objective.branches.items():
        objective.branches[name] = (weight, Watched(features, "features", seconds))
    for banks in objective.banks.values():
        for name in ("push", "draw"):
            setattr(banks, name, Watched(getattr(banks, name), "banks", seconds))


def timed(seconds: dict[str, float], part: str, call: Callable[[], Any]) -> Any:
    """Call, and add the CPU seconds to a part."""
    began = time.process_time()
    result = call()
    seconds[part] += time.process_time() - began
    return result


if __name__ == "__main__":
    main()

"""Every way of filling in a clip between its keyframes, on the same held-out clips."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from braid.drifting.corruption import Corruption, interpolation_errors
from braid.drifting.keyframes import nested_masks
from braid.drifting.refiner import Refiner
from braid.drifting.sampling import cold_sample, refine


@dataclass(frozen=True)
class Made:
    """The clips of one method and what they cost."""

    clips: Tensor  # [n, C, T, H, W]
    calls: int  # of a network, a clip
    milliseconds: float  # a clip, on this machine


def compare(
    truth: Tensor,  # [n, C, T, H, W] held-out clips
    classes: Tensor,  # [n]
    corruption: Corruption,
    refiner: Refiner,
    paired: Refiner,
    alpha: float,
    generator: torch.Generator,
) -> tuple[Tensor, dict[str, Made]]:
    """Clips from evenly placed keyframes of the coarsest level, and what each method makes of them.

    `interpolated` is the start of all others. `refined` is one step of the drifting refiner with
    the given keyframes clamped, `unclamped` the same without; `paired` one step of the refiner
    trained by regression, `cold` that refiner from level to level.
    """
    ids, levels = torch.arange(len(truth)), corruption.levels
    masks = nested_masks(len(truth), truth.shape[2], corruption.counts, None)
    corrupted = corruption.impute(truth, masks[-1], ids, generator)

    def one_step(model: Refiner, clamp: bool, guidance: float) -> Callable[[], Tensor]:
        def run() -> Tensor:
            model.clamp = clamp
            return refine(model, corrupted, classes, levels, guidance)

        return run

    def cold() -> Tensor:
        paired.clamp = True
        return cold_sample(paired, corruption, truth, masks, classes, 1.0, generator)

    made = {"interpolated": Made(corrupted.latents, 0, 0.0)}
    for name, calls, run in (
        ("refined", 1, one_step(refiner, True, alpha)),
        ("unclamped", 1, one_step(refiner, False, alpha)),
        ("paired", 1, one_step(paired, True, 1.0)),
        ("cold", levels, cold),
    ):
        started = time.perf_counter()
        clips = run()
        made[name] = Made(clips, calls, 1000 * (time.perf_counter() - started) / len(truth))
    return corrupted.mask, made


def interpolation_table(
    truth: Tensor,  # [n, C, T, H, W]
    corruptions: Sequence[Corruption],  # one for each interpolator
) -> list[dict[str, float]]:
    """A row a level: its keyframes, `<interpolator>_mse_missing` and `<interpolator>_mse_all`."""
    rows: dict[float, dict[str, float]] = {}
    for each in corruptions:
        for error in interpolation_errors(truth, each.counts, each.interpolator, each.settings):
            level, keyframes = float(error["level"]), float(error["keyframes"])
            row = rows.setdefault(level, {"level": level, "keyframes": keyframes})
            for measure in ("mse_missing", "mse_all"):
                row[f"{each.interpolator}_{measure}"] = float(error[measure])
    return list(rows.values())


def clips_of_many_classes(classes: Tensor, count: int) -> list[int]:
    """The first clips [count] at most, no two of one class while there are others."""
    seen: dict[int, int] = {}
    turns = []
    for each in classes.tolist():
        turns.append(seen.get(each, 0))
        seen[each] = turns[-1] + 1
    order = sorted(range(len(turns)), key=lambda clip: (turns[clip], clip))
    return order[:count]

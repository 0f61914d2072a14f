"""All models of a scene side by side: the rows of the summary, the dots of the trade-off chart."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from braid.radiance.figures import Tradeoff

Figures = Mapping[str, Any]  # of one model: quality and cost under one roof

QUALITY = ("psnr", "ssim", "lpips", "psnr_foreground", "psnr_vs_teacher", "status")
COST = ("fps", "peak_memory_mib", "power_w", "train_seconds")
SIZE = ("params", "steps")
BASELINES = ("white", "mean_colour", "mean_image", "silhouette")


def summary_rows(scene: str, models: Mapping[str, Figures]) -> Iterator[dict[str, Any]]:
    """A row per model, then one per trivial predictor; what a row does not have is null."""
    for name, figures in models.items():
        columns = {column: figures.get(column) for column in (*QUALITY, *COST, *SIZE)}
        yield {"scene": scene, "variant": name, **columns}
    some = next(iter(models.values()))
    for name in BASELINES:
        yield {"scene": scene, "variant": f"baseline_{name}", "psnr": some[f"psnr_{name}"]}


def tradeoff(name: str, figures: Figures) -> Tradeoff:
    """A model's place in the trade-off chart."""
    return Tradeoff(name, figures["psnr"], figures["fps"], figures["peak_memory_mib"])

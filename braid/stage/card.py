"""Experiment cards: what a training was, what came out of it and whether to keep it.

One Markdown page for each training stage, written by the stage itself: header, data, model and
loss, runtime, results, and whether to keep it, with the reason: a model whose status is `passed`.

    stage.write_metrics(results)  # with a "status"
    write_card(stage, device, data={...}, model={...}, results=results, reason="passed: ...")

The card is the stage's out below metrics/runtime/cards.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import torch

from braid.stage.context import Stage, git


class Pace:
    """A hook of the training loop that times updates, those of this process run alone."""

    def __init__(self) -> None:
        self.updates = -1  # the first one only starts the clock
        self.first = self.last = 0.0

    def __call__(self, done: int, objective: object, ema: object) -> None:
        """Note an update."""
        self.last = time.perf_counter()
        self.updates += 1
        if self.updates == 0:
            self.first = self.last

    def per_second(self, size: int = 1) -> float | None:
        """Updates a second, times how much each one looks at; None where there were too few."""
        seconds = self.last - self.first
        return round(size * self.updates / seconds, 2) if seconds > 0 else None


def write_card(
    stage: Stage,
    device: torch.device,
    *,
    data: Mapping[str, Any],  # where the data came from and how much of it there was
    model: Mapping[str, Any],  # what the params do not say: frozen parts, sampling, parameters
    results: Mapping[str, Any],  # with a status; `passed`: a model to keep
    reason: str,  # of the status, one line with the figures behind it
) -> None:
    """Write the card to the stage's out below metrics/runtime/cards."""
    decision = "keep" if results["status"] == "passed" else "drop"
    curves = [out for out in stage.outs if out.startswith("plots/")]
    sections = {
        "Header": header(stage.address),
        "Data": data,
        "Model and loss": {**model, **_flat(stage.settings())},
        "Runtime": {**_hardware(device), **stage.usage()},
        "Results": {"curves": ", ".join(curves) or None, **_flat(results)},
    }
    lines = [
        f"# {stage.address}",
        "",
        f"**{decision}**: {reason}",
        "",
    ]
    for title, rows in sections.items():
        lines += [f"## {title}", "", "| | |", "|---|---|"]
        lines += [f"| {_cell(name)} | {_cell(value)} |" for name, value in rows.items()]
        lines.append("")
    stage.out("metrics/runtime/cards").write_text("\n".join(lines), encoding="utf-8")


def clips_data(source: str, manifest: Mapping[str, Any], **counts: int) -> dict[str, Any]:
    """The data section for clips: pattern, shard range, counted and estimated clips.

    Args:
        source: the param, a glob or the name of built-in clips.
        manifest: that of the clips.
        counts: what else there was so many of.
    """
    shards = manifest["shards"]
    return {
        "pattern": source,
        "shards": f"{shards[0]['path']} to {shards[-1]['path']}, {len(shards)} in all",
        "clips": sum(shard["clips"] for shard in shards),
        "clips_estimated": shards[0]["latents"] * len(shards),  # all as the first
        "faults": len(manifest["faults"]),
        **counts,
    }


def header(address: str) -> dict[str, Any]:
    """When, what, from which version of the code and by which command.

    The experiment is DVC's name for it (`dvc exp run` sets it), else the commit; of files changed
    since, the commit says `changed`.
    """
    commit = git("rev-parse", "--short=12", "HEAD")
    changed = ", changed" if git("status", "--porcelain", "--untracked-files=no") else ""
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "stage": address,
        "experiment": os.environ.get("DVC_EXP_NAME") or commit,
        "branch": git("rev-parse", "--abbrev-ref", "HEAD"),
        "commit": commit and commit + changed,
        "command": " ".join(["python -m", f"stages.{address.split('@')[0]}", *sys.argv[1:]]),
    }


def _hardware(device: torch.device) -> dict[str, Any]:
    """What the run computed on; the peak is of this process."""
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if device.type != "cuda":
        threads = torch.get_num_threads()
        return {"device": device.type, "threads": threads, "processes": processes}
    return {
        "device": torch.cuda.get_device_name(device),
        "peak_device_mib": round(torch.cuda.max_memory_allocated(device) / 2**20, 1),
        "processes": processes,
    }


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, `section.key` by value."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        inner = _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else None
        flat.update(inner if inner is not None else {f"{prefix}{name}": value})
    return flat


def _cell(value: Any) -> str:
    """A value in a Markdown table, on one line; unknown where it could not be had."""
    if value is None:
        return "unknown"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list | tuple):
        value = ", ".join(map(str, value))
    return " ".join(str(value).split()).replace("|", "\\|")

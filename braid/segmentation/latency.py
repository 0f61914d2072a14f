"""How long a model takes to answer, and what it holds on the device."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch

from braid.segmentation.evaluation import Question, Respondent

WARM_UP = 2  # calls that are not counted: caches, kernels, lazy allocations


def latencies(
    respondents: Mapping[str, Respondent],
    question: Question,
    runs: int,
) -> dict[str, float]:
    """Of each model's answer; images are encoded, texts have been before."""
    return {
        f"{key}_{name}": value
        for name, each in respondents.items()
        for key, value in latency(each.asked(question), runs, each.device).items()
    }


def latency(call: Callable[[], object], runs: int, device: torch.device) -> dict[str, float]:
    """Milliseconds a call, `p50_ms` and `p95_ms`; on a GPU `peak_mib` too, of its memory.

    On the CPU there is only the peak of the whole process, which belongs to no call.
    """
    for _ in range(WARM_UP):
        call()
    if device.type != "cuda":
        return percentiles([_timed(call, device) for _ in range(runs)])
    torch.cuda.reset_peak_memory_stats(device)
    found = percentiles([_timed(call, device) for _ in range(runs)])
    return {**found, "peak_mib": torch.cuda.max_memory_allocated(device) / 2**20}


def percentiles(seconds: Sequence[float]) -> dict[str, float]:
    """Median and 95th percentile in milliseconds."""
    return {f"p{share}_ms": float(np.percentile(seconds, share)) * 1000 for share in (50, 95)}


def _timed(call: Callable[[], object], device: torch.device) -> float:
    _finish(device)
    started = time.perf_counter()
    call()
    _finish(device)
    return time.perf_counter() - started


def _finish(device: torch.device) -> None:
    """Wait for what was only queued."""
    if device.type != "cpu":
        torch.get_device_module(device).synchronize()

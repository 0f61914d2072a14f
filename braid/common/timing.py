"""Seconds and memory of a piece of work, with what was only queued on the device finished."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch

Result = TypeVar("Result")


def timed(call: Callable[[], Result], device: torch.device) -> tuple[Result, float]:
    """The result of a call and the seconds that it took."""
    synchronize(device)
    started = time.perf_counter()
    result = call()
    synchronize(device)
    return result, time.perf_counter() - started


def synchronize(device: torch.device) -> None:
    """Wait for the device: its kernels run asynchronously."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def reset_peak_rss_mib() -> float:
    """Start the peak again from what this process holds now, which is returned. Linux only.

    Raises:
        OSError: the system has no such switch, or forbids it.
    """
    Path("/proc/self/clear_refs").write_text("5")
    return peak_rss_mib()


def peak_rss_mib() -> float:
    """The most memory that this process has held so far, or since the peak was reset."""
    unit = 2**20 if sys.platform == "darwin" else 2**10  # getrusage: bytes there, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit

"""Where and how numbers are computed: device, threads, precision, determinism."""

import os
from contextlib import AbstractContextManager, nullcontext

import torch
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]


def set_up(name: str, threads: int, seed: int, local_rank: int = 0) -> torch.device:
    """Make this process ready to compute, always alike, and give its device.

    The seed is for what draws from the global stream before a training, such as `nn.Linear`'s
    initial weights.

    Raises:
        ValueError: no such device here, or ``threads`` is not positive.
    """
    set_threads(threads)
    make_deterministic()
    device = pick_device(name, local_rank)
    torch.manual_seed(seed)
    return device


def pick_device(name: str, local_rank: int = 0) -> torch.device:
    """The device called ``auto``, ``cpu``, ``cuda`` or ``mps``; auto takes the fastest there is.

    Args:
        name: the param.
        local_rank: which of the machine's GPUs this process has.

    Raises:
        ValueError: no such device here.
    """
    available = {
        "cuda": torch.cuda.device_count() > local_rank,
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    chosen = next(kind for kind in available if available[kind]) if name == "auto" else name
    if not available.get(chosen, False):
        there = ", ".join(kind for kind in available if available[kind])
        raise ValueError(f"device {name!r} is not available here, expected auto or one of: {there}")
    return torch.device(chosen, local_rank) if chosen == "cuda" else torch.device(chosen)


def set_threads(count: int) -> None:
    """Give PyTorch, and the linear algebra of NumPy and SciPy, ``count`` CPU threads.

    How many there are decides how sums are split, and so their last digits.

    Raises:
        ValueError: ``count`` is not positive.
    """
    if count <= 0:
        raise ValueError(f"threads is {count}, expected 1 or more")
    threadpool_limits(count)  # of the libraries that are loaded by now
    torch.set_num_threads(count)


def make_deterministic() -> None:
    """Same seed, same machine, same bytes. Call it before the first use of a GPU.

    An operation without a deterministic CUDA kernel warns and runs all the same.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.backends.cudnn.benchmark = False  # it would choose kernels by the clock
    torch.set_deterministic_debug_mode("warn")  # for eager code, without loading the compiler
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.set_flush_denormal(True)  # denormals would make the CPU many times slower, at random


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """The forward pass in ``float32`` (nothing to do), ``bfloat16`` or ``float16``.

    The weights are float32 always.

    Raises:
        ValueError: another precision.
    """
    if precision == "float32":
        return nullcontext()
    if precision in ("bfloat16", "float16"):
        return torch.autocast(device.type, getattr(torch, precision))
    raise ValueError(f"precision is {precision!r}, expected float32, bfloat16 or float16")

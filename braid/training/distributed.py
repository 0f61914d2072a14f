"""One process or many: what a launcher set, the process group, statistics of the whole batch.

A model is copied into each process (DDP), or, where a copy is too large, split over them (FSDP2).

Stages that make data share their work by units, each of which one process takes when it has
finished its last: fast ones take more, and none waits for longer than a unit takes.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.distributed.distributed_c10d import _get_default_store
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from braid.common.io import duplicate
from braid.common.progress import progress
from braid.training import checkpoint


@dataclass(frozen=True)
class Process:
    """This process among those that train together."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0  # among those on this machine

    @property
    def is_main(self) -> bool:
        """Whether this one writes and shows things for all."""
        return self.rank == 0


ALONE = Process()


def launched() -> Process:
    """What `torchrun` set in the environment; a single process where nothing is set."""
    return Process(
        rank=int(os.environ.get("RANK", "0")),
        world_size=int(os.environ.get("WORLD_SIZE", "1")),
        local_rank=int(os.environ.get("LOCAL_RANK", "0")),
    )


@contextmanager
def joined(process: Process, device: torch.device) -> Iterator[None]:
    """Within, the processes are connected: by nccl on CUDA, by gloo elsewhere.

    A stage that trains more than once joins around all of it: what is connected stays so, for
    processes that part and meet again may find each other's old addresses.
    """
    if process.world_size == 1 or dist.is_initialized():
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, rank=process.rank, world_size=process.world_size)
    try:
        yield
    finally:
        dist.destroy_process_group()


CHUNKS = 4  # of rows that a process takes at a time
_LONGEST = timedelta(days=7)  # that processes wait for one another, as for the first to list files
_shared = count()  # pieces of work so far, of which all processes have as many


@contextmanager
def working() -> Iterator[Process]:
    """Within, launched processes share work: connected without a device's help, they wait long."""
    process = launched()
    if process.world_size == 1:
        yield process
        return
    rank, size = process.rank, process.world_size
    dist.init_process_group("gloo", timeout=_LONGEST, rank=rank, world_size=size)
    try:
        yield process
    finally:
        dist.destroy_process_group()


def units(total: int) -> Iterator[int]:
    """The numbers below total that this process takes: next free ones, of which none is left out.

    All processes must call it in the same order, and wait (`barrier`) for what others have taken.
    """
    if not dist.is_initialized():
        yield from range(total)
        return
    store, key = _get_default_store(), f"braid/units/{next(_shared)}"
    while (unit := store.add(key, 1) - 1) < total:
        yield unit


def shared(
    names: Sequence[str],  # of the units' files
    make: Callable[[int], dict[str, Any]],  # a unit's number to tensors and plain values
    scratch: Path | None,  # where the files are, seen by all processes; None: each makes all units
    what: str,  # is going on
    unit: str,  # what one unit is
) -> Iterator[dict[str, Any]]:
    """What `make` gives for each unit, in their order, to the first process; nothing to others.

    Each unit is made once, by the next free process; one whose file a killed run has left is not
    made again.

    Raises:
        ValueError: on reading, a unit's file is not there.
    """
    if scratch is None:
        return map(make, progress(range(len(names)), what, unit))
    files = [scratch / name for name in names]
    for number in progress(units(len(files)), what, unit, total=len(files)):
        if not files[number].exists():
            checkpoint.save(files[number], make(number))
    barrier()
    return map(_made, files if is_main() else ())


def shared_rows(
    rows: NDArray[np.int64],  # [n]
    read: Callable[[NDArray[np.int64]], dict[str, Tensor]],  # rows [b] to values [b, ...] by name
    scratch: Path | None,  # as `shared` has it
    what: str,  # is read
    chunk: int,  # rows in memory at a time
) -> dict[str, Tensor]:
    """What is read of all rows, [n, ...] by name, to the first process; nothing to others."""
    parts = np.split(rows, range(CHUNKS * chunk, len(rows), CHUNKS * chunk))

    def made(number: int) -> dict[str, Tensor]:
        part = parts[number]
        return _joined([read(some) for some in np.split(part, range(chunk, len(part), chunk))])

    names = [f"{what}{number:05d}.pt" for number in range(len(parts))]
    return _joined(list(shared(names, made, scratch, what, "part")))


def shared_files(
    names: Sequence[str],
    write: Callable[[int, Path], None],  # a file's number to that file
    folder: Path,  # of the first process
    scratch: Path,  # of finished files, seen by all processes
    what: str,  # is going on
    unit: str,  # what a file is
) -> list[Path]:
    """The files in the folder, each written once, by the next free process.

    One that a killed run has left in its scratch folder is not written again.
    """
    scratch.mkdir(parents=True, exist_ok=True)
    for number in progress(units(len(names)), what, unit, total=len(names)):
        finished = scratch / names[number]
        if not finished.exists():
            partial = scratch / f"{names[number]}.partial"
            write(number, partial)
            partial.replace(finished)
    barrier()
    if is_main():
        for name in names:
            duplicate(scratch / name, folder / name)
    barrier()
    return [folder / name for name in names]


def _joined(parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.cat([part[name] for part in parts]) for name in (parts or [{}])[0]}


def _made(file: Path) -> dict[str, Any]:
    values = checkpoint.load(file)
    if values is None:
        raise ValueError(f"{file}: missing; expected BRAID_SCRATCH to be a folder that all share")
    return values


def is_main() -> bool:
    """Whether this process puts together what all have made."""
    return not dist.is_initialized() or dist.get_rank() == 0


def barrier() -> None:
    """Wait until all processes are here."""
    if dist.is_initialized():
        dist.barrier()


def alike(value: int, device: torch.device) -> bool:
    """Whether all processes have this value."""
    if not dist.is_initialized():
        return True
    extremes = torch.tensor([value, -value], device=device)
    dist.all_reduce(extremes, dist.ReduceOp.MAX)
    most, least = extremes.tolist()
    return bool(most == -least)


def mean(values: Tensor) -> Tensor:
    """The mean over processes of a tensor of one shape in each; differentiable.

    A loss made with it, averaged over processes as DDP averages gradients, has the gradients that
    one process would find on the joint batch. All processes must call it in the same order.
    """
    if not dist.is_initialized():
        return values
    total: Tensor = _Sum.apply(values)
    return total / dist.get_world_size()


class _Sum(torch.autograd.Function):
    """Each process gets the sum; so the gradient of each term is the sum of all gradients."""

    @staticmethod
    def forward(context: object, values: Tensor) -> Tensor:
        return _summed(values)

    @staticmethod
    def backward(context: object, gradient: Tensor) -> Tensor:
        return _summed(gradient)


def _summed(values: Tensor) -> Tensor:
    total = values.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total)
    return total


# ---- Weights, their gradients and an optimizer's state, split over processes ---------------------


@contextmanager
def sharded(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Within, each process holds its part of these modules' parameters; inner modules come first.

    A forward or backward pass gathers one module's at a time, and gradients are averaged, as DDP
    does. Afterwards each process has all of them. A process alone has them anyway.
    """
    modules = modules if dist.is_initialized() else ()
    for module in modules:
        fully_shard(module, reshard_after_forward=True)
    yield
    for module in modules:
        if isinstance(module, FSDPModule):
            module.unshard()


def is_sharded(module: nn.Module) -> bool:
    """Whether a part of it is."""
    return any(isinstance(part, FSDPModule) for part in module.modules())


def whole(values: Any) -> Any:
    """Nested values with what is split put together on the CPU; all processes must call it."""
    if isinstance(values, DTensor):
        return values.full_tensor().cpu()
    if isinstance(values, Mapping):
        return {name: whole(value) for name, value in values.items()}
    if isinstance(values, list):
        return [whole(value) for value in values]
    return values


def split_like(values: Tensor, parameter: Tensor) -> Tensor:
    """Whole values as the parameter is: split if it is; all processes must call it."""
    if isinstance(parameter, DTensor) and values.shape == parameter.shape:
        values = values.to(parameter.device)
        return distribute_tensor(values, parameter.device_mesh, parameter.placements)
    return values

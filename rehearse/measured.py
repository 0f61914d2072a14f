"""A stage, measured: `python -m rehearse.measured -m stages.train_drift drift`.

Its loops are those with a progress bar. Of each: how often it went around and the FLOPs of each
time, which a longer run is projected from. Counted are products of matrices, convolutions and
attention, forward and backward, as `torch.utils.flop_counter` does; what is elementwise is not.
REHEARSE_LOG is the folder of the results, REHEARSE_GIB the memory that a stage may take.
"""

from __future__ import annotations

import os
import resource
import runpy
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry
from tqdm import tqdm

from braid.common import progress
from braid.common.io import write_json
from braid.common.timing import peak_rss_mib


@dataclass
class Loop:
    """What a loop of the stage did."""

    name: str
    unit: str
    flops: list[int] = field(default_factory=list)  # of each time around


class FlopCounter(TorchDispatchMode):
    """FLOPs of all that torch computes in it."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        formula = flop_registry.get(func._overloadpacket)
        if formula is None and func is not torch.ops.prim.device.default:
            with self:  # inference_mode hands over composites whole
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        out = func(*args, **kwargs)
        if formula is not None:
            self.total += formula(*args, **kwargs, out_val=out)
        return out


class Meter:
    """The FLOPs of a stage, by loop."""

    def __init__(self) -> None:
        self.counter = FlopCounter()
        self.loops: dict[str, Loop] = {}
        self._in_loops = 0  # of the counter's total, what belongs to a loop

    def around(self, name: str, unit: str, items: Iterator[Any]) -> Iterator[Any]:
        """The items; what is computed from one to the next belongs to the innermost loop."""
        loop = self.loops.setdefault(name, Loop(name, unit))
        for item in items:
            before, inner = self.counter.total, self._in_loops
            yield item
            spent = self.counter.total - before
            loop.flops.append(spent - (self._in_loops - inner))
            self._in_loops = inner + spent

    def bar(self) -> type[tqdm[Any]]:
        """A progress bar that counts; it stands in the place of tqdm's."""
        meter = self

        class Counted(tqdm):  # type: ignore[type-arg]
            def __init__(self, items: Any, what: str, *arguments: Any, **options: Any) -> None:
                super().__init__(items, what, *arguments, **options)
                self.what, self.item = what, options["unit"]

            def __iter__(self) -> Iterator[Any]:
                return meter.around(self.what, self.item, super().__iter__())

        return Counted


def main() -> None:
    """Run the stage as `python -m` would, and write down what it took, failed or not."""
    _, module, *item = sys.argv[1:]
    sys.argv = [module, *item]
    limit = int(float(os.environ["REHEARSE_GIB"]) * 2**30)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    meter, started, status = Meter(), time.perf_counter(), "ok"
    vars(progress)["tqdm"] = meter.bar()
    try:
        with meter.counter:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
    except BaseException as error:
        status = " ".join(str(error).split()) or type(error).__name__
        raise
    finally:
        stage = module.removeprefix("stages.")
        record = {
            "stage": stage if not item else f"{stage}@{'-'.join(item)}",
            "status": status,
            "seconds": time.perf_counter() - started,
            "peak_rss_mib": peak_rss_mib(),
            "flops": meter.counter.total,
            "loops": [asdict(loop) for loop in meter.loops.values()],
        }
        write_json(Path(os.environ["REHEARSE_LOG"]) / f"{record['stage']}.json", record)


if __name__ == "__main__":
    main()

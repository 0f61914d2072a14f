"""A small objective for the loop's tests; run as a script it trains in a process of its own."""

import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from braid.training import checkpoint, distributed
from braid.training.config import OptimizerConfig
from braid.training.distributed import ALONE, Process
from braid.training.ema import Ema
from braid.training.trainer import Run, TrainResult, train

CPU = torch.device("cpu")
STEPS = 12
CHECKPOINT_EVERY = 3


def optimizer_config(**changes: Any) -> OptimizerConfig:
    """AdamW at a constant rate, nothing else, but for the changes."""
    plain: dict[str, Any] = {
        "name": "adamw",
        "lr": 0.1,
        "lr_floor": 1.0,
        "warmup": 0.0,
        "weight_decay": 0.0,
        "accumulate": 1,
        "clip_norm": None,
        "ema_decay": None,
    }
    return OptimizerConfig(**{**plain, **changes})


def one_run(**changes: Any) -> Run:
    """A run on the CPU that saves nothing, but for the changes."""
    return Run(**{"seed": 0, "device": CPU, **changes})


class Toy(nn.Module):
    """Regression of a sine, with a statistic of the whole batch and a frozen part."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.net = nn.Sequential(
                nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 8), nn.Dropout(dropout), nn.Linear(8, 1)
            )
        self.frozen = nn.Linear(1, 1).requires_grad_(False)
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))
        self.diagnostics: dict[str, Tensor | float] = {}

    def draw(self, step: int, generator: torch.Generator) -> Tensor:
        return torch.rand(8, 3, generator=generator)

    def forward(self, step: int, generator: torch.Generator) -> dict[str, Tensor]:
        inputs = self.draw(step, generator)
        outputs = self.net(inputs)
        center = distributed.mean(outputs.mean())  # of the joint batch
        self.calls += 1
        self.diagnostics = {"center": center.detach(), "calls": float(self.calls)}
        error = outputs - torch.sin(6 * inputs[:, :1])
        return {"fit": error.square().mean(), "spread": 0.1 * (outputs - center).square().mean()}


class FixedRows(Toy):
    """Each process takes its part of the same 8 rows."""

    def __init__(self, process: Process) -> None:
        super().__init__()
        rows = torch.rand(8, 3, generator=torch.Generator().manual_seed(1))
        self.rows = rows[process.rank :: process.world_size]

        self.drawn: list[float] = []

    def draw(self, step: int, generator: torch.Generator) -> Tensor:
        self.drawn.append(torch.rand((), generator=generator).item())
        return self.rows


class Banked(Toy):
    """Half of each batch are rows that this process drew in the step before."""

    def __init__(self) -> None:
        super().__init__()
        self.bank = torch.zeros(4, 3)

    def draw(self, step: int, generator: torch.Generator) -> Tensor:
        new = torch.rand(4, 3, generator=generator)
        rows = torch.cat([new, self.bank])
        self.bank = new
        return rows


class Bank:
    """The rows of a `Banked`, of each process its own."""

    def __init__(self, objective: Banked) -> None:
        self.objective = objective

    def state_dict(self) -> dict[str, Tensor]:
        return {"rows": self.objective.bank}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.objective.bank = state["rows"]


class Counter:
    """State beside the weights."""

    def __init__(self) -> None:
        self.seen = 0

    def state_dict(self) -> dict[str, int]:
        return {"seen": self.seen}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.seen = state["seen"]


def train_toy(scratch: Path | None, kill_at: int | None = None) -> tuple[Toy, Counter, TrainResult]:
    """A training of every moving part, in which the process may kill itself after a step."""
    objective, counter = Toy(dropout=0.2), Counter()

    def hook(done: int, module: nn.Module, ema: Ema | None) -> dict[str, float] | None:
        counter.seen += done
        if done == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return {"seen": counter.seen} if done in (2, 7) else None

    config = optimizer_config(
        name="muon",
        lr=0.02,
        lr_floor=0.1,
        warmup=0.25,
        weight_decay=0.01,
        accumulate=2,
        clip_norm=0.5,
        ema_decay=0.9,
    )
    result = train(
        objective,
        config,
        one_run(seed=5, scratch=scratch, log_every=1, checkpoint_every=CHECKPOINT_EVERY),
        steps=STEPS,
        name="state",
        outer_layers=("net.0", "net.4"),
        term_gradients=True,
        stateful={"counter": counter},
        hooks={"probe": hook},
    )
    return objective, counter, result


def train_on_rows(process: Process = ALONE) -> dict[str, object]:
    """Three steps on the same 8 rows; the last step's gradients, the weights, the history."""
    objective = FixedRows(process)
    config = optimizer_config(lr=0.01, accumulate=2)
    run = one_run(process=process, log_every=1)
    with distributed.joined(process, CPU):  # as trainings in phases do: nobody parts between
        result = train(objective, config, run, steps=3, term_gradients=True)
        if process.world_size > 1:
            torch.distributed.barrier()
    parameters = dict(objective.net.named_parameters())
    return {
        "gradients": {name: each.grad for name, each in parameters.items()},
        "weights": {name: each.detach() for name, each in parameters.items()},
        "history": result.history,
        "drawn": objective.drawn,
    }


def train_banked(process: Process, scratch: Path, kill_at: str) -> dict[str, object]:
    """Twelve steps with memory banks; killed after a step, or ``in 6``: while that one is saved."""
    objective = Banked()
    moment, step = kill_at.split()

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def hook(done: int, module: nn.Module, ema: Ema | None) -> None:
        if done != int(step):
            return
        if moment == "after":
            die()
        if moment == "in" and process.is_main:  # the others' parts are written by then
            checkpoint.save = lambda *_: die()

    run = one_run(process=process, scratch=scratch, log_every=1, checkpoint_every=CHECKPOINT_EVERY)
    with distributed.joined(process, CPU):
        result = train(
            objective,
            optimizer_config(lr=0.02),
            run,
            steps=STEPS,
            name="state",
            stateful={"bank": Bank(objective)},
            hooks={"killer": hook},
        )
    return {
        "weights": objective.net.state_dict(),
        "bank": objective.bank,
        "history": result.history,
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1] == "killed":
        train_toy(Path(sys.argv[2]), kill_at=int(sys.argv[3]))
    elif sys.argv[1] == "banked":
        process, folder = distributed.launched(), Path(sys.argv[2])
        state = train_banked(process, folder, sys.argv[3])
        checkpoint.save(folder / f"end{process.rank}.pt", state)
    elif sys.argv[1] == "apart":  # one scratch a machine; the second one has no state there
        process, folder = distributed.launched(), Path(sys.argv[2])
        run = one_run(process=process, scratch=folder / str(process.rank), checkpoint_every=1)
        train(Toy(), optimizer_config(), run, steps=1, name="state")
        try:
            train(Toy(), optimizer_config(), run, steps=2, name="state")
        except ValueError as error:
            (folder / f"{process.rank}.txt").write_text(str(error))
    else:
        process = distributed.launched()
        path = Path(sys.argv[2]) / f"{process.rank}.pt"
        checkpoint.save(path, train_on_rows(process))

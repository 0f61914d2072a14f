"""The step loop of every training stage.

    objective = Distillation(student, ...)  # forward(step, generator) -> weighted loss terms
    optimizer = adamw(objective, lr=1e-3)
    result = train(objective, optimizer, warmup_cosine(...), LoopSettings(...), seed=0, ...)
    result.ema.copy_to(objective)  # where settings.ema_decay is set

The objective is a module whose `forward(step, generator)` draws a batch and returns named scalar
loss terms, already weighted; their sum is minimised. What it puts into an attribute `diagnostics`
(name to detached scalar) is logged. All its randomness comes from the generator, a function of
(seed, step, rank, micro-step), which also seeds the global one; everything else that a step
depends on is in the checkpoint: a training that was killed goes on as if nothing had happened.

Under several processes each draws its own batch, and DDP averages the gradients. Buffers follow
the first process at each step, so large data are better kept in plain attributes.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from tqdm import tqdm

from braid.training import checkpoint as checkpoints
from braid.training import distributed, gradients
from braid.training.device import generator
from braid.training.distributed import ALONE, Process
from braid.training.ema import Ema
from braid.training.gradients import PerTerm
from braid.training.optimizers import Optimizer, trainable
from braid.training.schedules import Schedule

Row = dict[str, float]
Hook = Callable[[int, nn.Module, Ema | None], Row | None]


class Stateful(Protocol):
    """Something beside the weights that a resumed run must find as it was."""

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain Python values."""

    def load_state_dict(self, state: Any) -> Any:
        """Take over what `state_dict` gave."""


@dataclass(frozen=True, kw_only=True)
class LoopSettings:
    """How long and how to step."""

    steps: int
    accumulate: int = 1  # micro-steps per update, each with its own draw
    clip_norm: float | None = None  # upper bound on the norm of the whole gradient
    ema_decay: float | None = None
    log_every: int = 10  # steps between two rows of the history
    checkpoint_every: int = 200  # steps
    precision: str = "float32"  # or bfloat16, float16: autocast of the forward pass
    term_gradients: bool = False  # log the gradient norm of each loss term too


@dataclass
class TrainResult:
    """What a training leaves beside the weights; a kill and resume change nothing in it.

    A row of the history has the figures of one step before its update, averaged over micro-steps
    and processes: ``step lr loss <term>... gradient_norm gradient_norm_<term>...
    <diagnostic>...``; diagnostics are those of the last micro-step. Rows are of every
    ``log_every``-th step, counted from 0, and of the last one.
    """

    history: list[Row] = field(default_factory=list)
    probes: dict[str, list[Row]] = field(default_factory=dict)  # rows that the hooks returned
    ema: Ema | None = None


def train(
    objective: nn.Module,
    optimizer: Optimizer,
    schedule: Schedule,  # from a step, counted from 0, to a multiplier of the base learning rate
    settings: LoopSettings,
    *,
    seed: int,
    device: torch.device,  # where the objective and its generators are
    process: Process = ALONE,
    checkpoint: Path | None = None,  # the final state too: a rerun returns at once
    stateful: Mapping[str, Stateful] | None = None,  # what else to keep; the same in each process
    hooks: Mapping[str, Hook] | None = None,  # called after each update: how many, module, averages
    on_log: Callable[[Row], None] | None = None,  # called with each new row, in one process
) -> TrainResult:
    """Train the objective's trainable parameters in place, going on from the checkpoint if any.

    Raises:
        FloatingPointError: a loss or the gradient is not finite; the last good checkpoint stays.
        ValueError: the checkpoint is damaged or of another model.
    """
    ema = Ema(objective, settings.ema_decay) if settings.ema_decay is not None else None
    state = _State(objective, optimizer, stateful or {}, TrainResult(ema=ema))
    start = state.load(checkpoint) if checkpoint else 0
    model = gradients.parallel(objective, process) if start < settings.steps else objective
    parameters = list(trainable(objective).values())
    for step in _progress(start, settings.steps, process):
        done = step + 1
        logged = step % settings.log_every == 0 or done == settings.steps

        # Accumulate gradients.
        optimizer.zero_grad()
        streams = [(seed, "step", step, process.rank, i) for i in range(settings.accumulate)]
        draws = [generator(*stream, device=device) for stream in streams]
        split_over = parameters if settings.term_gradients and logged else []
        terms, per_term = gradients.accumulate(model, step, draws, settings.precision, split_over)
        norm = gradients.norm([each.grad for each in parameters if each.grad is not None])
        figures = _figures(terms, norm, per_term)
        _stop_unless_finite(step, figures, settings.precision)

        # Clip and update.
        if settings.clip_norm is not None:
            nn.utils.clip_grads_with_norm_(parameters, settings.clip_norm, norm)
        optimizer.set_lr_multiplier(schedule(step))
        optimizer.step()
        if ema:
            ema.update(step)

        # Log, probe, save.
        if logged:
            row = {"step": step, "lr": optimizer.lr, **figures, **_diagnostics(objective, device)}
            state.result.history.append(row)
            if on_log and process.is_main:
                on_log(row)
        for name, hook in (hooks or {}).items():
            if (probed := hook(done, objective, ema)) is not None:
                state.result.probes.setdefault(name, []).append({"step": done, **probed})
        due = done % settings.checkpoint_every == 0 or done == settings.steps
        if checkpoint and due and process.is_main:
            state.save(checkpoint, done)
    return state.result


@dataclass
class _State:
    """All that the coming steps depend on."""

    objective: nn.Module
    optimizer: Optimizer
    stateful: Mapping[str, Stateful]
    result: TrainResult

    def save(self, path: Path, done: int) -> None:
        """Write the state after ``done`` updates; frozen parameters are not part of it."""
        frozen = {name for name, p in self.objective.named_parameters() if not p.requires_grad}
        weights = self.objective.state_dict()
        ema = self.result.ema
        state = {
            "done": done,
            "objective": {name: weights[name] for name in weights if name not in frozen},
            "optimizer": self.optimizer.state_dict(),
            "ema": ema.state_dict() if ema else {},
            "stateful": {name: each.state_dict() for name, each in self.stateful.items()},
            "history": self.result.history,
            "probes": self.result.probes,
        }
        checkpoints.save(path, state)

    def load(self, path: Path) -> int:
        """Go back to where the checkpoint was made; how many updates were done there."""
        saved = checkpoints.load(path)
        if saved is None:
            return 0
        try:
            self.objective.load_state_dict(self.objective.state_dict() | saved["objective"])
            self.optimizer.load_state_dict(saved["optimizer"])
            if self.result.ema:
                self.result.ema.load_state_dict(saved["ema"])
            for name, each in self.stateful.items():
                each.load_state_dict(saved["stateful"][name])
        except (KeyError, RuntimeError, ValueError) as error:
            raise ValueError(f"{path}: of another model; delete it to start again") from error
        self.result.history, self.result.probes = saved["history"], saved["probes"]
        return int(saved["done"])


def _progress(start: int, stop: int, process: Process) -> "tqdm[int]":
    """The steps to take, with a bar in one process where there is a terminal."""
    hidden = None if process.is_main else True
    return tqdm(range(start, stop), initial=start, total=stop, disable=hidden)


def _figures(terms: Mapping[str, Tensor], norm: Tensor, per_term: PerTerm) -> Row:
    """Loss, terms and gradient norms; one transfer from the device."""
    norms = {f"gradient_norm_{name}": gradients.norm(each) for name, each in per_term.items()}
    loss = torch.stack(list(terms.values())).sum()
    names = ["loss", *terms, "gradient_norm", *norms]
    values = torch.stack([loss, *terms.values(), norm, *norms.values()])
    return dict(zip(names, values.tolist(), strict=True))


def _stop_unless_finite(step: int, figures: Row, precision: str) -> None:
    """Name the first term that is not finite, rather than the loss that it spoiled."""
    narrow = "; float16 overflows where bfloat16 does not" if precision == "float16" else ""
    for name in sorted(figures, key=lambda name: name == "loss"):
        if not math.isfinite(figures[name]):
            raise FloatingPointError(
                f"step {step}: {name} is {figures[name]}; the last checkpoint is kept{narrow}"
            )


def _diagnostics(objective: nn.Module, device: torch.device) -> Row:
    """The objective's own scalars, averaged over processes."""
    scalars: Mapping[str, Tensor | float] = getattr(objective, "diagnostics", {})
    values = torch.tensor([float(each) for each in scalars.values()], device=device)
    return dict(zip(scalars, distributed.mean(values).tolist(), strict=True))

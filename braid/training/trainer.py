"""The step loop of every training stage: AdamW or Muon, warm-up and cosine, averaged weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from braid.common.progress import progress
from braid.common.rng import generator, seed_global_stream
from braid.training import checkpoint as checkpoints
from braid.training import distributed
from braid.training.config import OptimizerConfig
from braid.training.device import autocast
from braid.training.distributed import ALONE, Process, joined, split_like
from braid.training.ema import Ema
from braid.training.optimizers import Optimizer, Schedule, adamw, muon, trainable, warmup_cosine

# ---- Gradients of one update: accumulated over micro-steps, averaged over processes, per term

PerTerm = dict[str, list[Tensor]]
HALF_SCALE = 1024.0  # of losses in float16, whose small gradients would be rounded to 0


def parallel(objective: nn.Module, process: Process) -> nn.Module:
    """The objective as one replica of many; it may leave parameters unused in some steps."""
    if process.world_size == 1 or distributed.is_sharded(objective):
        return objective
    return DistributedDataParallel(objective, find_unused_parameters=True)


def accumulate(
    model: nn.Module,
    step: int,
    draws: Sequence[torch.Generator],
    precision: str,
    split_over: Sequence[nn.Parameter],
    ahead: Callable[[torch.Generator | None], None] | None = None,  # is told each next draw
    following: torch.Generator | None = None,  # the first of the next step
) -> tuple[dict[str, Tensor], PerTerm]:
    """Backpropagate the mean over the draws; replicas exchange gradients after the last one.

    Returns:
        The loss terms and, for the parameters in ``split_over``, the gradient of each term: of
        the whole batch, all processes together.
    """
    terms: dict[str, Tensor] = {}
    per_term: PerTerm = {}
    scale = HALF_SCALE if precision == "float16" else 1.0
    for draw, after in zip(draws, [*draws[1:], following], strict=True):
        if ahead:
            ahead(after)
        seed_global_stream(draw)
        with _exchange(model, now=draw is draws[-1]):
            with autocast(draw.device, precision):
                parts = {name: term / len(draws) for name, term in model(step, draw).items()}
            scaled = {name: scale * part.float() for name, part in parts.items()}
            if split_over:
                _add_per_term(per_term, scaled, split_over)
            torch.stack(list(scaled.values())).sum().backward()
        for name, part in parts.items():
            terms[name] = terms.get(name, 0) + part.detach().float()
    joint = distributed.mean(torch.stack(list(terms.values())))
    for gradients in per_term.values():
        gradients[:] = [distributed.mean(gradient) / scale for gradient in gradients]
    if scale != 1:
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.grad /= scale
    return dict(zip(terms, joint, strict=True)), per_term


def norm(gradients: Sequence[Tensor]) -> Tensor:
    """The length of all gradients as one vector."""
    return nn.utils.get_total_norm(gradients)


def _exchange(model: nn.Module, now: bool) -> AbstractContextManager[None]:
    if isinstance(model, DistributedDataParallel) and not now:
        return model.no_sync()
    return nullcontext()


def _add_per_term(
    per_term: PerTerm, terms: Mapping[str, Tensor], parameters: Sequence[nn.Parameter]
) -> None:
    """Add the gradient of each term; a constant has none."""
    for name, term in terms.items():
        if term.requires_grad:
            grads = torch.autograd.grad(term, parameters, retain_graph=True, materialize_grads=True)
            before = per_term.get(name)
            per_term[name] = (
                [a + b for a, b in zip(before, grads, strict=True)] if before else list(grads)
            )


# ---- The step loop of every training stage -----------------------------------------------------
#     objective = Distillation(student, ...)  # forward(step, generator) -> weighted loss terms
#     result = train(objective, config.optimizer, run, steps=config.steps)
#
# The objective is a module whose `forward(step, generator)` draws a batch and returns named scalar
# loss terms, already weighted; their sum is minimized. What it puts into an attribute `diagnostics`
# (name to detached scalar) is logged. All its randomness comes from the generator, a function of
# (seed, step, rank, micro-step), which also seeds the global one. An objective that has a method
# `ahead` is told the next generator before, to read what it will draw. Everything else that a step
# depends on is in the checkpoint: a training that was killed goes on as if nothing had happened.
#
# Under several processes each one draws its own batch, and DDP averages the gradients. Buffers
# follow the first process at each step, so large data are better kept in plain attributes. What is
# stateful may differ, as memory banks of own draws do: each process saves its own.

Row = dict[str, float]
Hook = Callable[[int, nn.Module, Ema | None], Row | None]


class Stateful(Protocol):
    """Something beside the weights that a resumed run must find as it was."""

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain Python values."""

    def load_state_dict(self, state: Any) -> Any:
        """Take over what `state_dict` gave."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """Where and how a stage trains, the same for all of its trainings."""

    seed: int
    device: torch.device  # where the objective and its generators are
    precision: str = "float32"  # or bfloat16, float16: autocast of the forward pass
    process: Process = ALONE
    log_every: int = 10  # steps between two rows of the history
    checkpoint_every: int = 200  # steps
    scratch: Path | None = None  # folder of training states; None: nothing is saved
    on_log: Callable[[Row], None] | None = None  # called with each new row, in one process


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
    config: OptimizerConfig,
    run: Run,
    *,
    steps: int,
    name: str = "training",  # of its state in the run's scratch folder
    lr_scale: float = 1.0,
    outer_layers: Sequence[str] = (),  # the first and the last, which Muon leaves to AdamW
    fused: bool = False,  # AdamW in one kernel, which pays where there are hundreds of tensors
    term_gradients: bool = False,  # log the gradient norm of each loss term too
    stateful: Mapping[str, Stateful] | None = None,  # what else to keep, of each process its own
    hooks: Mapping[str, Hook] | None = None,  # called after each update: how many, module, averages
    shard: Sequence[nn.Module] = (),  # parts to split over processes, inner ones first; or copies
) -> TrainResult:
    """Train the objective in place; where an average is kept, its parameters end as that.

    The final state is saved too: a rerun goes on from it, and returns at once.

    Raises:
        FloatingPointError: a loss or the gradient is not finite; the last good checkpoint stays.
        ValueError: the checkpoint is damaged, of another model or of another number of processes.
    """
    rates: dict[str, Any] = {
        "lr": config.lr * lr_scale,
        "weight_decay": config.weight_decay,
        "fused": fused,
    }
    schedule = warmup_cosine(steps=steps, warmup=int(config.warmup * steps), floor=config.lr_floor)
    with joined(run.process, run.device), distributed.sharded(shard):
        optimizer = (
            muon(objective, **rates, exclude=outer_layers)
            if config.name == "muon"
            else adamw(objective, **rates)
        )
        ema = Ema(objective, config.ema_decay) if config.ema_decay is not None else None
        state = _State(objective, optimizer, stateful or {}, TrainResult(ema=ema), run.process)
        _loop(state, schedule, config, run, steps, name, term_gradients, hooks or {})
        if ema is not None:
            ema.copy_to(objective)
    return state.result


def _loop(
    state: _State,
    schedule: Schedule,  # from a step, counted from 0, to a multiplier of the base learning rate
    config: OptimizerConfig,
    run: Run,
    steps: int,
    name: str,
    term_gradients: bool,
    hooks: Mapping[str, Hook],
) -> None:
    """The steps that are left, all that happens in each in one place."""
    objective, optimizer, ema = state.objective, state.optimizer, state.result.ema
    checkpoint = run.scratch / f"{name}.pt" if run.scratch else None
    start = state.load(checkpoint) if checkpoint else 0
    if not distributed.alike(start, run.device):
        raise ValueError(
            f"{checkpoint}: processes found states of different steps, this one {start}; expected "
            "BRAID_SCRATCH to be a folder that all machines share"
        )
    model = parallel(objective, run.process) if start < steps else objective
    parameters = list(trainable(objective).values())
    left = range(start, steps)
    main = run.process.is_main
    for step in progress(left, name, "step", total=steps, initial=start, shown=main):
        done = step + 1
        logged = step % run.log_every == 0 or done == steps

        # Accumulate gradients.
        optimizer.zero_grad()
        draws = [_draw(run, step, i) for i in range(config.accumulate)]
        split_over = parameters if term_gradients and logged else []
        following = _draw(run, done, 0) if done < steps else None
        further = getattr(objective, "ahead", None), following
        terms, per_term = accumulate(model, step, draws, run.precision, split_over, *further)
        total = norm([value.grad for value in parameters if value.grad is not None])
        figures = _figures(terms, distributed.whole(total), per_term)
        _stop_unless_finite(step, figures, run.precision)

        # Clip and update.
        if config.clip_norm is not None:
            nn.utils.clip_grads_with_norm_(parameters, config.clip_norm, total)
        optimizer.set_lr_multiplier(schedule(step))
        optimizer.step()
        if ema:
            ema.update(step)

        # Log, probe, save.
        if logged:
            place, shown = {"step": step, "lr": optimizer.lr}, _diagnostics(objective, run.device)
            row = {**place, **figures, **shown}
            state.result.history.append(row)
            if run.on_log and run.process.is_main:
                run.on_log(row)
        for probe, hook in hooks.items():
            if (probed := hook(done, objective, ema)) is not None:
                state.result.probes.setdefault(probe, []).append({"step": done, **probed})
        due = done % run.checkpoint_every == 0 or done == steps
        if checkpoint and due:
            state.save(checkpoint, done)


def _draw(run: Run, step: int, micro_step: int) -> torch.Generator:
    """The generator of all randomness of a micro-step in this process."""
    return generator(run.seed, "step", step, run.process.rank, micro_step, device=run.device)


@dataclass
class _State:
    """All that the coming steps depend on."""

    objective: nn.Module
    optimizer: Optimizer
    stateful: Mapping[str, Stateful]
    result: TrainResult
    process: Process

    def save(self, path: Path, done: int) -> None:
        """Write the state after ``done`` updates, in all processes.

        The first process's file counts: it is written when the parts of all others are there, and
        parts of an earlier step go when it is. A kill at any time leaves one step of all.
        """
        shared = self.process.world_size > 1 and bool(self.stateful)
        if shared:
            if not self.process.is_main:
                part = {name: part.state_dict() for name, part in self.stateful.items()}
                checkpoints.save(self._part(path, done), part)
            distributed.barrier()
        whole = distributed.whole(self._whole(done))
        if self.process.is_main:
            checkpoints.save(path, whole)
        if shared:
            distributed.barrier()
            for part_path in path.parent.glob(self._part(path, "*").name):
                if part_path != self._part(path, done):
                    part_path.unlink()

    def _part(self, path: Path, done: int | str) -> Path:
        """Where this process, which is not the first, keeps what is its own."""
        return path.with_name(f"{path.stem}.rank{self.process.rank}.{done}.pt")

    def _whole(self, done: int) -> dict[str, Any]:
        """The state; frozen parameters are not part of it."""
        frozen = {name for name, p in self.objective.named_parameters() if not p.requires_grad}
        weights = self.objective.state_dict()
        ema = self.result.ema
        return {
            "done": done,
            "processes": self.process.world_size,
            "objective": {name: weights[name] for name in weights if name not in frozen},
            "optimizer": self.optimizer.state_dict(),
            "ema": ema.state_dict() if ema else {},
            "stateful": {name: part.state_dict() for name, part in self.stateful.items()},
            "history": self.result.history,
            "probes": self.result.probes,
        }

    def load(self, path: Path) -> int:
        """Go back to where the checkpoint was made; how many updates were done there."""
        saved = checkpoints.load(path)
        if saved is None:
            return 0
        if saved.get("processes") != self.process.world_size:
            raise ValueError(
                f"{path}: of {saved.get('processes')} processes, expected "
                f"{self.process.world_size}; delete it to start again"
            )
        own = saved["stateful"] if self.process.is_main else self._load_part(path, saved["done"])
        try:
            now = self.objective.state_dict()
            then = {
                name: split_like(value, now[name]) for name, value in saved["objective"].items()
            }
            self.objective.load_state_dict(now | then)
            self.optimizer.load_state_dict(saved["optimizer"])
            if self.result.ema:
                self.result.ema.load_state_dict(saved["ema"])
            for name, part in self.stateful.items():
                part.load_state_dict(own[name])
        except (KeyError, RuntimeError, ValueError) as error:
            raise ValueError(f"{path}: of another model; delete it to start again") from error
        self.result.history, self.result.probes = saved["history"], saved["probes"]
        return int(saved["done"])

    def _load_part(self, path: Path, done: int) -> dict[str, Any]:
        """What this process, which is not the first, saved at the same step."""
        if not self.stateful:
            return {}
        part = self._part(path, done)
        own = checkpoints.load(part)
        if own is None:
            raise ValueError(f"{part}: missing; delete {path.name} to start again")
        return own


def _figures(terms: Mapping[str, Tensor], total: Tensor, per_term: PerTerm) -> Row:
    """Loss, terms and gradient norms; one transfer from the device."""
    norms = {f"gradient_norm_{name}": norm(gradients) for name, gradients in per_term.items()}
    loss = torch.stack(list(terms.values())).sum()
    names = ["loss", *terms, "gradient_norm", *norms]
    values = torch.stack([loss, *terms.values(), total, *norms.values()])
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
    values = torch.tensor([float(scalar) for scalar in scalars.values()], device=device)
    return dict(zip(scalars, distributed.mean(values).tolist(), strict=True))


class Snapshot:
    """A training hook that keeps a module's weights after one step: averages where some are kept.

    The end of a training is averages too, so that the two can be compared.
    """

    def __init__(self, field: nn.Module, step: int) -> None:
        self.field, self.step = field, step
        self.weights: dict[str, Tensor] = {}

    def __call__(self, step: int, objective: nn.Module, ema: Ema | None = None) -> None:
        """Take the weights when their step has come."""
        if step == self.step:
            with ema.applied(objective) if ema else nullcontext():
                state = self.field.state_dict()
                self.weights = {name: value.detach().cpu().clone() for name, value in state.items()}

    def state_dict(self) -> dict[str, Tensor]:
        """What was taken so far."""
        return self.weights

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go back to what was taken."""
        self.weights = dict(state)

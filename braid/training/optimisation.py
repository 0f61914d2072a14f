"""How a network is optimised: AdamW or Muon, warm-up and cosine, averaged weights at the end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from braid.training.distributed import joined
from braid.training.ema import Ema
from braid.training.loop import LoopSettings, TrainResult, train
from braid.training.optimizers import adamw, muon
from braid.training.schedules import warmup_cosine


@dataclass(frozen=True, kw_only=True)
class Optimisation:
    """Hyperparameters of one training."""

    lr: float
    lr_floor: float  # of lr, at the end of the cosine
    warmup: float  # share of the steps
    weight_decay: float
    accumulate: int  # batches a step
    clip_norm: float
    ema_decay: float
    term_gradients: bool = False  # log the gradient norm of each loss term
    fused: bool = False  # AdamW in one kernel, which pays where there are hundreds of tensors
    optimizer: str = "adamw"  # muon: for the hidden matrices, adamw for the rest


def optimise(
    objective: nn.Module,
    settings: Optimisation,
    *,
    steps: int,
    precision: str,
    log_every: int,
    checkpoint_every: int,
    lr_scale: float = 1.0,
    outer_layers: Sequence[str] = (),  # the first and the last, which Muon leaves to AdamW
    **loop: Any,  # of `train`: seed, device, process, checkpoint, stateful, hooks, on_log
) -> TrainResult:
    """Train the objective in place; its parameters end as their moving average."""
    rates: dict[str, Any] = {
        "lr": settings.lr * lr_scale,
        "weight_decay": settings.weight_decay,
        "fused": settings.fused,
    }
    optimizer = (
        muon(objective, **rates, exclude=outer_layers)
        if settings.optimizer == "muon"
        else adamw(objective, **rates)
    )
    schedule = warmup_cosine(
        steps=steps, warmup=int(settings.warmup * steps), floor=settings.lr_floor
    )
    loop_settings = LoopSettings(
        steps=steps,
        accumulate=settings.accumulate,
        clip_norm=settings.clip_norm,
        ema_decay=settings.ema_decay,
        log_every=log_every,
        checkpoint_every=checkpoint_every,
        precision=precision,
        term_gradients=settings.term_gradients,
    )
    with joined(loop["process"], loop["device"]):
        result = train(objective, optimizer, schedule, loop_settings, **loop)
    if result.ema is not None:
        result.ema.copy_to(objective)
    return result


class Snapshot:
    """A training hook that keeps a module's weights as they stand after one step."""

    def __init__(self, field: nn.Module, step: int) -> None:
        self.field, self.step = field, step
        self.weights: dict[str, Tensor] = {}

    def __call__(self, step: int, objective: nn.Module, ema: Ema | None = None) -> None:
        """Take the weights when their step has come."""
        if step == self.step:
            state = self.field.state_dict()
            self.weights = {name: each.detach().cpu().clone() for name, each in state.items()}

    def state_dict(self) -> dict[str, Tensor]:
        """What was taken so far."""
        return self.weights

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go back to what was taken."""
        self.weights = dict(state)

"""AdamW alone, or Muon for the hidden matrices and AdamW for the rest, behind one object."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from braid.training.distributed import split_like

# ---- Learning-rate schedules: from a step, counted from 0, to a multiplier of the base rate ----

Schedule = Callable[[int], float]


def warmup_cosine(*, steps: int, warmup: int, floor: float) -> Schedule:
    """A linear climb over ``warmup`` steps, then half a cosine from 1 down to ``floor``.

    The climb starts above 0 and the cosine would meet the floor at ``steps``, one past the last:
    no step is spent at rate 0. (Formulas of nanoGPT's get_lr.)

    Raises:
        ValueError: the warm-up is negative or leaves no step for the cosine.
    """
    if not 0 <= warmup < steps:
        raise ValueError(f"warmup is {warmup}, expected 0 to {steps - 1} for {steps} steps")

    def multiplier(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        progress = min((step - warmup) / (steps - warmup), 1.0)
        return floor + (1 - floor) * (1 + math.cos(math.pi * progress)) / 2

    return multiplier


Named = dict[str, nn.Parameter]


class Optimizer:
    """Several torch optimizers that step together, with one base learning rate and one state."""

    def __init__(self, parts: Mapping[str, torch.optim.Optimizer], lr: float) -> None:
        self.parts = dict(parts)
        self.base_lr = lr
        self.lr = lr

    def set_lr_multiplier(self, multiplier: float) -> None:
        """Learn at ``multiplier`` times the base rate from now on."""
        self.lr = self.base_lr * multiplier
        for part in self.parts.values():
            for group in part.param_groups:
                group["lr"] = self.lr

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for part in self.parts.values():
            part.zero_grad(set_to_none=True)

    def step(self) -> None:
        """Update every parameter that has a gradient."""
        for part in self.parts.values():
            part.step()

    def state_dict(self) -> dict[str, Any]:
        """The state of each part, by its name."""
        return {name: part.state_dict() for name, part in self.parts.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave, of weights that are split over processes the whole."""
        for name, part in self.parts.items():
            weights = [each for group in part.param_groups for each in group["params"]]
            of_weights = {
                index: {key: split_like(value, weights[index]) for key, value in values.items()}
                for index, values in state[name]["state"].items()
            }
            part.load_state_dict({**state[name], "state": of_weights})


def adamw(
    module: nn.Module,
    *,
    lr: float,
    weight_decay: float = 0.0,
    betas: tuple[float, float] = (0.9, 0.99),
    eps: float = 1e-8,
    fused: bool = False,
) -> Optimizer:
    """AdamW on all trainable parameters; biases, norms and other 1-D ones do not decay."""
    part = _adamw(trainable(module), lr, weight_decay, betas, eps, fused)
    return Optimizer({"adamw": part}, lr)


def muon(
    module: nn.Module,
    *,
    lr: float,
    weight_decay: float = 0.0,
    momentum: float = 0.95,
    betas: tuple[float, float] = (0.9, 0.99),
    eps: float = 1e-8,
    fused: bool = False,
    exclude: Sequence[str] = (),
) -> Optimizer:
    """Muon on the hidden matrices (see `hidden_matrices`), AdamW on all other parameters.

    One learning rate serves both: Muon's updates are scaled to the size of AdamW's, 0.2 per
    element (Liu et al. 2025, Muon is Scalable for LLM Training, section 2.2).

    Args:
        exclude: modules or parameters for AdamW, by name: the first and the last layer.
    """
    hidden = hidden_matrices(module, exclude)
    rest = {name: value for name, value in trainable(module).items() if name not in hidden}
    parts: dict[str, torch.optim.Optimizer] = {}
    if hidden:
        parts["muon"] = torch.optim.Muon(
            list(hidden.values()),
            lr=lr,
            weight_decay=weight_decay,
            momentum=momentum,
            adjust_lr_fn="match_rms_adamw",
        )
    if rest:
        parts["adamw"] = _adamw(rest, lr, weight_decay, betas, eps, fused)
    return Optimizer(parts, lr)


def hidden_matrices(module: nn.Module, exclude: Sequence[str] = ()) -> Named:
    """The trainable weights of `nn.Linear` layers, but those at or below a name in ``exclude``.

    Embeddings, convolutions and grids of small networks are stored in other shapes or modules:
    orthogonalising those tables as if they were matrices would mix unrelated rows.

    Raises:
        ValueError: a name in ``exclude`` is neither a module nor a parameter.
    """
    known = dict(module.named_modules()) | dict(module.named_parameters())
    for name in exclude:
        if name not in known:
            raise ValueError(f"exclude: no module or parameter is called {name!r}")
    linear = {id(layer.weight) for layer in module.modules() if isinstance(layer, nn.Linear)}
    tables = {id(layer.weight) for layer in module.modules() if isinstance(layer, nn.Embedding)}
    return {
        name: parameter
        for name, parameter in trainable(module).items()
        if id(parameter) in linear - tables  # a head may share its weight with an embedding
        and not any(name == layer or name.startswith(f"{layer}.") for layer in exclude)
    }


def trainable(module: nn.Module) -> Named:
    """The parameters that learn, by name."""
    return {name: value for name, value in module.named_parameters() if value.requires_grad}


def _adamw(
    parameters: Named,
    lr: float,
    weight_decay: float,
    betas: tuple[float, float],
    eps: float,
    fused: bool = False,  # one kernel for all tensors, other roundings
) -> torch.optim.AdamW:
    matrices = [value for value in parameters.values() if value.ndim > 1]
    vectors = [value for value in parameters.values() if value.ndim <= 1]
    groups = [
        {"params": matrices, "weight_decay": weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    used = [group for group in groups if group["params"]]
    return torch.optim.AdamW(used, lr=lr, betas=betas, eps=eps, fused=fused or None)

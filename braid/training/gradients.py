"""Gradients of one update: accumulated over micro-steps, averaged over processes, per term."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from braid.training import distributed
from braid.training.device import autocast, seed_global_stream
from braid.training.distributed import Process

PerTerm = dict[str, list[Tensor]]
HALF_SCALE = 1024.0  # of losses in float16, whose small gradients would be rounded to 0


def parallel(objective: nn.Module, process: Process) -> nn.Module:
    """The objective as one replica of many; it may leave parameters unused in some steps."""
    if process.world_size == 1:
        return objective
    return DistributedDataParallel(objective, find_unused_parameters=True)


def accumulate(
    model: nn.Module,
    step: int,
    draws: Sequence[torch.Generator],
    precision: str,
    split_over: Sequence[nn.Parameter],
) -> tuple[dict[str, Tensor], PerTerm]:
    """Backpropagate the mean over the draws; replicas exchange gradients after the last one.

    Returns:
        The loss terms and, for the parameters in ``split_over``, the gradient of each term: of
        the whole batch, all processes together.
    """
    terms: dict[str, Tensor] = {}
    per_term: PerTerm = {}
    scale = HALF_SCALE if precision == "float16" else 1.0
    for draw in draws:
        seed_global_stream(draw)
        with _exchange(model, now=draw is draws[-1]):
            with autocast(draw.device, precision):
                shares = {name: term / len(draws) for name, term in model(step, draw).items()}
            scaled = {name: scale * share.float() for name, share in shares.items()}
            if split_over:
                _add_per_term(per_term, scaled, split_over)
            torch.stack(list(scaled.values())).sum().backward()
        for name, share in shares.items():
            terms[name] = terms.get(name, 0) + share.detach().float()
    joint = distributed.mean(torch.stack(list(terms.values())))
    for gradients in per_term.values():
        gradients[:] = [distributed.mean(each) / scale for each in gradients]
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
            found = torch.autograd.grad(term, parameters, retain_graph=True, materialize_grads=True)
            before = per_term.get(name)
            per_term[name] = (
                [a + b for a, b in zip(before, found, strict=True)] if before else list(found)
            )

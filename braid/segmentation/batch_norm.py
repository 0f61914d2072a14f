"""Batch normalisation where a batch is too small for it.

RepViT and the text encoder's RepMixer blocks hold `BatchNorm2d`. One image at a time, as at full
size, does not stand for the others: a network that learnt with its batches' statistics fails with
the running ones in evaluation. So they are held still (as usual in detection since He et al. 2016),
those of the pretrained backbone. One without pretrained weights has none, only mean 0 and variance
1, with which the signal fades in some backbones: there they are measured first, over some batches.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


def freeze_batch_norm(model: nn.Module) -> int:
    """Normalise by the statistics as they are, in training too, whatever `model.train()` says.

    Scale and shift still learn. Gives how many layers that concerns.
    """
    for norm in _norms(model):
        norm.register_forward_pre_hook(_as_in_evaluation)
    return len(_norms(model))


@contextmanager
def measured_batch_norm(model: nn.Module) -> Iterator[None]:
    """Within, the statistics become the mean over all batches that pass; every batch counts alike.

    Run batches through the model, without gradients; then freeze or evaluate it.
    """
    norms = _norms(model)
    before = [(norm.momentum, norm.training) for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean
        norm.train()
    try:
        yield
    finally:
        for norm, (momentum, training) in zip(norms, before, strict=True):
            norm.momentum = momentum
            norm.train(training)


@contextmanager
def unmoved_batch_norm(model: nn.Module) -> Iterator[None]:
    """Within, batches leave no trace in the running statistics."""
    norms = _norms(model)
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count


def _norms(model: nn.Module) -> list[_BatchNorm]:
    return [each for each in model.modules() if isinstance(each, _BatchNorm)]


def _as_in_evaluation(norm: nn.Module, inputs: object) -> None:
    """A hook that runs before each pass; nothing that sets modes can undo it."""
    norm.training = False

"""Gradient checkpointing: layers whose activations are computed again in the backward pass.

(Chen et al. 2016, Training Deep Nets with Sublinear Memory Cost.) transformers checkpoints the
layers of its ViT, not those of SAM3's heads, and timm's feature extractors know their own way;
here is one way for both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from braid.segmentation.batch_norm import unmoved_batch_norm


def checkpoint_layers(layers: Iterable[nn.Module]) -> None:
    """Checkpoint each layer wherever it is trained; values and gradients stay what they are.

    The second pass leaves the running statistics of batch normalisation alone. Layers keep their
    class, their name and their hooks. One without parameters is not worth it, and may be in place.
    """
    for layer in layers:
        if next(layer.parameters(), None) is not None:
            layer.forward = partial(_forward, layer, layer.forward)


def _forward(layer: nn.Module, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    if not (layer.training and torch.is_grad_enabled()):
        return forward(*args, **kwargs)
    return checkpoint(
        partial(forward, **kwargs),
        *args,
        use_reentrant=False,
        context_fn=lambda: (nullcontext(), unmoved_batch_norm(layer)),
    )

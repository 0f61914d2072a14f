"""A trained student made smaller or faster for use, and the size of what results.

`fused` folds batch normalisation and parallel branches of the backbone into single convolutions
(Ding et al. 2021, RepVGG; RepViT is made for it): the same function in fewer steps. `quantised`
keeps the matrices of linear layers and the text encoder's words in 8 bits and quantises activations
as they come (dynamic quantisation): another function, close to the first. Both are for inference.
"""

from __future__ import annotations

import copy
import io
import warnings
from typing import Any

import torch
from torch import nn

MEGABYTE = 1_000_000


def fused(student: Any) -> Any:
    """A copy with the backbone's branches folded, in evaluation mode."""
    from timm.utils.model import reparameterize_model

    dtype = student.vision_encoder.gain.dtype
    copied = copy.deepcopy(student).eval().float()
    reparameterize_model(copied.vision_encoder.backbone, inplace=True)
    return copied.to(dtype)


def quantised(student: Any) -> Any:
    """A copy on the CPU with linear layers and words in int8, in evaluation mode.

    Convolutions, normalisation and the heads' few embeddings stay in float32.
    """
    from torch.ao.quantization import (
        default_dynamic_qconfig,
        float_qparams_weight_only_qconfig,
        quantize_dynamic,
    )

    words = "text_encoder.embeddings.token_embedding"
    copied = copy.deepcopy(student).eval().float().cpu()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it will move to another library one day
        return quantize_dynamic(
            copied,
            {nn.Linear: default_dynamic_qconfig, words: float_qparams_weight_only_qconfig},
            inplace=True,
        )


def megabytes(model: nn.Module) -> float:
    """The size of a model's state on disk, in millions of bytes."""
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    return file.tell() / MEGABYTE

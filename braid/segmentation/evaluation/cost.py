"""What a model costs in use: its size, its latency, and a student made smaller or faster.

`fused` folds batch normalization and parallel branches of the backbone into single convolutions
(Ding et al. 2021, RepVGG; RepViT is made for it): the same function in fewer steps. `quantized`
keeps the matrices of linear layers and the text encoder's embeddings in 8 bits and quantizes
activations as they come (dynamic quantization): another function, close to the first. Both are for
inference.
"""

from __future__ import annotations

import copy
import io
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from braid.common.timing import timed
from braid.segmentation.data.prompted import PromptBatch
from braid.segmentation.sam3.predictor import Predictor

MEGABYTE = 1_000_000
WARM_UP = 2  # calls that are not counted: caches, kernels, lazy allocations


def fused(student: Any) -> Any:
    """A copy with the backbone's branches folded, in evaluation mode."""
    from timm.utils.model import reparameterize_model

    dtype = student.vision_encoder.gain.dtype
    folded = copy.deepcopy(student).eval().float()
    reparameterize_model(folded.vision_encoder.backbone, inplace=True)
    return folded.to(dtype)


def quantized(student: Any) -> Any:
    """A copy on the CPU with linear layers and token embeddings in int8, in evaluation mode.

    Convolutions, normalization and the heads' few embeddings stay in float32.
    """
    from torch.ao.quantization import (
        default_dynamic_qconfig,
        float_qparams_weight_only_qconfig,
        quantize_dynamic,
    )

    embedding = "text_encoder.embeddings.token_embedding"
    copied = copy.deepcopy(student).eval().float().cpu()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it will move to another library one day
        return quantize_dynamic(
            copied,
            {nn.Linear: default_dynamic_qconfig, embedding: float_qparams_weight_only_qconfig},
            inplace=True,
        )


def megabytes(model: nn.Module) -> float:
    """The size of a model's state on disk, in millions of bytes."""
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    return file.tell() / MEGABYTE


def latencies(
    predictors: Mapping[str, Predictor],
    batch: PromptBatch,
    runs: int,
) -> dict[str, dict[str, float]]:
    """Those of each model's prediction; images are encoded, texts have been before."""
    return {
        name: latency(predictor.prepared(batch), runs, predictor.device)
        for name, predictor in predictors.items()
    }


def latency(call: Callable[[], object], runs: int, device: torch.device) -> dict[str, float]:
    """Milliseconds a call, `p50_ms` and `p95_ms`; on a GPU `peak_mib` too, of its memory.

    On the CPU there is only the peak of the whole process, which belongs to no call.
    """
    for _ in range(WARM_UP):
        call()
    if device.type != "cuda":
        return percentiles([timed(call, device)[1] for _ in range(runs)])
    torch.cuda.reset_peak_memory_stats(device)
    times = percentiles([timed(call, device)[1] for _ in range(runs)])
    return {**times, "peak_mib": torch.cuda.max_memory_allocated(device) / 2**20}


def percentiles(seconds: Sequence[float]) -> dict[str, float]:
    """Median and 95th percentile in milliseconds."""
    return {f"p{rank}_ms": float(np.percentile(seconds, rank)) * 1000 for rank in (50, 95)}

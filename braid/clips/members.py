"""What a shard's members hold: tensors and prompts, checked, from bytes nobody vouches for.

A `.pt` file is a pickle, which may run any program when it is loaded. PyTorch's restricted loader
(`weights_only=True`) builds tensors and plain containers only; whatever else a member asks for is
an error here.
"""

from __future__ import annotations

import io
from typing import Literal

import torch
from torch import Tensor

Layout = Literal["cthw", "tchw"]

CHANNELS = 16  # of the Wan 2.1 VAE
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def read_latent(content: bytes, layout: Layout) -> Tensor:
    """The latents [16, T, H, W] of a member that holds them in ``layout``, as they were stored.

    Raises:
        ValueError: no tensor, of another number of axes or channels, or not finite.
    """
    stored = _without_batch_axis(_read_tensor(content), 4, "latents")
    latents = stored.movedim(layout.index("c"), 0)
    if latents.shape[0] != CHANNELS:
        raise ValueError(
            f"latents {list(stored.shape)} read as {layout} have {latents.shape[0]} channels, "
            f"expected {CHANNELS}"
        )
    return latents


def read_embedding(content: bytes) -> Tensor:
    """The text embedding [L, D] of a member.

    Raises:
        ValueError: no tensor, of another number of axes, or not finite.
    """
    return _without_batch_axis(_read_tensor(content), 2, "the text embedding")


def read_prompt(content: bytes) -> str:
    """The prompt of a member, without blanks around it.

    Raises:
        ValueError: not UTF-8.
    """
    try:
        return content.decode("utf-8").strip()
    except UnicodeDecodeError:
        raise ValueError("is not UTF-8 text") from None


def write_tensor(values: Tensor) -> bytes:
    """What `torch.save` makes of a tensor and of nothing that it is a view of."""
    buffer = io.BytesIO()
    torch.save(values.clone(memory_format=torch.contiguous_format), buffer)
    return buffer.getvalue()


def _read_tensor(content: bytes) -> Tensor:
    try:
        values = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged or hostile file may raise anything
        raise ValueError(f"is no tensor file ({_first_sentence(error)})") from None
    if not isinstance(values, Tensor):
        raise ValueError(f"holds {type(values).__name__}, expected a tensor")
    if values.layout is not torch.strided or values.dtype not in DTYPES.values():
        raise ValueError(f"holds {values.dtype} values, expected one of {', '.join(DTYPES)}")
    if values.nbytes > len(content):
        raise ValueError(f"holds {len(content)} bytes, too few for {list(values.shape)}")
    if not values.isfinite().all():
        raise ValueError("holds NaN or infinite values")
    return values.detach()


def _without_batch_axis(values: Tensor, axes: int, what: str) -> Tensor:
    if values.dim() == axes + 1 and values.shape[0] == 1:
        values = values[0]
    if values.dim() != axes:
        raise ValueError(f"{what} {list(values.shape)} have {values.dim()} axes, expected {axes}")
    return values


def _first_sentence(error: Exception) -> str:
    words = str(error).split(". ")[0].split()
    return " ".join([type(error).__name__ + ":", *words])[:120]

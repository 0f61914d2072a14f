"""Sparse-linear attention: exact to the blocks of keys that matter, linear to all the others.

Softmax attention among N tokens costs N^2. SLA (Zhang et al. 2025, arXiv 2509.24006) cuts queries
and keys into blocks of b tokens and scores pairs of blocks by their mean vectors. A block of
queries attends exactly, O_s, to the best `density` of all blocks of keys, its critical ones, and
through a feature map phi, here the softmax over channels, to the rest:

    O = O_s + O_l W        O_l = phi(Q) H / (phi(Q) z)
    H = sum_rest phi(K)^T V        z = sum_rest phi(K)^T 1

O_s is normalized over critical blocks alone. W mixes a head's channels and starts at 0: untrained,
the rest is dropped; at density 1 there is no rest, and O is full attention.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

GATHERED = 2**25  # numbers of keys that are copied at once


class SparseLinearAttention(nn.Module):
    """Attention among tokens; the only weights are W, one for all heads."""

    def __init__(
        self,
        channels: int,  # of a head
        density: float,  # of the blocks of keys, those attended to exactly; at least one is
        block: int,  # tokens
    ) -> None:
        super().__init__()
        self.density, self.block = density, block
        self.mix = nn.Linear(channels, channels, bias=False)
        nn.init.zeros_(self.mix.weight)

    def forward(
        self,
        queries: Tensor,  # [B, H, N, d]
        keys: Tensor,  # [B, H, N, d]
        values: Tensor,  # [B, H, N, d]
    ) -> Tensor:
        """Mixed values, [B, H, N, d]."""
        critical = critical_blocks(queries, keys, self.density, self.block)
        exact = flexible if queries.device.type == "cuda" else gathered
        mixed = exact(queries, keys, values, critical, self.block)
        if critical.shape[-1] == critical.shape[-2]:
            return mixed
        return mixed + self.mix(linear_rest(queries, keys, values, critical, self.block))


class WanSelfAttention(nn.Module):
    """Sparse-linear attention in the place of diffusers' `WanAttnProcessor`, between tokens."""

    def __init__(self, attention: SparseLinearAttention) -> None:
        super().__init__()
        self.attention = attention

    def forward(
        self,
        layer: Any,  # diffusers' WanAttention
        tokens: Tensor,  # [B, N, D]
        text: None = None,
        mask: None = None,
        rotary: tuple[Tensor, Tensor] | None = None,  # cosines and sines [1, N, 1, d]
    ) -> Tensor:
        """Attended tokens, [B, N, D]."""
        normalized = layer.norm_q(layer.to_q(tokens)), layer.norm_k(layer.to_k(tokens))
        queries, keys = (part.unflatten(2, (layer.heads, -1)) for part in normalized)
        if rotary is not None:
            queries, keys = rotated(queries, *rotary), rotated(keys, *rotary)
        values = layer.to_v(tokens).unflatten(2, (layer.heads, -1))
        heads = [part.to(values).transpose(1, 2) for part in (queries, keys, values)]
        mixed = self.attention(*heads).transpose(1, 2).flatten(2)
        return layer.to_out[1](layer.to_out[0](mixed.to(values)))


def rotated(
    heads: Tensor,  # [B, N, H, d]
    cosines: Tensor,  # [1, N, 1, d], each twice
    sines: Tensor,
) -> Tensor:
    """Rotary position embeddings of neighboring channels, as Wan has them, [B, N, H, d]."""
    even, odd = heads.unflatten(-1, (-1, 2)).unbind(-1)
    cosines, sines = cosines[..., ::2], sines[..., 1::2]
    turned = torch.stack([even * cosines - odd * sines, even * sines + odd * cosines], -1)
    return turned.flatten(-2).to(heads.dtype)


@torch.no_grad()
def critical_blocks(
    queries: Tensor,  # [B, H, N, d]
    keys: Tensor,
    density: float,
    block: int,
) -> Tensor:
    """Which k of the n blocks of keys each block of queries attends to exactly, [B, H, n, k]."""
    size = queries.new_tensor([min(block, queries.shape[2] - at) for at in _starts(queries, block)])
    means = [blocks(part, block).sum(-2) / size[:, None] for part in (queries, keys)]
    scores = means[0] @ means[1].transpose(-1, -2)
    return scores.topk(max(1, math.ceil(density * scores.shape[-1])), sorted=False).indices


def gathered(
    queries: Tensor,  # [B, H, N, d]
    keys: Tensor,
    values: Tensor,
    critical: Tensor,  # [B, H, n, k]
    block: int,
) -> Tensor:
    """Exact attention to critical blocks, whose keys are copied for each, [B, H, N, d]."""
    length, (_, _, count, chosen) = queries.shape[2], critical.shape
    parts = [blocks(part, block) for part in (queries, keys, values)]
    at_once = max(1, GATHERED // (queries[:, :, 0].numel() * chosen * block))
    within, mixed = torch.arange(block, device=queries.device), []
    for own, some in zip(parts[0].split(at_once, 2), critical.split(at_once, 2), strict=True):
        rows = some.flatten(2)[..., None, None].expand(-1, -1, -1, *parts[1].shape[3:])
        near = [part.gather(2, rows).unflatten(2, some.shape[2:]) for part in parts[1:]]
        chosen_keys, chosen_values = (part.flatten(3, 4) for part in near)
        places = (some[..., None] * block + within).flatten(3)[..., None, :]
        mask = places < length if count * block > length else None
        mixed.append(
            functional.scaled_dot_product_attention(own, chosen_keys, chosen_values, attn_mask=mask)
        )
    return torch.cat(mixed, 2).flatten(2, 3)[:, :, :length]


def flexible(
    queries: Tensor,  # [B, H, N, d]
    keys: Tensor,
    values: Tensor,
    critical: Tensor,  # [B, H, n, k]
    block: int,
) -> Tensor:
    """The same by PyTorch's flex attention, which copies nothing and skips all other blocks."""
    from torch.nn.attention.flex_attention import BlockMask

    length, (*heads, count, chosen) = queries.shape[2], critical.shape
    attended = ~rest_of(critical)

    def allowed(clip: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return attended[clip, head, query // block, key // block] & (key < length)

    counts = torch.full((*heads, count), chosen, dtype=torch.int32, device=queries.device)
    order = attended.int().argsort(dim=-1, descending=True, stable=True).int()
    mask = BlockMask.from_kv_blocks(counts, order, BLOCK_SIZE=block, mask_mod=allowed)
    padded = [_padded(part, block) for part in (queries, keys, values)]
    return _flex(queries.device.type)(*padded, block_mask=mask)[:, :, :length]


@cache
def _flex(device: str) -> Callable[..., Tensor]:
    """Flex attention, compiled on CUDA: as it is, it computes all pairs."""
    from torch.nn.attention.flex_attention import flex_attention

    attend: Any = flex_attention
    return torch.compile(attend) if device == "cuda" else attend


def linear_rest(
    queries: Tensor,  # [B, H, N, d]
    keys: Tensor,
    values: Tensor,
    critical: Tensor,  # [B, H, n, k]
    block: int,
) -> Tensor:
    """Linear attention to all blocks but the critical ones, O_l, [B, H, N, d]; 0 where none is."""
    length, channels = queries.shape[2:]
    phi = blocks(keys.softmax(-1), block)  # zero rows, beyond the last key, count for nothing
    ones = torch.ones_like(phi[..., :1])
    states = phi.transpose(-1, -2) @ torch.cat([blocks(values, block), ones], -1)  # H and z
    rest = rest_of(critical).to(states)
    summed = (rest @ states.flatten(3)).unflatten(3, (channels, channels + 1))
    weighted = blocks(queries.softmax(-1), block) @ summed
    mixed = weighted[..., :-1] / weighted[..., -1:].clamp(min=torch.finfo(states.dtype).tiny)
    return mixed.flatten(2, 3)[:, :, :length]


def rest_of(
    critical: Tensor,  # [B, H, n, k]
) -> Tensor:
    """True where a block of keys is not critical for a block of queries, [B, H, n, n]."""
    every = critical.shape[2]
    rest = torch.ones(*critical.shape[:3], every, dtype=torch.bool, device=critical.device)
    return rest.scatter(-1, critical, False)


def blocks(
    tokens: Tensor,  # [B, H, N, d]
    block: int,
) -> Tensor:
    """Blocks of tokens, the last one filled up with zeros, [B, H, n, b, d]."""
    return _padded(tokens, block).unflatten(2, (-1, block))


def _padded(tokens: Tensor, block: int) -> Tensor:
    return functional.pad(tokens, (0, 0, 0, -tokens.shape[2] % block))


def _starts(tokens: Tensor, block: int) -> range:
    return range(0, tokens.shape[2], block)

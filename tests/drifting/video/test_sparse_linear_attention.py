"""Sparse-linear attention against full attention and against masked ones, pair by pair."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from braid.drifting.video.sparse_linear_attention import (
    SparseLinearAttention,
    critical_blocks,
    flexible,
    gathered,
    linear_rest,
    rest_of,
)

BLOCK, CHANNELS = 8, 12


def heads(length: int) -> list[Tensor]:
    draw = torch.Generator().manual_seed(length)
    return [torch.randn(2, 3, length, CHANNELS, generator=draw) for _ in range(3)]


def pairs(critical: Tensor, length: int) -> Tensor:
    """Whether a query attends exactly to a key, [B, H, N, N]."""
    exact = ~rest_of(critical)
    every = exact.repeat_interleave(BLOCK, 2).repeat_interleave(BLOCK, 3)
    return every[:, :, :length, :length]


@pytest.mark.parametrize("length", [37, 64])
def test_with_all_blocks_critical_it_is_full_attention(length: int) -> None:
    attention = SparseLinearAttention(CHANNELS, density=1.0, block=BLOCK)
    torch.nn.init.normal_(attention.mix.weight)
    full = functional.scaled_dot_product_attention(*heads(length))
    torch.testing.assert_close(attention(*heads(length)), full, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("length", [37, 64])
@pytest.mark.parametrize("exact", [gathered, flexible])
def test_exact_part_is_attention_to_critical_blocks_alone(
    length: int, exact: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("braid.drifting.video.sparse_linear_attention.GATHERED", 2**13)
    queries, keys, values = heads(length)
    critical = critical_blocks(queries, keys, 0.4, BLOCK)
    mask = pairs(critical, length)
    masked = functional.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)
    mixed = exact(queries, keys, values, critical, BLOCK)  # type: ignore[operator]
    torch.testing.assert_close(mixed, masked, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("length", [37, 64])
def test_linear_part_weighs_all_other_keys_by_their_features(length: int) -> None:
    queries, keys, values = heads(length)
    critical = critical_blocks(queries, keys, 0.4, BLOCK)
    weights = queries.softmax(-1) @ keys.softmax(-1).transpose(-1, -2)
    weights = weights.masked_fill(pairs(critical, length), 0)
    expected = weights @ values / weights.sum(-1, keepdim=True)
    mixed = linear_rest(queries, keys, values, critical, BLOCK)
    torch.testing.assert_close(mixed, expected, rtol=1e-5, atol=1e-5)


def test_blocks_of_the_highest_mean_score_are_critical() -> None:
    queries, keys, _ = heads(64)
    means = [part.unflatten(2, (-1, BLOCK)).mean(3) for part in (queries, keys)]
    best = (means[0] @ means[1].transpose(-1, -2)).argsort(-1, descending=True)[..., :3]
    chosen = critical_blocks(queries, keys, 0.3, BLOCK)
    assert torch.equal(chosen.sort().values, best.sort().values)
    assert critical_blocks(queries, keys, 1e-6, BLOCK).shape[-1] == 1


def test_untrained_the_rest_is_dropped_and_its_mixing_learns() -> None:
    attention = SparseLinearAttention(CHANNELS, density=0.4, block=BLOCK)
    queries, keys, values = heads(64)
    critical = critical_blocks(queries, keys, 0.4, BLOCK)
    mixed = attention(queries, keys, values)
    assert torch.equal(mixed, gathered(queries, keys, values, critical, BLOCK))
    mixed.square().mean().backward()
    assert attention.mix.weight.grad is not None
    assert attention.mix.weight.grad.abs().sum() > 0

"""Front-to-back compositing of the splats listed in small tiles, with its gradient written out.

With alpha_k the opacity of splat k at a pixel and T_k = prod_{j < k} (1 - alpha_j) what is left
for it, the pixel is sum_k w_k value_k, w_k = T_k alpha_k. The gradient is

    dL/dlog alpha_k = w_k q_k - alpha_k / (1 - alpha_k) sum_{j > k} w_j q_j,

with q_k = <value_k, dL/dpixel>.

alpha_k is the exponential of a quadratic in the pixel's place, so that one matrix product gives
the exponents of all splats at all pixels of a tile.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import threshold

MAX_ALPHA = 0.99
MIN_ALPHA = 1 / 255  # a splat fainter than this at a pixel is skipped there
MIN_TRANSMITTANCE = 1e-4  # a pixel that lets less than this through takes no further splat
_FLOOR = math.log(MIN_ALPHA) - 1  # exponents are raised to this: skipped, and never denormal


def composite(
    quadratic: Tensor,  # [6, P], coefficients of log alpha in the monomials
    values: Tensor,  # [C, P], what to sum up
    monomials: Tensor,  # [6, N], 1, u, v, u^2, uv, v^2 at the N pixels of a tile
    batches: list[tuple[int, int]],
) -> Tensor:
    """Composite batches of tiles, [T, C, N].

    The P places are those of the first batch, tile by tile and nearest splat first, then those of
    the next; a batch (B, K) has B tiles with K places each, and T is the sum of the B.
    """
    keep = torch.is_grad_enabled() and (quadratic.requires_grad or values.requires_grad)
    out: Tensor = _Composite.apply(quadratic, values, monomials, batches, keep)
    return out


class _Composite(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        quadratic: Tensor,
        values: Tensor,
        monomials: Tensor,
        batches: list[tuple[int, int]],
        keep: bool,
    ) -> Tensor:
        out, kept, begin = [], [], 0
        for count, width in batches:
            stop = begin + count * width
            alpha = _alpha(quadratic[:, begin:stop], monomials).view(count, width, -1)
            through = 1 - alpha
            before = torch.cumprod(through, dim=1).div_(through)
            before = threshold(before, MIN_TRANSMITTANCE, 0.0, inplace=True)
            weight = before.mul_(alpha)
            out.append(torch.bmm(_by_tile(values[:, begin:stop], count), weight))
            if keep:
                kept.append((alpha, weight))
            begin = stop
        ctx.kept, ctx.batches = kept, batches
        ctx.save_for_backward(values, monomials)
        return torch.cat(out) if out else values.new_zeros(0, len(values), monomials.shape[1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        values, monomials = ctx.saved_tensors
        d_quadratic = values.new_empty(len(monomials), values.shape[1])
        d_values = torch.empty_like(values)
        begin = first = 0
        for (count, width), (alpha, weight) in zip(ctx.batches, ctx.kept, strict=True):
            stop, last = begin + count * width, first + count
            out = grad[first:last]  # [B, C, N]
            _by_tile(d_values[:, begin:stop], count).copy_(torch.bmm(out, weight.transpose(1, 2)))
            value = _by_tile(values[:, begin:stop], count)
            pull = torch.bmm(value.transpose(1, 2), out)  # q
            d_exponent = _exponent_gradient(alpha, weight, pull)
            d_quadratic[:, begin:stop] = monomials @ d_exponent.flatten(0, 1).T
            begin, first = stop, last
        return d_quadratic, d_values, None, None, None


def _by_tile(
    values: Tensor,  # [C, B * K]
    count: int,
) -> Tensor:  # [B, C, K], a view
    return values.view(len(values), count, -1).transpose(0, 1)


def _alpha(quadratic: Tensor, monomials: Tensor) -> Tensor:  # [P, N]
    exponent = quadratic.T @ monomials
    alpha = exponent.clamp_min_(_FLOOR).exp_().clamp_max_(MAX_ALPHA)
    return threshold(alpha, MIN_ALPHA, 0.0, inplace=True)


def _exponent_gradient(
    alpha: Tensor,  # [B, K, N]
    weight: Tensor,  # [B, K, N], w
    pull: Tensor,  # [B, K, N], q
) -> Tensor:
    """dL/d(log alpha); nothing passes where alpha was skipped or clamped."""
    weighted = weight * pull
    behind = weighted.flip(1).cumsum(1).flip(1).sub_(weighted)
    odds = alpha / (1 - alpha)
    free = (MAX_ALPHA - alpha).sign_()
    return weighted.sub_(behind.mul_(odds)).mul_(free)

"""Classifier-free guidance of a drift: it is drawn in training, and only a condition afterwards.

Guidance alpha >= 1 mixes real samples of any class into the negatives (arXiv 2602.04770, section
3.5 and A.7): q~ = (1 - gamma) q + gamma p_unconditional with alpha = 1 / (1 - gamma). At
equilibrium q = alpha p_class - (alpha - 1) p_unconditional; alpha = 1 is no guidance.
"""

import math

import torch
from torch import Tensor


def draw_alpha(
    count: int,
    alpha_max: float,
    power: float,
    generator: torch.Generator,
) -> Tensor:
    """Guidance [count] on [1, alpha_max] with density ~ alpha^-power, by its inverse CDF.

    Power 0 is uniform, 1 log-uniform. On the generator's device.

    Raises:
        ValueError: alpha_max is below 1, or one of the two is not finite.
    """
    if not (1 <= alpha_max < math.inf and math.isfinite(power)):
        raise ValueError(
            f"guidance: expected 1 <= alpha_max and a power, both finite, got {alpha_max}, {power}"
        )
    uniform = torch.rand(count, generator=generator, device=generator.device)
    # alpha^(1 - power) is uniform; in logarithms, for that says nothing at power 1.
    exponent = (1 - power) * math.log(alpha_max)
    if abs(exponent) < 1e-6:
        share = uniform
    else:
        share = torch.log1p(uniform * math.expm1(exponent)) / exponent
    return (share * math.log(alpha_max)).exp().clamp(1, alpha_max)


def unconditional_weight(
    alpha: Tensor,  # [C]
    generated: int | Tensor,  # N: samples of a class; or [C]
    unconditional: int,  # U
    queued: int | Tensor = 0,  # Q: further negatives of the class; or [C]
) -> Tensor:
    """The weight w of each unconditional negative: (alpha - 1)(N - 1 + Q) / U, [C].

    It gives those negatives the share gamma of the whole, a sample being no negative of itself.

    Raises:
        ValueError: no unconditional samples.
    """
    if unconditional < 1:
        raise ValueError(f"guidance: expected unconditional samples, got {unconditional}")
    return (alpha - 1) * (generated - 1 + queued) / unconditional

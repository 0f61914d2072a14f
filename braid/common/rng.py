"""Random numbers as a function of where they are used: of a seed and a name, or of a sample.

Every clip has a SplitMix64 generator (Steele, Lea and Flood 2014) of its own, whose j-th output
is mix(key + j * gamma): a function of j, so that all outputs of all clips come at once. A clip's
numbers therefore depend on (seed, purpose, clip id) alone, and a batch that is split over calls,
processes or machines keeps its bytes.
"""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor


def _signed(value: int) -> int:
    """An unsigned 64-bit number as the int64 of the same bits."""
    return (value ^ (1 << 63)) - (1 << 63)


_GAMMA = _signed(0x9E3779B97F4A7C15)  # 2^64 / golden ratio, odd
_MIX1 = _signed(0xBF58476D1CE4E5B9)
_MIX2 = _signed(0x94D049BB133111EB)


def outputs(
    seed: int,
    purpose: str,
    ids: Tensor,  # [B] int64
    count: int,
) -> Tensor:
    """The first `count` outputs of each clip's generator, [B, count] int64 of 64 random bits."""
    digest = hashlib.blake2b(repr((seed, purpose)).encode(), digest_size=8).digest()
    base = int.from_bytes(digest, "little", signed=True)
    return splitmix64(_mix(_mix(ids * _GAMMA + base) ^ base), count)


def splitmix64(
    key: Tensor,  # [B] int64, initial states
    count: int,
) -> Tensor:
    """The first `count` outputs of generators in these states, [B, count] int64."""
    steps = torch.arange(1, count + 1, device=key.device)
    return _mix(key[:, None] + steps * _GAMMA)


def uniforms(
    seed: int,
    purpose: str,
    ids: Tensor,  # [B] int64
    count: int,
) -> Tensor:
    """Uniform numbers inside (0, 1), [B, count] float32."""
    return _uniform(outputs(seed, purpose, ids, count), 41)


def normals(
    seed: int,
    purpose: str,
    ids: Tensor,  # [B] int64
    count: int,
) -> Tensor:
    """Standard normal numbers by Box and Muller's transform, [B, count] float32."""
    bits = outputs(seed, purpose, ids, (count + 1) // 2)
    radius = (-2 * _uniform(bits, 41).log()).sqrt()
    angle = 2 * math.pi * _uniform(bits, 18)
    return torch.cat([radius * angle.cos(), radius * angle.sin()], 1)[:, :count]


def _uniform(bits: Tensor, shift: int) -> Tensor:
    """23 of the 64 bits, from `shift` up, as a number inside (0, 1) that float32 holds exactly."""
    return (((bits >> shift) & 0x7FFFFF).float() + 0.5) * 2.0**-23


def _mix(z: Tensor) -> Tensor:
    """SplitMix64's bijection of 64-bit numbers; int64 multiplication wraps as unsigned does."""
    z = (z ^ _shifted(z, 30)) * _MIX1
    z = (z ^ _shifted(z, 27)) * _MIX2
    return z ^ _shifted(z, 31)


def _shifted(z: Tensor, by: int) -> Tensor:
    """Shift right as an unsigned number."""
    return (z >> by) & ((1 << (64 - by)) - 1)


def generator(seed: int, *stream: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator of its own for each (seed, stream), such as ``(seed, "rays", step, rank)``.

    Randomness is so a pure function of where it is used: a resumed run needs no generator states,
    and adding a stream changes no other. The CPU's Mersenne Twister keeps 32 bits of the hash, so
    among a million streams some hundred pairs coincide, which does no harm to a training.
    """
    digest = hashlib.blake2b(repr((seed, *stream)).encode(), digest_size=8).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest, "little", signed=True))


def seed_global_stream(draw: torch.Generator) -> None:
    """Derive from ``draw`` the streams that layers such as dropout take their noise from.

    What torch.manual_seed does for one device; that one spends a millisecond on all others.
    """
    seed = draw.initial_seed() ^ 1
    torch.default_generator.manual_seed(seed)
    if draw.device.type != "cpu":
        torch.get_device_module(draw.device).manual_seed(seed)

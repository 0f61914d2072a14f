"""One tiny radiance MLP (KiloNeRF, Reiser et al. 2021, section 3), for a chunk of networks at once.

    position -> encoding -> trunk (``layers - 1`` hidden layers) -> features -> density
                                     [features, encoded direction] -> hidden -> rgb

Each layer of K networks is one tensor [K, inputs + 1, outputs] whose last row is the bias; a
network's layers lie one after the other in a single row of parameters. Activations are
feature-major, [K, features, m]. Forward and backward are written out by hand over reused buffers:
at these sizes fresh memory costs more than the arithmetic.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


@dataclass(frozen=True)
class Architecture:
    """Sizes of one network."""

    hidden: int  # width of every hidden layer
    layers: int  # layers from position to density: layers - 1 hidden ones and the head
    frequencies: int  # octaves of the position encoding
    direction_frequencies: int  # octaves of the direction encoding

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """(inputs + 1, outputs) of each layer: trunk, density, colour, rgb."""
        hidden, directions = self.hidden, 3 + 6 * self.direction_frequencies
        trunk = [(4 + 6 * self.frequencies, hidden)] + [(hidden + 1, hidden)] * (self.layers - 2)
        return [*trunk, (hidden + 1, 1), (hidden + directions + 1, hidden), (hidden + 1, 3)]

    @property
    def parameters(self) -> int:
        """Parameters of one network."""
        return sum(rows * columns for rows, columns in self.shapes)

    def split(
        self,
        parameters: Tensor,  # [K, parameters]
    ) -> list[Tensor]:
        """Views of the layers, each [K, inputs + 1, outputs]."""
        sizes = [rows * columns for rows, columns in self.shapes]
        pieces = torch.split(parameters, sizes, dim=1)
        return [
            piece.view(len(parameters), *shape)
            for piece, shape in zip(pieces, self.shapes, strict=True)
        ]

    def initial(
        self,
        networks: int,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Random parameters [networks, parameters]: He-uniform weights, zero biases.

        The two heads start four times smaller, so that density and colour begin near their
        shifted zero everywhere.
        """
        parameters = torch.zeros(networks, self.parameters)
        layers = self.split(parameters)
        for index, layer in enumerate(layers):
            is_head = index in (self.layers - 1, len(layers) - 1)
            bound = math.sqrt(6 / (layer.shape[1] - 1)) * (0.25 if is_head else 1.0)
            layer[:, :-1].uniform_(-bound, bound, generator=generator)
        return parameters


class Workspace:
    """Named scratch buffers that grow on demand and are reused from chunk to chunk."""

    def __init__(self, like: Tensor) -> None:
        self._like = like
        self._buffers: dict[str, Tensor] = {}

    def take(self, name: str, *shape: int) -> Tensor:
        """An uninitialised tensor; the next ``take`` of the name overwrites it."""
        size = math.prod(shape)
        buffer = self._buffers.get(name)
        if buffer is None or len(buffer) < size:
            buffer = self._buffers[name] = self._like.new_empty(size)
        return buffer[:size].view(shape)


class Activations(NamedTuple):
    """What a forward pass leaves for the backward pass."""

    encoded: Tensor  # [K, 3 + 6 F, m]
    trunk: list[Tensor]  # each [K, hidden, m], after ReLU; the last are the features
    directions: Tensor  # [K, 3 + 6 D, m]
    colour: Tensor  # [K, hidden, m], after ReLU
    density: Tensor  # [K, 1, m], before any activation
    rgb: Tensor  # [K, 3, m], before any activation


def encode(
    x: Tensor,  # [K, 3, m]
    frequencies: int,
    out: Tensor,  # [K, 3 + 6 frequencies, m]
) -> Tensor:
    """[x, cos x, sin x, cos 2x, sin 2x, cos 4x, ...] (Mildenhall et al. 2020, eq. 4, without pi).

    Every third octave is evaluated; the two between follow by doubling the angle, which multiplies
    the rounding error by at most four.
    """
    blocks = out.view(len(x), 1 + 2 * frequencies, *x.shape[1:])
    blocks[:, 0] = x
    minus_one_zero = x.new_tensor([-1.0, 0.0]).view(2, 1, 1)
    for octave in range(frequencies):
        pair = blocks[:, 1 + 2 * octave : 3 + 2 * octave]
        if octave % 3 == 0:
            scaled = x * float(1 << octave)
            torch.cos(scaled, out=pair[:, 0])
            torch.sin(scaled, out=pair[:, 1])
        else:  # 2 cos cos - 1 = cos of the double angle, 2 sin cos its sine
            half = blocks[:, 2 * octave - 1 : 1 + 2 * octave]
            torch.addcmul(minus_one_zero, half, half[:, :1], value=2, out=pair)
    return out


def _affine(
    layer: Tensor,  # [K, inputs + 1 (or more), outputs], the last row is the bias
    x: Tensor,  # [K, inputs, m]
    out: Tensor,  # [K, outputs, m]
) -> Tensor:
    weight, bias = layer[:, : x.shape[1]], layer[:, -1].unsqueeze(2)
    return torch.baddbmm(bias, weight.transpose(1, 2), x, out=out)


def forward(
    architecture: Architecture,
    layers: list[Tensor],  # each [K, inputs + 1, outputs]
    positions: Tensor,  # [K, 3, m] within the cell, in [-1, 1]
    directions: Tensor,  # [K, 3, m]
    workspace: Workspace,
) -> Activations:
    """Evaluate K networks on m rows each."""
    *trunk, density, colour, rgb = layers
    hidden, (networks, _, m) = architecture.hidden, positions.shape

    def take(name: str, features: int) -> Tensor:
        return workspace.take(name, networks, features, m)

    octaves, direction_octaves = architecture.frequencies, architecture.direction_frequencies
    encoded = encode(positions, octaves, take("encoded", 3 + 6 * octaves))
    x, states = encoded, []
    for index, layer in enumerate(trunk):
        x = _affine(layer, x, take(f"trunk{index}", hidden)).relu_()
        states.append(x)
    view = encode(directions, direction_octaves, take("view", 3 + 6 * direction_octaves))
    mixed = _affine(colour, x, take("colour", hidden))
    mixed.baddbmm_(colour[:, hidden:-1].transpose(1, 2), view).relu_()
    return Activations(
        encoded,
        states,
        view,
        mixed,
        _affine(density, x, take("density", 1)),
        _affine(rgb, mixed, take("rgb", 3)),
    )


def backward(
    layers: list[Tensor],  # each [K, inputs + 1, outputs]
    activations: Activations,
    grad_density: Tensor,  # [K, 1, m]
    grad_rgb: Tensor,  # [K, 3, m]
    grad_features: Tensor | None,  # [K, hidden, m]
    grads: list[Tensor],  # like layers; overwritten with the layers' gradients
    workspace: Workspace,
) -> None:
    """Gradients of K networks' parameters from those of their outputs."""
    *trunk, density, colour, rgb = layers
    *grad_trunk, grad_density_layer, grad_colour_layer, grad_rgb_layer = grads
    features, mixed = activations.trunk[-1], activations.colour
    hidden = features.shape[1]

    _layer_gradient(mixed, grad_rgb, grad_rgb_layer, workspace)
    grad = torch.bmm(rgb[:, :-1], grad_rgb, out=workspace.take("grad_colour", *mixed.shape))
    _mask(grad, mixed)
    _layer_gradient(features, grad, grad_colour_layer, workspace)
    view_rows = grad_colour_layer[:, hidden:-1]
    view_rows.copy_(_product(activations.directions, grad, workspace))

    _layer_gradient(features, grad_density, grad_density_layer, workspace)
    grad_x = workspace.take("grad_features", *features.shape)
    torch.bmm(colour[:, :hidden], grad, out=grad_x).baddbmm_(density[:, :-1], grad_density)
    if grad_features is not None:
        grad_x += grad_features
    inputs = [activations.encoded, *activations.trunk[:-1]]
    for index in reversed(range(len(trunk))):
        _mask(grad_x, activations.trunk[index])
        _layer_gradient(inputs[index], grad_x, grad_trunk[index], workspace)
        if index:
            out = workspace.take(f"grad_trunk{index}", *features.shape)
            grad_x = torch.bmm(trunk[index][:, :-1], grad_x, out=out)


def _mask(grad: Tensor, activation: Tensor) -> None:
    """ReLU's backward pass, in place."""
    torch.ops.aten.threshold_backward.grad_input(grad, activation, 0, grad_input=grad)


def _product(x: Tensor, grad: Tensor, workspace: Workspace) -> Tensor:
    shape = (len(x), x.shape[1], grad.shape[1])
    return torch.bmm(x, grad.transpose(1, 2), out=workspace.take("product", *shape))


def _layer_gradient(x: Tensor, grad: Tensor, out: Tensor, workspace: Workspace) -> None:
    out[:, : x.shape[1]] = _product(x, grad, workspace)
    torch.sum(grad, dim=2, out=out[:, -1])

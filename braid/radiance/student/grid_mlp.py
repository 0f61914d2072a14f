"""Thousands of tiny MLPs evaluated at once: sort by network, tile, batched GEMMs.

Each row (a point) belongs to one network. Rows are sorted by network and cut into *tiles* of one
network each; tiles of similar length are padded to a common length and run together as a *chunk*
of batched GEMMs. Sorting the tiles by length keeps the padding near 1 %; keeping a chunk small
keeps its activations in the CPU's cache, which is worth more than large GEMMs (16k rows and more
run slower than 4k). Every network's parameters are one row of a matrix (KiloNeRF's own layout), so
that a chunk gathers them, and adds their gradients, with one operation.

Activations are feature-major, [tiles, features, rows], so that the positional encoding writes
contiguous runs. Evaluation reuses one set of buffers for all chunks; training keeps each chunk's
activations, about 0.8 kB a point at a width of 32.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from braid.radiance.config import NetworkConfig

# ---- One tiny radiance MLP of KiloNeRF -----------------------------------------------------------
#     position -> encoding -> trunk (``layers - 1`` hidden layers) -> features -> density
#                                      [features, encoded direction] -> hidden -> rgb
#
# Each layer of K networks is one tensor [K, inputs + 1, outputs] whose last row is the bias; a
# network's layers lie one after the other in a single row of parameters. Activations are
# feature-major, [K, features, m]. Forward and backward are written out by hand over reused buffers:
# at these sizes fresh memory costs more than the arithmetic.


@dataclass(frozen=True)
class Architecture:
    """The layers of one network, in one row of parameters."""

    sizes: NetworkConfig

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """(inputs + 1, outputs) of each layer: trunk, density, color, rgb."""
        sizes, hidden = self.sizes, self.sizes.hidden
        directions = 3 + 6 * sizes.direction_frequencies
        trunk = [(4 + 6 * sizes.frequencies, hidden)] + [(hidden + 1, hidden)] * (sizes.layers - 2)
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

        The two heads start four times smaller, so that density and color begin near their
        shifted zero everywhere.
        """
        parameters = torch.zeros(networks, self.parameters)
        layers = self.split(parameters)
        for index, layer in enumerate(layers):
            is_head = index in (self.sizes.layers - 1, len(layers) - 1)
            bound = math.sqrt(6 / (layer.shape[1] - 1)) * (0.25 if is_head else 1.0)
            layer[:, :-1].uniform_(-bound, bound, generator=generator)
        return parameters


class Workspace:
    """Named scratch buffers that grow on demand and are reused from chunk to chunk."""

    def __init__(self, like: Tensor) -> None:
        self._like = like
        self._buffers: dict[str, Tensor] = {}

    def take(self, name: str, *shape: int) -> Tensor:
        """An uninitialized tensor; the next ``take`` of the name overwrites it."""
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
    color: Tensor  # [K, hidden, m], after ReLU
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
    keep: bool = True,
) -> Activations:
    """Evaluate K networks on m rows each; `keep` what the backward pass needs."""
    *trunk, density, color, rgb = layers
    sizes, (networks, _, m) = architecture.sizes, positions.shape
    hidden = sizes.hidden

    def take(name: str, features: int) -> Tensor:
        return workspace.take(name, networks, features, m)

    octaves, direction_octaves = sizes.frequencies, sizes.direction_frequencies
    encoded = encode(positions, octaves, take("encoded", 3 + 6 * octaves))
    x, states = encoded, []
    for index, layer in enumerate(trunk):
        x = _affine(layer, x, take(f"trunk{index if keep else index % 2}", hidden)).relu_()
        states.append(x)
    view = encode(directions, direction_octaves, take("view", 3 + 6 * direction_octaves))
    mixed = _affine(color, x, take("color" if keep else f"trunk{len(trunk) % 2}", hidden))
    mixed.baddbmm_(color[:, hidden:-1].transpose(1, 2), view).relu_()
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
    *trunk, density, color, rgb = layers
    *grad_trunk, grad_density_layer, grad_color_layer, grad_rgb_layer = grads
    features, mixed = activations.trunk[-1], activations.color
    hidden = features.shape[1]

    _layer_gradient(mixed, grad_rgb, grad_rgb_layer, workspace)
    grad = torch.bmm(rgb[:, :-1], grad_rgb, out=workspace.take("grad_color", *mixed.shape))
    _mask(grad, mixed)
    _layer_gradient(features, grad, grad_color_layer, workspace)
    view_rows = grad_color_layer[:, hidden:-1]
    view_rows.copy_(_product(activations.directions, grad, workspace))

    _layer_gradient(features, grad_density, grad_density_layer, workspace)
    grad_x = workspace.take("grad_features", *features.shape)
    torch.bmm(color[:, :hidden], grad, out=grad_x).baddbmm_(density[:, :-1], grad_density)
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


# ---- Many of them: rows sorted by network, cut into tiles, run in chunks -------------------------


class Chunk(NamedTuple):
    """K tiles padded to the same length of m rows."""

    networks: Tensor  # [K]
    rows: Tensor  # [K * m] index of the input row; padding repeats the tile's last row
    first: int  # position of the chunk's first row in the padded order
    length: int  # m


@dataclass(frozen=True)
class Tiles:
    """The order in which rows meet their networks."""

    networks: Tensor  # [T] network of each tile, longest tile first
    rows: Tensor  # [Q] input row at each padded position
    padding: Tensor  # [Q] True where the position is padding
    position: Tensor  # [P] padded position of each input row
    bounds: list[tuple[int, int, int]]  # (first tile, end tile, padded length) of each chunk

    def __iter__(self) -> Iterator[Chunk]:
        first = 0
        for start, end, length in self.bounds:
            count = (end - start) * length
            yield Chunk(self.networks[start:end], self.rows[first : first + count], first, length)
            first += count


def make_tiles(
    network: Tensor,  # [P] network of each row, in [0, networks)
    networks: int,
) -> Tiles:
    """Sort rows by network and cut them into tiles and chunks suited to the device."""
    on_cpu = network.device.type == "cpu"
    # A GPU wants few launches and even tiles, a CPU core wants activations that stay in L2.
    longest, chunk_rows, waste = (2048, 8192, 768) if on_cpu else (128, 1 << 18, 1 << 14)
    narrow = torch.int16 if networks < 1 << 15 else torch.int32  # sorts faster than int64
    order = torch.sort(network.to(narrow), stable=True).indices
    counts = torch.bincount(network, minlength=networks).cpu().numpy()
    owner, start, length = _cut(counts, longest)
    bounds = _group(length, chunk_rows, waste)
    chunks = np.array(bounds, dtype=np.int64).reshape(-1, 3)
    padded = np.repeat(chunks[:, 2], chunks[:, 1] - chunks[:, 0])

    device = network.device
    tile = torch.repeat_interleave(_put(padded, device))
    begin = _put(np.cumsum(padded) - padded, device).index_select(0, tile)
    offset = torch.arange(len(tile), device=device).sub_(begin)
    last = _put(length - 1, device).index_select(0, tile)
    padding = offset > last
    source = torch.minimum(offset, last).add_(_put(start, device).index_select(0, tile))
    rows = order.index_select(0, source)
    kept = torch.nonzero(~padding).squeeze(1)
    position = torch.empty_like(order).index_copy_(0, rows.index_select(0, kept), kept)
    return Tiles(_put(owner, device), rows, padding, position, bounds)


def _put(array: np.ndarray[Any, np.dtype[Any]], device: torch.device) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array)).to(device)


def _cut(
    counts: np.ndarray[Any, np.dtype[np.int64]],
    longest: int,
) -> tuple[np.ndarray[Any, np.dtype[np.int64]], ...]:
    """Tiles as (network, first sorted row, length), longest first, none above ``longest``."""
    pieces = -(-counts // longest)
    owner = np.repeat(np.arange(len(counts)), pieces)
    piece = np.arange(len(owner)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    total = counts[owner]
    even = -(-total // np.maximum(pieces[owner], 1))
    start = np.minimum(piece * even, total)
    length = np.minimum(even, total - start)
    by_length = np.argsort(-length, kind="stable")
    by_length = by_length[: np.count_nonzero(length)]
    start += (np.cumsum(counts) - counts)[owner]
    return owner[by_length], start[by_length], length[by_length]


def _group(
    length: np.ndarray[Any, np.dtype[np.int64]],
    chunk_rows: int,
    waste: int,
) -> list[tuple[int, int, int]]:
    """Chunks of at most ``chunk_rows`` padded rows, of which about ``waste`` may be padding.

    Starting another chunk costs about as much as evaluating that many rows.
    """
    total = np.concatenate([[0], np.cumsum(length)])
    bounds, first = [], 0
    while first < len(length):
        padded = -(-int(length[first]) // 8) * 8
        limit = min(len(length), first + max(1, chunk_rows // padded))
        counts = np.arange(1, limit - first + 1)
        padding = counts * padded - (total[first + 1 : limit + 1] - total[first])
        end = first + max(1, int(np.searchsorted(padding, waste, side="right")))
        bounds.append((first, end, padded))
        first = end
    return bounds


class _Evaluate(torch.autograd.Function):
    """Outputs of every row's network; differentiable in the parameters alone."""

    @staticmethod
    def forward(
        ctx: Any,
        inputs: Tensor,
        parameters: Tensor,
        architecture: Architecture,
        tiles: Tiles,
        with_features: bool,
        training: bool,
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(parameters)
        ctx.set_materialize_grads(False)
        ctx.architecture, ctx.tiles, ctx.activations = architecture, tiles, []
        width = architecture.sizes.hidden if with_features else 0
        raw = inputs.new_empty(len(tiles.rows), 4)
        features = inputs.new_empty(len(tiles.rows), width)
        scratch = Workspace(inputs)
        for chunk in tiles:
            layers = _layers(architecture, parameters, chunk, scratch)
            x = _tiled(inputs, chunk, scratch)
            workspace = Workspace(inputs) if training else scratch
            result = forward(architecture, layers, x[:, :3], x[:, 3:], workspace, training)
            if training:
                ctx.activations.append(result)
            here = slice(chunk.first, chunk.first + len(chunk.rows))
            out = raw[here].view(-1, chunk.length, 4)
            out[:, :, :1] = result.density.transpose(1, 2)
            out[:, :, 1:] = result.rgb.transpose(1, 2)
            if with_features:
                padded = features[here].view(-1, chunk.length, width)
                padded.copy_(result.trunk[-1].transpose(1, 2))
        position = tiles.position
        return raw.index_select(0, position), features.index_select(0, position)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(
        ctx: Any, grad_raw: Tensor | None, grad_features: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        (parameters,) = ctx.saved_tensors
        if grad_raw is None:
            grad_raw = parameters.new_zeros(len(ctx.tiles.position), 4)
        architecture: Architecture = ctx.architecture
        grad_parameters = torch.zeros_like(parameters)
        workspace = Workspace(parameters)
        for chunk, activations in zip(ctx.tiles, ctx.activations, strict=True):
            layers = _layers(architecture, parameters, chunk, workspace)
            padding = ctx.tiles.padding[chunk.first : chunk.first + len(chunk.rows)]
            raw = _gather(grad_raw, chunk, padding)
            from_features = None
            if grad_features is not None and grad_features.numel():
                from_features = _gather(grad_features, chunk, padding)
            grads = workspace.take("grads", len(chunk.networks), architecture.parameters)
            pieces = architecture.split(grads)
            backward(layers, activations, raw[:, :1], raw[:, 1:], from_features, pieces, workspace)
            grad_parameters.index_add_(0, chunk.networks, grads)
        return None, grad_parameters, None, None, None, None


def _layers(
    architecture: Architecture, parameters: Tensor, chunk: Chunk, workspace: Workspace
) -> list[Tensor]:
    """The layers of a chunk's networks, each [K, inputs + 1, outputs]."""
    own = workspace.take("parameters", len(chunk.networks), architecture.parameters)
    return architecture.split(torch.index_select(parameters, 0, chunk.networks, out=own))


def _tiled(inputs: Tensor, chunk: Chunk, workspace: Workspace) -> Tensor:
    """A chunk's rows of the inputs, feature-major, [K, 6, m]."""
    rows = workspace.take("rows", len(chunk.rows), 6)
    torch.index_select(inputs, 0, chunk.rows, out=rows)
    x = workspace.take("inputs", len(chunk.networks), 6, chunk.length)
    return x.copy_(rows.view(-1, chunk.length, 6).transpose(1, 2))


def _gather(grad: Tensor, chunk: Chunk, padding: Tensor) -> Tensor:
    """Rows of an output's gradient, feature-major; zero where the tile is padding."""
    rows = grad.index_select(0, chunk.rows).masked_fill_(padding.unsqueeze(1), 0.0)
    return rows.view(-1, chunk.length, grad.shape[1]).transpose(1, 2).contiguous()


def evaluate(
    architecture: Architecture,
    parameters: Tensor,  # [N, parameters]
    network: Tensor,  # [P] network of each row
    positions: Tensor,  # [P, 3] local to the network's cell, in [-1, 1]
    directions: Tensor,  # [P, 3]
    features: bool = True,
) -> tuple[Tensor, Tensor]:
    """Raw outputs [P, 4] (density, rgb; no activation) and features [P, hidden] of each row.

    Gradients reach ``parameters`` only: sample positions and directions are data here. With
    ``features=False`` the features are empty, [P, 0], which saves writing them.
    """
    inputs = torch.cat([positions, directions], dim=1).to(parameters)
    tiles = make_tiles(network, len(parameters))
    training = torch.is_grad_enabled() and parameters.requires_grad
    with torch.autocast(parameters.device.type, enabled=False):
        result: tuple[Tensor, Tensor] = _Evaluate.apply(
            inputs, parameters, architecture, tiles, features, training
        )
    return result

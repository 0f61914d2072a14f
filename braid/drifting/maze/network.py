"""A transformer that corrects trajectories through a maze in one step.

A trajectory [2, T] is a clip [2, T, 1, 1] whose frames are points, so that keyframes, corruption,
objectives and sampling are those of clips; coordinates are in [-1, 1] across the maze. What a
network is conditioned on instead of a class is the case's maze:

    map       occupancy, signed distance, place, and of each block, how long a detour through it
              is between two successive keyframes, proposed ones too, and when a steady walk comes
              by, by exact walking distances; encoded by convolutions that are repeated with the
              same weights and pass through free blocks only
    points    a token is a few successive points, with confidence, signed distance, its gradient
              and the map's features there
    blocks    attention over the trajectory, attention over the map's blocks, a two-layer network,
              modulated by level and guidance, as in braid/drifting/video/refiner.py, with gates
             that are open from the start

The output layer starts at zero: an untrained network returns its input.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from braid.common.io import load_model, save_model
from braid.drifting.interpolation.interpolation import linear
from braid.drifting.maze.config import MazeRefinerConfig
from braid.drifting.video.refiner import FREQUENCIES, Attention, guidance_waves, normalized
from braid.metrics.obstacles import distance_at

DISTANCE_STEP = 0.25  # blocks between the points that the distance's gradient is taken from
HARMONICS = (1, 2, 4)  # of half a turn over the trajectory: when a walk comes by
MAP_INPUTS = 5 + 2 * len(HARMONICS)  # occupancy, distance, x, y, how near to a shortest way, when
DETOUR = 2.0  # steps: the least detour, to a block beside the way and back
POINT_INPUTS = 8  # x, y, noise in both, confidence, distance, its gradient


def latents_of(
    points: Tensor,  # [B, T, 2] blocks
    blocks: int,  # of the maze, a side
) -> Tensor:
    """Trajectories as clips, [B, 2, T, 1, 1], -1 to 1 across the maze."""
    return (2 * points / blocks - 1).mT[..., None, None]


def points_of(
    latents: Tensor,  # [B, 2, T, 1, 1]
    blocks: int,
) -> Tensor:
    """The points of clips, [B, T, 2] blocks."""
    return (latents[..., 0, 0].mT + 1) * (blocks / 2)


@dataclass(frozen=True)
class Mazes:
    """The mazes that cases are in: what a network looks a case up in."""

    occupied: Tensor  # [M, G, G] bool
    distance: Tensor  # [M, R, R] of braid/metrics/obstacles.py
    maze_of: Tensor  # [K] int64, the maze of each case

    @property
    def blocks(self) -> int:
        """G: blocks a side."""
        return self.occupied.shape[1]

    def of(self, cases: Tensor) -> tuple[Tensor, Tensor]:
        """Maps [B, G, G] and distances [B, R, R] of cases [B], on their device."""
        maze = self.maze_of[cases.cpu()]
        return self.occupied[maze].to(cases.device), self.distance[maze].to(cases.device)


class MazeRefiner(nn.Module):
    """x_hat = z + f(z, confidence, maze, level, alpha)."""

    def __init__(
        self,
        mazes: Mazes,  # where cases are looked up, no part of the weights
        points: int,  # T
        levels: int,  # of corruption, level 0 included
        config: MazeRefinerConfig,
    ) -> None:
        """Fresh weights.

        Raises:
            ValueError: heads do not divide dim, or the patch does not divide the points.
        """
        super().__init__()
        dim, heads, patch, width = config.dim, config.heads, config.patch, config.map_width
        if dim % heads:
            raise ValueError(
                f"maze_drift.refiner.dim is {dim}, expected a multiple of heads: {heads}"
            )
        if points % patch:
            raise ValueError(
                f"maze_drift.refiner.patch is {patch}, expected a divisor of {points} points"
            )
        self.mazes = mazes
        self.sizes = {"points": points, "levels": levels}
        self.config = config
        self.map_in = nn.Conv2d(MAP_INPUTS, width, 3, padding=1)
        self.map_round = nn.Conv2d(2 * width, width, 3, padding=1)
        self.map_token = nn.Linear(width + MAP_INPUTS, dim)
        self.embed = nn.Linear(patch * (POINT_INPUTS + width), dim)
        self.level_table = nn.Embedding(levels, dim)
        self.alpha = nn.Sequential(nn.Linear(2 * FREQUENCIES, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.blocks = nn.ModuleList(_Block(dim, heads) for _ in range(config.depth))
        self.modulate = nn.Linear(dim, 2 * dim)
        self.out = nn.Linear(dim, 2 * patch)
        for layer in (self.modulate, self.out):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(
        self,
        clips: Tensor,  # [B, 2, T, 1, 1] corrupted
        mask: Tensor,  # [B, T] true at given keyframes
        confidence: Tensor,  # [B, T] how far each point can be trusted, 0 to 1
        cases: Tensor,  # [B]
        level: Tensor,  # [B]
        alpha: Tensor,  # [B] guidance, 1: none
        clamp: bool | None = None,  # keep given keyframes bit for bit; None: as configured
    ) -> Tensor:
        """The refined trajectories, [B, 2, T, 1, 1]."""
        occupied, distance = self.mazes.of(cases)
        straight = linear(clips, confidence > 0)  # through given and through proposed keyframes
        places = straight[..., 0, 0].mT  # [B, T, 2]
        noise = (clips - straight)[..., 0, 0].mT
        inputs = map_inputs(occupied, distance, places, confidence > 0)
        # Samples of one case share their map: it is encoded once.
        inputs, which = inputs.unique(dim=0, return_inverse=True)
        features = self.encode(inputs)
        tokens = self.tokens(places, noise, confidence, distance, features[which])
        x = self.embed(tokens)
        x = x + _times(x)
        context = self.map_token(torch.cat([features, inputs], 1).flatten(2).mT)
        condition = self.level_table(level) + self.alpha(guidance_waves(alpha))
        condition = functional.silu(condition)
        for block in self.blocks:
            x = block(x, context, which, condition)
        shift, scale = self.modulate(condition)[:, None].chunk(2, dim=-1)
        x = self.out(normalized(x) * (1 + scale) + shift)
        correction = _smoothed(x.reshape(*places.shape).mT, self.config.patch)[..., None, None]
        if not (self.config.clamp if clamp is None else clamp):
            return straight + correction
        refined = straight + correction - linear(correction, mask)
        return torch.where(mask[:, None, :, None, None], clips, refined)

    def encode(
        self,
        inputs: Tensor,  # [M, MAP_INPUTS, G, G]
    ) -> Tensor:
        """Features of the maps' blocks, [M, W, G, G]."""
        free = inputs[:, :1] == 0
        first = self.map_in(inputs) * free
        state = torch.tanh(first)
        for _ in range(self.config.map_rounds):
            update = self.map_round(torch.cat([state, first], 1))
            state = torch.tanh(state + update) * free
        return state

    def tokens(
        self,
        places: Tensor,  # [B, T, 2] in [-1, 1]
        noise: Tensor,  # [B, T, 2]
        confidence: Tensor,  # [B, T]
        distance: Tensor,  # [B, R, R]
        features: Tensor,  # [B, W, G, G]
    ) -> Tensor:
        """What is known at each few points, [B, T / patch, ...]."""
        sampled = functional.grid_sample(
            features, places[:, :, None], padding_mode="border", align_corners=False
        )[..., 0].mT
        points = (places + 1) * (self.mazes.blocks / 2)
        around = points[:, :, None] + DISTANCE_STEP * points.new_tensor(
            [[0.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]]
        )
        near = distance_at(distance, around.flatten(1, 2)).unflatten(1, (-1, 5))
        slope = torch.stack([near[..., 1] - near[..., 2], near[..., 3] - near[..., 4]], -1)
        own = [places, noise, confidence[..., None], near[..., :1], slope, sampled]
        return torch.cat(own, -1).unflatten(1, (-1, self.config.patch)).flatten(2)


def map_inputs(
    occupied: Tensor,  # [B, G, G] bool
    distance: Tensor,  # [B, R, R]
    places: Tensor,  # [B, T, 2] in [-1, 1]
    given: Tensor,  # [B, T] bool: keyframes, proposed ones too, the first and the last among them
) -> Tensor:
    """Planes of the map, [B, MAP_INPUTS, G, G].

    Occupancy, signed distance in the middle, place; and of the way between keyframes: 1 on a
    shortest one, less by a factor e for each `DETOUR` off it, sines and cosines of when.
    """
    batch, side = occupied.shape[:2]
    middle = block_middles(occupied)
    depth = distance_at(distance, middle.expand(batch, -1, -1)).unflatten(1, (side, side))
    place = (2 * middle / side - 1).mT.reshape(1, 2, side, side).expand(batch, -1, -1, -1)
    detour, when = detours(occupied, (places + 1) * (side / 2), given)
    way = torch.exp(-detour / DETOUR)[:, None]
    angle = math.pi * when[:, None] * when.new_tensor(HARMONICS)[:, None, None]
    planes = [occupied[:, None].float(), depth[:, None], place, way]
    return torch.cat([*planes, way * angle.sin(), way * angle.cos()], 1)


def detours(
    occupied: Tensor,  # [B, G, G] bool
    points: Tensor,  # [B, T, 2] blocks
    given: Tensor,  # [B, T] bool: keyframes
) -> tuple[Tensor, Tensor]:
    """How many steps longer a way between successive keyframes gets through each block, and when.

    A keyframe in a wall, as phase 1 may propose one, counts as in the nearest free block.

    Returns:
        The least detour over the gaps between keyframes, [B, G, G], 0 on a shortest way; and the
        time, 0 to 1, at which a steady walk through the block and that gap comes by.
    """
    frames, most = given.shape[1], int(given.sum(1).max())
    index = torch.arange(frames, device=given.device).where(given, frames - 1)
    index = index.sort(dim=1).values[:, :most]  # [B, K]; the last keyframe fills up
    block = free_blocks(occupied, points.gather(1, index[..., None].expand(-1, -1, 2)))
    steps = walks(occupied, block).flatten(2)  # [B, K, G G]
    before, after = steps[:, :-1], steps[:, 1:]
    between = before.gather(2, block[:, 1:, None])
    detour, gap = (before + after - between).min(1, keepdim=True)
    ends = (index[:, :-1], index[:, 1:])
    start, stop = (part.gather(1, gap[:, 0]) / (frames - 1) for part in ends)
    walked, left = (part.gather(1, gap)[:, 0] for part in (before, after))
    when = torch.lerp(start, stop, walked / (walked + left).clamp(min=1))
    shape = occupied.shape
    return detour[:, 0].view(shape), when.view(shape)


def free_blocks(
    occupied: Tensor,  # [B, G, G] bool
    points: Tensor,  # [B, K, 2] blocks
) -> Tensor:
    """The free blocks whose middles are nearest, [B, K], row after row."""
    apart = torch.cdist(points, block_middles(occupied).to(points))
    return apart.masked_fill(occupied.flatten(1)[:, None], torch.inf).argmin(-1)


def block_middles(occupied: Tensor) -> Tensor:
    """Middles of all blocks of maps [B, G, G], row after row, [G G, 2]."""
    axis = torch.arange(occupied.shape[-1], device=occupied.device) + 0.5
    return torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1).flatten(0, 1)


def walks(
    occupied: Tensor,  # [B, G, G] bool
    block: Tensor,  # [B, K] to walk from, free ones
) -> Tensor:
    """Steps from blocks to all blocks through free ones, [B, K, G, G]; G G: there is no way."""
    side = occupied.shape[-1]
    far = float(side * side)
    steps = torch.full((*block.shape, side * side), far, device=block.device)
    steps = steps.scatter(2, block[..., None], 0).unflatten(2, (side, side))
    walls = occupied[:, None]
    while True:
        around = functional.pad(steps, (1, 1, 1, 1), value=far)
        rows = torch.minimum(around[..., :-2, 1:-1], around[..., 2:, 1:-1])
        columns = torch.minimum(around[..., 1:-1, :-2], around[..., 1:-1, 2:])
        nearer = torch.minimum(rows, columns).add(1).minimum(steps).masked_fill(walls, far)
        if torch.equal(nearer, steps):
            return steps
        steps = nearer


class _Block(nn.Module):
    """Attention over the trajectory, attention over the map, a two-layer network; each gated."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.time, self.map = Attention(dim, heads), _MapAttention(dim, heads)
        self.mix = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU("tanh"), nn.Linear(4 * dim, dim))
        self.modulate = nn.Linear(dim, 9 * dim)
        nn.init.zeros_(self.modulate.weight)
        nn.init.constant_(self.modulate.bias, 0.0)
        with torch.no_grad():
            self.modulate.bias.view(3, 3, -1)[:, 2] = 1.0

    def forward(
        self,
        x: Tensor,  # [B, N, D]
        context: Tensor,  # [M, G G, D]
        which: Tensor,  # [B] map of each trajectory
        condition: Tensor,  # [B, D]
    ) -> Tensor:
        """The updated tokens."""
        over_map = partial(self.map, context=context, which=which)
        layers: tuple[Callable[[Tensor], Tensor], ...] = self.time, over_map, self.mix
        modulation = self.modulate(condition)[:, None].unflatten(-1, (3, 3, -1))
        for k, layer in enumerate(layers):
            shift, scale, gate = modulation[:, :, k].unbind(2)
            x = x + gate * layer(normalized(x) * (1 + scale) + shift)
        return x


class _MapAttention(nn.Module):
    """Multi-head attention of a trajectory's tokens over the blocks of its map."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(dim, dim)
        self.pairs = nn.Linear(dim, 2 * dim)
        self.out = nn.Linear(dim, dim)
        self.scale = nn.Parameter(torch.full((heads,), math.sqrt(dim / heads)))

    def forward(
        self,
        x: Tensor,  # [B, N, D]
        context: Tensor,  # [M, L, D]
        which: Tensor,  # [B] map of each trajectory
    ) -> Tensor:
        """What the tokens take from the map, [B, N, D]."""
        parts = [self.query(x), *self.pairs(context)[which].chunk(2, dim=-1)]
        query, key, value = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        query, key = functional.normalize(query, dim=-1), functional.normalize(key, dim=-1)
        query = query * self.scale[:, None, None]
        mixed = functional.scaled_dot_product_attention(query, key, value, scale=1.0)
        return self.out(mixed.transpose(1, 2).flatten(2))


def _smoothed(
    series: Tensor,  # [B, 2, T]
    patch: int,  # points a token, whose seams must not show
) -> Tensor:
    """A series filtered by a Gaussian of half a token's standard deviation, [B, 2, T]."""
    if patch == 1:
        return series
    offsets = torch.arange(-patch, patch + 1, device=series.device)
    kernel = torch.exp(-0.5 * (offsets / (patch / 2)).square())
    kernel = (kernel / kernel.sum()).to(series).expand(2, 1, -1)
    padded = functional.pad(series, (patch, patch), mode="replicate")
    return functional.conv1d(padded, kernel, groups=2)


def _times(x: Tensor) -> Tensor:
    """Sine and cosine of each token's place in the trajectory, [N, D]."""
    _, length, dim = x.shape
    waves = torch.logspace(0, math.log10(max(2, length)), dim // 2, device=x.device)
    angles = torch.linspace(0, math.pi, length, device=x.device)[:, None] * waves
    return functional.pad(torch.cat([angles.sin(), angles.cos()], -1), (0, dim % 2))


def save_maze_refiner(folder: Path, refiner: MazeRefiner) -> None:
    """Write `model.safetensors` and `config.json`."""
    save_model(folder, refiner, {**refiner.sizes, **refiner.config.model_dump()})


def load_maze_refiner(folder: Path, mazes: Mazes) -> MazeRefiner:
    """Read a refiner, to work on cases of these mazes.

    Raises:
        ValueError: a file is missing or broken; the message names the folder.
    """

    def build(points: int, levels: int, **config: Any) -> MazeRefiner:
        return MazeRefiner(mazes, points, levels, MazeRefinerConfig(**config))

    return load_model(folder, build, "refiner of trajectories")[1].eval()

"""Walls: distances against scipy's, collisions against fine sampling, projection out of them."""

from __future__ import annotations

import pytest
import torch
from scipy.ndimage import distance_transform_edt

from braid.common.rng import generator
from braid.metrics.obstacles import (
    PER_BLOCK,
    acceleration,
    collides,
    distance_at,
    inside,
    length,
    project,
    signed_distance,
)

FINE = 40  # scipy's pixels a block


def some_maps(count: int) -> torch.Tensor:
    draw = generator(0, "maps")
    occupied = torch.rand(count, 5, 6, generator=draw) < 0.4
    occupied[:, 2, 2] = False
    occupied[:, 1, 1] = True
    return occupied


def test_signed_distance_is_that_of_scipy() -> None:
    occupied = some_maps(3)
    ours = signed_distance(occupied)
    for blocks, distance in zip(occupied, ours, strict=True):
        ringed = torch.nn.functional.pad(blocks, (2, 2, 2, 2), value=True)
        fine = ringed.repeat_interleave(FINE, 0).repeat_interleave(FINE, 1).numpy()
        theirs = distance_transform_edt(~fine) - distance_transform_edt(fine)
        nodes = [torch.arange(n) * FINE // PER_BLOCK + 2 * FINE for n in distance.shape]
        picked = torch.from_numpy(theirs)[nodes[0]][:, nodes[1]] / FINE
        assert (picked - distance).abs().max() < 1.5 / FINE


def test_distance_between_nodes_is_bilinear_and_differentiable() -> None:
    occupied = torch.ones(1, 3, 3, dtype=torch.bool)
    occupied[0, 1, 1] = False
    distance = signed_distance(occupied)
    points = torch.tensor([[[1.5, 1.5], [1.2, 1.5], [0.9, 1.5]]], requires_grad=True)
    at = distance_at(distance, points)
    assert torch.allclose(at, torch.tensor([[0.5, 0.2, -0.1]]), atol=1e-5)
    (gradient,) = torch.autograd.grad(at[0, 1], points)
    assert torch.allclose(gradient[0, 1], torch.tensor([1.0, 0.0]), atol=1e-4)


def test_collisions_are_those_of_fine_sampling() -> None:
    occupied = some_maps(40)
    draw = generator(1, "paths")
    paths = torch.rand(40, 6, 2, generator=draw) * torch.tensor([6.4, 5.4]) - 0.2
    exact = collides(occupied, paths)
    steps = torch.linspace(0, 1, 2001)
    for number in range(40):
        for segment in range(5):
            start, end = paths[number, segment], paths[number, segment + 1]
            points = torch.lerp(start, end, steps[:, None])
            sampled = bool(inside(occupied[number : number + 1], points[None]).any())
            assert exact[number, segment] == sampled, (number, segment)


@pytest.mark.parametrize(
    ("path", "hits"),
    [
        ([[0.5, 0.5], [1.5, 0.5]], False),  # along free blocks
        ([[0.5, 0.5], [0.5, 0.5]], False),  # stands still
        ([[1.5, 1.5], [1.5, 1.5]], True),  # stands still in a wall
        ([[0.9, 1.5], [2.1, 1.5]], True),  # jumps over a wall between two free points
        ([[0.5, 0.5], [-0.5, 0.5]], True),  # leaves the map
    ],
)
def test_segments_of_known_kind(path: list[list[float]], hits: bool) -> None:
    occupied = torch.zeros(1, 3, 3, dtype=torch.bool)
    occupied[0, 1, 1] = True
    assert bool(collides(occupied, torch.tensor([path])).any()) == hits


def test_projection_leaves_walls_and_keeps_what_is_fixed() -> None:
    occupied = torch.zeros(1, 5, 5, dtype=torch.bool)
    occupied[0, 2, 2] = True
    distance = signed_distance(occupied)
    path = torch.tensor([[[2.2, 2.4], [2.4, 2.8], [1.0, 1.0]]])
    fixed = torch.tensor([[True, False, False]])
    moved = project(distance, path, fixed, margin=0.1)
    assert (moved[:, 0] == path[:, 0]).all()
    assert (moved[:, 2] == path[:, 2]).all()
    assert distance_at(distance, moved)[0, 1] >= 0.1 - 1e-3
    assert distance_at(distance, path)[0, 1] < 0


def test_length_and_acceleration() -> None:
    steady = torch.stack([torch.arange(5.0), torch.zeros(5)], -1)[None]
    assert length(steady).tolist() == [4.0]
    assert acceleration(steady).tolist() == [0.0]
    turn = torch.tensor([[[0.0, 0.0], [1.0, 0.0], [1.0, 1.0]]])
    assert acceleration(turn).tolist() == [2.0]

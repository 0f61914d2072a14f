"""The network of trajectories: what it keeps, what it is conditioned on, how it is saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from braid.common.rng import generator
from braid.drifting.interpolation.interpolation import linear
from braid.drifting.maze.network import (
    MazeRefiner,
    latents_of,
    load_maze_refiner,
    map_inputs,
    points_of,
    save_maze_refiner,
)
from braid.drifting.maze.training import MazeSplit, corruptions
from braid.drifting.video.corruption import Corrupted
from tests.drifting.maze import some_mazes

SPLIT = MazeSplit(some_mazes.maze_set(), "train")
POINTS = 16
PROCESS = corruptions(some_mazes.corruption(), some_mazes.phase_one(), POINTS)["refinement"]


def network(**changes: Any) -> MazeRefiner:
    torch.manual_seed(0)
    made = MazeRefiner(SPLIT.mazes, POINTS, PROCESS.levels + 1, some_mazes.refiner(**changes))
    with torch.no_grad():  # as if trained: the fresh output layer is 0
        for layer in (made.out, made.modulate, *(block.modulate for block in made.blocks)):
            layer.weight.normal_(std=0.2, generator=generator(0, "weights"))
    return made.eval()


def corrupted(count: int = 6, level: int = 2) -> tuple[Corrupted, Tensor, Tensor]:
    ids = torch.arange(count)
    made = PROCESS(SPLIT.clips[:count], torch.full((count,), level), ids, generator(0, "noise"))
    return made, SPLIT.classes[:count], torch.full((count,), level)


def refined(net: MazeRefiner, made: Corrupted, cases: Tensor, level: Tensor, **more: Any) -> Tensor:
    result: Tensor = net(*made, cases, level, torch.ones(len(cases)), **more)
    return result


def test_points_and_latents_are_each_other_s_inverse() -> None:
    paths = some_mazes.maze_set().paths[:5]
    latents = latents_of(paths, 7)
    assert latents.shape == (5, 2, POINTS, 1, 1)
    assert latents.abs().max() <= 1
    torch.testing.assert_close(points_of(latents, 7), paths)


def test_an_untrained_network_returns_the_interpolation() -> None:
    torch.manual_seed(0)
    fresh = MazeRefiner(SPLIT.mazes, POINTS, PROCESS.levels + 1, some_mazes.refiner())
    made, cases, level = corrupted()
    straight = linear(SPLIT.clips[:6], made.mask)
    torch.testing.assert_close(refined(fresh, made, cases, level), straight)


def test_keyframes_are_kept_bit_for_bit_where_they_are_clamped() -> None:
    made, cases, level = corrupted()
    given = made.mask[:, None, :, None, None].expand_as(made.latents)
    clamped = refined(network(), made, cases, level)
    free = refined(network(), made, cases, level, clamp=False)
    assert torch.equal(clamped[given], SPLIT.clips[:6][given])
    assert (free[given] - SPLIT.clips[:6][given]).abs().max() > 1e-3
    assert torch.equal(refined(network(clamp=False), made, cases, level), free)


def test_the_correction_is_continuous_at_clamped_keyframes() -> None:
    made, cases, level = corrupted(level=2)
    free = refined(network(), made, cases, level, clamp=False)
    clamped = refined(network(), made, cases, level)
    moved = clamped - linear(SPLIT.clips[:6], made.mask)
    beside = made.mask[0].nonzero().flatten()[1] + 1
    jump = (moved[:, :, beside] - moved[:, :, beside - 1]).abs().max()
    shift = (free - clamped)[:, :, beside - 1].abs().max()
    assert jump < shift  # replacing single points would jump by the whole shift


def test_maze_noise_level_and_alpha_have_a_say() -> None:
    net, (made, cases, level) = network(), corrupted()
    base = refined(net, made, cases, level)
    other_maze = refined(net, made, SPLIT.classes[-6:], level)
    assert (base - other_maze).abs().max() > 1e-3
    other_noise = made._replace(latents=linear(made.latents, made.mask))
    assert (base - refined(net, other_noise, cases, level)).abs().max() > 1e-3
    assert (base - refined(net, made, cases, level - 1)).abs().max() > 1e-3
    guided = net(*made, cases, level, torch.full((6,), 2.0))
    assert (base - guided).abs().max() > 1e-4


@pytest.mark.parametrize("name", ["patch", "dim", "depth", "map_width", "map_rounds", "heads"])
def test_every_size_changes_the_output(name: str) -> None:
    made, cases, level = corrupted()
    larger = {"patch": 4, "dim": 32, "depth": 2, "map_width": 12, "map_rounds": 3, "heads": 4}
    base = refined(network(), made, cases, level)
    other = refined(network(**{name: larger[name]}), made, cases, level)
    assert (base - other).abs().max() > 1e-4


def test_the_map_reaches_as_far_as_it_has_rounds() -> None:
    inputs = torch.zeros(1, 7, 9, 9)
    changed = inputs.clone()
    changed[0, 1, 4, 0] = 1
    for rounds in (1, 3):
        net = network(map_rounds=rounds)
        moved = (net.encode(inputs) - net.encode(changed)).abs().amax(1)[0]
        assert moved[4, rounds + 1] > 0
        assert moved[:, rounds + 2 :].max() == 0
    for planes in (inputs, changed):
        planes[0, 0, :, 1] = 1
    blocked = (net.encode(inputs) - net.encode(changed)).abs().amax(1)[0]
    assert blocked[:, 1].max() == 0  # nothing is kept in walls
    assert blocked[:, 2:].max() == 0  # nor passes them


def test_keyframes_are_drawn_where_they_lie() -> None:
    made, cases, _ = corrupted(count=2)
    occupied, distance = SPLIT.mazes.of(cases)
    places = linear(SPLIT.clips[:2], made.mask)[..., 0, 0].mT
    planes = map_inputs(occupied, distance, places, made.confidence)
    assert planes[:, 4].sum((1, 2)).tolist() == [3.0, 3.0]
    assert torch.equal(planes[:, 0].bool(), occupied)
    assert (planes[:, 1][occupied] < 0).all()
    assert (planes[:, 1][~occupied] > 0).all()
    for row in range(2):
        for point in points_of(SPLIT.clips[row : row + 1], 7)[0][made.mask[row]]:
            column, line = point.long().tolist()
            assert planes[row, 4, line, column] >= 1


def test_a_saved_network_is_the_same_and_goes_to_other_mazes(tmp_path: Path) -> None:
    net, (made, cases, level) = network(), corrupted()
    save_maze_refiner(tmp_path, net)
    again = load_maze_refiner(tmp_path, SPLIT.mazes)
    torch.testing.assert_close(refined(again, made, cases, level), refined(net, made, cases, level))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="refiner of trajectories"):
        load_maze_refiner(tmp_path, SPLIT.mazes)


def test_impossible_sizes_are_named() -> None:
    for changes, message in (({"heads": 3}, "dim is 16"), ({"patch": 3}, "patch is 3")):
        with pytest.raises(ValueError, match=rf"maze_drift\.refiner\.{message}"):
            network(**changes)

"""The network of trajectories: what it keeps, what it is conditioned on, how it is saved."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from braid.common.rng import generator
from braid.drifting.interpolation.interpolation import linear
from braid.drifting.maze.network import (
    MAP_INPUTS,
    MazeRefiner,
    block_middles,
    detours,
    free_blocks,
    latents_of,
    load_maze_refiner,
    map_inputs,
    points_of,
    save_maze_refiner,
    walks,
)
from braid.drifting.maze.training import MazeSplit, as_proposals, corruptions
from braid.drifting.video.corruption import Corrupted
from braid.mazes.sources import BlockGraph
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
    inputs = torch.zeros(1, MAP_INPUTS, 9, 9)
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


def test_planes_say_which_blocks_lie_on_a_short_way_and_when() -> None:
    made, cases, _ = corrupted(count=2)
    occupied, distance = SPLIT.mazes.of(cases)
    places = linear(SPLIT.clips[:2], made.mask)[..., 0, 0].mT
    planes = map_inputs(occupied, distance, places, made.mask)
    assert planes.shape == (2, MAP_INPUTS, 7, 7)
    assert torch.equal(planes[:, 0].bool(), occupied)
    assert (planes[:, 1][occupied] < 0).all()
    assert (planes[:, 1][~occupied] > 0).all()
    harmonics = (MAP_INPUTS - 5) // 2
    for row in range(2):
        for place in made.mask[row].nonzero().flatten().tolist():
            column, line = points_of(SPLIT.clips[row : row + 1], 7)[0, place].long().tolist()
            way, *when = planes[row, 4:, line, column].tolist()
            assert way == 1  # a keyframe lies on the way
            angle = math.atan2(when[0], when[harmonics])
            assert abs(angle) == pytest.approx(math.pi * place / (POINTS - 1), abs=1e-5)
    other = map_inputs(occupied, distance, places, made.mask.index_fill(1, MIDDLE, False))
    assert (other[:, 4:] != planes[:, 4:]).any()  # of keyframes alone


MIDDLE = torch.tensor([5, 6, 7, 8])


def test_walks_are_as_long_as_a_graph_search_finds_them() -> None:
    occupied = some_mazes.maze_set().occupied[:4]
    free = [(~maze).flatten().nonzero().flatten() for maze in occupied]
    block = torch.stack([blocks[[0, 3, -1]] for blocks in free])
    steps = walks(occupied, block).flatten(2)
    for maze, blocks, sources, found in zip(occupied, free, block, steps, strict=True):
        graph = BlockGraph(maze.numpy())
        for source, row in zip(sources.tolist(), found, strict=True):
            expected = graph.steps[blocks.tolist().index(source)]
            assert row[blocks].tolist() == expected.tolist()
        assert (found[:, maze.flatten()] == 49).all()  # no way into walls


def test_a_keyframe_in_a_wall_counts_as_in_the_nearest_free_block() -> None:
    """Phase 1 may propose one."""
    occupied = torch.ones(2, 3, 3, dtype=torch.bool)
    occupied[0, 0] = occupied[1, :, 2] = False
    points = torch.tensor([[0.2, 0.9], [0.9, 1.2], [1.1, 2.9]]).expand(2, -1, -1)
    assert free_blocks(occupied, points).tolist() == [[0, 0, 1], [2, 5, 8]]
    middles = block_middles(occupied)[None]
    assert free_blocks(occupied[:1].logical_not(), middles)[0].tolist()[3:] == [3, 4, 5, 6, 7, 8]


def test_detours_are_of_the_nearest_gap() -> None:
    """A corridor with a dead end: three keyframes along it, and two."""
    occupied = torch.ones(1, 5, 5, dtype=torch.bool)
    occupied[0, 1, :] = False
    occupied[0, 2:4, 2] = False
    block = torch.tensor([[5, 5, 5, 17, 17, 17, 17, 9, 9]])  # to the dead end at time 4, and back
    points = torch.stack([block % 5, block // 5], -1) + 0.5
    given = torch.zeros(1, 9, dtype=torch.bool)
    given[0, [0, 4, 8]] = True
    detour, when = detours(occupied, points, given)
    assert detour[0, 1].tolist() == [0, 0, 0, 0, 0]
    assert detour[0, :4, 2].tolist()[1:] == [0, 0, 0]
    assert when[0, 1].tolist() == pytest.approx([0, 0.125, 0.25, 0.875, 1])
    given[0, 4] = False
    detour, when = detours(occupied, points, given)
    assert detour[0, :4, 2].tolist()[1:] == [0, 2, 4]
    assert when[0, 1].tolist() == pytest.approx([0, 0.25, 0.5, 0.75, 1])
    several = detours(
        occupied.repeat(2, 1, 1), points.repeat(2, 1, 1), torch.cat([given, given | MANY])
    )
    assert torch.equal(several[0][0], detour[0])  # however many keyframes others of the batch have


MANY = torch.arange(9) == 4


def test_a_proposed_keyframe_is_where_a_path_begins_but_may_be_moved() -> None:
    made, cases, level = corrupted()
    places = made.mask[0].nonzero().flatten()
    proposed = as_proposals(made)
    assert proposed.mask.sum(1).tolist() == [2] * 6
    assert set(proposed.confidence[:, places[1]].tolist()) == {0.5}
    assert torch.equal(proposed.confidence[:, [0, -1]], made.confidence[:, [0, -1]])
    torch.manual_seed(0)
    fresh = MazeRefiner(SPLIT.mazes, POINTS, PROCESS.levels + 1, some_mazes.refiner())
    straight = linear(SPLIT.clips[:6], made.mask)
    torch.testing.assert_close(refined(fresh, proposed, cases, level), straight)
    net = network()
    moved = (refined(net, proposed, cases, level) - SPLIT.clips[:6])[:, :, places].abs()
    assert moved[:, :, [0, -1]].max() == 0 < moved[:, :, 1].min()


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

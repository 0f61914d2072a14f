"""Layouts and ways, against a plain search."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

import numpy as np
import pytest

from braid.mazes.sources import BlockGraph, Blocks, Occupied, cases, layout, layouts
from tests.drifting.maze.some_mazes import mazes

SETTINGS = mazes().layouts


def some(count: int = 6) -> list[Occupied]:
    rng = np.random.default_rng(0)
    return [layout(4, 0.3, rng) for _ in range(count)]


def steps_from(occupied: Occupied, start: tuple[int, int]) -> dict[tuple[int, int], int]:
    steps, waiting = {start: 0}, deque([start])
    while waiting:
        row, column = waiting.popleft()
        for block in ((row + 1, column), (row - 1, column), (row, column + 1), (row, column - 1)):
            if not occupied[block] and block not in steps:
                steps[block] = steps[row, column] + 1
                waiting.append(block)
    return steps


def simple_paths(
    occupied: Occupied, path: list[tuple[int, int]], goal: tuple[int, int], most: int
) -> Iterator[list[tuple[int, int]]]:
    """All simple paths to the goal of at most so many steps."""
    if path[-1] == goal:
        yield path
        return
    if len(path) <= most:
        row, column = path[-1]
        for block in ((row + 1, column), (row - 1, column), (row, column + 1), (row, column - 1)):
            if not occupied[block] and block not in path:
                yield from simple_paths(occupied, [*path, block], goal, most)


def test_every_free_block_can_be_reached_and_the_border_is_closed() -> None:
    for occupied in some():
        assert occupied[0].all()
        assert occupied[:, -1].all()
        assert len(steps_from(occupied, (1, 1))) == (~occupied).sum()


def test_loops_take_out_walls() -> None:
    rng = np.random.default_rng(0)
    tree = [(~layout(4, 0.0, rng)).sum() for _ in range(5)]
    open_ = [(~layout(4, 1.0, rng)).sum() for _ in range(5)]
    assert set(tree) == {16 + 15}
    assert set(open_) == {16 + 24}


def test_steps_are_those_of_a_plain_search() -> None:
    for occupied in some(3):
        graph = BlockGraph(occupied)
        plain = steps_from(occupied, tuple(graph.blocks[0]))
        for number, block in enumerate(graph.blocks):
            assert graph.steps[0, number] == plain[tuple(block)]


def test_ways_are_the_shortest_simple_paths() -> None:
    for occupied in some(4):
        graph = BlockGraph(occupied)
        pairs = [(0, len(graph.blocks) - 1), (3, len(graph.blocks) // 2)]
        for start, goal in pairs:
            ways = graph.ways(start, goal, detour=1.2)
            ends = [tuple(map(int, graph.blocks[n])) for n in (start, goal)]
            most = int(1.2 * graph.steps[start, goal])
            plain = sorted(len(path) for path in simple_paths(occupied, [ends[0]], ends[1], most))
            assert [len(way) for way in ways] == plain[:3]
            for way in ways:
                check_way(way, occupied, ends)


def check_way(way: Blocks, occupied: Occupied, ends: list[tuple[int, ...]]) -> None:
    assert [tuple(way[0]), tuple(way[-1])] == ends
    assert (np.abs(np.diff(way, axis=0)).sum(1) == 1).all()
    assert not occupied[tuple(way.T)].any()
    assert len({tuple(block) for block in way}) == len(way)


def test_a_goal_behind_walls_has_no_way() -> None:
    occupied = np.ones((5, 5), dtype=bool)
    occupied[1, 1] = occupied[3, 3] = False
    occupied[1, 2] = False
    graph = BlockGraph(occupied)
    assert graph.ways(0, 2, 1.2) == []
    assert len(graph.ways(0, 0, 1.2)) == 1


def test_cases_are_as_long_and_as_ambiguous_as_asked() -> None:
    rng = np.random.default_rng(1)
    chosen = [
        case
        for number, maze in enumerate(layouts(SETTINGS, rng))
        for case in cases(number, maze, SETTINGS, rng)
    ]
    lengths = [len(case.ways[0]) - 1 for case in chosen]
    assert SETTINGS.shortest <= min(lengths) <= max(lengths) <= SETTINGS.longest
    several = np.mean([len(case.ways) > 1 for case in chosen])
    assert 0.2 < several <= 0.6


def test_too_many_mazes_of_a_size_are_refused() -> None:
    with pytest.raises(ValueError, match=r"mazes\.layouts\.mazes is 500"):
        layouts(mazes(cells=2, mazes=500).layouts, np.random.default_rng(0))

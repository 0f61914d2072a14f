"""Built-in mazes with loops, and the ways through them by graph search.

A layout is a random spanning tree of a grid of cells with some of the other walls taken out, so
that there is often more than one way around. Its free blocks are the nodes of a graph; corridors
are one block wide, so each simple path in it is a way of its own. Ways are the shortest paths by
Yen's algorithm (scipy), as long as the second is not much longer than the first.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import shortest_path, yen

from braid.mazes.config import LayoutsConfig

WAYS = 3  # of a case, at most

Occupied = NDArray[np.bool_]  # [H, W]
Blocks = NDArray[np.int64]  # [n, 2] row and column


class Case(NamedTuple):
    """A start and a goal in a maze, and the ways from one to the other, the shortest first."""

    maze: int
    ways: list[Blocks]


def layout(cells: int, loops: float, rng: np.random.Generator) -> Occupied:
    """A random maze of cells x cells cells, [2 cells + 1, 2 cells + 1]."""
    occupied = np.ones((2 * cells + 1, 2 * cells + 1), dtype=bool)
    occupied[1::2, 1::2] = False
    group = np.arange(cells * cells)  # of each cell: what it is connected with
    across = [(i * cells + j, i * cells + j + 1) for i in range(cells) for j in range(cells - 1)]
    down = [(i * cells + j, (i + 1) * cells + j) for i in range(cells - 1) for j in range(cells)]
    walls = np.array(across + down)
    for one, other in rng.permutation(walls):
        joins = group[one] != group[other]
        if joins or rng.random() < loops:
            rows, columns = np.divmod(np.array([one, other]), cells)
            occupied[rows.sum() + 1, columns.sum() + 1] = False
        if joins:
            group[group == group[other]] = group[one]
    return occupied


def layouts(config: LayoutsConfig, rng: np.random.Generator) -> list[Occupied]:
    """Layouts of which no two are alike.

    Raises:
        ValueError: there are not that many of that size.
    """
    chosen: dict[bytes, Occupied] = {}
    for _ in range(20 * config.mazes):
        maze = layout(config.cells, config.loops, rng)
        chosen[maze.tobytes()] = maze
        if len(chosen) == config.mazes:
            return list(chosen.values())
    raise ValueError(
        f"mazes.layouts.mazes is {config.mazes}, expected fewer: with {config.cells} cells a side "
        f"there were {len(chosen)} different ones"
    )


class BlockGraph:
    """The free blocks of a maze, each tied to its four neighbors."""

    def __init__(self, occupied: Occupied) -> None:
        self.blocks: Blocks = np.argwhere(~occupied)  # [n, 2]
        self.index = np.full(occupied.shape, -1)
        self.index[tuple(self.blocks.T)] = np.arange(len(self.blocks))
        ties = []
        for here, there in (
            (self.index[:, :-1], self.index[:, 1:]),
            (self.index[:-1], self.index[1:]),
        ):
            both = (here >= 0) & (there >= 0)
            ties.append(np.stack([here[both], there[both]]))
        one, other = np.concatenate(ties, axis=1)
        ends = np.concatenate([one, other]), np.concatenate([other, one])
        size = len(self.blocks)
        self.ties = csr_matrix((np.ones(2 * len(one)), ends), shape=(size, size))
        self.steps = shortest_path(self.ties, unweighted=True)  # [n, n]

    def ways(self, start: int, goal: int, detour: float) -> list[Blocks]:
        """Paths of blocks from one to the other, shortest first; none if there is no way."""
        if not np.isfinite(self.steps[start, goal]):
            return []
        if start == goal:
            return [self.blocks[[start]]]
        lengths, before = yen(self.ties, start, goal, WAYS, return_predecessors=True)
        return [
            self.blocks[_trace(row, start, goal)]
            for steps, row in zip(lengths, before, strict=True)
            if steps <= detour * lengths[0]
        ]


def _trace(before: NDArray[np.int32], start: int, goal: int) -> list[int]:
    """The nodes of a path from its predecessors."""
    nodes = [goal]
    while nodes[-1] != start:
        nodes.append(int(before[nodes[-1]]))
    return nodes[::-1]


def cases(
    number: int,  # of the maze
    occupied: Occupied,
    config: LayoutsConfig,
    rng: np.random.Generator,
) -> list[Case]:
    """Starts and goals of a maze, those with two ways around first, as many as are wanted."""
    graph = BlockGraph(occupied)
    apart = (graph.steps >= config.shortest) & (graph.steps <= config.longest)
    pairs = rng.permutation(np.argwhere(apart))
    wanted = {True: round(config.two_ways * config.cases)}
    wanted[False] = config.cases - wanted[True]
    chosen: list[Case] = []
    for start, goal in pairs:
        ways = graph.ways(int(start), int(goal), config.detour)
        several = len(ways) > 1
        if wanted[several]:
            wanted[several] -= 1
            chosen.append(Case(number, ways))
        if not any(wanted.values()):
            break
    return chosen

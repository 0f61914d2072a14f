"""Evaluation of trajectories: every figure by hand, on methods that are known."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from braid.drifting.maze.evaluation import (
    Held,
    MazeEvaluation,
    Method,
    Networks,
    both_ways,
    draw_evaluation,
    first_of_each,
    headline,
    held_out,
    maze_status,
    spread_ratio,
)
from braid.drifting.maze.network import MazeRefiner
from braid.drifting.maze.training import MazeSplit, corruptions
from braid.drifting.video.corruption import Corruption
from braid.metrics.obstacles import collides, length
from tests.drifting.maze import some_mazes

POINTS = 16
MAZES = some_mazes.maze_set()
TASKS = corruptions(some_mazes.corruption(), some_mazes.phase_one(), POINTS)


def network(seed: int) -> MazeRefiner:
    torch.manual_seed(seed)
    made = MazeRefiner(MazeSplit(MAZES, "test").mazes, POINTS, 3, some_mazes.refiner())
    torch.nn.init.normal_(made.out.weight, std=0.02)
    return made.eval()


@cache
def evaluation(several: bool = True) -> MazeEvaluation:
    test = MazeSplit(MAZES, "test")
    held = held_out(test, MAZES.planned, MAZES.way, MAZES.two_ways() & several)
    networks = Networks(*(network(seed) for seed in range(4)))
    train = MazeSplit(MAZES, "train").clips
    return MazeEvaluation(networks, held, TASKS, 6, train, some_mazes.evaluation(), seed=0)


def figures(clips: Tensor, mask: Tensor | None = None) -> dict[str, Any]:
    made = evaluation()
    if mask is None:
        mask = torch.zeros(len(clips), POINTS, dtype=torch.bool)
        mask[:, [0, 5, 15]] = True
    return made.figures(Method(clips, mask, 1, 1.0), made.held)


def test_real_trajectories_have_perfect_figures() -> None:
    real = figures(evaluation().held.truth)
    assert real["collision"] == real["collision_points"] == real["error"] == 0
    assert real["success"] == real["acceleration_ratio"] == 1
    held = evaluation().held
    rows = torch.from_numpy(MAZES.indices("test"))
    assert len(rows) == len(evaluation().everything.truth)
    assert real["length_ratio"] == pytest.approx(1, abs=0.15)
    assert held.two_ways.any()


def test_straight_lines_collide_and_are_short() -> None:
    made = evaluation()
    ends = made.held.truth[:, :, [0, -1]]
    weight = torch.linspace(0, 1, POINTS)[None, None, :, None, None]
    lines = torch.lerp(ends[:, :, :1], ends[:, :, 1:], weight)
    row = figures(lines)
    assert row["collision"] > 0.3
    assert row["success"] == pytest.approx(1 - row["collision"])
    assert row["length_ratio"] < 1
    assert row["acceleration_ratio"] == pytest.approx(0, abs=1e-6)
    assert row["keyframe_error"] > 0.05


def test_a_trajectory_off_its_goal_is_no_success() -> None:
    moved = evaluation().held.truth.clone()
    moved[:, 0, -1] += 0.02
    row = figures(moved)
    assert row["success"] == 0
    assert row["collision"] < 0.2


def test_keyframe_error_is_of_inner_keyframes_alone() -> None:
    moved = evaluation().held.truth.clone()
    moved[:, 1, 5] += 0.1  # in units of half a maze of 7 blocks
    moved[:, 1, 7] += 0.1
    assert figures(moved)["keyframe_error"] == pytest.approx(0.35, rel=1e-4)


def test_the_table_has_every_method_at_every_level() -> None:
    rows = evaluation().table()
    methods = {(row["method"], row["keyframes"]) for row in rows}
    for count in (3, 6):
        for name in [
            "interpolated",
            "projected",
            "paired",
            "cold",
            "refined",
            "shuffled",
            "permuted",
        ]:
            assert (name, count) in methods
        for placed in ("selected", "optimal"):
            assert {(f"interpolated_{placed}", count), (f"refined_{placed}", count)} <= methods
    for name in ("phase1_alone", "phase1_paired", "phase1_refined", "planner", "real"):
        assert (name, None) in methods
    table = {(row["method"], row["keyframes"]): row for row in rows}
    assert table["planner", None]["collision"] == table["real", None]["collision"] == 0
    assert table["planner", None]["length_ratio"] == 1
    assert table["refined", 3]["keyframe_error"] == 0 < table["unclamped", 3]["keyframe_error"]
    assert table["projected", 3]["collision_points"] < table["interpolated", 3]["collision_points"]
    assert table["interpolated_optimal", 3]["error"] < table["interpolated", 3]["error"]
    assert table["cold", 3]["calls"] == 2
    assert "microseconds_refined" in evaluation().clock
    assert all(line["frechet"] >= 0 for line in rows)


def test_interpolation_is_evaluated_without_noise() -> None:
    made = evaluation()
    method = made.methods(2)["interpolated"]
    inner = method.clips[:, :, 1:5]
    left, right = method.clips[:, :, :1], method.clips[:, :, 8:9]
    places = method.mask[0].nonzero().flatten().tolist()
    assert len(places) == 3
    middle = places[1]
    right = method.clips[:, :, middle : middle + 1]
    weight = (torch.arange(1, 5) / middle)[None, None, :, None, None]
    torch.testing.assert_close(inner, torch.lerp(left, right, weight))


def two_way_cases() -> tuple[Held, Tensor]:
    everything = evaluation().everything
    held = everything[everything.two_ways.nonzero().flatten()]
    return held, held[first_of_each(held.cases)].cases


def test_both_ways_counts_what_goes_round_both_sides_without_collision() -> None:
    held, cases = two_way_cases()
    real = [held.truth[held.cases == case] for case in cases]
    ways = [held.ways[held.cases == case] for case in cases]
    both = torch.stack(
        [
            torch.stack([clips[way == 0][0], clips[way > 0][0]])
            for clips, way in zip(real, ways, strict=True)
        ],
        dim=1,
    )
    free = torch.zeros(2, len(cases), dtype=torch.bool)
    assert both_ways(both, free, cases, held) == 1
    assert both_ways(both[[0, 0]], free, cases, held) == 0
    hit = free.clone()
    hit[1, 0] = True
    assert both_ways(both, hit, cases, held) == pytest.approx(1 - 1 / len(cases))


def test_the_spread_is_of_samples_by_one_way_over_that_of_real_trajectories() -> None:
    held, cases = two_way_cases()
    held = held[(held.cases == cases[0]).nonzero().flatten()]
    one = held.truth[held.ways == 0]
    assert len(one) == 2
    middle = one.mean(0)
    both = torch.cat([one, held.truth[held.ways > 0]])[:, None]
    assert spread_ratio(both, cases[:1], held) == pytest.approx(1, rel=1e-5)
    wide = (middle + 1.5 * (one - middle))[:, None]
    half, same = (middle + 0.5 * (one - middle))[:, None], one[[0, 0], None]
    apart = (one[0] - one[1]).norm()
    other = [held.truth[held.ways == way] for way in held.ways.unique() if way > 0]
    real = torch.stack([apart, *((pair[0] - pair[1]).norm() for pair in other)]).mean()
    for samples, factor in ((wide, 1.5), (half, 0.5), (same, 0.0)):
        expected = float(factor * apart / real)
        assert spread_ratio(samples, cases[:1], held) == pytest.approx(expected, rel=1e-4)
    assert spread_ratio(one[:1, None], cases[:1], held) is None


def test_permuted_trajectories_are_those_of_other_samples() -> None:
    methods = evaluation().completed[2]
    refined, permuted = methods["refined"].clips, methods["permuted"].clips
    assert torch.equal(permuted, refined.roll(len(refined) // 2, dims=0))


def test_keyframes_of_phase_one_may_be_moved_by_what_was_trained_so() -> None:
    """By the evaluated refiner, where scheduled sampling is on; its draft is kept otherwise."""
    made = evaluation()
    draft = made.pipeline(made.held, made.networks.keyframes, None, 0).clips
    kept = made.pipeline(made.held, made.networks.keyframes, made.networks.refiner, 0)
    inner = kept.mask.clone()
    inner[:, [0, -1]] = False
    assert inner.any()
    places = inner[:, None, :, None, None].expand_as(draft)
    assert torch.equal(kept.clips[places], draft[places])
    usual = made.corruption
    try:
        made.corruption = Corruption(POINTS, some_mazes.corruption(student_replace_prob=0.5))
        moved = made.pipeline(made.held, made.networks.keyframes, made.networks.refiner, 0)
        by_regression = made.pipeline(made.held, made.networks.keyframes, made.networks.paired, 0)
    finally:
        made.corruption = usual
    assert (moved.clips[places] - draft[places]).abs().min() > 0
    assert torch.equal(by_regression.clips[places], draft[places])
    assert torch.equal(moved.clips[:, :, [0, -1]], draft[:, :, [0, -1]])


def test_pipelines_start_from_the_ends_alone() -> None:
    rows, samples = evaluation().two_ways()
    assert samples is not None
    assert [row["method"] for row in rows] == ["phase1_alone", "phase1_paired", "phase1_refined"]
    for name, clips in samples.clips.items():
        assert clips.shape == (3, len(samples.cases.cases), 2, POINTS, 1, 1), name
        assert torch.equal(clips[0][:, :, [0, -1]], samples.cases.truth[:, :, [0, -1]])
        assert (clips[0] - clips[1]).abs().max() > 0
    occupied = samples.cases.mazes.of(samples.cases.cases)[0]
    assert evaluation().everything.mazes.blocks == 7
    inside_unknown = samples.cases.truth.clone()
    inside_unknown[:, :, 1:-1] = torch.nan
    for name, networks in evaluation().pipelines().items():
        ends = replace(samples.cases, truth=inside_unknown)
        again = evaluation().pipeline(ends, *networks, number=1).clips
        assert torch.equal(again, samples.clips[name][0])
    for row in rows:
        assert row["collision"] == pytest.approx(1 - row["success"], abs=1e-6)
    assert len(occupied) == row["cases"]


def row(name: str, count: int | None, collision: float, **more: float) -> dict[str, Any]:
    usual = {"success": 1 - collision, "length_ratio": 1.0}
    return {"method": name, "keyframes": count, "collision": collision, **(usual | more)}


def known(
    refined: float = 0.05,
    drifting: float = 0.2,
    both: float = 0.7,
    spread: float | None = 1.1,
    shuffled: float = 0.5,
) -> Any:
    rows = [
        row("interpolated", 6, 0.4),
        row("refined", 6, 0.02),
        row("interpolated", 3, 0.8),
        row("refined", 3, refined, length_ratio=1.07),
        row("paired", 3, 0.2),
        row("shuffled", 3, shuffled),
        row("planner", None, 0.0),
    ]
    ways = [
        {"method": "phase1_paired", "collision": 0.9, "both_ways": 0.0},
        {"method": "phase1_refined", "collision": drifting, "both_ways": both},
    ]
    return rows, [line | {"spread_ratio": spread} for line in ways]


def test_the_headline_has_ratios_of_collisions() -> None:
    figures = headline(*known())
    assert figures["collision_ratio_six"] == pytest.approx(0.05)
    assert figures["collision_ratio_three"] == pytest.approx(0.0625)
    assert figures["success_three"] == pytest.approx(0.95)
    assert figures["length_ratio"] == 1.07
    assert figures["collision_paired_two_ways"] == 0.9
    assert figures["both_ways"] == 0.7
    assert figures["status"] == "ok"
    rows, ways = known()
    figures = headline([row for row in rows if row["keyframes"] != 6], ways)
    assert figures["collision_ratio_six"] is figures["success_six"] is None


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"refined": 0.85}, "worse_than_interpolation"),
        ({"refined": 0.2}, "collides_with_few_keyframes"),
        ({"shuffled": 0.08, "drifting": 0.5}, "ignores_the_maze"),
        ({"drifting": 0.5}, "no_better_than_regression_at_two_ways"),
        ({"both": 0.5}, "one_way_only"),
        ({"spread": 0.3, "both": 0.5}, "collapsed"),
        ({"spread": 2.5}, "scattered"),
        ({"spread": None}, "ok"),
        ({}, "ok"),
    ],
)
def test_failures_have_names(changes: dict[str, float], status: str) -> None:
    rows, ways = known(**changes)
    table = {(line["method"], line["keyframes"]): line for line in rows}
    assert maze_status(table, {line["method"]: line for line in ways}, 3) == status


def test_held_out_is_of_test_mazes() -> None:
    held = evaluation().everything
    train = {int(maze) for maze in MAZES.maze_of[MazeSplit(MAZES, "train").classes]}
    assert not train & {int(maze) for maze in MAZES.maze_of[held.cases]}
    occupied = held.mazes.of(held.cases)[0]
    assert not collides(occupied, held.planned).any()
    assert (length(held.planned) > 1).all()


def test_without_two_ways_around_their_figures_are_none_for_a_reason(tmp_path: Path) -> None:
    made = evaluation(several=False)
    ways, samples = made.two_ways()
    assert samples is None
    assert [(row["method"], row["cases"]) for row in ways] == [
        (name, 0) for name in made.pipelines()
    ]
    rows, _ = known()
    figures = headline(rows, ways)
    assert figures["both_ways"] is figures["collision_refined_two_ways"] is None
    assert figures["two_ways_reason"] == "no held-out case has two ways around"
    assert figures["status"] == "ok"
    draw_evaluation(tmp_path, made, samples)
    assert not (tmp_path / "two_ways.png").exists()


def test_the_truth_itself_is_at_distance_0() -> None:
    truth = evaluation().held.truth
    assert evaluation().distances(truth)["energy"] == pytest.approx(0, abs=1e-9)
    assert evaluation().distances(truth, completions=False)["energy"] < -0.001

"""Objectives on trajectories: a batch can be learnt, two ways are chosen between, the best kept."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from braid.common.rng import generator
from braid.drifting.config import DriftBatchesConfig
from braid.drifting.maze.config import MazeDriftConfig
from braid.drifting.maze.network import MazeRefiner, Mazes, save_maze_refiner
from braid.drifting.maze.training import (
    PROPOSALS,
    Anchors,
    MazeSplit,
    MazeValidation,
    anchors_of,
    corruptions,
    energy_score,
    maze_objective,
    propose,
    start_from,
)
from braid.drifting.training.objectives import ClassSampler, DriftObjective, PairedObjective
from braid.drifting.video.refiner import refine
from braid.stage.params import load_yaml
from braid.training.trainer import Run, train
from tests.drifting import configs
from tests.drifting.maze import some_mazes

POINTS = 16
RUN = Run(seed=0, device=torch.device("cpu"), log_every=4)
TRAIN = MazeSplit(some_mazes.maze_set(), "train")
TASKS = corruptions(some_mazes.corruption(), some_mazes.phase_one(), POINTS)


def network(**changes: Any) -> MazeRefiner:
    torch.manual_seed(0)
    return MazeRefiner(TRAIN.mazes, POINTS, 3, some_mazes.refiner(**changes))


def objective(refiner: nn.Module, task: str = "refinement", **changes: Any) -> Any:
    settings = some_mazes.training(task=task, **changes)
    return maze_objective(settings, configs.loss(), refiner, TASKS[task], TRAIN, None, None, RUN)


def trained(made: Any, steps: int, lr: float = 1e-2) -> list[float]:
    result = train(made, configs.optimizer(lr=lr, clip_norm=1.0), RUN, steps=steps)
    return [row["loss"] for row in result.history]


def test_regression_learns_the_training_trajectories() -> None:
    made = objective(network(dim=32))
    made.sampler = ClassSampler(torch.zeros(2, dtype=torch.int64))  # two trajectories, over again
    losses = trained(made, steps=60)
    assert max(losses[-3:]) < 0.1 * losses[0]


@pytest.mark.parametrize("task", ["refinement", "keyframes"])
@pytest.mark.parametrize(("name", "kind"), [("paired", PairedObjective), ("drift", DriftObjective)])
def test_both_objectives_run_on_both_tasks(task: str, name: str, kind: type) -> None:
    refiner = network()
    before = [weights.clone() for weights in refiner.parameters()]
    made = objective(refiner, task, objective=name)
    assert isinstance(made, kind)
    trained(made, steps=4)
    assert any(not torch.equal(a, b) for a, b in zip(before, refiner.parameters(), strict=True))


class Choice(nn.Module):
    """One free number a sample: how far to which side of the line a trajectory bends."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(0.1))

    def forward(
        self,
        clips: Tensor,
        mask: Tensor,
        confidence: Tensor,
        cases: Tensor,
        level: Tensor,
        alpha: Tensor,
        clamp: bool | None = None,
    ) -> Tensor:
        bend = torch.zeros_like(clips)
        side = torch.tanh(20 * clips[:, 1:, POINTS // 2])  # of the noise
        bend[:, 1] = self.gain * side[:, :, None, 0] * (~mask)[:, :, None, None]
        return bend


def test_drifting_chooses_between_two_ways_where_regression_takes_the_mean() -> None:
    """Half of the real trajectories bend to one side by 1, half to the other, from equal ends."""
    sides = torch.tensor([1.0, -1.0]).repeat(8)
    clips = torch.zeros(16, 2, POINTS, 1, 1)
    clips[:, 1, 1:-1, 0, 0] = sides[:, None]
    blocks = torch.zeros(1, 7, 7, dtype=torch.bool)
    split = MazeSplit.__new__(MazeSplit)
    split.clips, split.classes = clips, torch.zeros(16, dtype=torch.int64)
    split.mazes = Mazes(blocks, torch.zeros(1, 29, 29), torch.zeros(1, dtype=torch.int64))
    batches = DriftBatchesConfig(
        **some_mazes.BATCHES | {"classes": 1, "generated": 16, "positives": 16, "bank": 16}
    )
    gains = {}
    for name in ("paired", "drift"):
        refiner: Any = Choice()
        settings = some_mazes.training(task="keyframes", objective=name, batches=batches)
        made = maze_objective(
            settings, configs.loss(floor=0.0), refiner, TASKS["keyframes"], split, None, None, RUN
        )
        trained(made, steps=80, lr=3e-2)
        gains[name] = float(refiner.gain.detach().abs())
    assert gains["paired"] < 0.3  # through the middle
    assert 0.7 < gains["drift"] < 1.3


def test_a_network_goes_on_from_another_and_only_from_one_of_its_shape(tmp_path: Path) -> None:
    first = network()
    trained(objective(first), steps=4)
    save_maze_refiner(tmp_path, first)
    second = network()
    start_from(second, tmp_path)
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other)
    with pytest.raises(ValueError, match="to start from, expected"):
        start_from(network(dim=32), tmp_path)


def test_phase_one_reads_the_ends_alone_and_its_noise_differs() -> None:
    refiner, process = network(), TASKS["keyframes"]
    clips, cases = TRAIN.clips[:4], TRAIN.classes[:4]
    hidden = clips.clone()
    hidden[:, :, 1:-1] = torch.nan
    ids = torch.arange(4)
    first = propose(refiner, process, clips, cases, ids, 0, seed=0)
    assert torch.equal(propose(refiner, process, hidden, cases, ids, 0, seed=0), first)
    trained(objective(refiner, "keyframes"), steps=4)
    samples = [propose(refiner, process, clips, cases, ids, number, seed=0) for number in range(2)]
    others = propose(refiner, process, clips, cases, ids + 4, 0, seed=0)
    assert (samples[0] - others).abs().max() > 1e-5
    assert torch.equal(samples[0][:, :, [0, -1]], clips[:, :, [0, -1]])
    assert (samples[0] - samples[1]).abs().max() > 1e-5


def test_phase_one_starts_to_either_side_of_the_line_between_the_ends() -> None:
    process = corruptions(some_mazes.corruption(), some_mazes.phase_one(noise="sides"), POINTS)
    ends = torch.zeros(64, 2, POINTS, 1, 1)
    ends[:, :, -1] = torch.tensor([0.6, 0.8])[:, None, None]
    mask = torch.zeros(64, POINTS, dtype=torch.bool)
    mask[:, [0, -1]] = True
    ids, noise = torch.arange(64), generator(0, "noise")
    bends = process["keyframes"].impute(ends, mask, ids, noise).latents[..., 0, 0]
    bends = bends - ends[:, :, -1, :, 0] * torch.linspace(0, 1, POINTS)
    across = (bends * torch.tensor([-0.8, 0.6])[:, None]).sum(1)  # [B, T]
    assert len(across.mul(1e4).round().unique(dim=0)) == 8  # three waves, a sign each
    third = math.sqrt(2) / math.pi * 0.6
    assert (across @ torch.linspace(0, math.pi, POINTS).sin()).abs().amin() > third
    along = (bends * torch.tensor([0.6, 0.8])[:, None]).sum(1)
    torch.testing.assert_close(along.norm(), 0.3 * across.norm())


@pytest.fixture
def phase_one(tmp_path: Path) -> MazeRefiner:
    """A network of keyframes, saved in `tmp_path`."""
    refiner = network()
    trained(objective(refiner, "keyframes"), steps=4)
    save_maze_refiner(tmp_path, refiner)
    return refiner.eval()


def test_anchors_are_the_proposals_nearest_to_the_truth(
    phase_one: MazeRefiner, tmp_path: Path
) -> None:
    positions, process = torch.arange(5), TASKS["keyframes"]
    truth, cases = TRAIN.clips[:5], TRAIN.classes[:5]
    offered = torch.stack(
        [propose(phase_one, process, truth, cases, positions, k, 0) for k in range(8)]
    )
    error = (offered - truth).square().flatten(2).sum(2)
    for count in PROPOSALS.values():
        chosen = Anchors(TRAIN, tmp_path, process, count, 0)(positions)
        made = (chosen - truth).square().flatten(1).sum(1)
        torch.testing.assert_close(made, error[:count].amin(0))


def test_a_trajectory_drawn_twice_gets_two_proposals(
    phase_one: MazeRefiner, tmp_path: Path
) -> None:
    anchors = Anchors(TRAIN, tmp_path, TASKS["keyframes"], 1, 0)
    first, again, other = anchors(torch.tensor([3, 3, 4]))
    assert (first - again).abs().max() > 1e-5
    later = anchors(torch.tensor([7, 4, 3]))
    torch.testing.assert_close(later[1:], torch.stack([other, first]))


def test_anchors_replace_keyframes_in_training(phase_one: MazeRefiner, tmp_path: Path) -> None:
    process = corruptions(
        some_mazes.corruption(student_replace_prob=0.9), some_mazes.phase_one(), POINTS
    )["refinement"]
    anchors = anchors_of(TRAIN, tmp_path, TASKS["keyframes"], 1, 0)
    settings = some_mazes.training()
    parts = settings, configs.loss(), network(), process, TRAIN, None
    made, without = maze_objective(*parts, anchors, RUN), maze_objective(*parts, None, RUN)
    assert anchors_of(TRAIN, None, TASKS["keyframes"], 1, 0) is None
    assert without.corruption.config.student_replace_prob == 0
    assert made(0, generator(0, "s"))["paired"] != without(0, generator(0, "s"))["paired"]


def test_keyframes_are_replaced_where_the_evaluated_refiner_has_anchors() -> None:
    params = load_yaml(Path("params.yaml"))["maze_drift"]
    assert params["corruption"]["student_replace_prob"] > 0
    MazeDriftConfig(**params)
    name = params["evaluation"]["refiner"]
    for prob, anchors in ((0.0, "models/drift_maze/keyframes"), (0.5, "none")):
        params["corruption"]["student_replace_prob"] = prob
        params["refiners"][name]["anchors"] = anchors
        with pytest.raises(
            ValueError, match=rf"student_replace_prob is {prob:g}, .*{name}.anchors"
        ):
            MazeDriftConfig(**params)


def test_validation_scores_walls_and_keeps_the_best() -> None:
    validation = MazeSplit(some_mazes.maze_set(), "val")
    for task, score in (("refinement", "collision"), ("keyframes", "energy_score")):
        best = MazeValidation(validation, TASKS[task], some_mazes.training(task=task), None, RUN)
        refiner = network()
        made = objective(refiner, task)
        figures = best(4, made, None)
        assert figures is not None
        assert best(5, made, None) is None
        assert best.score == score
        assert figures[f"val_{score}"] == pytest.approx(best.interpolated[score])  # untrained
        kept = {name: value.clone() for name, value in best.weights.items()}
        with torch.no_grad():
            refiner.out.weight.normal_(std=3.0)
        best(8, made, None)
        assert best.last["step"] == 8
        assert best.best["step"] == 4
        assert all(torch.equal(best.weights[name], value) for name, value in kept.items())


def test_validation_counts_the_keyframes_of_phase_one_too(
    phase_one: MazeRefiner, tmp_path: Path
) -> None:
    validation = MazeSplit(some_mazes.maze_set(), "val")
    anchors = Anchors(validation, tmp_path, TASKS["keyframes"], 1, 0)
    settings = some_mazes.training()
    with_them = MazeValidation(validation, TASKS["refinement"], settings, anchors, RUN)
    without = MazeValidation(validation, TASKS["refinement"], settings, None, RUN)
    refiner = network()
    with torch.no_grad():
        refiner.out.weight.normal_(std=0.05)
    figures, fewer = with_them.scores(refiner), without.scores(refiner)
    rates = [figures[f"collision_{name}"] for name in ("6", "3", "proposed")]
    assert figures["collision"] == pytest.approx(sum(rates) / 3)
    assert fewer["collision"] == pytest.approx(sum(rates[:2]) / 2)
    assert fewer["mse"] == figures["mse"]  # proposals may go another way than the trajectory
    level, (start,) = with_them.starts["proposed"]
    assert level == 2
    inner = start.confidence[0] == 0.5
    assert inner.sum() == 1
    expected = anchors(validation.evenly(400))[:, :, inner]
    assert torch.equal(start.latents[:, :, inner], expected)


def test_the_energy_score_prefers_the_right_distribution() -> None:
    draw = generator(0, "score")
    truth = torch.randn(400, 1, generator=draw).sign()  # one of two sides
    right = torch.randn(4, 400, 1, generator=draw).sign()
    mean = torch.zeros(4, 400, 1)
    one = torch.ones(4, 400, 1)
    scores = [energy_score(samples, truth) for samples in (right, mean, one)]
    assert scores[0] < 0.6 < scores[1] == 1.0
    assert scores[0] < scores[2]


def test_a_count_of_keyframes_that_no_level_has_is_named() -> None:
    with pytest.raises(ValueError, match=r"maze_drift\.keyframes\.count is 5, expected one of"):
        corruptions(some_mazes.corruption(), some_mazes.phase_one(count=5), POINTS)


def test_levels_have_their_numbers_of_keyframes() -> None:
    process = TASKS["refinement"]
    assert process.counts == [16, 6, 3]
    assert TASKS["keyframes"].counts == [16, 2]
    start = process.impute(
        TRAIN.clips[:3],
        process.mask(TRAIN.clips[:3], torch.full((3,), 2), torch.arange(3), generator(0, "m")),
        torch.arange(3),
        generator(0, "n"),
    )
    assert start.mask.sum(1).tolist() == [3, 3, 3]
    assert refine(network(), start, TRAIN.classes[:3], 2, alpha=1.0).shape == (3, 2, POINTS, 1, 1)

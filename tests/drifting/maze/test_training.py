"""Objectives on trajectories: a batch can be learnt, two ways are chosen between, the best kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from braid.common.rng import generator
from braid.drifting.config import DriftBatchesConfig
from braid.drifting.maze.network import MazeRefiner, Mazes, save_maze_refiner
from braid.drifting.maze.training import (
    Anchors,
    MazeSplit,
    MazeValidation,
    corruptions,
    energy_score,
    maze_objective,
    propose,
    start_from,
)
from braid.drifting.training.objectives import ClassSampler, DriftObjective, PairedObjective
from braid.drifting.video.refiner import refine
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
    first = propose(refiner, process, clips, cases, 0, seed=0)
    assert torch.equal(propose(refiner, process, hidden, cases, 0, seed=0), first)
    trained(objective(refiner, "keyframes"), steps=4)
    samples = [propose(refiner, process, clips, cases, number, seed=0) for number in range(2)]
    assert torch.equal(samples[0][:, :, [0, -1]], clips[:, :, [0, -1]])
    assert (samples[0] - samples[1]).abs().max() > 1e-5


def test_anchors_are_the_proposals_nearest_to_the_truth(tmp_path: Path) -> None:
    refiner, positions = network(), torch.arange(5)
    trained(objective(refiner, "keyframes"), steps=4)
    save_maze_refiner(tmp_path, refiner)
    anchors = Anchors(tmp_path, TASKS["keyframes"], TRAIN, seed=0)
    truth, cases = TRAIN.clips[:5], TRAIN.classes[:5]
    offered = torch.stack(
        [propose(refiner.eval(), TASKS["keyframes"], truth, cases, k, 0) for k in range(8)]
    )
    error = (offered - truth).square().flatten(2).sum(2)
    chosen = (anchors(positions) - truth).square().flatten(1).sum(1)
    torch.testing.assert_close(chosen, error.amin(0))
    process = corruptions(
        some_mazes.corruption(student_replace_prob=0.9), some_mazes.phase_one(), POINTS
    )["refinement"]
    settings = some_mazes.training()
    made = maze_objective(settings, configs.loss(), refiner, process, TRAIN, None, anchors, RUN)
    assert made(0, generator(0, "step"))["paired"] > 0
    without = maze_objective(settings, configs.loss(), refiner, process, TRAIN, None, None, RUN)
    assert without.corruption.config.student_replace_prob == 0
    assert made(0, generator(0, "s"))["paired"] != without(0, generator(0, "s"))["paired"]


def test_validation_scores_walls_and_keeps_the_best() -> None:
    validation = MazeSplit(some_mazes.maze_set(), "val")
    for task, score in (("refinement", "collision"), ("keyframes", "energy_score")):
        best = MazeValidation(validation, TASKS[task], some_mazes.training(task=task), RUN)
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

"""Averaged weights are what training leaves; a snapshot outlives a kill."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from braid.training.config import OptimizerConfig
from braid.training.ema import Ema
from braid.training.trainer import Snapshot, TrainResult, train
from tests.training.toy import one_run, optimizer_config

CONFIG = optimizer_config(lr_floor=0.1, warmup=0.25, accumulate=2, clip_norm=1.0, ema_decay=0.9)


class Toy(nn.Module):
    """Moves a vector to random targets; counts its steps and can be killed before one."""

    def __init__(self, kill_at: int | None = None) -> None:
        super().__init__()
        self.field = nn.Linear(3, 1, bias=False)
        nn.init.ones_(self.field.weight)
        self.kill_at = kill_at
        self.weights_at: list[Tensor] = []

    def forward(self, step: int, generator: torch.Generator) -> dict[str, Tensor]:
        if step == self.kill_at:
            raise KeyboardInterrupt
        self.weights_at.append(self.field.weight.detach().clone())
        target = 5 + torch.randn(3, generator=generator)
        return {"gap": (self.field.weight - target).square().mean()}


def train_toy(
    toy: Toy, config: OptimizerConfig = CONFIG, scratch: Path | None = None, **options: Any
) -> tuple[TrainResult, Snapshot]:
    warm = Snapshot(toy.field, 5)
    result = train(
        toy,
        config,
        one_run(scratch=scratch, log_every=1, checkpoint_every=4),
        steps=12,
        stateful={"warm": warm},
        hooks={"warm": warm, **options.pop("hooks", {})},
        **options,
    )
    return result, warm


def test_the_averaged_weights_are_left_in_the_objective() -> None:
    last: list[Tensor] = []
    toy = Toy()

    def spy(done: int, objective: nn.Module, ema: Ema | None) -> None:
        last[:] = [toy.field.weight.detach().clone()]

    result, _ = train_toy(toy, hooks={"spy": spy})
    assert result.ema is not None
    assert torch.equal(toy.field.weight, result.ema.average["field.weight"])
    assert not torch.equal(toy.field.weight, last[0])
    one = toy.weights_at[::2]  # two micro-steps each
    average = one[0]
    for step, weight in enumerate([*one[1:], last[0]]):
        average = average.lerp(weight, 1 - min(0.9, (1 + step) / (10 + step)))
    torch.testing.assert_close(toy.field.weight.detach(), average)


def test_without_an_average_the_last_weights_are_left() -> None:
    toy = Toy()
    result, _ = train_toy(toy, CONFIG.model_copy(update={"ema_decay": None}))
    assert result.ema is None
    assert not torch.equal(toy.field.weight, torch.ones(1, 3))


def test_settings_reach_the_loop() -> None:
    toy = Toy()
    result, _ = train_toy(toy, lr_scale=0.5, term_gradients=True)
    assert len(result.history) == 12
    assert len(toy.weights_at) == 24
    rates = [row["lr"] for row in result.history]
    assert max(rates) == pytest.approx(0.05)
    assert rates.index(max(rates)) in (2, 3)
    assert rates[0] < max(rates) / 2
    assert min(rates[3:]) < 0.2 * max(rates)
    assert all("gradient_norm_gap" in row for row in result.history)
    decayed = Toy()
    train_toy(decayed, CONFIG.model_copy(update={"weight_decay": 0.5}), lr_scale=0.5)
    assert decayed.field.weight.norm() < toy.field.weight.norm()
    plain, _ = train_toy(Toy())
    assert not any("gradient_norm_gap" in row for row in plain.history)


def test_the_gradient_is_clipped() -> None:
    """Adam forgets a constant scale, not one that comes at the first step alone."""

    class Spike(Toy):
        def forward(self, step: int, generator: torch.Generator) -> dict[str, Tensor]:
            terms = super().forward(step, generator)
            return {"gap": terms["gap"] * (1000 if step == 0 else 1)}

    moved = []
    for clip_norm in (1.0, 1e9):
        toy = Spike()
        train_toy(toy, CONFIG.model_copy(update={"clip_norm": clip_norm}))
        moved.append((toy.field.weight - 1).norm())
    assert moved[0] > 1.1 * moved[1]


def test_a_snapshot_holds_the_weights_after_its_step() -> None:
    toy = Toy()
    _, warm = train_toy(toy, CONFIG.model_copy(update={"ema_decay": None}))
    assert torch.equal(warm.weights["weight"], toy.weights_at[10])  # before step 5, counted from 0
    assert not torch.equal(warm.weights["weight"], toy.field.weight)


def test_a_snapshot_holds_the_averages_where_some_are_kept() -> None:
    averages: dict[int, Tensor] = {}

    def spy(done: int, objective: nn.Module, ema: Ema | None) -> None:
        assert ema is not None
        averages[done] = ema.average["field.weight"].clone()

    toy = Toy()
    _, warm = train_toy(toy, hooks={"spy": spy})
    assert torch.equal(warm.weights["weight"], averages[5])
    assert not torch.equal(averages[5], toy.weights_at[10])  # the training went on from its own


def test_a_snapshot_is_no_view_of_the_weights() -> None:
    field = nn.Linear(2, 1)
    snapshot = Snapshot(field, 3)
    snapshot(2, field)
    assert snapshot.weights == {}
    snapshot(3, field)
    kept = snapshot.weights["weight"].clone()
    with torch.no_grad():
        field.weight += 1
    snapshot(4, field)
    assert torch.equal(snapshot.weights["weight"], kept)
    assert not snapshot.weights["weight"].requires_grad


def test_a_snapshot_s_state_makes_a_round_trip() -> None:
    field = nn.Linear(2, 1)
    first, second = Snapshot(field, 1), Snapshot(field, 1)
    second.load_state_dict(first.state_dict())
    assert second.weights == {}
    first(1, field)
    second.load_state_dict(first.state_dict())
    assert all(torch.equal(second.weights[name], each) for name, each in first.weights.items())


@pytest.mark.parametrize("kill_at", [3, 6, 11])
def test_killed_and_resumed_leaves_the_same_weights_and_snapshot(
    tmp_path: Path, kill_at: int
) -> None:
    unbroken = Toy()
    expected, warm = train_toy(unbroken)
    with pytest.raises(KeyboardInterrupt):
        train_toy(Toy(kill_at), scratch=tmp_path)
    toy = Toy()
    result, again = train_toy(toy, scratch=tmp_path)
    assert len(toy.weights_at) == 2 * (12 - kill_at // 4 * 4)
    assert torch.equal(toy.field.weight, unbroken.field.weight)
    assert torch.equal(again.weights["weight"], warm.weights["weight"])
    assert result.history == expected.history


def test_a_finished_run_is_not_run_again(tmp_path: Path) -> None:
    first = Toy()
    train_toy(first, scratch=tmp_path)
    second = Toy(kill_at=0)
    _, warm = train_toy(second, scratch=tmp_path)
    assert torch.equal(second.field.weight, first.field.weight)
    assert set(warm.weights) == {"weight"}

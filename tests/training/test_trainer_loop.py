import io
import math
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from braid.common.rng import generator
from braid.training import checkpoint
from braid.training.ema import Ema
from braid.training.trainer import train
from tests.training.toy import CHECKPOINT_EVERY, STEPS, Toy, one_run, optimizer_config, train_toy

ROOT = Path(__file__).parents[2]


def to_bytes(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize("kill_at", [2, 7])
def test_killed_and_resumed_ends_with_the_bytes_of_one_never_killed(
    tmp_path: Path, kill_at: int
) -> None:
    whole, counted, expected = train_toy(None)
    command = [sys.executable, "-m", "tests.training.toy", "killed", str(tmp_path), str(kill_at)]
    killed = subprocess.run(command, cwd=ROOT, check=False, timeout=120)
    assert killed.returncode == -signal.SIGKILL
    assert (tmp_path / "state.pt").exists() == (kill_at >= CHECKPOINT_EVERY)

    resumed, counter, result = train_toy(tmp_path)

    assert to_bytes(resumed.net.state_dict()) == to_bytes(whole.net.state_dict())
    assert result.history == expected.history
    assert result.probes == expected.probes
    assert result.ema is not None
    assert expected.ema is not None
    assert to_bytes(result.ema.state_dict()) == to_bytes(expected.ema.state_dict())
    assert (counter.seen, int(resumed.calls)) == (counted.seen, int(whole.calls))


def test_a_finished_training_returns_at_once_with_the_same_result(tmp_path: Path) -> None:
    first, _, expected = train_toy(tmp_path)
    again, _, result = train_toy(tmp_path, kill_at=STEPS)
    assert result.history == expected.history
    assert to_bytes(again.net.state_dict()) == to_bytes(first.net.state_dict())


def test_frozen_parameters_are_not_in_the_checkpoint(tmp_path: Path) -> None:
    train_toy(tmp_path)
    state = checkpoint.load(tmp_path / "state.pt")
    assert state is not None
    assert not [name for name in state["objective"] if name.startswith("frozen")]
    assert "calls" in state["objective"]


def test_a_checkpoint_of_another_model_is_one_clear_line(tmp_path: Path) -> None:
    train_toy(tmp_path)
    message = r"state\.pt: of another model; delete it to start again"
    with pytest.raises(ValueError, match=message):
        train(nn.Linear(2, 2), optimizer_config(), one_run(scratch=tmp_path), steps=3, name="state")


def test_history_has_the_promised_columns_at_the_promised_steps() -> None:
    objective = Toy()
    seen: list[dict[str, float]] = []
    run = one_run(log_every=3, on_log=seen.append)
    config = optimizer_config(lr=0.5, lr_floor=0.2)
    result = train(objective, config, run, steps=8, term_gradients=True)
    assert [row["step"] for row in result.history] == [0, 3, 6, 7]
    figures = ["loss", "fit", "spread"]
    norms = ["gradient_norm", "gradient_norm_fit", "gradient_norm_spread"]
    assert list(result.history[0]) == ["step", "lr", *figures, *norms, "center", "calls"]
    rates = [0.5 * (0.2 + 0.4 * (1 + math.cos(math.pi * step / 8))) for step in (0, 3, 6, 7)]
    assert [row["lr"] for row in result.history] == pytest.approx(rates)
    assert all(math.isclose(r["loss"], r["fit"] + r["spread"], rel_tol=1e-6) for r in seen)
    assert seen == result.history


class Rows(nn.Module):
    """Least squares on 8 rows, a fraction of them in each call."""

    def __init__(self, fractions: int) -> None:
        super().__init__()
        draws = torch.Generator().manual_seed(3)
        self.rows = torch.randn(8, 4, generator=draws)
        self.weight = nn.Parameter(torch.randn(4, generator=draws))
        self.fractions, self.calls = fractions, 0

    def forward(self, step: int, generator: torch.Generator) -> dict[str, Tensor]:
        rows = self.rows[self.calls % self.fractions :: self.fractions]
        self.calls += 1
        return {"squares": (rows @ self.weight - 1).square().mean(), "decay": self.weight.norm()}


@pytest.mark.parametrize("clip_norm", [None, 0.5])
def test_four_micro_steps_of_two_equal_one_batch_of_eight(clip_norm: float | None) -> None:
    joint, split = Rows(1), Rows(4)
    for objective in (joint, split):
        config = optimizer_config(accumulate=objective.fractions, clip_norm=clip_norm)
        train(objective, config, one_run(), steps=3)
    assert joint.weight.grad is not None
    torch.testing.assert_close(split.weight.grad, joint.weight.grad, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(split.weight, joint.weight, rtol=1e-5, atol=1e-6)
    if clip_norm:
        assert joint.weight.grad.norm() == pytest.approx(clip_norm, rel=1e-4)


def test_term_gradient_norms_equal_those_computed_separately() -> None:
    objective = Toy()
    terms = Toy()(0, generator(9, "step", 0, 0, 0))
    expected = Toy()
    result = train(objective, optimizer_config(), one_run(seed=9), steps=1, term_gradients=True)
    row = result.history[0]
    for name in terms:
        expected.zero_grad()
        expected(0, generator(9, "step", 0, 0, 0))[name].backward()
        squares = [p.grad.square().sum() for p in expected.net.parameters() if p.grad is not None]
        norm = math.sqrt(float(torch.stack(squares).sum()))
        assert row[f"gradient_norm_{name}"] == pytest.approx(norm, rel=1e-5)
        assert row[name] == pytest.approx(terms[name].item(), rel=1e-6)


class Diverging(Toy):
    """Its second term, or only the gradient of it, is not finite from a step on."""

    def __init__(self, step: int, where: str) -> None:
        super().__init__()
        self.from_step, self.where = step, where

    def forward(self, step: int, generator: torch.Generator) -> dict[str, Tensor]:
        terms = super().forward(step, generator)
        if step >= self.from_step and self.where == "spread":
            terms["spread"] = terms["spread"] * math.inf
        if step >= self.from_step and self.where == "gradient_norm":
            zero = self.net[0].weight.sum() * 0
            terms["spread"] = terms["spread"] + zero.sqrt()
        return terms


@pytest.mark.parametrize("where", ["spread", "gradient_norm"])
def test_a_non_finite_step_is_named_and_the_last_good_checkpoint_stays(
    tmp_path: Path, where: str
) -> None:
    objective = Diverging(6, where)
    run = one_run(scratch=tmp_path, checkpoint_every=4)
    with pytest.raises(FloatingPointError, match=rf"^step 6: {where} is (inf|nan); the last"):
        train(objective, optimizer_config(lr=0.01), run, steps=20, name="state")
    state = checkpoint.load(tmp_path / "state.pt")
    assert state is not None
    assert state["done"] == 4
    assert all(bool(each.isfinite().all()) for each in state["objective"].values())
    assert all(bool(each.isfinite().all()) for each in objective.parameters())


def test_an_overflow_of_float16_says_what_does_not_overflow() -> None:
    objective, run = Diverging(6, "spread"), one_run(precision="float16")
    with pytest.raises(FloatingPointError, match="float16 overflows where bfloat16 does not"):
        train(objective, optimizer_config(lr=0.01), run, steps=8)


def test_one_batch_is_overfitted() -> None:
    class OneBatch(Toy):
        def draw(self, step: int, generator: torch.Generator) -> Tensor:
            return torch.rand(4, 3, generator=torch.Generator().manual_seed(2))

    objective = OneBatch()
    config = optimizer_config(lr=0.02, ema_decay=0.9)
    result = train(objective, config, one_run(log_every=299), steps=300)
    first, last = (row["fit"] for row in result.history)
    assert last < 0.05 * first


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_computes_in_half_and_keeps_float32_weights(precision: str) -> None:
    seen: list[torch.dtype] = []
    objective = Toy()
    objective.net[0].register_forward_hook(lambda *parts: seen.append(parts[2].dtype))
    config, options = optimizer_config(lr=0.01), {"steps": 2, "term_gradients": True}
    result = train(objective, config, one_run(precision=precision, log_every=1), **options)
    assert set(seen) == {getattr(torch, precision)}
    assert {each.dtype for each in objective.parameters()} == {torch.float32}
    exact = train(Toy(), config, one_run(log_every=1), **options)
    for name in ("fit", "gradient_norm", "gradient_norm_fit"):
        assert result.history[0][name] == pytest.approx(exact.history[0][name], rel=0.05)


def test_small_gradients_survive_float16() -> None:
    class Faint(Toy):
        def forward(self, step: int, generator: torch.Generator) -> dict[str, Tensor]:
            return {"fit": 1e-7 * super().forward(step, generator)["fit"]}

    norms = []
    for precision in ("float32", "float16"):
        objective = Faint()
        run = one_run(precision=precision, log_every=1)
        result = train(objective, optimizer_config(lr=0.01), run, steps=1)
        norms.append(result.history[0]["gradient_norm"])
    assert norms[1] == pytest.approx(norms[0], rel=0.1)


def test_hooks_see_the_number_of_updates_done_and_the_ema_follows_the_weights() -> None:
    objective = Toy()
    calls: list[int] = []
    updated: list[Tensor] = []
    start = objective.net[0].weight.detach().clone()

    def hook(done: int, module: nn.Module, ema: Ema | None) -> None:
        calls.append(done)
        updated.append(objective.net[0].weight.detach().clone())

    config = optimizer_config(ema_decay=0.9)
    result = train(objective, config, one_run(), steps=1, hooks={"probe": hook})
    assert calls == [1]
    assert result.probes == {}
    assert result.ema is not None
    expected = 0.1 * start + 0.9 * updated[0]  # (1 + 0) / (10 + 0)
    torch.testing.assert_close(result.ema.average["net.0.weight"], expected)

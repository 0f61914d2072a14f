"""Drifting pulls clips to their class without pairs, paired training pulls them to the truth."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from braid.common.rng import generator
from braid.drifting.loss.drift import DriftLoss
from braid.drifting.training.objectives import DriftObjective, PairedObjective, distinct
from braid.drifting.video.corruption import Corruption
from braid.drifting.video.features import vanilla
from braid.drifting.video.refiner import Refiner
from braid.metrics.distances import energy_distance
from braid.training import distributed
from braid.training.trainer import Run, TrainResult, train
from tests.drifting import configs
from tests.drifting.toy_refinement import toy_clips, toy_corruption, toy_objective, toy_refiner

CPU = torch.device("cpu")


def run(objective, steps: int, scratch: Path | None = None, kill_at: int = -1) -> TrainResult:
    def killed(done, module, ema):
        if done == kill_at:
            raise KeyboardInterrupt

    return train(
        objective,
        configs.optimizer(lr=5e-3, clip_norm=2.0),
        Run(seed=0, device=CPU, checkpoint_every=5, scratch=scratch),
        steps=steps,
        stateful=objective.stateful(),
        hooks={"kill": killed},
    )


def middle(objective) -> tuple[torch.Tensor, torch.Tensor]:
    """Refined and true middle frames of all clips, and their labels."""
    clips, labels = toy_clips()
    ids = torch.arange(len(clips))
    corrupted = toy_corruption()(clips, torch.ones_like(ids), ids, generator(0))
    ones = torch.ones(len(clips))
    refined = objective.refiner(*corrupted, labels, torch.ones_like(ids), ones)
    return refined[:, :, 2].detach(), clips[:, :, 2]


@pytest.mark.parametrize("kind", ["drift", "paired"])
def test_the_middle_bends_the_way_its_class_does(kind: str) -> None:
    objective = toy_objective(kind)
    before, truth = middle(objective)
    run(objective, 80)
    after, _ = middle(objective)
    points = [frames.flatten(1).double().numpy() for frames in (truth, before, after)]
    assert energy_distance(points[0], points[2]) < 0.3 * energy_distance(points[0], points[1])
    _, labels = toy_clips()
    assert after[labels == 0].mean() > 0.5 > -0.5 > after[labels == 1].mean()


def test_paired_training_overfits_its_clips() -> None:
    objective = toy_objective("paired")
    history = run(objective, 120).history
    assert history[-1]["loss"] < 0.1 * history[0]["loss"]


def test_positives_come_from_the_bank_of_the_clip_s_class(monkeypatch) -> None:
    objective = toy_objective("drift", positives=8)
    clips, labels = toy_clips()
    calls = []
    monkeypatch.setattr(objective, "loss", _recording(objective.loss, calls))
    objective(0, generator(0, "step"))
    tokens = vanilla(["tokens"])(clips)["tokens"]
    banks = objective.banks["real"]
    for row in range(2):
        matches = (tokens[:, None] == calls[0]["tokens"].positives[row][None]).all(-1).all(-1)
        classes = labels[matches.any(1)]
        assert len(set(classes.tolist())) == 1
        assert matches.any(0).all()
    assert banks.sizes.min() >= 8


def positives_and_step(monkeypatch, sampling: str) -> tuple[list, list]:
    """The positives [C, P, L D] of three steps, and what each step refined."""
    objective = toy_objective("drift", generated=4, positives=6, positive_sampling=sampling)
    calls, steps, refine = [], [], objective.refine
    monkeypatch.setattr(objective, "loss", _recording(objective.loss, calls))
    objective.refine = lambda *given: steps.append(refine(*given)) or steps[-1]
    for step in range(3):
        objective(step, generator(0, "step", step))
    return [groups["tokens"].positives.flatten(2) for groups in calls], steps


def tokens(clips: torch.Tensor) -> torch.Tensor:
    """Vectors [C, N, L D] of clips [C, N, ...]."""
    return vanilla(["tokens"])(clips.flatten(0, 1))["tokens"].flatten(1).unflatten(0, (2, -1))


def test_a_clip_s_own_truth_is_among_its_positives(monkeypatch) -> None:
    for sampling, expected in (("own", True), ("random", False)):
        positives, steps = positives_and_step(monkeypatch, sampling)
        every = [
            torch.equal(drawn[:, :4], tokens(step.truth))
            for drawn, step in zip(positives, steps, strict=True)
        ]
        assert every == [expected] * 3
        assert all(drawn.shape[1] == 6 for drawn in positives)


def test_the_nearest_positives_are_sought_for_the_refined_clips(monkeypatch) -> None:
    near, objective = [], toy_objective("drift", positives=3, positive_sampling="nearest")
    banks, refine = objective.banks["real"], objective.refine
    draw = banks.draw
    monkeypatch.setattr(banks, "draw", lambda *given: near.append(given[3]) or draw(*given))
    steps = []
    objective.refine = lambda *given: steps.append(refine(*given)) or steps[-1]
    objective(0, generator(0, "step"))
    assert torch.equal(near[0], steps[0].clips)


def test_temperatures_are_annealed_by_the_step(monkeypatch) -> None:
    seen = []
    objective = toy_objective("drift")
    objective.loss = DriftLoss(configs.loss(annealing=4.0, annealing_steps=2))
    temperatures = objective.loss.temperatures
    monkeypatch.setattr(
        objective.loss, "temperatures", lambda step: seen.append(temperatures(step)) or seen[-1]
    )
    for step in range(3):
        objective(step, generator(0, "step", step))
    assert [taus[0] / 0.02 for taus in seen] == pytest.approx([4, 2, 1])


def test_banked_negatives_are_clips_of_earlier_steps(monkeypatch) -> None:
    objective = toy_objective("drift", negatives=3)
    calls = []
    monkeypatch.setattr(objective, "loss", _recording(objective.loss, calls))
    for step in range(2):
        objective(step, generator(0, "step", step))
    first, second = (groups["tokens"] for groups in calls)
    assert first.negative_count.tolist() == [0, 0]
    assert second.negative_count.tolist() == [3, 3]
    generated = first.generated.flatten(0, 1)
    matches = (generated[:, None] == second.negatives.flatten(0, 1)[None]).all(-1).all(-1)
    assert matches.any(0).all()


def test_a_branch_of_weight_zero_is_not_run_and_weights_scale_their_term() -> None:
    objective = toy_objective("drift")
    once = objective(0, generator(0, "step"))["vanilla"]
    objective = toy_objective("drift")
    objective.branches = {"vanilla": (3.0, vanilla(["tokens"]))}
    thrice = objective(0, generator(0, "step"))["vanilla"].item()
    assert thrice == pytest.approx(3 * once.item())
    base = (objective.refiner, objective.corruption, objective.latents, toy_clips()[1])
    without = DriftObjective(
        *base,
        objective.batches,
        branches={"vanilla": (1.0, vanilla(["clip"])), "encoder": (0.0, _never)},
        loss=objective.loss,
        log_every=10,
    )
    assert set(without(0, generator(0, "step"))) == {"vanilla"}


def test_statistics_are_there_on_logging_steps_only() -> None:
    objective = toy_objective("drift")
    objective(0, generator(0, "step"))
    logged = set(objective.diagnostics)
    objective(1, generator(0, "step"))
    assert set(objective.diagnostics) == {"repeated_clips", "short_banks"} < logged


def test_every_statistic_of_a_step_is_of_the_kernel_the_field_or_the_balance() -> None:
    objective = toy_objective("drift")
    objective(0, generator(0, "step"))
    counts = {"repeated_clips", "short_banks"}
    named = [f"vanilla_{part}_" for part in ("kernel", "field", "balance")]
    assert all(name.startswith(tuple(named)) for name in set(objective.diagnostics) - counts)


def test_short_banks_and_small_classes_are_counted() -> None:
    objective = toy_objective("drift", generated=24, positives=30, bank=32)
    objective(0, generator(0, "step"))
    assert objective.diagnostics["repeated_clips"] == 8  # of 20 clips a class
    assert objective.diagnostics["short_banks"] == 0
    objective = toy_objective("drift", generated=2, positives=30, bank=32)
    objective(0, generator(0, "step"))
    assert objective.diagnostics["short_banks"] == 2


def test_killed_and_resumed_gives_the_same_weights(tmp_path: Path) -> None:
    unbroken = toy_objective("drift", negatives=2)
    run(unbroken, 12)
    with pytest.raises(KeyboardInterrupt):
        run(toy_objective("drift", negatives=2), 12, tmp_path, kill_at=8)
    resumed = toy_objective("drift", negatives=2)
    run(resumed, 12, tmp_path)
    for name, weights in unbroken.state_dict().items():
        assert torch.equal(weights, resumed.state_dict()[name]), name


def test_phase_one_anchors_stand_in_for_keyframes_where_the_corruption_asks_for_them() -> None:
    clips, labels = toy_clips()
    for probability, replaced in ((0.0, 0), (1.0, 8)):
        config = configs.corruption(levels=1, student_replace_prob=probability)
        corruption = Corruption(5, config)
        objective = PairedObjective(
            toy_refiner(),
            corruption,
            lambda positions: clips[positions],
            labels,
            configs.batches(),
            anchors=lambda positions: torch.full_like(clips[positions], 9.0),
        )
        corrupted = objective.refine(torch.ones(2), generator(0, "step")).corrupted
        assert (corrupted.latents[:, :, 2] == 9).all(1).all(1).all(1).sum() == replaced


@pytest.mark.parametrize("clamp", [True, False])
def test_a_replaced_keyframe_can_be_corrected_and_counts_in_the_paired_error(clamp: bool) -> None:
    clips, labels = toy_clips()
    objective = PairedObjective(
        toy_refiner(clamp),
        Corruption(5, configs.corruption(levels=1, student_replace_prob=1.0)),
        lambda positions: clips[positions],
        labels,
        configs.batches(),
        anchors=lambda positions: torch.full_like(clips[positions], 9.0),
    )
    with torch.no_grad():
        objective.refiner.out.bias += 1
    refined = objective.refine(torch.ones(2), generator(0, "step"))
    assert (refined.clips[:, :, :, 2] == 10).all()  # the anchor is a nine, the network adds one
    ends = refined.clips[:, :, :, [0, -1]] == refined.truth[:, :, :, [0, -1]]
    assert ends.all() == clamp
    loss = objective(0, generator(0, "step"))["paired"]
    error = (refined.clips - refined.truth).square()[:, :, :, 1:-1].mean()
    torch.testing.assert_close(loss, error)


def test_the_paired_error_of_two_processes_is_that_of_their_joint_batch(monkeypatch) -> None:
    clips, labels = toy_clips()
    corruption = Corruption(5, configs.corruption(levels=2, min_keyframes=2))
    refiner = Refiner(2, 2, 3, configs.refiner())
    parts = refiner, corruption, lambda positions: clips[positions], labels
    objective = PairedObjective(*parts, configs.batches(generated=3))
    errors, missing = [], []
    for process in range(2):
        refined = objective.refine(torch.ones(2), generator(process, "step"))
        mask = ~refined.corrupted.mask
        error = (refined.clips - refined.truth).flatten(0, 1).square().mean((1, 3, 4))
        errors.append((error * mask).sum())
        missing.append(mask.sum())
    assert missing[0] != missing[1]
    monkeypatch.setattr(distributed, "mean", lambda _: sum(missing) / 2)
    losses = [objective(0, generator(process, "step"))["paired"] for process in range(2)]
    torch.testing.assert_close(sum(losses) / 2, sum(errors) / sum(missing))


def test_a_clip_that_a_step_draws_twice_gets_other_noise_the_second_time() -> None:
    clips, labels = toy_clips(8)
    corruption = Corruption(5, configs.corruption(levels=1, noise="gauss", sigma=0.5))
    sizes = configs.batches(generated=6)  # of four clips a class
    objective = PairedObjective(
        toy_refiner(), corruption, lambda positions: clips[positions], labels, sizes
    )
    refined = objective.refine(torch.ones(2), generator(0, "step"))
    assert refined.repeated == 4
    noise = refined.corrupted.latents[:, :, 1]
    assert len(noise.flatten(1).unique(dim=0)) == 12


def test_only_repetitions_get_other_ids() -> None:
    ids = torch.tensor([4, 1, 4, 0, 4, 1])
    assert distinct(ids, 5).tolist() == [4, 1, 9, 0, 14, 6]
    unique = torch.tensor([3, 0, 2])
    assert torch.equal(distinct(unique, 5), unique)


def test_unconditional_clips_are_of_all_classes_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    clips = torch.arange(60.0)[:, None, None, None, None].expand(60, 2, 5, 4, 4).contiguous()
    labels = torch.arange(60) // 5  # twelve classes of five clips
    own = {}
    for bank in (0, 12):
        objective = DriftObjective(
            Refiner(2, 12, 2, configs.refiner()),
            toy_corruption(),
            lambda positions: clips[positions],
            labels,
            configs.batches(unconditional=6, bank_unconditional=bank),
            branches={"vanilla": (1.0, vanilla(["clip"]))},
            loss=DriftLoss(configs.loss()),
            log_every=100,
        )
        calls: list = []
        monkeypatch.setattr(objective, "loss", _recording(objective.loss, calls))
        fractions = []
        for step in range(1, 40):
            objective(step, generator(0, "step", step))
            group = calls[-1]["clip"]
            unconditional = labels[group.unconditional[:, 0, 0].long()]
            classes = labels[group.positives[:, 0, 0, 0].long()]
            fractions.append((unconditional[:, None] == classes).any(1).float().mean())
        own[bank] = float(torch.stack(fractions).mean())
    assert own[0] == pytest.approx(2 / 12, abs=0.06)
    assert own[12] > 0.5


def test_the_balance_of_groups_is_that_of_their_gradients() -> None:
    objective = toy_objective("drift")
    kept = []
    refine = objective.refine
    objective.refine = lambda *given: kept.append(refine(*given)) or kept[-1]
    terms = objective(0, generator(0, "step"))
    (refined,) = kept
    (gradient,) = torch.autograd.grad(terms["vanilla"], refined.clips)
    drift = -gradient[:, :, :, 1:-1].flatten()
    start = refined.corrupted.latents.unflatten(0, (2, 4))
    towards = (refined.truth - start)[:, :, :, 1:-1].flatten()
    cosine = (drift @ towards) / (drift.norm() * towards.norm())
    figures = objective.diagnostics
    assert figures["vanilla_balance_norm_tokens"] == pytest.approx(float(drift.norm()), rel=1e-4)
    assert figures["vanilla_balance_cosine_tokens"] == pytest.approx(float(cosine), rel=1e-4)
    assert cosine > 0.3  # clips of a class bend the same way


def _recording(loss, calls):
    def record(groups, weight, step, statistics=False):
        calls.append(groups)
        return loss(groups, weight, step=step, statistics=statistics)

    return record


def _never(clips):
    raise AssertionError("a branch of weight zero was run")

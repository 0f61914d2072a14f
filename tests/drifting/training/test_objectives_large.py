"""What lets steps of full-size clips fit: banks of positions, chunks, blocks that are run again."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from braid.common.rng import generator
from braid.drifting.loss.drift import DriftLoss
from braid.drifting.training.memory_bank import ReadAhead
from braid.drifting.training.objectives import DriftObjective, Refinement, recompute_blocks
from braid.drifting.video.features import vanilla
from braid.training.trainer import Run, train
from tests.drifting import configs
from tests.drifting.toy_refinement import toy_clips, toy_corruption, toy_objective, toy_refiner

WAN = (16, 21, 60, 104)


def gradients(objective: Refinement, step: int = 1) -> tuple[dict, list[torch.Tensor]]:
    """Loss terms and gradients of a step."""
    terms = objective(step, generator(0, "step", step))
    loss = torch.stack(list(terms.values())).sum()
    trained = [weights for weights in objective.parameters() if weights.requires_grad]
    return terms, list(torch.autograd.grad(loss, trained, allow_unused=True))


@pytest.fixture
def _double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def shaken(objective: Refinement) -> Refinement:
    """Other weights: a fresh refiner's output does not depend on its blocks."""
    with torch.no_grad():
        for weights in objective.parameters():
            weights += 0.1 * torch.randn(weights.shape, generator=generator(0, "weights"))
    return objective


@pytest.mark.parametrize("kind", ["drift", "paired"])
@pytest.mark.parametrize("chunk", [1, 3])
@pytest.mark.usefixtures("_double")
def test_chunks_run_twice_give_the_gradients_of_all_clips_at_once(kind: str, chunk: int) -> None:
    terms, whole = gradients(shaken(toy_objective(kind)))
    cached = shaken(toy_objective(kind))
    cached.chunk, sizes = chunk, []
    recompute_blocks(cached.refiner)
    cached.refiner.register_forward_pre_hook(lambda _, given: sizes.append(len(given[0])))
    other, parts = gradients(cached)
    for name, term in terms.items():
        torch.testing.assert_close(other[name], term, rtol=1e-12, atol=0)
    for gradient, expected in zip(parts, whole, strict=True):
        if expected is not None:
            torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-13)
    assert max(sizes) == chunk
    assert sum(sizes) == 2 * 8  # of two classes, four clips each: forward, and once more


def test_a_step_at_once_in_one_chunk_has_the_same_bits() -> None:
    _, whole = gradients(shaken(toy_objective("drift")), step=0)  # with statistics
    cached = shaken(toy_objective("drift"))
    cached.chunk = 8
    recompute_blocks(cached.refiner)
    for gradient, expected in zip(gradients(cached, step=0)[1], whole, strict=True):
        assert expected is None or torch.equal(gradient, expected)


def test_recomputed_blocks_keep_their_inputs_alone() -> None:
    kept = []
    for recomputed in (False, True):
        refiner, held = toy_refiner(), 0
        if recomputed:
            recompute_blocks(refiner)

        def pack(values: torch.Tensor) -> torch.Tensor:
            nonlocal held
            held += values.nbytes
            return values

        clips, ones = toy_clips(4)[0], torch.ones(4)
        mask = torch.ones(4, 5, dtype=torch.bool)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda values: values):
            refiner(clips, mask, mask.float(), ones.long(), ones.long(), ones)
        kept.append(held)
        assert refiner.state_dict().keys() == toy_refiner().state_dict().keys()
    assert kept[1] < 0.2 * kept[0]


@pytest.mark.parametrize("sampling", ["random", "nearest", "own"])
@pytest.mark.parametrize("any_class", [0, 12])
def test_banks_of_positions_give_the_steps_of_banks_of_latents(
    sampling: str, any_class: int
) -> None:
    ends = []
    for holds in ("latents", "positions"):
        sizes = {"positive_sampling": sampling, "bank_unconditional": any_class, "negatives": 2}
        objective = toy_objective("drift", bank_holds=holds, **sizes)
        terms = [objective(step, generator(0, "step", step))["vanilla"] for step in range(4)]
        ends.append((torch.stack(terms), objective.diagnostics))
    assert torch.equal(ends[0][0], ends[1][0])
    assert ends[0][1] == ends[1][1]


def test_banks_of_full_size_clips_take_less_than_a_gibibyte() -> None:
    one = torch.zeros(1, *WAN)
    objective = DriftObjective(
        toy_refiner(),
        toy_corruption(),
        lambda positions: one.expand(len(positions), *WAN),
        torch.arange(2048) % 1024,
        configs.batches(bank=128, bank_holds="positions"),
        branches={"vanilla": (1.0, vanilla(["tokens"]))},
        loss=DriftLoss(configs.loss()),
        log_every=10,
    )
    banks = [*objective.banks.values(), objective.unconditional._banks]
    assert sum(bank.samples.nbytes for bank in banks) <= 2**21
    assert objective.banks["real"].samples.shape == (1024, 128)


def test_reading_ahead_changes_no_byte_and_every_step_but_the_first_finds_its_clips(
    tmp_path: Path,
) -> None:
    ends = []
    for ahead in (False, True):
        objective = toy_objective("drift", negatives=2)
        if ahead:
            objective.latents = latents = Counted(objective.latents)
        config = configs.optimizer(lr=5e-3, accumulate=2)
        train(objective, config, Run(seed=0, device=torch.device("cpu")), steps=5)
        ends.append(objective.state_dict())
    for name, weights in ends[0].items():
        assert torch.equal(weights, ends[1][name])
    assert latents.found == latents.announced == 5 * 2 - 1


class Counted(ReadAhead):
    """Counts what was announced, and what of it was asked for."""

    announced = found = 0

    def announce(self, positions: torch.Tensor) -> None:
        self.announced += 1
        super().announce(positions)

    def __call__(self, positions: torch.Tensor) -> torch.Tensor:
        waiting = self._announced is not None
        samples = super().__call__(positions)
        self.found += waiting and self._announced is None
        return samples

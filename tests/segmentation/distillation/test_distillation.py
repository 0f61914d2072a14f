"""That a student learns from either supervision, in phases."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from braid.common.rng import generator
from braid.segmentation.config import DistillConfig, PhaseConfig, StudentTrainingConfig
from braid.segmentation.data.prompted import Pair
from braid.segmentation.distillation.distillation import (
    BothSupervision,
    Distillation,
    GroundTruthSupervision,
    TeacherSupervision,
    TermGradients,
    headline,
    supervised_pairs,
    supervisions_of,
    term_rows,
    train_phases,
)
from braid.segmentation.sam3.predictor import encode_texts
from braid.segmentation.sam3.sam3 import Prediction, predict
from braid.segmentation.training.batches import Epochs
from braid.segmentation.training.ground_truth import GroundTruthLoss
from braid.training.config import OptimizerConfig
from braid.training.distributed import Process
from braid.training.trainer import Row, Run
from tests.segmentation.few_images import CPU, PAIRS, WORDS, FewImages, sampler
from tests.segmentation.tiny_losses import some_loss
from tests.segmentation.tiny_models import tiny_teacher


def epochs(update: int = 1) -> Epochs:
    return Epochs(range(3), update=update, seed=0, phase="p")


def config(images: int = 1, prompts: int = 1) -> DistillConfig:
    return DistillConfig(images=images, prompts=prompts)


class InstantTeacher:
    """A teacher that predicts at once."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.texts = encode_texts(WORDS, model, sampler().tokenizer, device=CPU)

    @torch.no_grad()
    def predictions(self, pairs: Sequence[Pair]) -> Prediction:
        batch = sampler().batch(pairs)
        return predict(self.model, batch.pixels, batch.inputs, features=True)


def from_teacher(features: bool = True) -> TeacherSupervision:
    teacher, prompted = InstantTeacher(tiny_teacher(0)), FewImages()
    return TeacherSupervision(teacher, prompted, some_loss(16), features=features)  # type: ignore[arg-type]


def test_features_are_compared_only_where_a_phase_wants_them() -> None:
    for features in (True, False):
        objective = Distillation(
            tiny_teacher(1), sampler(), from_teacher(features), epochs(), config(prompts=2)
        )
        terms = objective(0, generator(0, "step"))
        names = {"mask", "box", "giou", "logit", "presence", "semantic"}
        assert set(terms) == names | ({"fpn", "encoder", "text"} if features else set())


def test_micro_steps_take_the_images_of_their_place() -> None:
    order = epochs(update=6)  # three micro-steps of two processes
    taken: dict[int, list[int]] = {}
    for rank in (0, 1):
        objective = Distillation(
            tiny_teacher(1), sampler(), from_teacher(), order, config(), Process(rank, 2)
        )
        images = taken.setdefault(rank, [])
        objective.terms = lambda batch, to=images: to.append(batch.pairs[0][0]) or {}  # type: ignore[assignment]
        for step in (0, 1):
            for _ in range(3):
                objective(step, generator(0, step))
    joint = [image for micro in zip(taken[0], taken[1], strict=True) for image in micro]
    assert joint == [*order(0), *order(1)]


def test_a_student_that_is_the_teacher_has_nothing_to_learn() -> None:
    objective = Distillation(tiny_teacher(0), sampler(), from_teacher(), epochs(), config())
    values = objective.validate(PAIRS, 5, "float32")
    assert set(values) > {"loss", "mask", "fpn"}
    # The logit term pushes nothing either: every query of the teacher is taken as it is.
    assert values["loss"] == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize("supervision", ["teacher", "ground_truth", "both"])
def test_a_batch_is_overfitted(supervision: str) -> None:
    truth = GroundTruthSupervision(FewImages(), GroundTruthLoss())  # type: ignore[arg-type]
    both = BothSupervision(from_teacher(), truth)
    taught: Any = {"teacher": from_teacher(), "ground_truth": truth, "both": both}[supervision]
    objective = Distillation(tiny_teacher(1), sampler(), taught, epochs(), config())
    batch = sampler().batch(PAIRS[:4])
    optimizer = torch.optim.Adam(objective.parameters(), lr=2e-3)
    losses = []
    for _ in range(25):
        optimizer.zero_grad()
        loss = torch.stack(list(objective.terms(batch).values())).sum()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]


def from_truth() -> GroundTruthSupervision:
    return GroundTruthSupervision(FewImages(), GroundTruthLoss())  # type: ignore[arg-type]


def test_all_decoder_layers_learn_from_ground_truth() -> None:
    student, batch = tiny_teacher(1), sampler().batch(PAIRS[:3])
    objective = Distillation(student, sampler(), from_truth(), epochs(), config())
    with torch.no_grad():
        last, every = (
            from_truth()(predict(student, batch.pixels, batch.inputs, earlier=earlier), batch.pairs)
            for earlier in (False, True)
        )
        terms = objective.terms(batch)
    assert every["presence"] > last["presence"]
    for name, term in terms.items():
        torch.testing.assert_close(term, every[name])


def test_a_student_of_fewer_images_has_as_many_steps() -> None:
    """Two images of three have ground truth that it may be shown."""
    run = Run(seed=0, device=CPU, log_every=1)
    hooks = dict.fromkeys(PHASES, lambda *_: None)
    phases = {name: phase.model_copy(update={"epochs": 4}) for name, phase in PHASES.items()}
    steps = []
    for pairs in (PAIRS, PAIRS[:8]):
        supervisions = dict.fromkeys(PHASES, from_truth())
        few = (sampler(pairs), supervisions, PAIRS[:2], CONFIG, phases, run, hooks)
        results = train_phases(tiny_teacher(1), *few)
        steps.append([len(result.history) for result in results])
    assert steps[0] == steps[1] == [8, 8]


def test_validation_leaves_the_mode_and_no_gradient() -> None:
    student = tiny_teacher(1).train()
    objective = Distillation(student, sampler(), from_teacher(), epochs(), config())
    whole, parts = (objective.validate(PAIRS[:6], size, "float32") for size in (6, 3))
    assert student.training
    assert whole["semantic"] == pytest.approx(parts["semantic"], rel=1e-4)
    assert all(parameter.grad is None for parameter in student.parameters())


def test_validation_takes_the_precision_of_training() -> None:
    objective = Distillation(tiny_teacher(1), sampler(), from_teacher(), epochs(), config())
    fine, coarse = (
        objective.validate(PAIRS[:4], 4, precision) for precision in ("float32", "bfloat16")
    )
    assert fine["semantic"] != coarse["semantic"]
    assert fine["semantic"] == pytest.approx(coarse["semantic"], rel=0.1)


OPTIMIZER = OptimizerConfig(
    name="adamw",
    lr=1e-3,
    lr_floor=0.0,
    warmup=0.0,
    weight_decay=0.0,
    accumulate=1,
    clip_norm=1.0,
    ema_decay=0.5,
)
PHASES = {
    "features": PhaseConfig(epochs=2, features=True, optimizer=OPTIMIZER),
    "outputs": PhaseConfig(epochs=1, features=False, optimizer=OPTIMIZER),
}
CONFIG = config(images=2, prompts=2)


def test_phases_follow_one_another_in_the_curve_the_log_and_the_tables() -> None:
    logged: list[Row] = []
    done: dict[str, list[int]] = {name: [] for name in PHASES}
    hooks = {
        name: lambda step, _objective, _ema, name=name: done[name].append(step) for name in PHASES
    }
    supervisions = {name: from_teacher(phase.features) for name, phase in PHASES.items()}
    run = Run(seed=0, device=CPU, log_every=1, on_log=logged.append)
    student, batches = tiny_teacher(1), sampler()
    results = train_phases(student, batches, supervisions, PAIRS[:4], CONFIG, PHASES, run, hooks)
    assert done == {"features": [1, 2, 3, 4], "outputs": [1, 2]}
    assert [row["step"] for result in results for row in result.history] == list(range(6))
    assert [row["step"] for row in logged] == list(range(6))
    assert [row["phase"] for result in results for row in result.history] == [
        *["features"] * 4,
        *["outputs"] * 2,
    ]
    rows = {(row["phase"], row["term"]): row for row in term_rows(results, transferred=7)}
    assert ("features", "fpn") in rows
    assert ("outputs", "fpn") not in rows
    assert rows["outputs", "mask"]["before"] == rows["features", "mask"]["after"]
    assert rows["features", "loss"]["after"] < rows["features", "loss"]["before"]
    assert {(row["phase"], row["steps"]) for row in rows.values()} == {
        ("features", 4),
        ("outputs", 2),
    }
    for result in results:
        assert all(
            row["gradient_norm_clipped"] == min(1.0, row["gradient_norm"]) for row in result.history
        )
    probed = [row for result in results for row in result.gradients]
    assert [row["step"] for row in probed] == [1, 2, 3, 4, 5, 6]
    assert all(row["gradient_norm_presence"] > 0 for row in probed)
    figures = headline(results, student, batches)
    assert figures["loss"] == {side: rows["outputs", "loss"][side] for side in ("before", "after")}
    assert (figures["steps"], figures["train"], figures["prompts"]) == (6, 3, 12)


def test_the_norms_of_terms_are_those_of_their_gradients_and_leave_the_weights_alone() -> None:
    student = tiny_teacher(1)
    objective = Distillation(student, sampler(), from_teacher(), epochs(), config())
    before = [weight.detach().clone() for weight in student.parameters()]
    probe = TermGradients(PAIRS[:2], steps=8, precision="float32")
    norms = probe(1, objective)
    assert norms is not None
    assert probe(3, objective) is None
    assert probe(4, objective) == norms  # the prompts are the same, and so are the weights
    assert all(torch.equal(*pair) for pair in zip(before, student.parameters(), strict=True))
    assert all(weight.grad is None for weight in student.parameters())
    term = objective.terms(objective.sampler.batch(PAIRS[:2]))["presence"]
    term.backward()
    squares = [w.grad.square().sum() for w in student.parameters() if w.grad is not None]
    expected = torch.stack(squares).sum().sqrt().item()
    assert norms["gradient_norm_presence"] == pytest.approx(expected, rel=1e-5)


def test_the_precision_of_the_training_is_not_the_teachers() -> None:
    """What a cache keeps in 16 bits cannot be joined under autocast to another precision."""
    taught, batch = from_teacher(), sampler().batch(PAIRS[:3])
    halves = {"encoder": torch.float16, "presence": torch.float32}
    targets: list[Prediction] = []

    class Cached:
        texts = taught.teacher.texts

        def predictions(self, pairs: Sequence[Pair]) -> Prediction:
            given = taught.teacher.predictions(pairs)
            assert given.encoder is not None
            kept = [row.half() for row in given.encoder]
            targets.append(replace(given, encoder=torch.stack(kept), fpn=()))
            return targets[-1]

    plain = TeacherSupervision(Cached(), FewImages(), some_loss(16), features=True)  # type: ignore[arg-type]
    student = predict(tiny_teacher(1), batch.pixels, batch.inputs, features=True)
    for precision in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", precision):
            plain(student, batch.pairs)
    expected = taught.teacher.predictions(batch.pairs)
    for given in targets:
        assert {name: getattr(given, name).dtype for name in halves} == halves
        assert torch.equal(given.masks, expected.masks)


def choice(supervision: Any, *, features: bool = True) -> StudentTrainingConfig:
    return StudentTrainingConfig(supervision=supervision, heads=False, features=features)


def test_features_that_the_cache_lacks_are_named_by_their_key() -> None:
    def features_of(choice: StudentTrainingConfig, levels: int) -> dict[str, bool]:
        cache: Any = SimpleNamespace(config=SimpleNamespace(kept_levels=levels))
        supervisions = supervisions_of(choice, PHASES, FewImages(), cache, some_loss())  # type: ignore[arg-type]
        return {name: supervision.features for name, supervision in supervisions.items()}

    assert features_of(choice("teacher"), 3) == {"features": True, "outputs": False}
    assert features_of(choice("both"), 3) == {"features": True, "outputs": False}
    for bare in (choice("teacher", features=False), choice("ground_truth")):
        assert features_of(bare, 0) == {"features": False, "outputs": False}
    for supervision in ("teacher", "both"):
        with pytest.raises(
            ValueError, match=r"sam3\.phases\.features\.features is true, but the cache"
        ):
            features_of(choice(supervision), 0)


def test_both_is_the_teachers_terms_and_those_of_ground_truth_that_is_not_withheld() -> None:
    class Withheld(FewImages):
        def prompt(self, pair: Pair) -> Any:
            return replace(super().prompt(pair), labeled=pair[1] == 0)

    taught, batch = from_teacher(), sampler().batch(PAIRS[:4])
    hidden, shown = (
        GroundTruthSupervision(images, GroundTruthLoss())  # type: ignore[arg-type]
        for images in (Withheld(), FewImages())
    )
    student = predict(tiny_teacher(1), batch.pixels, batch.inputs, features=True)
    terms = BothSupervision(taught, hidden)(student, batch.pairs)
    alone = taught(student, batch.pairs)
    assert {name: terms[name] for name in alone} == alone
    truth = {f"truth_{name}": term for name, term in hidden(student, batch.pairs).items()}
    assert set(terms) == set(alone) | set(truth)
    assert all(torch.equal(terms[name], term) for name, term in truth.items())
    first = predict(tiny_teacher(1), batch.pixels, sampler().batch(PAIRS[:1]).inputs)
    expected = shown(first, PAIRS[:1])
    for name, term in hidden(student, batch.pairs).items():
        torch.testing.assert_close(term, expected[name], rtol=1e-4, atol=1e-5)


def test_ground_truth_is_shown_of_labeled_prompts_alone() -> None:
    class Splits:
        def pairs(self, split: str, **filters: Any) -> list[Any]:
            return [(split, filters, place) for place in range(300)]

    prompted: Any = Splits()
    for supervision, shown in (("teacher", None), ("both", None), ("ground_truth", True)):
        train, held_out = supervised_pairs(prompted, choice(supervision))
        assert train[7] == ("train", {"labeled": shown, "known": shown}, 7)
        assert len(train) == 300
        assert [pair[2] for pair in held_out] == list(range(256))
        assert held_out[0][0] == "val"

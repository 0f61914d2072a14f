"""Models asked side by side, their figures, and the verdict on the student."""

from functools import cache

import pytest
import torch
from braid.segmentation.data.prompts import Prompt

from braid.segmentation.cache.online import Texts
from braid.segmentation.data.prompted import GroundTruth
from braid.segmentation.evaluation.cost import latencies, latency, percentiles
from braid.segmentation.evaluation.evaluator import (
    RANDOM_TEACHER,
    TEACHER,
    TRUTH,
    Evaluator,
    Predictor,
    other_images,
    question,
    respondent,
)
from braid.segmentation.evaluation.report import BY_LABEL, flattened, null_reason, report, verdict
from braid.segmentation.metrics.agreement import (
    compare,
    mask_metrics,
    predicted_detections,
    true_detections,
)
from braid.segmentation.sam3.sam3 import PromptInputs, predict
from tests.segmentation.detections import generator
from tests.segmentation.tiny_models import CONTEXT, some_images, tiny_teacher

CPU, SIZE = torch.device("cpu"), 16
TEXTS = ("a", "b", "c")
PAIRS = [(image, place) for image in (4, 7, 9, 11, 12) for place in range(3)]
KINDS = ("category", "box", "caption")


class Prompted:
    """Five random images with three prompts each, random truths of up to two objects."""

    def prompt(self, pair):
        box = (0.4, 0.5, 0.3, 0.3) if pair[1] == 1 else None
        return Prompt(KINDS[pair[1]], TEXTS[pair[1]], box, None, pair[1] != 2)

    def pixels(self, images):
        return torch.cat([some_images(1, seed=image) for image in images])

    def truth(self, pairs, size):
        masks = torch.zeros(len(pairs), 2, size, size)
        for row, (image, place) in enumerate(pairs):
            draw = generator(10 * image + place)
            masks[row] = (torch.rand(2, size, size, generator=draw) > 0.5).float()
        count = torch.tensor([(image + place) % 4 - 1 for image, place in pairs])
        masks = masks * (torch.arange(2) < count[:, None])[..., None, None]
        boxes = torch.tensor([0.0, 0.0, 1.0, 1.0]).expand(len(pairs), 2, 4)
        return GroundTruth(masks, boxes, count, masks.amax(1, keepdim=True))


def texts(seed):
    draw = generator(seed)
    attention = torch.ones(len(TEXTS), CONTEXT, dtype=torch.long)
    attention[1, 5:] = 0
    return Texts(TEXTS, torch.randn(len(TEXTS), CONTEXT, 16, generator=draw), attention)


@cache
def models():
    names = (TEACHER, "student")
    return {
        name: Predictor(tiny_teacher(seed), texts(seed), CPU) for seed, name in enumerate(names)
    }


@cache
def judged(images=2):
    panel = Evaluator(Prompted(), models(), score=0.2, size=SIZE, device=CPU)
    return panel.judge(PAIRS, images=images, generator=generator())


def test_a_model_is_asked_as_predict_asks_it():
    model, held = tiny_teacher(3), texts(3)
    pairs = [PAIRS[3], PAIRS[1], PAIRS[5]]
    made = Predictor(model, held, CPU).asked(question(Prompted(), pairs))()
    for row, (image, place) in enumerate(pairs):
        boxes = torch.tensor([[0.4, 0.5, 0.3, 0.3]]) if place == 1 else None
        boxed = torch.ones(1).bool() if place == 1 else None
        tokens, attention = torch.zeros(1, CONTEXT).long(), held.attention[place : place + 1]
        text = held.features[place : place + 1]
        inputs = PromptInputs(torch.zeros(1).long(), tokens, attention, boxes, boxed, text)
        with torch.no_grad():
            alone = predict(model, some_images(1, seed=image), inputs)
        torch.testing.assert_close(made.masks[row], alone.masks[0], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(made.scores[row], alone.scores[0])


def test_texts_are_encoded_once_as_the_model_reads_them():
    class Tokenizer:
        def __call__(self, given, max_length, **_):
            ids = torch.tensor([[ord(each) - 90] * max_length for each in given])
            return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    model = tiny_teacher(1)
    made = respondent(model, ["b", "a", "b", "c"], Tokenizer(), CPU)
    assert made.texts.texts == ["b", "a", "c"]
    ids = torch.tensor([[ord("b") - 90] * CONTEXT])
    expected = model.get_text_features(input_ids=ids, attention_mask=torch.ones_like(ids))
    torch.testing.assert_close(made.texts.features[0], expected.pooler_output[0])


def test_figures_do_not_depend_on_how_prompts_are_batched():
    labeled = torch.tensor([place != 2 for _, place in PAIRS])
    one, all_at_once = (report(judged(images), labeled, 5) for images in (2, 5))
    for name in (TEACHER, "student", TRUTH):
        assert set(one[name]) == set(all_at_once[name])
        for figure, value in one[name].items():
            other = all_at_once[name][figure]
            assert value == other or value == pytest.approx(other, rel=1e-4), figure
    assert one["student"]["miou"] > 0
    assert 0 < one["student"]["agreement_iou"] < 1


def test_every_figure_is_that_of_the_prompts_taken_together():
    labeled = torch.tensor([place != 2 for _, place in PAIRS])
    found = report(judged(), labeled, 5)["student"]
    truth = true_detections(Prompted().truth(PAIRS, SIZE))
    held = models()
    made, teacher = (
        predicted_detections(held[name].asked(question(Prompted(), PAIRS))(), score=0.2, size=SIZE)
        for name in ("student", TEACHER)
    )
    assert found["miou"] == pytest.approx(mask_metrics(compare(made, truth))["matched_iou"])
    agreement = mask_metrics(compare(made, teacher))
    for name in ("agreement_iou", "matched_iou", "score_gap_signed"):
        assert found[name] == pytest.approx(agreement[name]), name
    hidden = mask_metrics(compare(made.take(~labeled), teacher.take(~labeled)))
    assert found["agreement_iou_withheld"] == pytest.approx(hidden["agreement_iou"])
    assert {f"{name}_labeled" for name in BY_LABEL} <= set(found)


def test_the_truth_and_chance_stand_beside_the_models():
    labeled = torch.ones(len(PAIRS), dtype=torch.bool)
    found = report(judged(), labeled, 5)
    assert "miou" not in found[TRUTH]
    assert "agreement_iou" not in found[TEACHER]
    assert found[TRUTH]["agreement_iou"] > 0
    assert found[TRUTH]["prompt_sensitivity"] > found[TEACHER]["prompt_sensitivity"]
    assert found[RANDOM_TEACHER]["agreement_iou"] < 1
    assert found["student"]["agreement_iou_withheld"] is None  # there are none


def test_the_random_teacher_answers_for_other_images():
    owner = torch.tensor([0, 0, 0, 1, 1, 2])
    for seed in range(20):
        strangers = other_images(owner, generator(seed))
        assert (owner[strangers] != owner).all()
    draws = torch.stack([other_images(owner, generator(seed)) for seed in range(60)])
    assert all(draws[:, row].unique().numel() == (owner != owner[row]).sum() for row in range(6))


def test_nothing_to_judge_by_is_an_error():
    panel = Evaluator(Prompted(), models(), score=0.2, size=SIZE, device=CPU)
    one = [pair for pair in PAIRS if pair[0] == PAIRS[0][0]]
    for pairs, images in (([], 2), (one, 2), (PAIRS, 1)):  # chance is taken from another image
        with pytest.raises(ValueError, match=f"a batch has {images}: expected 2 or more"):
            panel.judge(pairs, images=images, generator=generator())


GOOD = {"agreement_iou": 0.8, "prompt_sensitivity": 0.6, "miou": 0.7}
GOOD |= {"presence_f1": 0.9, "presence_balanced_accuracy": 0.8}
MODELS = {
    TEACHER: {"miou": 0.75, "prompt_sensitivity": 0.7},
    "student": {**GOOD, "presence_f1_always": 0.8, "matched_iou": 0.8},
    "truth_only": {**GOOD, "agreement_iou": 0.6},
    "untrained": {**GOOD, "agreement_iou": 0.1},
    "int8": {**GOOD, "miou": 0.68},
    RANDOM_TEACHER: {**GOOD, "agreement_iou": 0.2},
}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "ok"),
        ({"matched_iou": None, "agreement_iou": None}, "teacher_finds_nothing"),
        ({"agreement_iou": 0.2}, "collapsed"),
        ({"prompt_sensitivity": 0.34}, "prompt_blind"),
        ({"presence_balanced_accuracy": 0.52}, "always_present"),
        ({"agreement_iou": 0.6}, "no_distillation"),
        ({"miou": 0.59}, "far_from_teacher"),
        (
            {"prompt_sensitivity": None, "presence_balanced_accuracy": None, "miou": None},
            "ok",
        ),  # unknown truth
        ({"agreement_iou": 0.05, "prompt_sensitivity": 0.0}, "collapsed"),
    ],
)
def test_failures_have_names(changes, expected):
    assert verdict({**MODELS, "student": {**MODELS["student"], **changes}}) == expected


def test_metrics_are_flat_with_the_students_own_names():
    flat = flattened(MODELS)
    assert flat["miou_student"] == 0.7
    assert flat["miou_teacher"] == 0.75
    assert flat["miou_ratio"] == pytest.approx(0.7 / 0.75)
    assert flat["miou_drop_int8"] == pytest.approx(0.02)
    assert flat["agreement_iou"] == 0.8
    assert flat["agreement_iou_truth_only"] == 0.6
    assert flat["presence_f1_always"] == 0.8
    assert "miou" not in flat
    assert null_reason({"miou": 0.5}) is None
    assert "nothing to average over" in null_reason({"miou": None})


def test_latency_counts_calls_after_a_warm_up():
    calls = []
    found = latency(lambda: calls.append(0), 5, CPU)
    assert set(found) == {"p50_ms", "p95_ms"}
    assert len(calls) == 7
    named = latencies(models(), question(Prompted(), PAIRS[:1]), 2)
    assert set(named) == {f"{key}_{name}" for key in found for name in models()}
    assert percentiles([k / 1000 for k in range(101)]) == pytest.approx(
        {"p50_ms": 50, "p95_ms": 95}
    )

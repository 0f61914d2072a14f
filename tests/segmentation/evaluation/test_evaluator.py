"""Models side by side on the same prompts, and whether a model is conditioned on its prompt."""

import pytest
import torch

from braid.segmentation.evaluation.evaluator import (
    INT8,
    STUDENT,
    TEACHER,
    TRUTH_ONLY,
    UNTRAINED,
    other_images,
    prompt_sensitivity,
    student_predictors,
    timed_predictors,
)
from braid.segmentation.sam3.predictor import word_tokenizer
from braid.segmentation.student.student import save_student
from tests.segmentation.detections import A, B, C, detections, generator
from tests.segmentation.evaluated import CPU, PAIRS, TEXTS, some_evaluator
from tests.segmentation.tiny_models import CONTEXT
from tests.segmentation.tiny_students import restless, tiny_student


def test_the_random_teacher_predicts_for_other_images():
    owner = torch.tensor([0, 0, 0, 1, 1, 2])
    for seed in range(20):
        others = other_images(owner, generator(seed))
        assert (owner[others] != owner).all()
    draws = torch.stack([other_images(owner, generator(seed)) for seed in range(60)])
    assert all(draws[:, row].unique().numel() == (owner != owner[row]).sum() for row in range(6))


def test_nothing_to_compare_with_is_an_error():
    one = [pair for pair in PAIRS if pair[0] == PAIRS[0][0]]
    for pairs, count in (([], 0), (one, 1)):  # chance is taken from another image
        with pytest.raises(ValueError, match=f"with prompts: {count}, expected 2 or more"):
            some_evaluator().evaluate(pairs, generator())


def test_a_model_that_ignores_its_prompt_has_no_sensitivity():
    owner = torch.tensor([0, 0, 0, 1, 1])
    real = detections([(A, 1.0)], [(B, 1.0)], [(A, 1.0)], [(A, 1.0)], [])
    constant = detections([(A, 1.0)], [(A, 1.0)], [(A, 1.0)], [(C, 1.0)], [(C, 1.0)])
    assert prompt_sensitivity(constant, real, owner).tolist() == [0.0, 0.0]
    assert prompt_sensitivity(real, real, owner).tolist() == [1.0, 1.0]
    empty = detections([], [], [], [], [])
    assert prompt_sensitivity(empty, real, owner).tolist() == [0.0, 0.0]
    half = detections([(A, 1.0)], [((0, 0, 8, 4), 1.0)], [(B, 1.0)], [(A, 1.0)], [(A, 0.1)])
    assert prompt_sensitivity(half, real, owner).tolist() == [0.75, 1.0]


def test_sensitivity_counts_only_where_ground_truths_are_known_and_differ():
    owner = torch.tensor([0, 0, 1, 1])
    same = detections(
        [(A, 1.0)], [(A, 1.0)], [(A, 1.0)], [(B, 1.0)], known=[True, True, True, False]
    )
    predicted = detections([(A, 1.0)], [(B, 1.0)], [(A, 1.0)], [(B, 1.0)])
    assert prompt_sensitivity(predicted, same, owner).shape == (0,)


def test_variants_of_a_student_are_read_from_the_folders_of_two(tmp_path):
    words = word_tokenizer(TEXTS, length=CONTEXT)
    students = {name: restless(tiny_student(seed)) for seed, name in enumerate("ab")}
    for name, student in students.items():
        save_student(tmp_path / name, student, words)
    folders = tmp_path / "a", tmp_path / "b"
    predictors = student_predictors(*folders, TEXTS, generator(3), CPU, "float32")
    assert list(predictors) == [STUDENT, TRUTH_ONLY, UNTRAINED, INT8]
    weight = "detr_decoder.query_embed.weight"
    for name, student in ((STUDENT, "a"), (TRUTH_ONLY, "b")):
        own = predictors[name].model.state_dict()[weight]
        assert torch.equal(own, students[student].state_dict()[weight])
    fresh = predictors[UNTRAINED].model.state_dict()[weight]
    again = student_predictors(*folders, TEXTS, generator(3), CPU, "float32")
    assert torch.equal(again[UNTRAINED].model.state_dict()[weight], fresh)
    assert not torch.equal(predictors[STUDENT].model.state_dict()[weight], fresh)
    timed = timed_predictors({**predictors, TEACHER: predictors[UNTRAINED]})
    assert list(timed) == [TEACHER, STUDENT, INT8, "fused"]
    assert timed["fused"].texts is predictors[STUDENT].texts

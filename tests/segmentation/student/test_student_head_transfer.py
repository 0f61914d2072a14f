"""What of the teacher's heads is copied into a student."""

import pytest
import torch

from braid.segmentation.student.student import QUERIES, TRANSFERRED, transfer_heads
from tests.segmentation.tiny_models import tiny_teacher
from tests.segmentation.tiny_students import tiny_student

USAGE = torch.tensor([0.0, 5.0, 1.0, 0.0, 7.0])


@pytest.fixture
def pair():
    return tiny_student(seed=1), tiny_teacher(seed=2)


def is_head(name):
    return name.partition(".")[0] in TRANSFERRED


def test_every_head_is_the_teachers_and_nothing_else_changes(pair):
    student, teacher = pair
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    given = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    transfer_heads(student, teacher, USAGE)
    for name, tensor in student.state_dict().items():
        if is_head(name) and name not in QUERIES:
            assert torch.equal(tensor, given[name]), name
        elif not is_head(name):
            assert torch.equal(tensor, before[name]), name
    assert all(torch.equal(tensor, given[name]) for name, tensor in teacher.state_dict().items())


def test_queries_are_the_most_used_ones_in_the_teachers_order(pair):
    student, teacher = pair
    transfer = transfer_heads(student, teacher, USAGE)
    assert transfer.queries == [1, 2, 4]
    own, given = student.state_dict(), teacher.state_dict()
    assert all(torch.equal(own[name], given[name][[1, 2, 4]]) for name in QUERIES)


def test_without_usage_the_first_queries_are_taken_and_ties_are_settled_alike(pair):
    student, teacher = pair
    assert transfer_heads(student, teacher).queries == [0, 1, 2]
    assert transfer_heads(student, teacher, torch.ones(5)).queries == [0, 1, 2]
    assert transfer_heads(student, teacher, USAGE * 0 + torch.eye(5)[3]).queries == [0, 1, 3]


def test_it_reports_what_was_copied(pair):
    student, teacher = pair
    transfer = transfer_heads(student, teacher, USAGE)
    heads = {name: tensor for name, tensor in student.state_dict().items() if is_head(name)}
    assert transfer.tensors == len(heads)
    assert transfer.parameters == sum(tensor.numel() for tensor in heads.values())
    assert transfer.left_out == []


def test_a_student_with_more_queries_keeps_the_rest_of_its_own():
    student, teacher = tiny_student(queries=7), tiny_teacher(seed=2)
    before = {name: student.state_dict()[name].clone() for name in QUERIES}
    transfer = transfer_heads(student, teacher, USAGE)
    assert transfer.queries == [0, 1, 2, 3, 4]
    for name in QUERIES:
        own = student.state_dict()[name]
        assert torch.equal(own[:5], teacher.state_dict()[name])
        assert torch.equal(own[5:], before[name][5:])


def test_heads_of_another_shape_are_left_and_named():
    student, wide = tiny_student(seed=1), tiny_teacher(width=32)
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    transfer = transfer_heads(student, wide)
    after = student.state_dict()
    assert "mask_decoder.pixel_decoder.conv_layers.0.weight" in transfer.left_out
    assert transfer.tensors + len(transfer.left_out) == sum(map(is_head, after))
    assert all(torch.equal(after[name], before[name]) for name in transfer.left_out)


@pytest.mark.parametrize("usage", [torch.ones(4), torch.tensor([1.0, 2.0, 3.0, 4.0, torch.nan])])
def test_usage_must_be_a_number_for_each_query_of_the_teacher(pair, usage):
    with pytest.raises(ValueError, match="expected 5 finite numbers"):
        transfer_heads(*pair, usage)

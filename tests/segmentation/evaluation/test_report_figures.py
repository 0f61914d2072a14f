"""Which prompts become examples, and what their figure shows."""

import numpy as np
import pytest
import torch

from braid.segmentation.data.prompted import Prompt
from braid.segmentation.evaluation.report import (
    COLORS,
    UNMATCHED,
    Example,
    caption,
    colored,
    draw_examples,
    select,
    truth_caption,
)
from braid.segmentation.metrics.agreement import compare
from tests.segmentation.detections import A, B, C, detections


class Images:
    """Stands for a folder: image 1 is a photo."""

    def record(self, index):
        return type("Record", (), {"exhaustive": index != 1})


class Prompted:
    images = Images()

    def __init__(self, prompts):
        self.prompts = prompts

    def prompt(self, pair):
        return self.prompts[pair]


BOX = (0.5, 0.5, 0.2, 0.3)
PROMPTS = {
    (0, 0): Prompt("category", "best", None, (0,), True),
    (0, 1): Prompt("category", "half", None, (0,), True),
    (0, 2): Prompt("category", "missed", None, (0,), True),
    (0, 3): Prompt("category", "rightly none", None, (), True),
    (0, 4): Prompt("category", "wrongly some", None, (), True),
    (1, 0): Prompt("generic", "everything", None, None, True),
    (1, 1): Prompt("box", "visual", BOX, (0,), True),
    (1, 2): Prompt("category", "secret", None, (0,), False),
}
HALF = (0, 0, 8, 4)
TEACHER = [[(A, 1.0)]] * 3 + [[], []] + [[(A, 1.0)]] * 3
STUDENT = [
    [(A, 1.0)],
    [(HALF, 0.9)],
    [],
    [],
    [(B, 0.9)],
    [(A, 1.0), (C, 0.8)],
    [((0, 0, 8, 6), 1.0)],
    [((0, 0, 8, 7), 1.0)],
]


def selected(count):
    table = compare(detections(*STUDENT), detections(*TEACHER))
    return select(Prompted(PROMPTS), list(PROMPTS), table, count)


def test_prompts_are_selected_by_rule_failures_first():
    examples = selected(20)
    assert examples["worst"] == (0, 2)
    assert examples["best"] == (0, 0)
    assert examples["median"] == (1, 0)  # of 0, 0, 1/2, 2/3, 3/4, 7/8, 1 where there is something
    assert examples["negative"] == (0, 4)  # the worst of them
    assert examples["withheld"] == (1, 2)
    assert examples["photo"] == (1, 1)
    assert "box" not in examples  # the only one is shown already
    assert len(set(examples.values())) == len(examples)


def test_no_more_are_shown_than_wanted_and_no_two_alike():
    for count in (1, 2, 3, 8):
        examples = selected(count)
        assert len(examples) <= count
        assert len(set(examples.values())) == len(examples)
    assert list(selected(2)) == ["worst", "median"]
    one = {(0, 3): PROMPTS[0, 3]}
    table = compare(detections([]), detections([]))
    assert select(Prompted(one), list(one), table, 3) == {"negative": (0, 3)}


def test_masks_have_the_color_of_what_they_are_matched_to():
    predicted, real = detections([(B, 0.9), (C, 0.8), (A, 0.7)]), detections([(A, 1.0), (B, 1.0)])
    masks, colors = colored(predicted, real)
    assert colors == [COLORS[1], UNMATCHED, COLORS[0]]
    assert np.array_equal(masks[0], predicted.masks[0, 0].numpy())


def test_captions_say_presence_scores_and_both_agreements():
    predicted, real = detections([(HALF, 0.72), (C, 0.1)]), detections([(A, 1.0)])
    teacher = detections([(A, 0.9), (B, 0.8)])
    assert caption(predicted, real, teacher) == "yes: 0.72\nIoU 0.50  agreement 0.33"
    assert caption(teacher, real, teacher) == "yes: 0.90 0.80\nIoU 1.00"
    assert caption(detections([]), detections([]), detections([])) == "no: none\n"
    many = detections([((k, 0, k + 2, 9), 0.9) for k in range(5)])
    assert caption(many, real, many).startswith("yes: 0.90 0.90 0.90 +2")
    assert truth_caption(real) == "objects: 1\n"
    assert truth_caption(detections([], known=[False])) == "unknown\n"


def figure(path, box=BOX, mask=A):
    image = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(0))
    prompt = Prompt("box" if box else "category", "a red circle", box, (0,), True)
    models = {"teacher": detections([(A, 1.0)]), "student": detections([(mask, 0.8)])}
    unknown = detections([], known=[False])
    rows = [
        Example("best", prompt, image, detections([(A, 1.0)]), models),
        Example("photo", prompt, image, unknown, models),
    ]
    draw_examples(path, rows)
    return path.read_bytes()


def test_figures_are_the_same_to_the_byte_and_show_what_differs(tmp_path):
    first = figure(tmp_path / "a.png")
    assert figure(tmp_path / "b.png") == first
    assert figure(tmp_path / "c.png", mask=C) != first
    assert figure(tmp_path / "d.png", box=None) != first


@pytest.mark.parametrize("mask", [(0, 0, 24, 24), (3, 3, 3, 3)])
def test_a_mask_of_everything_or_of_nothing_can_be_drawn(tmp_path, mask):
    assert figure(tmp_path / "a.png", mask=mask)

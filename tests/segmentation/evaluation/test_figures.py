"""Which prompts are pictured, and what the pictures say."""

import numpy as np
import pytest
import torch
from braid.segmentation.data.prompts import Prompt

from braid.segmentation.evaluation.figures import (
    COLORS,
    UNMATCHED,
    Shown,
    answers_picture,
    caption,
    choose,
    colored,
    truth_caption,
)
from braid.segmentation.metrics.agreement import compare
from tests.segmentation.detections import A, B, C, answers


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


def chosen(count):
    table = compare(answers(*STUDENT), answers(*TEACHER))
    return choose(Prompted(PROMPTS), list(PROMPTS), table, count)


def test_prompts_are_chosen_by_rule_failures_first():
    found = chosen(20)
    assert found["worst"] == (0, 2)
    assert found["best"] == (0, 0)
    assert found["median"] == (1, 0)  # of 0, 0, 1/2, 2/3, 3/4, 7/8, 1 where there is something
    assert found["negative"] == (0, 4)  # the worst of them
    assert found["withheld"] == (1, 2)
    assert found["photo"] == (1, 1)
    assert "box" not in found  # the only one is shown already
    assert len(set(found.values())) == len(found)


def test_no_more_are_shown_than_wanted_and_no_two_alike():
    for count in (1, 2, 3, 8):
        found = chosen(count)
        assert len(found) <= count
        assert len(set(found.values())) == len(found)
    assert list(chosen(2)) == ["worst", "median"]
    one = {(0, 3): PROMPTS[0, 3]}
    table = compare(answers([]), answers([]))
    assert choose(Prompted(one), list(one), table, 3) == {"negative": (0, 3)}


def test_masks_have_the_color_of_what_they_are_matched_to():
    made, real = answers([(B, 0.9), (C, 0.8), (A, 0.7)]), answers([(A, 1.0), (B, 1.0)])
    masks, colors = colored(made, real)
    assert colors == [COLORS[1], UNMATCHED, COLORS[0]]
    assert np.array_equal(masks[0], made.masks[0, 0].numpy())


def test_captions_say_presence_scores_and_both_agreements():
    made, real = answers([(HALF, 0.72), (C, 0.1)]), answers([(A, 1.0)])
    teacher = answers([(A, 0.9), (B, 0.8)])
    assert caption(made, real, teacher) == "yes: 0.72\nIoU 0.50  agreement 0.33"
    assert caption(teacher, real, teacher) == "yes: 0.90 0.80\nIoU 1.00"
    assert caption(answers([]), answers([]), answers([])) == "no: none\n"
    many = answers([((k, 0, k + 2, 9), 0.9) for k in range(5)])
    assert caption(many, real, many).startswith("yes: 0.90 0.90 0.90 +2")
    assert truth_caption(real) == "1 to be found\n"
    assert truth_caption(answers([], known=[False])) == "unknown\n"


def picture(path, box=BOX, mask=A):
    image = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(0))
    prompt = Prompt("box" if box else "category", "a red circle", box, (0,), True)
    models = {"teacher": answers([(A, 1.0)]), "student": answers([(mask, 0.8)])}
    unknown = answers([], known=[False])
    rows = [
        Shown("best", prompt, image, answers([(A, 1.0)]), models),
        Shown("photo", prompt, image, unknown, models),
    ]
    answers_picture(path, rows)
    return path.read_bytes()


def test_pictures_are_the_same_to_the_byte_and_show_what_differs(tmp_path):
    first = picture(tmp_path / "a.png")
    assert picture(tmp_path / "b.png") == first
    assert picture(tmp_path / "c.png", mask=C) != first
    assert picture(tmp_path / "d.png", box=None) != first


@pytest.mark.parametrize("mask", [(0, 0, 24, 24), (3, 3, 3, 3)])
def test_a_mask_of_everything_or_of_nothing_can_be_drawn(tmp_path, mask):
    assert picture(tmp_path / "a.png", mask=mask)

"""Generalized IoU against hand cases and torchvision's; boxes all over the image."""

import pytest
import torch

from braid.common.torchvision import mend_torchvision
from braid.segmentation.sam3.geometry import giou, spread

mend_torchvision()


def boxes(*shape, seed=0):
    low, size = torch.rand(2, *shape, 2, generator=torch.Generator().manual_seed(seed))
    return torch.cat([low, low + 0.05 + size], -1)


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ((0, 0, 1, 1), (0, 0, 1, 1), 1),
        ((0, 0, 1, 1), (2, 2, 3, 3), -7 / 9),
        ((0, 0, 1, 1), (1, 0, 2, 1), 0),  # side by side
        ((0, 0, 2, 2), (0, 0, 1, 1), 1 / 4),  # one within the other
        ((0.5, 0.5, 0.5, 0.5), (0.5, 0.5, 0.5, 0.5), 1),  # the same point
        ((0, 0, 0, 0), (0, 0, 1, 1), 0),
    ],
)
def test_cases_by_hand(a, b, expected):
    value = giou(torch.tensor(a, dtype=torch.float32), torch.tensor(b, dtype=torch.float32))
    assert value.item() == pytest.approx(expected, abs=1e-6)


def test_all_pairs_and_partners_are_those_of_torchvision():
    from torchvision.ops import generalized_box_iou

    a, b = boxes(3, 6), boxes(3, 4, seed=1)
    expected = torch.stack([generalized_box_iou(x, y) for x, y in zip(a, b, strict=True)])
    torch.testing.assert_close(giou(a[:, :, None], b[:, None]), expected)
    torch.testing.assert_close(giou(a[:, :4], b), expected[:, :4].diagonal(dim1=1, dim2=2))


def test_equal_boxes_are_at_rest():
    a = boxes(20).requires_grad_()
    giou(a, a.detach()).sum().backward()
    assert a.grad.abs().max() < 1e-5


def test_small_boxes_are_not_blurred():
    pixel = torch.tensor([0.0, 0.0, 1e-3, 1e-3])
    half = torch.tensor([0.0, 0.0, 1e-3, 5e-4])
    assert giou(pixel, half).item() == pytest.approx(0.5, rel=1e-4)


@pytest.mark.parametrize("count", [1, 12, 100])
def test_reference_boxes_are_inside_and_all_over_the_image(count):
    boxes = spread(count)
    assert boxes.shape == (count, 4)
    assert boxes[:, :2].min() >= 0.1
    assert boxes[:, :2].max() <= 0.9
    if count > 4:
        quarters = {tuple(side) for side in (boxes[:, :2] > 0.5).tolist()}
        assert len(quarters) == 4

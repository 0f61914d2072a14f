"""Detections of rectangles and of random pixels, for the tests of agreement."""

import torch

from braid.segmentation.metrics.agreement import Detections

SIDE = 24


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def rectangle(left, top, right, bottom, side=SIDE):
    mask = torch.zeros(side, side, dtype=torch.bool)
    mask[top:bottom, left:right] = True
    return mask


def detections(*prompts, present=None, known=None):
    """Detections of given (rectangle, score) lists; a score above 1/2 counts as detected."""
    most = max(1, *map(len, prompts))
    masks = torch.zeros(len(prompts), most, SIDE, SIDE, dtype=torch.bool)
    scores, boxes = torch.zeros(len(prompts), most), torch.zeros(len(prompts), most, 4)
    for row, masks_of_prompt in enumerate(prompts):
        for place, (corners, score) in enumerate(masks_of_prompt):
            masks[row, place] = rectangle(*corners)
            boxes[row, place] = torch.tensor(corners) / SIDE
            scores[row, place] = score
    detected = scores > 0.5
    union = (masks & detected[..., None, None]).any(1)
    is_there = detected.any(1) if present is None else torch.tensor(present)
    knows = torch.ones_like(is_there) if known is None else torch.tensor(known)
    return Detections(masks, boxes, scores, detected, is_there, union, knows)


def random_detections(seed, prompts=6, queries=5):
    masks = torch.rand(prompts, queries, 8, 8, generator=generator(seed)) > 0.5
    low, high = torch.rand(2, prompts, queries, 2, generator=generator(seed + 50)).sort(0).values
    scores = torch.rand(prompts, queries, generator=generator(seed + 100))
    detected = scores > 0.5
    every = torch.ones(prompts, dtype=torch.bool)
    union = (masks & detected[..., None, None]).any(1)
    return Detections(
        masks, torch.cat([low, high], -1), scores, detected, detected.any(1), union, every
    )


A, B, C = (0, 0, 8, 8), (12, 12, 20, 20), (2, 12, 8, 22)

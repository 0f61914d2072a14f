"""Whether a model listens: do different prompts give different masks on one image.

A model that ignores its prompt can score well wherever most prompts ask for the same thing. So for
every two prompts of an image whose truths differ, the Jaccard distance of what is found for them,

    1 - |A and B| / |A or B|      (0 if both are empty),

is taken: 0 for a model that always answers alike. The truth's own distances say how much of it
there should be.
"""

from __future__ import annotations

import torch
from torch import Tensor

from braid.segmentation.agreement import Answers


def prompt_sensitivity(
    answers: Answers,
    truth: Answers,
    owner: Tensor,  # [B] image of each prompt
) -> Tensor:
    """The mean distance over its pairs of prompts for each image that has such a pair, [images].

    Prompts whose truth is unknown are left out.
    """
    made, real, means = answers.union.flatten(1), truth.union.flatten(1), []
    for image in owner.unique():
        rows = ((owner == image) & truth.known).nonzero()[:, 0]
        differ = jaccard_distances(real[rows]).triu() > 0
        if differ.any():
            means.append(jaccard_distances(made[rows])[differ].mean())
    return torch.stack(means) if means else made.new_zeros(0, dtype=torch.float32)


def jaccard_distances(
    masks: Tensor,  # [N, P] bool
) -> Tensor:
    """Of every mask to every one, [N, N] in [0, 1]."""
    values = masks.float()
    area, common = values.sum(dim=1), values @ values.mT
    union = area[:, None] + area - common
    return (union - common) / union.clamp_min(1)

"""A tiny student of the tiny teacher, for the tests of the segmentation strand."""

import torch

from braid.segmentation.student.student import StudentRecipe, build_student, heads_of
from tests.segmentation.tiny_models import CONTEXT, IMAGE_SIZE, VOCABULARY, tiny_teacher

QUERIES = 3
RECIPE = {
    "vocabulary": VOCABULARY,
    "context": CONTEXT,
    "image_size": IMAGE_SIZE,
    "kinds": ("category",),
    "queries": QUERIES,
    "backbone": "repvit_m0_9",
    "backbone_options": {"embed_dim": [8, 8, 16, 16], "depth": [1, 1, 1, 1]},
    "text_layers": 3,
    "text_width": 16,
    "checkpointing": False,
}


def tiny_student(seed=0, teacher=None, **changes):
    """A random student at 56 pixels, in evaluation mode: masks of 14 pixels."""
    torch.manual_seed(seed)
    heads = heads_of(teacher or tiny_teacher())
    return build_student(StudentRecipe(heads=heads, **{**RECIPE, **changes}))


def restless(student, seed=3):
    """The student with batch statistics and layer scales that matter, as after some training."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in student.state_dict().items():
        if name.endswith(("running_var", "layer_scale")) or (".bn." in name and "weight" in name):
            value.copy_(0.5 + torch.rand(value.shape, generator=generator))
        elif name.endswith(("running_mean", "box_head.layer3.weight")):
            value.copy_(0.3 * torch.randn(value.shape, generator=generator))
    return student

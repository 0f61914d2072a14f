"""A tiny teacher, images and prompts for it, for the tests of the segmentation strand."""

import torch

from braid.segmentation.sam3.sam3 import PromptInputs
from braid.segmentation.teacher.tiny_sam3 import tiny_sam3

VOCABULARY, CONTEXT, IMAGE_SIZE, MASK_SIZE, QUERIES, WIDTH = 64, 8, 56, 16, 5, 16


def tiny_teacher(seed=0, **changes):
    """A random `Sam3Model` at 56 pixels, in evaluation mode: some milliseconds a call."""
    sizes = {"width": WIDTH, "layers": 2, "queries": QUERIES, "image_size": IMAGE_SIZE}
    options = {**sizes, "vocabulary": VOCABULARY, "context": CONTEXT, **changes}
    return tiny_sam3(**options, generator=torch.Generator().manual_seed(seed)).eval()


def some_images(count=3, seed=1, size=IMAGE_SIZE):
    """Random images as the teacher sees them, [count, 3, size, size]."""
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def some_prompts(images=3, each=2, seed=2, boxed="none"):
    """`each` random prompts an image; boxed: none, all or some (every other) of them."""
    generator = torch.Generator().manual_seed(seed)
    count = images * each
    tokens = torch.randint(2, VOCABULARY, (count, CONTEXT), generator=generator)
    length = torch.randint(2, CONTEXT + 1, (count, 1), generator=generator)
    attention = (torch.arange(CONTEXT) < length).long()
    tokens = torch.where(attention.bool(), tokens, 1)
    owner = torch.arange(images).repeat_interleave(each)
    if boxed == "none":
        return PromptInputs(owner, tokens, attention)
    boxes = 0.3 + 0.3 * torch.rand(count, 4, generator=generator)
    chosen = torch.ones(count).bool() if boxed == "all" else torch.arange(count) % 2 == 0
    return PromptInputs(owner, tokens, attention, boxes, chosen)

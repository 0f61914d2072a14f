"""What the cache of the teacher's predictions is worth: operations with it and without, 15 epochs.

    python -m benchmarks.sam3_flops

SAM3 and its 100.2 M student at 1008 pixels, one prompt an image; 32,558 images to train on and
1,000 held out. Operations are counted, not timed: PyTorch's counter of products and convolutions,
on tensors without values. A training step is a forward and a backward pass of the student, its text
encoder included; SAM3's text tower is left out, as texts are encoded once in either case, and so
are losses, which are alike.

Expected: 6.0 TFLOP for the teacher, 2.1 for a step; with the cache 3.2 times fewer operations over
the 15 epochs, 2.9 times where the student computes activations twice (2.6 TFLOP) to save memory.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from braid.common.torchvision import mend_torchvision
from braid.segmentation.sam3.sam3 import BY_PROMPT, PromptInputs, predict
from braid.segmentation.student.student import StudentRecipe, build_student, heads_of

EPOCHS, TRAIN, VAL = 15, 32_558, 1_000
IMAGE_SIZE, TOKENS = 1008, 32


def main() -> None:
    """Print operations by model, and the ratio."""
    mend_torchvision()
    from transformers import Sam3Config, Sam3Model

    with torch.device("meta"):
        teacher = Sam3Model(Sam3Config()).eval()
        forward = forward_flops(teacher)
        print(f"teacher, forward                   {forward / 1e12:6.2f} TFLOP")
        for checkpointing in (False, True):
            step = step_flops(full_student(teacher, checkpointing))
            online = EPOCHS * TRAIN * (forward + step)
            cached = (TRAIN + VAL) * forward + EPOCHS * TRAIN * step
            how = "computing again" if checkpointing else "keeping all"
            print(
                f"student's step, {how:15s}    {step / 1e12:6.2f} TFLOP   {EPOCHS} epochs: "
                f"online {online / 1e18:.2f}, cached {cached / 1e18:.2f} EFLOP   "
                f"online / cached {online / cached:.2f}"
            )


def full_student(teacher: Any, checkpointing: bool) -> Any:
    """The student of the full run."""
    return build_student(
        StudentRecipe(
            heads=heads_of(teacher),
            vocabulary=49408,
            context=TOKENS,
            image_size=1008,
            kinds=(),
            queries=100,
            backbone="repvit_m2_3",
            backbone_options={},
            text_layers=6,
            text_width=512,
            checkpointing=checkpointing,
        )
    )


def forward_flops(teacher: Any) -> int:
    """Of the prediction for one prompt whose text is encoded already."""
    text = torch.empty(1, TOKENS, teacher.config.detr_encoder_config.hidden_size)
    with torch.no_grad():
        return counted(teacher, 72, text, backward=False)


def step_flops(student: Any) -> int:
    """Of the prediction for one prompt and its gradients."""
    return counted(student.train(), 63, None, backward=True)


def counted(model: Any, grid: int, text: Tensor | None, *, backward: bool) -> int:
    """Of one prompt on one image, whose coarsest features have `grid` cells a side."""
    # Two places in the model need values, which there are none of: coordinates and padding.
    model.detr_decoder._get_coords = partial(_coordinates, grid)
    padding: Any = None
    tokens = torch.zeros(1, TOKENS, dtype=torch.int64)
    inputs = PromptInputs(torch.zeros(1, dtype=torch.int64), tokens, padding, text=text)
    with FlopCounterMode(display=False) as counter:
        prediction = predict(model, torch.empty(1, 3, IMAGE_SIZE, IMAGE_SIZE), inputs)
        if backward:
            parts = [getattr(prediction, name) for name in BY_PROMPT if name != "encoder"]
            torch.stack([part.sum() for part in parts]).sum().backward()
    return int(counter.get_total_flops())


def _coordinates(grid: int, *_shape: Any, **_kind: Any) -> tuple[Tensor, Tensor]:
    return torch.empty(grid), torch.empty(grid)


if __name__ == "__main__":
    main()

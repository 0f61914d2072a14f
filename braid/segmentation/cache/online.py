"""The teacher's predictions as a student is given them, made now.

    predictor = Predictor.of(model, ["red circle", "blue star"], tokenizer, device)
    teacher = OnlineTeacher(prompted, predictor, config)
    teacher.predictions([(0, 2), (0, 5), (7, 1)])  # of three prompts on two images

`cache` writes down what an `OnlineTeacher` predicts and gives it back by the same call, so that a
training need not know which of the two it learns from. Both keep of a prediction what `kept_of`
does.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from braid.segmentation.config import CacheConfig
from braid.segmentation.data.prompted import Pair, PromptedImages, images_of, prompt_batch
from braid.segmentation.sam3.geometry import resized
from braid.segmentation.sam3.predictor import Predictor
from braid.segmentation.sam3.sam3 import BY_PROMPT, Prediction


def kept_of(prediction: Prediction, config: CacheConfig) -> Prediction:
    """That of the queries with the highest scores, in the model's order.

    Features are rounded to 16 bits.

    Raises:
        ValueError: there are fewer queries, smaller masks or fewer levels.
    """
    limits = {
        "masks": (config.masks, prediction.logits.shape[1], "queries"),
        "mask_size": (config.mask_size, prediction.masks.shape[-1], "pixels a side of its masks"),
        "levels": (config.kept_levels, len(prediction.fpn), "levels of features"),
    }
    for name, (value, most, what) in limits.items():
        if value > most:
            raise ValueError(
                f"sam3.cache.{name} is {value}, expected at most the teacher's {most} {what}"
            )
    chosen = prediction.logits.topk(config.masks, dim=1).indices.sort(dim=1).values
    rows = torch.arange(len(chosen), device=chosen.device)[:, None]
    fpn, encoder = prediction.fpn, prediction.encoder
    return Prediction(
        masks=resized(prediction.masks[rows, chosen], config.mask_size),
        boxes=prediction.boxes[rows, chosen].float(),
        logits=prediction.logits.gather(1, chosen).float(),
        presence=prediction.presence.float(),
        semantic=resized(prediction.semantic, config.mask_size),
        fpn=tuple(level.half() for level in fpn[len(fpn) - config.kept_levels :]),
        encoder=encoder.half() if encoder is not None else None,
    )


class OnlineTeacher:
    """The teacher itself."""

    def __init__(
        self,
        prompted: PromptedImages,
        predictor: Predictor,  # with the texts of all prompts
        config: CacheConfig,
    ) -> None:
        self.prompted, self.predictor, self.config = prompted, predictor, config

    def predictions(self, pairs: Sequence[Pair]) -> Prediction:
        """Predictions in the order of the pairs, features of the images as these first come.

        Raises:
            ValueError: a prediction is not finite; the message names the image and the prompt.
        """
        return self.scored(pairs)[1]

    @torch.no_grad()
    def scored(self, pairs: Sequence[Pair]) -> tuple[Tensor, Prediction]:
        """The scores of all queries, [B, Q], and what is kept of the predictions."""
        batch = prompt_batch(self.prompted, pairs)
        prediction = self.predictor(batch, features=self.config.kept_levels > 0)
        kept = kept_of(prediction, self.config)
        self._require_finite(kept, pairs)
        return prediction.scores, kept

    def _require_finite(self, kept: Prediction, pairs: Sequence[Pair]) -> None:
        owner = images_of(pairs)[1]
        tensors = [(name, getattr(kept, name)) for name in BY_PROMPT]
        tensors += [("fpn", level) for level in kept.fpn]
        for name, values in tensors:
            if values is None:
                continue
            finite = values.isfinite().flatten(1).all(1).cpu()
            finite = finite[owner] if name == "fpn" else finite
            if not finite.all():
                image, place = pair = pairs[int(finite.int().argmin())]
                file, prompt = self.prompted.images.record(image).file, self.prompted.prompt(pair)
                raise ValueError(
                    f"{file}: the teacher's {name} for prompt {place} ({prompt.kind}: "
                    f"{prompt.text!r}) are not finite"
                )

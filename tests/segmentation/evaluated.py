"""A few prompts and two tiny models, for the tests of the evaluation."""

from functools import cache

import torch

from braid.segmentation.config import EvaluationConfig
from braid.segmentation.data.prompted import GroundTruth, Prompt
from braid.segmentation.evaluation.evaluator import TEACHER, Evaluator
from braid.segmentation.sam3.predictor import Predictor, Texts
from tests.segmentation.detections import generator
from tests.segmentation.tiny_models import CONTEXT, some_images, tiny_teacher

CPU, SIZE = torch.device("cpu"), 16
CONFIG = EvaluationConfig(
    student="student",
    truth_only="truth_only",
    split="test",
    images=2,
    mask_size=SIZE,
    score=0.2,
    bins=5,
    latency_runs=2,
    pictures=2,
)
TEXTS = ("a", "b", "c")
PAIRS = [(image, place) for image in (4, 7, 9, 11, 12) for place in range(3)]
KINDS = ("category", "box", "caption")


class Prompted:
    """Five random images with three prompts each, ground truth of up to two random objects."""

    def prompt(self, pair):
        box = (0.4, 0.5, 0.3, 0.3) if pair[1] == 1 else None
        return Prompt(KINDS[pair[1]], TEXTS[pair[1]], box, None, pair[1] != 2)

    def pixels(self, images):
        return torch.cat([some_images(1, seed=image) for image in images])

    def ground_truth(self, pairs, size):
        masks = torch.zeros(len(pairs), 2, size, size)
        for row, (image, place) in enumerate(pairs):
            draw = generator(10 * image + place)
            masks[row] = (torch.rand(2, size, size, generator=draw) > 0.5).float()
        count = torch.tensor([(image + place) % 4 - 1 for image, place in pairs])
        masks = masks * (torch.arange(2) < count[:, None])[..., None, None]
        boxes = torch.tensor([0.0, 0.0, 1.0, 1.0]).expand(len(pairs), 2, 4)
        return GroundTruth(masks, boxes, count, masks.amax(1, keepdim=True))


def texts(seed):
    draw = generator(seed)
    attention = torch.ones(len(TEXTS), CONTEXT, dtype=torch.long)
    attention[1, 5:] = 0
    return Texts(TEXTS, torch.randn(len(TEXTS), CONTEXT, 16, generator=draw), attention)


@cache
def models():
    names = (TEACHER, "student")
    return {
        name: Predictor(tiny_teacher(seed), texts(seed), CPU) for seed, name in enumerate(names)
    }


def some_evaluator(images=2):
    return Evaluator(Prompted(), models(), CONFIG.model_copy(update={"images": images}), CPU)


@cache
def evaluations(images=2):
    return some_evaluator(images).evaluate(PAIRS, generator())

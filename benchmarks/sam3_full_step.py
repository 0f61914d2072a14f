"""One step of the full-size recipe on a CPU: the real classes at 1008 pixels, random weights.

    python -m benchmarks.sam3_full_step

runs what recipes/sa1b.yaml runs with SAM3's own configuration (840 M parameters) and the student of
100 M, in bfloat16, on one image and one prompt: the teacher's prediction, as the stage
cache_teacher keeps it, and in a process of its own a forward and a backward pass of the student
with all nine terms of the loss, and AdamW's update. Says nothing of quality. A step of the recipe
has eight such passes. It prints docs/results/sam3_full_step.txt and writes it, and needs 8 GiB.
"""

from __future__ import annotations

import multiprocessing
import resource
import tempfile
import time
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from braid.common.torchvision import mend_torchvision
from braid.segmentation.cache.cache import OnlineTeacher
from braid.segmentation.config import PromptsConfig
from braid.segmentation.data.prompted import PromptedImages, open_prompted, write_prompts
from braid.segmentation.distillation.distillation import Distillation, TeacherSupervision
from braid.segmentation.distillation.losses import DistillationLoss, Matcher
from braid.segmentation.preparation.built_in import crop_photo, write_annotated
from braid.segmentation.preparation.prompts import sample_prompts
from braid.segmentation.preparation.scan import scan, write_manifest
from braid.segmentation.sam3.predictor import Predictor, Texts, word_tokenizer, words_in
from braid.segmentation.sam3.sam3 import Prediction, count_parameters
from braid.segmentation.student.student import new_student
from braid.segmentation.training.batches import Epochs, PromptSampler
from braid.stage.params import Params, check_params, load_yaml
from braid.training.trainer import Run, train
from recipes.overrides import resolve

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "docs/results/sam3_full_step.txt"
RECIPE, VOCABULARY, IMAGES = "sa1b", 49408, 3
CPU = torch.device("cpu")
PAIRS = [(0, 0)]


def main() -> None:
    """Run both parts, each in a process of its own, and print."""
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        write_images(Path(folder))
        for part in (teacher_part, student_part):
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                lines += pool.apply(part, (folder,))
    RESULT.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


def recipe() -> Params:
    """All params as the recipe has them."""
    return check_params(resolve(ROOT, RECIPE, load_yaml(ROOT / "params.yaml")), RECIPE)


def write_images(folder: Path) -> None:
    """A few photos as SA-1B's pairs, with the recipe's prompts."""
    config = recipe().sam3
    (folder / "images").mkdir()
    for number in range(1, IMAGES + 1):
        photo = crop_photo(20 + number, size=config.data.image_size)
        write_annotated(folder / "images", number, photo)
    pairs = scan(folder / "images", val=1, test=1, faults="fatal")
    write_manifest(folder, pairs, image_size=config.data.image_size)
    kinds: Any = {"kinds": ("generic",), "phrases": ()}
    prompts: PromptsConfig = config.prompts.model_copy(update=kinds)
    write_prompts(folder, sample_prompts(pairs.sketches, prompts, 0))


def tokenizer_of(prompted: PromptedImages) -> Any:
    """As many tokens as CLIP has, most of them of no use."""
    words = words_in(prompted.texts())
    unused = (f"unused{number}" for number in range(VOCABULARY - 3 - len(words)))
    return word_tokenizer([*words, *unused], length=32)


def real_teacher() -> Any:
    """SAM3 by its own configuration."""
    mend_torchvision()
    from transformers import Sam3Config, Sam3Model

    return Sam3Model(Sam3Config()).eval()


def teacher_part(folder: str) -> list[str]:
    """Predict for one prompt; what is kept of it goes to a file."""
    torch.set_num_threads(1)
    params, teacher = recipe(), real_teacher()
    prompted = open_prompted(Path(folder), cache_mib=0)
    words = tokenizer_of(prompted)
    texts = prompted.texts(PAIRS)
    predictor = Predictor.of(teacher, texts, words, CPU, params.hardware.precision)
    online = OnlineTeacher(prompted, predictor, params.sam3.cache)
    started = time.process_time()
    prediction = online.predictions(PAIRS)
    seconds = time.process_time() - started
    kept = {field.name: getattr(prediction, field.name) for field in fields(Prediction)}
    encoded = {"features": predictor.texts.features, "attention": predictor.texts.attention}
    torch.save({"prediction": kept, "texts": encoded}, Path(folder) / "teacher.pt")
    parameters = count_parameters(teacher) / 1e6
    return [
        f"teacher, {parameters:.1f} M parameters: prediction for one prompt on an image "
        f"{seconds:.0f} s of one core, peak {peak():.1f} GiB"
    ]


class Kept:
    """The prediction of that file."""

    def __init__(self, folder: Path, prompted: PromptedImages) -> None:
        content = torch.load(folder / "teacher.pt", weights_only=True)
        self.prediction = Prediction(**content["prediction"])
        self.texts = Texts(prompted.texts(PAIRS), **content["texts"])

    def predictions(self, _pairs: Any) -> Prediction:
        """The one that there is."""
        return self.prediction


def student_part(folder: str) -> list[str]:
    """One update of the student, from the prediction in the file."""
    torch.set_num_threads(1)
    params = recipe()
    config = params.sam3
    with torch.device("meta"):
        teacher = real_teacher()  # its configuration alone is wanted
    prompted = open_prompted(Path(folder), cache_mib=0)
    words = tokenizer_of(prompted)
    student = new_student(config.student, teacher, words, ("generic",)).train()
    loss = DistillationLoss(Matcher(config.matching), config.losses)
    kept = Kept(Path(folder), prompted)
    supervision = TeacherSupervision(kept, prompted, loss, features=True)
    sampler = PromptSampler(prompted, PAIRS, words, student.recipe.context, CPU)
    epochs = Epochs(sampler.images, update=1, seed=0, phase="features")
    objective = Distillation(student, sampler, supervision, epochs, config.distill)
    phase = config.phases["features"].optimizer.model_copy(update={"accumulate": 1, "warmup": 0.0})
    run = Run(seed=0, device=CPU, precision=params.hardware.precision)
    started = time.process_time()
    (row,) = train(objective, phase, run, steps=1, fused=True).history
    seconds = time.process_time() - started
    terms = ", ".join(f"{name} {row[name]:.3g}" for name in row if name in config.losses.__dict__)
    return [
        f"student, {count_parameters(student) / 1e6:.1f} M parameters: forward, backward, update "
        f"{seconds:.0f} s of one core, peak {peak():.1f} GiB",
        f"weighted terms (random weights): {terms}",
    ]


def peak() -> float:
    """GiB that this process had in memory at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


if __name__ == "__main__":
    main()

"""Train the tiny SAM3 teacher on the built-in images, or take the user's own checkpoint.

Writes models/sam3_teacher: the model and its tokenizer, or where they are. A minute and a half
for the built-in images; a checkpoint is verified and judged, not copied.
"""

from typing import Any

import torch

from braid.common.rng import generator
from braid.segmentation.data.prompted import PromptedImages, open_prompted
from braid.segmentation.evaluation.evaluation import respondent
from braid.segmentation.evaluation.teacher_report import teacher_report, teacher_verdict
from braid.segmentation.sam3.tiny_sam3 import tiny_sam3
from braid.segmentation.sam3.tokens import load_tokenizer, save_tokenizer, word_tokenizer, words_in
from braid.segmentation.supervised.batches import Questions
from braid.segmentation.supervised.loss import TruthLoss
from braid.segmentation.supervised.teacher_fit import TruthObjective
from braid.segmentation.teacher.teacher import load_teacher, write_source
from braid.stage.context import Stage, open_stage
from braid.training.device import set_up
from braid.training.distributed import Process, launched
from braid.training.trainer import Optimisation, optimise

FOUND = 0.3  # the score of a found query: no param, or other ways to judge would fit anew
MOST_TOKENS = 77  # of a text, as in CLIP
COLUMNS = ("step", "lr", "loss")  # of the curve, which a user's own checkpoint leaves empty


def main() -> None:
    """Run the stage."""
    with open_stage("fit_sam3_teacher") as stage:
        process, hardware = launched(), stage.params.hardware
        device = set_up(hardware.device, hardware.threads, stage.params.seed, process.local_rank)
        prompted = open_prompted(stage.dep("data/sa1b"), cache_mib=stage.params.sa1b.cache_mib)
        settings, folder = stage.params.sam3_teacher, stage.out("models/sam3_teacher")
        history: list[dict[str, float]] = []
        if settings.source == "tiny":
            model, tokenizer, history = fit(stage, prompted, device, process)
            model.eval().save_pretrained(folder)
            save_tokenizer(folder, tokenizer)
        else:
            place = write_source(folder, settings.source, prompted.images.size)
            model, tokenizer = load_teacher(folder), load_tokenizer(place)

        pairs = prompted.pairs("val", known=True)
        texts = {prompted.prompt(pair).text for pair in pairs}
        teacher = respondent(model, texts, tokenizer, device, hardware.precision)
        figures = teacher_report(teacher, prompted, pairs, score=FOUND, images=settings.images)
        counts = {"val_prompts": len(pairs), "parameters": _parameters(model)}
        stage.write_curve("plots/sam3_teacher", history, COLUMNS)
        stage.write_metrics({**figures, **counts, "status": teacher_verdict(figures)})


def fit(
    stage: Stage, prompted: PromptedImages, device: torch.device, process: Process
) -> tuple[Any, Any, list[dict[str, float]]]:
    """A trained tiny teacher, its tokenizer, and the rows of the curve."""
    settings, hardware, seed = stage.params.sam3_teacher, stage.params.hardware, stage.params.seed
    texts = sorted({prompt.text for prompts in prompted.prompts for prompt in prompts})
    tokenizer = word_tokenizer(words_in(texts), length=MOST_TOKENS)
    context = max(map(len, tokenizer(texts, truncation=True)["input_ids"]))
    tokenizer.model_max_length = context
    model = tiny_sam3(
        width=settings.width,
        layers=settings.layers,
        queries=settings.queries,
        image_size=prompted.images.size,
        vocabulary=len(tokenizer),
        context=context,
        generator=generator(seed, "sam3_teacher"),
    ).to(device)
    pairs = prompted.pairs("train", known=True)
    objective = TruthObjective(
        model,
        Questions(prompted, pairs, tokenizer, context, device),
        TruthLoss(),
        images=settings.images,
        prompts=settings.prompts,
    )
    result = optimise(
        objective,
        Optimisation(fused=True, **stage.params.sam3_teacher_optimisation.model_dump()),
        steps=settings.steps,
        precision=hardware.precision,
        **stage.params.cadence.model_dump(),
        outer_layers=objective.outer_layers,
        seed=seed,
        device=device,
        process=process,
        checkpoint=stage.scratch() / "sam3_teacher.pt",
        on_log=stage.logger(),
    )
    return model, tokenizer, result.history


def _parameters(model: Any) -> int:
    return sum(each.numel() for each in model.parameters())


if __name__ == "__main__":
    main()

"""Train a student on the teacher's predictions, or on ground truth alone, in phases.

Writes models/sam3_student/<student>. A minute for the built-in images.
"""

from braid.common.config import BUILT_IN
from braid.segmentation.cache.cache import open_predictions
from braid.segmentation.data.prompted import open_prompted
from braid.segmentation.distillation import distillation as phases
from braid.segmentation.distillation.losses import DistillationLoss, Matcher
from braid.segmentation.sam3.checkpoint import load_teacher
from braid.segmentation.student import student as students
from braid.segmentation.training.batches import PromptSampler
from braid.stage.card import Pace
from braid.stage.context import open_stage


def main() -> None:
    """Run the stage."""
    with open_stage("distill_sam3") as stage:
        (name,) = stage.item
        config, run = stage.params.sam3, stage.training()
        choice, words = config.students[name], config.student.tokenizer
        prompted = open_prompted(stage.dep("data/sa1b"), cache_mib=config.data.cache_mib)
        teacher = load_teacher(stage.dep("models/sam3_teacher"), drop_text=True)
        cache = open_predictions(stage.dep("data/teacher_cache"), prompted, teacher, run.device)
        loss = DistillationLoss(Matcher(config.matching), config.losses)
        supervisions = phases.supervisions_of(choice, config.phases, prompted, cache, loss)

        folder = None if words == BUILT_IN else stage.dep(words)
        tokenizer = students.student_tokenizer(folder, prompted.texts(), teacher)
        weights = stage.optional_dep(config.student.backbone_weights)
        text = stage.optional_dep(config.student.text_weights)
        train, held_out = phases.supervised_pairs(prompted, choice)
        parts = (config.student, teacher, tokenizer, prompted.kinds(train), weights, text)
        student = students.new_student(*parts).to(run.device)
        copied = 0  # parameters
        if choice.heads:
            copied = students.transfer_heads(student, teacher, cache.query_usage()).parameters
        del teacher

        sampler = PromptSampler(prompted, train, tokenizer, student.recipe.context, run.device)
        phases.hold_batch_norm(student, sampler, config.distill, run.seed, measured=weights is None)
        paces = {phase: Pace() for phase in config.phases}
        results = phases.train_phases(
            student, sampler, supervisions, held_out, config.distill, config.phases, run, paces
        )

        students.save_student(stage.out("models/sam3_student"), student.eval(), tokenizer)
        stage.write_table("plots/sam3", [row for result in results for row in result.history])
        norms = [row for result in results for row in result.gradients]
        stage.write_table("plots/sam3_gradients", norms, ("step", "phase"))
        stage.write_table("metrics/tables/sam3_training", phases.term_rows(results, copied))
        stage.write_metrics(phases.headline(results, student, sampler))
        speeds = {phase: pace.per_second() for phase, pace in paces.items()}
        stage.runtime["steps_per_second"] = speeds


if __name__ == "__main__":
    main()

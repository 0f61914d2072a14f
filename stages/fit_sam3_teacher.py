"""Train the tiny SAM3 teacher on the built-in images, or take the user's own checkpoint.

Writes models/sam3_teacher: the model and its tokenizer, or where they are. A minute and a half
for the built-in images; a checkpoint is verified and evaluated, not copied.
"""

from braid.common.config import BUILT_IN
from braid.common.rng import generator
from braid.segmentation.data.prompted import open_prompted
from braid.segmentation.sam3.checkpoint import load_teacher, write_source
from braid.segmentation.sam3.predictor import Predictor, load_tokenizer, save_tokenizer
from braid.segmentation.sam3.sam3 import count_parameters
from braid.segmentation.teacher.tiny_sam3 import COLUMNS, fit, headline, new_teacher, teacher_rows
from braid.stage.context import open_stage
from braid.training.trainer import Row

CURVE = ("step", "lr", "loss")  # columns, which a user's own checkpoint leaves empty


def main() -> None:
    """Run the stage."""
    with open_stage("fit_sam3_teacher") as stage:
        config, run = stage.params.sam3.teacher, stage.training()
        prompted = open_prompted(stage.dep("data/sa1b"), cache_mib=stage.params.sam3.data.cache_mib)
        folder, history = stage.out("models/sam3_teacher"), list[Row]()
        if config.source == BUILT_IN:
            model, tokenizer = new_teacher(config, prompted, generator(run.seed, "sam3_teacher"))
            history = fit(model, tokenizer, prompted, config, run)
            model.save_pretrained(folder)
            save_tokenizer(folder, tokenizer)
        else:
            place = write_source(folder, config.source, prompted.images.size)
            model, tokenizer = load_teacher(folder), load_tokenizer(place)

        pairs = prompted.pairs("val", known=True)
        texts = prompted.texts(pairs) or prompted.texts()
        predictor = Predictor.of(model, texts, tokenizer, run.device, run.precision)
        rows = teacher_rows(predictor, prompted, pairs, images=config.images)
        stage.write_table("plots/sam3_teacher", history, CURVE)
        stage.write_table("metrics/tables/sam3_teacher.csv", rows, COLUMNS)
        stage.write_metrics({**headline(rows), "parameters": count_parameters(model)})


if __name__ == "__main__":
    main()

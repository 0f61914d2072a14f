"""Run SAM3's teacher on every prompt of every image once, and write its predictions down.

Writes data/teacher_cache; a stage that was killed goes on with the shards that it had finished.
Some ten seconds for the built-in images.
"""

from braid.segmentation.cache.cache import OnlineTeacher, open_cache, write_cache
from braid.segmentation.data.prompted import open_prompted
from braid.segmentation.sam3.checkpoint import load_teacher, located, remove_text_tower
from braid.segmentation.sam3.predictor import Predictor, load_tokenizer
from braid.stage.context import open_stage
from braid.training.distributed import launched, working


def main() -> None:
    """Run the stage."""
    with open_stage("cache_teacher") as stage:
        config, device = stage.params.sam3.cache, stage.device()
        prompted = open_prompted(stage.dep("data/sa1b"), cache_mib=stage.params.sam3.data.cache_mib)

        folder, precision = stage.dep("models/sam3_teacher"), stage.params.hardware.precision
        model = load_teacher(folder, device, image_size=prompted.images.size)
        tokenizer = load_tokenizer(located(folder))
        predictor = Predictor.of(model, prompted.texts(), tokenizer, device, precision)
        remove_text_tower(model)

        out = stage.out("data/teacher_cache")
        teacher = OnlineTeacher(prompted, predictor, config)
        process = launched()
        with working(process):
            write_cache(out, teacher, scratch=stage.scratch())
        if not process.is_main:  # the first one's folder is kept
            return
        statistics = open_cache(out).statistics()
        stage.write_table("metrics/tables/teacher_cache.csv", [statistics])
        stage.write_metrics({"prompts": statistics["prompts"]})


if __name__ == "__main__":
    main()

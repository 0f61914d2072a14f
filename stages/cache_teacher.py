"""Ask SAM3's teacher every prompt of every image once, and write its answers down.

Writes data/teacher_cache; a stage that was killed goes on with the shards that it had finished.
Some ten seconds for the built-in images.
"""

from braid.segmentation.data.prompted import open_prompted
from braid.segmentation.sam3.tokens import load_tokenizer
from braid.segmentation.teacher.answers import Kept, OnlineTeacher, encode_texts
from braid.segmentation.teacher.cache import open_cache, write_cache
from braid.segmentation.teacher.teacher import load_teacher, located, remove_text_tower
from braid.stage.context import open_stage
from braid.training.device import set_up


def main() -> None:
    """Run the stage."""
    with open_stage("cache_teacher") as stage:
        hardware, settings = stage.params.hardware, stage.params.sam3_cache
        device = set_up(hardware.device, hardware.threads, seed=0)  # nothing is drawn
        prompted = open_prompted(stage.dep("data/sa1b"), cache_mib=stage.params.sa1b.cache_mib)

        place = stage.dep("models/sam3_teacher")
        model = load_teacher(place, device, image_size=prompted.images.size)
        texts = encode_texts(
            (prompt.text for prompts in prompted.prompts for prompt in prompts),
            model,
            load_tokenizer(located(place)),
            device=device,
            precision=hardware.precision,
        )
        remove_text_tower(model)

        levels = 0 if settings.mode == "outputs" else settings.levels
        kept = Kept(settings.masks, settings.mask_size, levels)
        teacher = OnlineTeacher(
            prompted, model, texts, kept, device=device, precision=hardware.precision
        )
        folder = stage.out("data/teacher_cache")
        write_cache(
            folder,
            teacher,
            mode=settings.mode,
            shard=settings.shard,
            batch=settings.images,
            scratch=stage.scratch(),
        )
        stage.write_metrics(open_cache(folder).figures())


if __name__ == "__main__":
    main()

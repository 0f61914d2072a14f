"""List the images and sample their prompts: the built-in ones, or the user's own SA-1B folder.

Writes data/sa1b: manifest.json, prompts.json, and the images if they are built in. Six seconds.
"""

from braid.common.config import BUILT_IN
from braid.segmentation.data.prompted import write_prompts
from braid.segmentation.data.sa1b import SPLITS
from braid.segmentation.preparation.built_in import write_built_in
from braid.segmentation.preparation.prompts import all_phrases, prompt_rows, sample_prompts
from braid.segmentation.preparation.scan import image_rows, scan, source_folder, write_manifest
from braid.stage.context import open_stage


def main() -> None:
    """Run the stage."""
    with open_stage("prepare_sa1b") as stage:
        config, seed, out = stage.params.sam3, stage.params.seed, stage.out("data/sa1b")
        size = config.data.image_size
        out.mkdir()
        if config.data.source == BUILT_IN:
            folder = out / "images"
            write_built_in(folder, config.shapes, size=size, seed=seed)
        else:
            folder = source_folder(config.data.source)
        data = config.data
        pairs = scan(folder, val=data.val, test=data.test, faults=data.faults)
        write_manifest(out, pairs, image_size=size)
        phrases = all_phrases(config.prompts, stage.optional_dep(config.prompts.phrases_file))
        prompts = sample_prompts(pairs.sketches, config.prompts, seed, phrases)
        write_prompts(out, prompts)
        stage.write_table("metrics/tables/sa1b_images.csv", image_rows(pairs.sketches))
        stage.write_table("metrics/tables/sa1b_prompts.csv", prompt_rows(prompts))
        stage.write_metrics(
            {
                **{split: len(pairs.sketches.indices(split)) for split in SPLITS},
                "prompts": sum(map(len, prompts)),
                "faults": len(pairs.faults),
            }
        )


if __name__ == "__main__":
    main()

"""List the images and ask about them: the built-in ones, or the user's own SA-1B folder.

Writes data/sa1b: manifest.json, prompts.json, and the images if they are built in. Six seconds.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from braid.segmentation.data.prompts import Asking, Prompt, ask, write_prompts
from braid.segmentation.data.sa1b import Images, open_images
from braid.segmentation.preparation.built_in import write_built_in
from braid.segmentation.preparation.scan import survey, write_manifest
from braid.stage.context import Stage, open_stage


def main() -> None:
    """Run the stage."""
    with open_stage("prepare_sa1b") as stage:
        settings, out = stage.params.sa1b, stage.out("data/sa1b")
        out.mkdir()
        found = survey(_folder(stage, out), val=settings.val, faults=settings.faults)
        write_manifest(out, found, image_size=settings.image_size)
        images = open_images(out, cache_mib=settings.cache_mib)
        asking = Asking(**stage.params.prompts.model_dump())
        prompts = ask(images, asking, stage.params.seed)
        write_prompts(out, prompts)
        faults = {"faults": len(found.faults)}
        stage.write_metrics(image_figures(images) | faults | prompt_figures(prompts))


def image_figures(images: Images) -> dict[str, Any]:
    """How many images there are, and how much is known of them."""
    records = [images.record(index) for index in range(len(images))]
    annotations = [each for record in records for each in record.annotations]
    return {
        "images": len(images),
        **{split: len(images.indices(split)) for split in ("train", "val")},
        "exhaustive": sum(record.exhaustive for record in records),
        "annotations": len(annotations),
        "named": sum(each.name is not None for each in annotations),
        "masks_per_image": round(len(annotations) / len(records), 3),
    }


def prompt_figures(prompts: Sequence[Sequence[Prompt]]) -> dict[str, Any]:
    """How many prompts there are of each kind, and how many of them have which truth."""
    asked = [prompt for image in prompts for prompt in image]
    known = [prompt for prompt in asked if prompt.answers is not None]
    negative = sum(prompt.answers == () for prompt in known)
    return {
        "prompts": len(asked),
        "prompts_of_kind": dict(sorted(Counter(prompt.kind for prompt in asked).items())),
        "prompts_known": len(known),
        "prompts_withheld": sum(not prompt.labelled for prompt in asked),
        "negative_share": round(negative / len(known), 4) if known else None,
    }


def _folder(stage: Stage, out: Path) -> Path:
    """The folder of the pairs: the user's own, or the built-in ones, which are written now."""
    settings, folder = stage.params.sa1b, out / "images"
    if settings.source == "shapes":
        shapes = stage.params.shapes.model_dump()
        write_built_in(folder, **shapes, size=settings.image_size, seed=stage.params.seed)
        return folder
    source = Path(settings.source)
    if source.resolve().is_relative_to(Path.cwd()):
        raise ValueError(
            f"sa1b.source: {source}: images are read where they lie, expected a place outside of "
            "the repository"
        )
    return source


if __name__ == "__main__":
    main()

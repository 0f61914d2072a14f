"""Release a student: a folder that loads with one class, a model card, and ONNX files.

    python -m braid.segmentation.release models/sam3_student/distilled efficient_sam3 --onnx

--int8 adds ONNX files with 8-bit convolutions, whose activations have the range that they have on
training images. These are of the repository in which the student lies, as is what the card says of
teacher, images and scores; what is not there it calls unknown.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from numpy.typing import NDArray

from braid.segmentation.data.prompted import PromptedImages, open_prompted
from braid.segmentation.release.onnx import FLOAT, INT8, export_onnx, quantize_onnx
from braid.segmentation.release.segmenter import WEIGHTS, Segmenter
from braid.segmentation.sam3.sam3 import count_parameters

CARD = """---
library_name: braid
pipeline_tag: image-segmentation
license: other
---
# EfficientSAM3, {parameters} parameters

A student of SAM3: it segments every instance of a concept given in words, and says in a presence
score whether the concept is in the picture at all.

```python
from PIL import Image
from braid.segmentation.release.segmenter import Segmenter

found = Segmenter.from_pretrained("{folder}").segment(Image.open("picture.jpg"), words=["{word}"])
```

`braid` is a checkout of the repository on the Python path; no params, no DVC. Other classes refuse
this folder.{onnx}

## What it is

{architecture}

## Data

Images: {data}. Teacher: {teacher}. Prompts it learned from: {kinds}.

## Figures

{figures}

## Limits

{limits}

## License

{license}
"""
MEASURED = """On held-out images, by `dvc repro evaluate_sam3`; scores count from {score} on,
for cgF1 from 0.5.

| figure | value |
|---|---|
{rows}"""
MEASURED_PICTURES = 32  # that give the range of 8-bit activations
UNKNOWN = "unknown"
TRAINED_HERE = "a tiny `Sam3Model` that the repository trains"
BUILT_IN = "drawn by the repository, and crops of photos of scikit-image and scikit-learn"
TEACHER_LICENSES = {
    UNKNOWN: "Unknown: this command did not find the teacher, whose license applies to the heads.",
    TRAINED_HERE: "The teacher was trained by the repository; no third party's weights are in it.",
}
IMAGE_LICENSES = {
    UNKNOWN: "Unknown: this command did not find the images, whose license applies.",
    BUILT_IN: "Photos under the licenses of scikit-image and scikit-learn.",
}
CHECKPOINT_LICENSE = (
    "Its heads are a derivative of the teacher's: the license of that checkpoint applies (SAM "
    "License for facebook/sam3)."
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; what is wrong is said in one line."""
    parser = argparse.ArgumentParser("braid.segmentation.release", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("student", type=Path, help="as models/sam3_student/distilled")
    parser.add_argument("folder", type=Path, help="to be written")
    parser.add_argument("--onnx", action="store_true", help="with ONNX files (the extra onnx)")
    parser.add_argument("--int8", action="store_true", help="and such with 8-bit convolutions")
    parser.add_argument("--half", action="store_true", help="weights in 16 bits")
    options = parser.parse_args(arguments)
    student = options.student.resolve()
    try:
        segmenter = Segmenter.of_stage(options.student)
        segmenter.save_pretrained(options.folder, half=options.half)
        if options.onnx or options.int8:
            export_onnx(segmenter, options.folder / FLOAT)
        if options.int8:
            prompted = open_prompted(student / "../../../data/sa1b", cache_mib=0)
            quantize_onnx(options.folder, pictures(prompted, "train", MEASURED_PICTURES).values())
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    card = model_card(segmenter, options.folder, student)
    (options.folder / "README.md").write_text(card, encoding="utf-8")
    print(f"{options.folder}: {', '.join(sorted(path.name for path in options.folder.iterdir()))}")


def pictures(
    prompted: PromptedImages, split: str, most: int
) -> dict[int, tuple[NDArray[Any], list[str]]]:
    """The first images of a split that have prompts in words: pixels [1, 3, S, S], and these."""
    words: dict[int, list[str]] = {}
    for image, place in prompted.pairs(split):
        if (prompt := prompted.prompt((image, place))).box is None:
            words.setdefault(image, []).append(prompt.text)
    chosen = list(words.items())[:most]
    return {image: (prompted.pixels([image]).numpy(), texts) for image, texts in chosen}


def model_card(segmenter: Segmenter, folder: Path, student: Path) -> str:
    """README.md of a released folder.

    Args:
        segmenter: what was released.
        folder: the folder.
        student: where it came from; <repository>/models/sam3_student/<student>, or all is unknown.
    """
    recipe, repository = segmenter.model.recipe, (student / "../../..").resolve()
    teacher, images = _teacher(repository / "models/sam3_teacher"), _images(repository)
    words = [word for word in ("circle", "dog") if _known(segmenter, word)]
    built = (
        f"- vision: timm's `{recipe.backbone}` under a feature pyramid, images of "
        f"{recipe.image_size} pixels\n"
        f"- text: {recipe.text_layers} layers of {recipe.text_width} channels, "
        f"{recipe.vocabulary} tokens, at most {recipe.context} a prompt\n"
        f"- heads of SAM3: {recipe.queries} queries\n"
        f"- weights: `{WEIGHTS}`, {(folder / WEIGHTS).stat().st_size / 1e6:.1f} MB"
    )
    licenses = (
        TEACHER_LICENSES.get(teacher, CHECKPOINT_LICENSE),
        IMAGE_LICENSES.get(images, "The license of the images applies (SA-1B: research only)."),
    )
    return CARD.format(
        parameters=f"{count_parameters(segmenter.model):,}",
        folder=folder.name,
        word=words[0] if words else "thing",
        onnx=_onnx(folder),
        architecture=built,
        data=images,
        teacher=teacher,
        kinds=", ".join(recipe.kinds),
        figures=_figures(repository, student.name),
        limits=_limits(segmenter, images == BUILT_IN),
        license=" ".join(licenses),
    )


def _teacher(folder: Path) -> str:
    source = _json(folder / "source.json").get("source")
    if source:
        return f"`{source}`"
    return TRAINED_HERE if (folder / "config.json").is_file() else UNKNOWN


def _images(repository: Path) -> str:
    root = _json(repository / "data/sa1b/manifest.json").get("root")
    if root is None:
        return UNKNOWN
    return f"of {root}" if root.startswith("/") else BUILT_IN


def _onnx(folder: Path) -> str:
    sizes = {
        graphs: sum(path.stat().st_size for path in (folder / graphs).glob("*.onnx")) / 1e6
        for graphs in (FLOAT, INT8)
    }
    written = [f"`{graphs}/` ({size:.1f} MB)" for graphs, size in sizes.items() if size]
    if not written:
        return ""
    return (
        f" {' and '.join(written)}, opset 17, run without PyTorch:\n"
        "`braid.segmentation.release.onnx.OnnxSegmenter`, prompts in words."
    )


def _known(segmenter: Segmenter, word: str) -> bool:
    return segmenter.tokenizer.unk_token_id not in segmenter.tokenizer(word)["input_ids"][1:-1]


def _figures(repository: Path, student: str) -> str:
    """What evaluate_sam3 measured, if it was of this student."""
    metrics, params = _json(repository / "metrics/sam3.json"), repository / "params.yaml"
    config = yaml.safe_load(params.read_text(encoding="utf-8")) if params.is_file() else {}
    evaluation = config.get("sam3", {}).get("evaluation", {})
    if not metrics or evaluation.get("student") != student:
        return "None: `sam3.evaluation.student` is another one, or evaluate_sam3 has not run."
    rows = [
        f"| {name} | {value:.3f} |" if isinstance(value, float) else f"| {name} | {value} |"
        for name, value in metrics.items()
    ]
    return MEASURED.format(score=evaluation["score"], rows="\n".join(rows))


def _limits(segmenter: Segmenter, own: bool) -> str:
    limits = [
        "- Pictures are squashed to a square; small objects of large pictures are lost.",
        "- A score is a probability that the teacher would detect the mask, not that it is right.",
    ]
    if own:
        limits.insert(0, "- It knows drawn shapes in four colors, and little of photos.")
    if "box" not in segmenter.model.recipe.kinds:
        limits.append("- It never learned from boxes: what it predicts for one means nothing.")
    return "\n".join(limits)


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


if __name__ == "__main__":
    main()

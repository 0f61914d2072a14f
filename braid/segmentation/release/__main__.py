"""Release a student: a folder that loads with one class, a model card, and ONNX files.

    python -m braid.segmentation.release models/sam3_student/distilled efficient_sam3 --onnx

reads metrics/sam3.json, data/sa1b and models/sam3_teacher for the card, where they are.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from braid.segmentation.release.onnx import export_onnx
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

On held-out images, by `dvc repro evaluate_sam3`; scores count from {score} on, cgF1 from 0.5.

{figures}

## Limits

{limits}

## License

{license}
"""
TRAINED_HERE = "a tiny `Sam3Model` that the repository trains"
BUILT_IN = "drawn by the repository, and crops of photos of scikit-image and scikit-learn"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; what is wrong is said in one line."""
    parser = argparse.ArgumentParser("braid.segmentation.release", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("student", type=Path, help="as models/sam3_student/distilled")
    parser.add_argument("folder", type=Path, help="to be written")
    parser.add_argument("--onnx", action="store_true", help="with ONNX files (the extra onnx)")
    parser.add_argument("--half", action="store_true", help="weights in 16 bits")
    options = parser.parse_args(arguments)
    try:
        segmenter = Segmenter.of_stage(options.student)
        segmenter.save_pretrained(options.folder, half=options.half)
        if options.onnx:
            export_onnx(segmenter, options.folder / "onnx")
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    card = model_card(segmenter, options.folder, Path.cwd())
    (options.folder / "README.md").write_text(card, encoding="utf-8")
    print(f"{options.folder}: {', '.join(sorted(path.name for path in options.folder.iterdir()))}")


def model_card(segmenter: Segmenter, folder: Path, repository: Path) -> str:
    """README.md of a released folder, of what the repository knows about the student."""
    recipe = segmenter.model.recipe
    teacher = _json(repository / "models/sam3_teacher/source.json").get("source")
    root = str(_json(repository / "data/sa1b/manifest.json").get("root", ""))
    own = not root.startswith("/")
    words = [word for word in ("circle", "dog") if _known(segmenter, word)]
    built = (
        f"- vision: timm's `{recipe.backbone}` under a feature pyramid, images of "
        f"{recipe.image_size} pixels\n"
        f"- text: {recipe.text_layers} layers of {recipe.text_width} channels, "
        f"{recipe.vocabulary} tokens, at most {recipe.context} a prompt\n"
        f"- heads of SAM3: {recipe.queries} queries\n"
        f"- weights: `{WEIGHTS}`, {(folder / WEIGHTS).stat().st_size / 1e6:.1f} MB"
    )
    return CARD.format(
        parameters=f"{count_parameters(segmenter.model):,}",
        folder=folder.name,
        word=words[0] if words else "thing",
        onnx=_onnx(folder),
        architecture=built,
        data=BUILT_IN if own else f"of {root}",
        teacher=f"`{teacher}`" if teacher else TRAINED_HERE,
        kinds=", ".join(recipe.kinds),
        score=0.3,
        figures=_figures(_json(repository / "metrics/sam3.json")),
        limits=_limits(segmenter, own),
        license=_license(teacher, own),
    )


def _onnx(folder: Path) -> str:
    files = sorted((folder / "onnx").glob("*.onnx"))
    if not files:
        return ""
    size = sum(path.stat().st_size for path in files) / 1e6
    return (
        f" `onnx/` ({size:.1f} MB, opset 17) runs without PyTorch:\n"
        "`braid.segmentation.release.onnx.OnnxSegmenter`, prompts in words."
    )


def _known(segmenter: Segmenter, word: str) -> bool:
    return segmenter.tokenizer.unk_token_id not in segmenter.tokenizer(word)["input_ids"][1:-1]


def _figures(metrics: Mapping[str, Any]) -> str:
    if not metrics:
        return "None at hand."
    rows = [
        f"| {name} | {value:.3f} |" if isinstance(value, float) else f"| {name} | {value} |"
        for name, value in metrics.items()
    ]
    return "\n".join(["| figure | value |", "|---|---|", *rows])


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


def _license(teacher: str | None, own: bool) -> str:
    parts = [
        "Its heads are a derivative of the teacher's: the license of that checkpoint applies (SAM "
        "License for facebook/sam3)."
        if teacher
        else "The teacher was trained by the repository; no third party's weights are in it.",
        "Photos under the licenses of scikit-image and scikit-learn."
        if own
        else "The license of the images applies (SA-1B: research only).",
    ]
    return " ".join(parts)


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


if __name__ == "__main__":
    main()

"""Segment pictures with words or a box, from the command line.

    python -m braid.segmentation.release.predict street.jpg --words "red star" circle
    python -m braid.segmentation.release.predict street.jpg --box 40 60 220 310 --model folder

writes street.png, the picture with the masks, and street.json, with scores, boxes and run lengths,
into --out. The model is a folder that `python -m braid.segmentation.release` wrote, or one of
models/sam3_student.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from braid.segmentation.release.pictures import Box, Found, as_json, drawn, upright

STUDENT = "models/sam3_student/distilled"  # of the embedded run


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; what is wrong is said in one line."""
    options = _parser().parse_args(arguments)
    try:
        for picture in options.pictures:
            print(_segment(picture, options))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


def _segment(picture: Path, options: argparse.Namespace) -> str:
    """Write both files for one picture; what was found, in words."""
    try:
        image = upright(Image.open(picture))
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{picture}: cannot be read as a picture ({error})") from None
    boxes: list[Box] = [tuple(box) for box in options.box]
    found = _found(image, boxes, options)
    options.out.mkdir(parents=True, exist_ok=True)
    place = options.out / picture.stem
    drawn(image, found).save(place.with_suffix(".png"))
    content = as_json(picture.name, image, found)
    place.with_suffix(".json").write_text(json.dumps(content) + "\n", encoding="utf-8")
    counts = ", ".join(f"{part.prompt}: {len(part.scores)}" for part in found)
    return f"{place.with_suffix('.png')}: {counts}"


def _found(image: Image.Image, boxes: Sequence[Box], options: argparse.Namespace) -> list[Found]:
    if options.onnx:
        from braid.segmentation.release.onnx import OnnxSegmenter

        if boxes:
            raise ValueError("--onnx takes --words, expected no --box")
        return OnnxSegmenter(options.model).segment(image, words=options.words, score=options.score)
    from braid.segmentation.release.segmenter import open_segmenter

    segmenter = open_segmenter(options.model)
    kinds = segmenter.model.recipe.kinds
    if boxes and "box" not in kinds:
        print(f"warning: this student learned from {', '.join(kinds)} alone", file=sys.stderr)
    return segmenter.segment(image, words=options.words, boxes=boxes, score=options.score)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("braid.segmentation.release.predict", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("pictures", nargs="+", type=Path, help="files of pictures")
    add("--words", nargs="+", default=[], help="noun phrases")
    sides = ("X0", "Y0", "X1", "Y1")
    add("--box", nargs=4, type=float, action="append", default=[], metavar=sides, help="in pixels")
    add("--model", default=STUDENT, help=f"folder of a student ({STUDENT})")
    add("--score", type=float, default=0.3, help="what is less sure is left out (0.3)")
    add("--out", type=Path, default=Path("predictions"), help="folder (predictions)")
    add("--onnx", action="store_true", help="by onnxruntime, without PyTorch")
    return parser


if __name__ == "__main__":
    main()

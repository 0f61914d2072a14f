"""Segment pictures with words or a box, from the command line.

    python -m braid.segmentation.release.predict street.jpg --words "red star" circle
    python -m braid.segmentation.release.predict street.jpg --box 40 60 220 310 --model folder

writes street.png, the picture with the masks, and street.json, with scores, boxes and run lengths,
into --out, never over a picture that is given. The model is a folder that `python -m
braid.segmentation.release` wrote, or one of models/sam3_student.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from PIL import Image

from braid.segmentation.release.pictures import Found, as_json, drawn, upright

Segment = Callable[[Image.Image], list[Found]]
STUDENT = "models/sam3_student/distilled"  # of the embedded run


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; what is wrong is said in one line."""
    options = _parser().parse_args(arguments)
    try:
        places = _places(options.pictures, options.out)
        segment = _segmenter(options)
        for picture, place in places.items():
            print(_segment(picture, place, segment))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


def _places(pictures: Sequence[Path], out: Path) -> dict[Path, Path]:
    """Where each picture with its masks goes; the JSON lies beside it.

    Raises:
        ValueError: it would replace a picture that is given, or that of another one.
    """
    places = {picture: out / f"{picture.stem}.png" for picture in pictures}
    given, taken = {picture.resolve() for picture in pictures}, dict[Path, Path]()
    for picture, place in places.items():
        if place.resolve() in given:
            raise ValueError(f"{place}: is a picture that is given, expected another --out")
        other = taken.setdefault(place, picture)
        if other != picture:
            raise ValueError(f"{other} and {picture} would both be {place}, expected other names")
    return places


def _segment(picture: Path, place: Path, segment: Segment) -> str:
    """Write both files for one picture; what was found, in words."""
    try:
        image = upright(Image.open(picture))
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{picture}: cannot be read as a picture ({error})") from None
    found = segment(image)
    place.parent.mkdir(parents=True, exist_ok=True)
    drawn(image, found).save(place)
    content = json.dumps(as_json(picture.name, image, found)) + "\n"
    (place.parent / f"{picture.stem}.json").write_text(content, encoding="utf-8")
    counts = ", ".join(f"{part.prompt}: {len(part.scores)}" for part in found)
    return f"{place}: {counts}"


def _segmenter(options: argparse.Namespace) -> Segment:
    """The model, opened once, with the prompts and the score of the options."""
    words, boxes = options.words, [tuple(box) for box in options.box]
    if options.onnx:
        from braid.segmentation.release.onnx import OnnxSegmenter

        if boxes:
            raise ValueError("--onnx takes --words, expected no --box")
        return partial(OnnxSegmenter(options.model).segment, words=words, score=options.score)
    from braid.segmentation.release.segmenter import open_segmenter

    segmenter = open_segmenter(options.model)
    kinds = segmenter.model.recipe.kinds
    if boxes and "box" not in kinds:
        print(f"warning: this student learned from {', '.join(kinds)} alone", file=sys.stderr)
    return partial(segmenter.segment, words=words, boxes=boxes, score=options.score)


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

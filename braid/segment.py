"""Segment pictures with words or a box, from the command line: `python -m braid.segment`.

python -m braid.segment street.jpg --words "red star" circle
python -m braid.segment street.jpg --box 40 60 220 310 --model folder

writes street.png, the picture with the masks, and street.json, with scores, boxes and run lengths,
into --out, never over a picture that is given. The model is a folder that `python -m
braid.segmentation.release` wrote, or one of models/sam3_student. Words run on ONNX where the folder
has it, without PyTorch, whose imports alone take longer than a picture.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from PIL import Image

from braid.common.progress import run_command
from braid.segmentation.release.pictures import Found, as_json, drawn, upright

Segment = Callable[[Image.Image], list[Found]]
STUDENT = "models/sam3_student/distilled"  # of the embedded run


def main() -> None:
    """Segment and say where."""
    run_command("segment", __doc__, _options, _run)


def _options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("pictures", nargs="+", type=Path, help="files of pictures")
    add("--words", nargs="+", default=[], help="noun phrases")
    sides = ("X0", "Y0", "X1", "Y1")
    add("--box", nargs=4, type=float, action="append", default=[], metavar=sides, help="in pixels")
    add("--model", default=STUDENT, help="folder of a student (%(default)s)")
    add("--score", type=float, default=0.3, help="what is less sure is left out (%(default)s)")
    add("--out", type=Path, default=Path("predictions"), help="folder (%(default)s)")
    runtimes = ("auto", "onnx", "torch")
    add("--runtime", choices=runtimes, default="auto", help="%(choices)s (%(default)s)")


def _run(options: argparse.Namespace) -> None:
    places = _places(options.pictures, options.out)
    segment = _segmenter(options)
    for picture, place in places.items():
        print(_segment(picture, place, segment))


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
    if _by_onnx(options):
        from braid.segmentation.release.onnx import OnnxSegmenter

        return partial(OnnxSegmenter(options.model).segment, words=words, score=options.score)
    from braid.segmentation.release.segmenter import open_segmenter

    segmenter = open_segmenter(options.model)
    kinds = segmenter.model.recipe.kinds
    if boxes and "box" not in kinds:
        print(f"warning: this student learned from {', '.join(kinds)} alone", file=sys.stderr)
    return partial(segmenter.segment, words=words, boxes=boxes, score=options.score)


def _by_onnx(options: argparse.Namespace) -> bool:
    """Whether ONNX is wanted, or can do it.

    Raises:
        ValueError: it is wanted for a box.
    """
    if options.runtime == "onnx" and options.box:
        raise ValueError("--runtime onnx takes --words, expected no --box")
    if options.runtime != "auto":
        return bool(options.runtime == "onnx")
    exported = (Path(options.model) / "onnx").is_dir() and find_spec("onnxruntime") is not None
    return exported and not options.box


if __name__ == "__main__":
    main()

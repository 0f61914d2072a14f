"""`python -m braid.segment`, with models that the tests make."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from braid import segment
from braid.segmentation.release import segmenter
from braid.segmentation.release.onnx import export_onnx
from braid.segmentation.student.student import save_student
from tests.segmentation.release.test_segmenter import PICTURE, ROOT, some_segmenter


def main(arguments):
    """Run the command with these arguments."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["segment", *arguments])
        segment.main()


@pytest.fixture
def place(tmp_path, monkeypatch):
    some = some_segmenter()
    save_student(tmp_path / "models/sam3_student/distilled", some.model, some.tokenizer)
    PICTURE.save(tmp_path / "a.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_words_and_boxes_give_a_picture_and_a_file(place, capsys):
    main(["a.png", "--words", "red star", "circle", "--box", "5", "5", "30", "30", "--score", "0"])
    said = capsys.readouterr()
    assert "red star: 3, circle: 3" in said.out
    assert said.err == ""  # it did learn from boxes
    content = json.loads((place / "predictions/a.json").read_text())
    prompts = [part["prompt"] for part in content["prompts"]]
    assert prompts == ["red star", "circle", [5.0, 5.0, 30.0, 30.0]]
    picture = np.asarray(Image.open(place / "predictions/a.png"))
    plain = np.asarray(PICTURE).repeat(7, 0).repeat(7, 1)
    assert (picture[:280] != plain).any()


def test_a_released_folder_and_another_place_are_taken(place, capsys):
    some_segmenter().save_pretrained(place / "released")
    main(["a.png", "--words", "star", "--model", "released", "--out", "there"])
    assert capsys.readouterr().out.startswith("there/a.png: star: ")


def test_words_run_without_pytorch_where_the_folder_has_onnx_files(place):
    for package in ("onnx", "onnxruntime"):
        pytest.importorskip(package)
    some, folder = some_segmenter(), place / "released"
    some.save_pretrained(folder)
    export_onnx(some, folder / "onnx")
    code = (
        "import sys; from braid.segment import main\n"
        "main(); print([name for name in ('torch', 'transformers') if name in sys.modules])"
    )
    call = [sys.executable, "-c", code, "a.png", "--model", "released"]

    def output(*prompt):
        places = {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
        return subprocess.check_output([*call, *prompt], env=places, text=True)

    assert output("--words", "star").splitlines()[1] == "[]"
    assert "torch" in output("--words", "star", "--runtime", "torch").splitlines()[1]


def test_a_student_without_boxes_says_so(place, capsys):
    other = some_segmenter()
    other.model.recipe = other.model.recipe.model_copy(update={"kinds": ("generic",)})
    other.save_pretrained(place / "other")
    main(["a.png", "--box", "5", "5", "30", "30", "--model", "other"])
    assert "warning: this student learned from generic alone" in capsys.readouterr().err


def test_no_picture_replaces_another(place):
    """Neither a given one nor that of another name up to the last point."""
    before = (place / "a.png").read_bytes()
    with pytest.raises(SystemExit, match=r"error: segment: a.png: is a picture that is given"):
        main(["a.png", "--words", "star", "--out", "."])
    assert (place / "a.png").read_bytes() == before
    for name in ("x/a.png", "a.b.png"):
        (place / name).parent.mkdir(exist_ok=True)
        PICTURE.save(place / name)
    with pytest.raises(
        SystemExit, match=r"error: segment: a.png and x/a.png would both be predictions/a"
    ):
        main(["a.png", "x/a.png", "--words", "star"])
    assert not (place / "predictions").exists()
    main(["a.png", "a.b.png", "--words", "star"])
    names = sorted(path.name for path in (place / "predictions").iterdir())
    assert names == ["a.b.json", "a.b.png", "a.json", "a.png"]


def test_the_model_is_opened_once(place, monkeypatch):
    opened = []
    monkeypatch.setattr(
        segmenter, "open_segmenter", lambda folder: opened.append(folder) or some_segmenter()
    )
    PICTURE.save(place / "b.png")
    main(["a.png", "b.png", "--words", "star"])
    assert len(opened) == 1


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (
            ["nowhere.png", "--words", "star"],
            "error: segment: nowhere.png: cannot be read as a picture",
        ),
        (["a.png"], "error: segment: no prompt"),
        (["a.png", "--words", "zebra"], "error: segment: 'zebra' has a word"),
        (
            ["a.png", "--words", "star", "--model", "none"],
            "error: segment: none: expected config.json",
        ),
        (["a.png", "--box", "5", "5", "90", "9"], "error: segment: box .* within 60 x 40"),
        (["a.png", "--box", "5", "5", "9", "9", "--runtime", "onnx"], "error: .*takes --words"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(place, arguments, line):
    with pytest.raises(SystemExit, match=line) as stop:
        main(arguments)
    assert "\n" not in str(stop.value)

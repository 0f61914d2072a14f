"""A released student: the same predictions in another process, and refused by other classes."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from braid.segmentation.release.__main__ import main, model_card
from braid.segmentation.release.segmenter import WEIGHTS, Segmenter, open_segmenter
from braid.segmentation.sam3.predictor import word_tokenizer
from braid.segmentation.student.student import save_student
from tests.segmentation.tiny_models import CONTEXT, IMAGE_SIZE
from tests.segmentation.tiny_students import restless, tiny_student

ROOT = Path(__file__).parents[3]
WORDS = ["circle", "red", "star", "visual"]
PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8))
ALL = {"words": ["red star", "circle"], "boxes": [(5, 5, 40, 30)], "score": 0.0}


def some_segmenter():
    student = restless(tiny_student(vocabulary=len(WORDS) + 3, kinds=("box", "category")))
    return Segmenter(student, word_tokenizer(WORDS, length=CONTEXT))


@pytest.fixture(scope="module")
def segmenter():
    return some_segmenter()


@pytest.fixture
def folder(segmenter, tmp_path):
    segmenter.save_pretrained(tmp_path / "released")
    return tmp_path / "released"


def digest(found):
    parts = [(f.prompt, f.presence, f.scores, f.boxes, f.masks) for f in found]
    return hashlib.sha256(
        b"".join(np.asarray(value).tobytes() for part in parts for value in part[1:])
    ).hexdigest()


def test_words_and_boxes_are_prompts_of_one_picture(segmenter):
    found = segmenter.segment(PICTURE, **ALL)
    assert [part.prompt for part in found] == ["red star", "circle", (5, 5, 40, 30)]
    assert all(part.masks.shape == (3, 40, 60) for part in found)
    (alone,) = segmenter.segment(PICTURE, words=["circle"], score=0.0)
    assert alone.scores == pytest.approx(found[1].scores, abs=1e-5)
    (boxed,) = segmenter.segment(PICTURE, boxes=[(5, 5, 40, 30)], score=0.0)
    (moved,) = segmenter.segment(PICTURE, boxes=[(20, 15, 60, 40)], score=0.0)
    assert boxed.scores == pytest.approx(found[2].scores, abs=1e-5)
    assert (np.abs(boxed.scores - moved.scores) > 1e-7).any()


def test_a_folder_gives_the_same_masks_in_a_fresh_process_elsewhere(segmenter, folder, tmp_path):
    PICTURE.save(tmp_path / "a.png")
    code = (
        "import sys; from PIL import Image\n"
        "from braid.segmentation.release.segmenter import Segmenter\n"
        "from tests.segmentation.release.test_segmenter import ALL, digest\n"
        "import torch; torch.set_num_threads(1)\n"
        "found = Segmenter.from_pretrained(sys.argv[1]).segment(Image.open(sys.argv[2]), **ALL)\n"
        "print(digest(found))"
    )
    command = [sys.executable, "-c", code, str(folder), str(tmp_path / "a.png")]
    result = subprocess.run(
        command, cwd=tmp_path, env={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    expected = digest(segmenter.segment(PICTURE, **ALL))
    torch.set_num_threads(threads)
    assert result.stdout.strip() == expected


def test_other_classes_refuse_the_folder(folder):
    from transformers import AutoModel, Sam3Model

    with pytest.raises(ValueError, match="efficient_sam3"):
        AutoModel.from_pretrained(folder)
    with pytest.raises(OSError, match=r"no file named model\.safetensors"):
        Sam3Model.from_pretrained(folder)


def test_the_librarys_own_tokenizer_and_image_processor_read_it(folder):
    from transformers import Sam3ImageProcessor

    processor = Sam3ImageProcessor.from_pretrained(folder)
    pixels = processor(PICTURE, return_tensors="pt")["pixel_values"]
    assert pixels.shape == (1, 3, IMAGE_SIZE, IMAGE_SIZE)
    assert Segmenter.from_pretrained(folder).tokenizer("red star")["input_ids"] == [0, 4, 5, 1]


def test_half_weights_take_half_and_predict_nearly_the_same(segmenter, folder, tmp_path):
    segmenter.save_pretrained(tmp_path / "half", half=True)
    sizes = [(place / WEIGHTS).stat().st_size for place in (folder, tmp_path / "half")]
    assert sizes[1] < 0.6 * sizes[0]
    half = Segmenter.from_pretrained(tmp_path / "half").segment(PICTURE, **ALL)
    for part, exact in zip(half, segmenter.segment(PICTURE, **ALL), strict=True):
        assert part.presence == pytest.approx(exact.presence, abs=0.01)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: (f / WEIGHTS).unlink(), "no folder of a student .*efficient_sam3.safetensors"),
        (lambda f: (f / WEIGHTS).write_bytes(b"x" * 99), "no folder of a student"),
        (lambda f: (f / "config.json").write_text('{"model_type": "sam3"}'), "expected efficient"),
        (lambda f: (f / "config.json").unlink(), "no folder of a student .*config.json"),
        (lambda f: (f / "tokenizer.json").unlink(), "has no tokenizer"),
    ],
)
def test_a_broken_folder_gets_one_line(folder, change, message):
    change(folder)
    with pytest.raises(ValueError, match=message) as caught:
        Segmenter.from_pretrained(folder)
    assert "\n" not in str(caught.value)


def test_prompts_that_cannot_be_understood_are_refused(segmenter):
    with pytest.raises(ValueError, match="no prompt, expected words or boxes"):
        segmenter.segment(PICTURE)
    with pytest.raises(ValueError, match="'red zebra' has a word that"):
        segmenter.segment(PICTURE, words=["circle", "red zebra"])


def write_repository(place, files):
    for path, content in files.items():
        (place / path).parent.mkdir(parents=True, exist_ok=True)
        (place / path).write_text(json.dumps(content))


EVALUATED = {
    "metrics/sam3.json": {"cgf1_ratio": 0.91, "status": "ok"},
    "params.yaml": {"sam3": {"evaluation": {"student": "distilled", "score": 0.4}}},
}
DISTILLED = "models/sam3_student/distilled"


def test_the_command_writes_a_folder_and_its_card(segmenter, tmp_path, monkeypatch, capsys):
    write_repository(tmp_path, EVALUATED)
    write_repository(tmp_path, {"models/sam3_teacher/config.json": {}})
    write_repository(tmp_path, {"data/sa1b/manifest.json": {"root": "images"}})
    save_student(tmp_path / DISTILLED, segmenter.model, segmenter.tokenizer)
    monkeypatch.chdir(tmp_path / "metrics")  # the card is of the student's place, not of this one
    main([f"../{DISTILLED}", "out"])
    assert WEIGHTS in capsys.readouterr().out
    card = Path("out/README.md").read_text()
    for text in (
        "| cgf1_ratio | 0.910 |",
        "scores count from 0.4 on",
        "category",
        "drawn by the repository",
        "no third",
        "licenses of scikit-image",
    ):
        assert text in card, text
    assert "nknown" not in card
    assert digest(open_segmenter("out").segment(PICTURE, **ALL)) == digest(
        open_segmenter(f"../{DISTILLED}").segment(PICTURE, **ALL)
    )
    with pytest.raises(SystemExit, match="error: nowhere"):
        main(["nowhere", "out"])


def test_a_card_names_the_teacher_and_the_images_that_are_not_built_in(segmenter, folder, tmp_path):
    write_repository(
        tmp_path,
        {
            "models/sam3_teacher/source.json": {"source": "facebook/sam3"},
            "data/sa1b/manifest.json": {"root": "/data/sa1b"},
        },
    )
    card = model_card(segmenter, folder, tmp_path / DISTILLED)
    for text in ("`facebook/sam3`", "of /data/sa1b", "SAM License", "research only"):
        assert text in card, text
    assert "drawn" not in card


def test_a_card_claims_nothing_of_what_is_not_at_hand(segmenter, folder, tmp_path):
    """Neither that no third party's weights are in it, nor another student's figures."""
    write_repository(tmp_path, EVALUATED)
    card = model_card(segmenter, folder, tmp_path / "models/sam3_student/truth_only")
    assert "Images: unknown. Teacher: unknown." in card
    assert card.count("Unknown: this command did not find the") == 2
    for text in ("trained by the repository", "scikit-image", "cgf1_ratio", "drawn shapes"):
        assert text not in card, text

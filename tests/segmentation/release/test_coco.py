"""COCO's files of truth and predictions, and the AP that pycocotools finds between them."""

import json

import numpy as np
import pytest
from pycocotools import mask as coco

from braid.segmentation.data.prompted import Prompt, open_prompted, write_prompts
from braid.segmentation.preparation.scan import scan, write_manifest
from braid.segmentation.release.coco import ground_truth, main, mask_ap, word_pairs
from braid.segmentation.release.pictures import run_lengths
from tests.segmentation.release.test_segmenter import some_segmenter
from tests.segmentation.sa1b_files import MASKS, write_pairs
from tests.segmentation.tiny_models import IMAGE_SIZE

PROMPTS = [
    Prompt("category", "red star", None, (0, 1), True),
    Prompt("category", "circle", None, (), True),
    Prompt("category", "star", None, None, True),  # unknown: no part of the files
    Prompt("box", "visual", (0.5, 0.5, 0.2, 0.2), (0,), True),  # nor this: not all that are alike
]


@pytest.fixture
def folder(tmp_path):
    write_pairs(tmp_path / "sa1b/images", [1, 2, 3])
    pairs = scan(tmp_path / "sa1b/images", val=0, test=2, faults="fatal")
    write_manifest(tmp_path / "sa1b", pairs, image_size=IMAGE_SIZE)
    write_prompts(tmp_path / "sa1b", [PROMPTS] * 3)
    return tmp_path


def truth_of(folder):
    prompted = open_prompted(folder / "sa1b", cache_mib=0)
    return ground_truth(prompted, word_pairs(prompted))


def result(image, mask, score):
    return {
        "image_id": image, "category_id": 1, "segmentation": run_lengths(mask), "score": score,
    }  # fmt: skip


def test_the_truth_has_an_image_for_each_prompt_and_its_objects(folder):
    truth = truth_of(folder)
    texts = [image["text_input"] for image in truth["images"]]
    assert texts == ["red star", "circle"] * 2
    assert [note["image_id"] for note in truth["annotations"]] == [1, 1, 3, 3]
    for note, mask in zip(truth["annotations"], MASKS * 2, strict=True):
        assert np.array_equal(coco.decode(note["segmentation"]).astype(bool), mask)
        assert note["area"] == mask.sum()


def test_the_average_precision_is_that_of_the_definition(folder):
    truth = truth_of(folder)
    right = [result(image, mask, 0.9) for image in (1, 3) for mask in MASKS]
    assert mask_ap(truth, right) == pytest.approx(1)
    assert mask_ap(truth, []) == 0
    # Right, wrong, right, in the order of scores, of four objects: precision 1 up to a recall of
    # .25, then 2/3 up to .5, nothing beyond; 101 points.
    some = [result(1, MASKS[0], 0.9), result(2, MASKS[0], 0.8), result(3, MASKS[1], 0.7)]
    assert mask_ap(truth, some) == pytest.approx((26 + 25 * 2 / 3) / 101)
    # An IoU of .75 is right at six of ten thresholds.
    part = MASKS[0].copy()
    part[15:20, :] = False
    assert mask_ap(truth, [result(1, part, 0.9)]) == pytest.approx(0.6 * 26 / 101)


def test_the_command_writes_what_pycocotools_reads(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    some_segmenter().save_pretrained("model")
    main(["model", "out", "--data", "sa1b"])
    assert "out: 4 prompts" in capsys.readouterr().out
    truth, results = (
        json.loads((folder / f"out/{name}.json").read_text()) for name in ("truth", "results")
    )
    assert truth == truth_of(folder)
    assert {entry["image_id"] for entry in results} <= {1, 2, 3, 4}
    assert all(coco.area(entry["segmentation"]) > 0 for entry in results)
    assert 0 <= mask_ap(truth, results) <= 1
    with pytest.raises(SystemExit, match=r"error: none: expected config\.json"):
        main(["none", "out", "--data", "sa1b"])


def test_boxes_alone_are_refused(folder, monkeypatch):
    """As on SA-1B, whose other prompts have no known truth."""
    monkeypatch.chdir(folder)
    some_segmenter().save_pretrained("model")
    write_prompts(folder / "sa1b", [PROMPTS[2:]] * 3)
    with pytest.raises(SystemExit, match="error: no test prompt of words has a known truth"):
        main(["model", "out", "--data", "sa1b"])
    assert not (folder / "out").exists()

"""ONNX against PyTorch, on pictures and in numbers."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from braid.segmentation.release.onnx import OUTPUTS, OnnxSegmenter, export_onnx, quantize_onnx
from braid.segmentation.release.pictures import squashed
from braid.segmentation.sam3.predictor import encode
from braid.segmentation.sam3.sam3 import PromptInputs, predict
from tests.segmentation.release.test_segmenter import PICTURE, ROOT, some_segmenter
from tests.segmentation.tiny_models import CONTEXT, IMAGE_SIZE


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    segmenter, folder = some_segmenter(), tmp_path_factory.mktemp("onnx") / "released"
    segmenter.save_pretrained(folder)
    export_onnx(segmenter, folder / "onnx")
    return segmenter, OnnxSegmenter(folder), folder


@pytest.mark.parametrize("words", [["red star"], ["circle", "star", "red circle", "visual"]])
@pytest.mark.parametrize("seed", range(3))
def test_every_output_is_that_of_the_model(both, words, seed):
    """For any number of prompts, of images that were not traced."""
    segmenter, onnx, _ = both
    pixels = np.random.default_rng(seed).normal(size=(1, 3, IMAGE_SIZE, IMAGE_SIZE))
    pixels = pixels.astype(np.float32)
    tokens, attention = encode(segmenter.tokenizer, words, CONTEXT)
    inputs = PromptInputs(torch.zeros(len(words), dtype=torch.long), tokens, attention)
    with torch.no_grad():
        expected = predict(segmenter.model, torch.from_numpy(pixels), inputs)
    given = onnx.predict(pixels, words)
    for name in OUTPUTS:
        exact = getattr(expected, name).numpy()
        assert given[name].shape == exact.shape
        assert np.abs(given[name] - exact).max() < 1e-4 * max(1, np.abs(exact).max()), name


def test_a_picture_is_segmented_alike(both):
    segmenter, onnx, _ = both
    words = ["circle", "red star"]
    exact = segmenter.segment(PICTURE, words=words, score=0.0)
    for part, one in zip(onnx.segment(PICTURE, words=words, score=0.0), exact, strict=True):
        assert part.prompt == one.prompt
        assert part.scores == pytest.approx(one.scores, abs=1e-4)
        assert part.boxes == pytest.approx(one.boxes, abs=1e-2)
        assert (part.masks == one.masks).mean() > 0.999


def test_the_export_leaves_the_model_in_evaluation_mode(both):
    segmenter, _, _ = both
    assert not any(module.training for module in segmenter.model.modules())


def test_unknown_words_and_missing_files_get_one_line(both, tmp_path):
    _, onnx, _ = both
    with pytest.raises(ValueError, match="'zebra' has a word that"):
        onnx.predict(squashed(PICTURE, IMAGE_SIZE), ["zebra"])
    with pytest.raises(ValueError, match="no released student with ONNX files"):
        OnnxSegmenter(tmp_path)


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ValueError, match="the package onnx is missing, expected the extra"):
        export_onnx(some_segmenter(), tmp_path)


def test_onnx_does_without_pytorch():
    code = (
        "import sys, braid.segmentation.release.onnx\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_eight_bit_convolutions_predict_nearly_the_same(both):
    _, onnx, folder = both
    words = ["circle", "red star"]
    pixels = squashed(PICTURE, IMAGE_SIZE)
    quantize_onnx(folder, [(pixels, words), (-pixels, ["star"])])
    small = OnnxSegmenter(folder, graphs="onnx_int8")
    exact, given = onnx.predict(pixels, words), small.predict(pixels, words)
    for name in OUTPUTS:
        gap = np.abs(given[name] - exact[name]).max()
        assert 0 < gap < 0.1 * max(1, np.abs(exact[name]).max()), name
    assert b"QuantizeLinear" in (folder / "onnx_int8/vision.onnx").read_bytes()
    with pytest.raises(ValueError, match="no picture to take the range"):
        quantize_onnx(folder, [])

"""A released student under onnxruntime against PyTorch: parity, size, latency, one core.

    python -m benchmarks.sam3_release

needs `dvc repro evaluate_sam3` and the extra `onnx`. It releases models/sam3_student/distilled into
a temporary folder and writes benchmarks/results/sam3_release.csv: for 50 held-out images with all
their prompts in words the largest differences between the two, and the milliseconds of an image.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from braid.segmentation.data.prompted import open_prompted
from braid.segmentation.release.onnx import OUTPUTS, OnnxSegmenter, export_onnx
from braid.segmentation.release.segmenter import WEIGHTS, Segmenter
from braid.segmentation.sam3.predictor import encode
from braid.segmentation.sam3.sam3 import PromptInputs, predict

ROOT = Path(__file__).parents[1]
IMAGES = 50


def main() -> None:
    """Release, compare, time, print."""
    torch.set_num_threads(1)
    prompted = open_prompted(ROOT / "data/sa1b", cache_mib=128)
    by_image: dict[int, list[str]] = {}
    for image, place in prompted.pairs("val"):
        if prompted.prompt((image, place)).box is None:
            by_image.setdefault(image, []).append(prompted.prompt((image, place)).text)
    chosen = list(by_image)[:IMAGES]
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / "released"
        segmenter = Segmenter.of_stage(ROOT / "models/sam3_student/distilled")
        segmenter.save_pretrained(folder)
        export_onnx(segmenter, folder / "onnx")
        onnx = OnnxSegmenter(folder)
        sizes = {
            "torch": (folder / WEIGHTS).stat().st_size / 1e6,
            "onnx": sum(path.stat().st_size for path in (folder / "onnx").iterdir()) / 1e6,
        }
    difference, times = dict.fromkeys(OUTPUTS, 0.0), {"torch": list[float](), "onnx": list[float]()}
    for image in chosen:
        pixels, words = prompted.pixels([image]), by_image[image]

        def by_torch(pixels: torch.Tensor = pixels, words: list[str] = words) -> object:
            tokens, attention = encode(segmenter.tokenizer, words, segmenter.model.recipe.context)
            owner = torch.zeros(len(words), dtype=torch.long)
            with torch.no_grad():
                return predict(segmenter.model, pixels, PromptInputs(owner, tokens, attention))

        def by_onnx(pixels: torch.Tensor = pixels, words: list[str] = words) -> object:
            return onnx.predict(pixels.numpy(), words)

        exact, given = timed(by_torch, times["torch"]), timed(by_onnx, times["onnx"])
        for name in OUTPUTS:
            gap = np.abs(getattr(exact, name).numpy() - given[name]).max()  # type: ignore[index]
            difference[name] = max(difference[name], float(gap))
    prompts = sum(len(by_image[image]) for image in chosen)
    rows = [
        {
            "runtime": runtime,
            "images": len(chosen),
            "prompts": prompts,
            "megabytes": sizes[runtime],
            "milliseconds": 1000 * float(np.median(times[runtime])),
            **{
                f"{name}_difference": None if runtime == "torch" else difference[name]
                for name in OUTPUTS
            },
        }
        for runtime in times
    ]
    table = pd.DataFrame(rows)
    table.to_csv(ROOT / "benchmarks/results/sam3_release.csv", index=False, float_format="%.3g")
    print(table.T.to_string())


def timed(call: Callable[[], object], seconds: list[float]) -> object:
    """What a call gives; its time is added."""
    started = time.perf_counter()
    value = call()
    seconds.append(time.perf_counter() - started)
    return value


if __name__ == "__main__":
    main()

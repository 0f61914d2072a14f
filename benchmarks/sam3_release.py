"""A released student under onnxruntime against PyTorch: parity, size, latency, IoU, one core.

    python -m benchmarks.sam3_release

needs `dvc repro evaluate_sam3` and the extra `onnx`. It releases models/sam3_student/distilled into
a temporary folder and writes benchmarks/results/sam3_release.csv: for 50 test images with all
their prompts in words the largest differences to PyTorch, the IoU with ground truth as
evaluate_sam3 has it, and the milliseconds of an image; and sam3_command.csv: the CPU seconds of
`python -m braid.segment` for one picture and one word, from a released folder.
"""

from __future__ import annotations

import logging
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from braid.segmentation.data.prompted import PromptedImages, open_prompted
from braid.segmentation.metrics.agreement import (
    Table,
    compare,
    joined,
    mask_metrics,
    predicted_detections,
    true_detections,
)
from braid.segmentation.release.__main__ import MEASURED_PICTURES, pictures
from braid.segmentation.release.onnx import (
    FLOAT,
    INT8,
    OUTPUTS,
    OnnxSegmenter,
    export_onnx,
    quantize_onnx,
)
from braid.segmentation.release.segmenter import WEIGHTS, Segmenter
from braid.segmentation.sam3.predictor import encode
from braid.segmentation.sam3.sam3 import Prediction, PromptInputs, predict
from braid.stage.params import load_params

ROOT = Path(__file__).parents[1]
IMAGES = 50
TORCH = "torch"
RESULTS = ROOT / "benchmarks/results"
IMPORTS = "import torchvision, timm; from transformers import Sam3Model"
MEND = "from braid.common.torchvision import mend_torchvision; mend_torchvision(); "
COMMANDS = 3  # times, of which the fastest counts
Predicted = Mapping[str, Any]  # arrays of `OUTPUTS`


def main() -> None:
    """Release, compare, time, print."""
    torch.set_num_threads(1)
    logging.getLogger().setLevel(logging.ERROR)  # onnxruntime recommends what changes nothing here
    prompted = open_prompted(ROOT / "data/sa1b", cache_mib=128)
    chosen = pictures(prompted, "test", IMAGES)
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent)
        segmenter = Segmenter.of_stage(ROOT / "models/sam3_student/distilled")
        segmenter.save_pretrained(folder)
        export_onnx(segmenter, folder / FLOAT)
        quantize_onnx(folder, pictures(prompted, "train", MEASURED_PICTURES).values())
        commands = pd.DataFrame(command_rows(folder))
        opened = {name: OnnxSegmenter(folder, graphs=name) for name in (FLOAT, INT8)}
        files = {TORCH: [folder / WEIGHTS], **{n: [*(folder / n).iterdir()] for n in opened}}
        sizes = {name: sum(path.stat().st_size for path in files[name]) / 1e6 for name in files}
    runtimes = {TORCH: by_torch(segmenter), **{name: one.predict for name, one in opened.items()}}
    outputs, times = run(runtimes, chosen.values())
    rows = [
        {
            "runtime": name,
            "images": len(chosen),
            "prompts": sum(len(words) for _, words in chosen.values()),
            "megabytes": sizes[name],
            "milliseconds": times[name],
            "iou": iou(prompted, chosen, outputs[name]),
            **differences(outputs[name], outputs[TORCH] if name != TORCH else None),
        }
        for name in runtimes
    ]
    table = pd.DataFrame(rows)
    table.insert(6, "iou_drop", table["iou"].iloc[0] - table["iou"])
    table.to_csv(RESULTS / "sam3_release.csv", index=False, float_format="%.3g")
    commands.to_csv(RESULTS / "sam3_command.csv", index=False, float_format="%.2f")
    print(table.T.to_string(), commands.to_string(), sep="\n")


def command_rows(folder: Path) -> list[dict[str, Any]]:
    """CPU seconds of the command by either runtime, and of PyTorch's imports alone."""
    picture = ROOT / "data/sa1b/images/sa_1.jpg"
    segment = ["-m", "braid.segment", str(picture), "--words", "circle", "--model", str(folder)]
    segment += ["--out", str(folder / "out"), "--runtime"]
    calls = {
        "onnx": [*segment, "onnx"],
        TORCH: [*segment, TORCH],
        "imports": ["-c", MEND + IMPORTS],
    }
    return [
        {"runtime": name, "cpu_seconds": min(cpu_seconds(call) for _ in range(COMMANDS))}
        for name, call in calls.items()
    ]


def cpu_seconds(arguments: Sequence[str]) -> float:
    """Of Python with these arguments."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *arguments], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


Runtime = Callable[[Any, Sequence[str]], Predicted]


def by_torch(segmenter: Segmenter) -> Runtime:
    """What PyTorch predicts, as `OnnxSegmenter.predict` gives it."""

    def call(pixels: Any, words: Sequence[str]) -> Predicted:
        tokens, attention = encode(segmenter.tokenizer, words, segmenter.model.recipe.context)
        inputs = PromptInputs(torch.zeros(len(words), dtype=torch.long), tokens, attention)
        with torch.no_grad():
            prediction = predict(segmenter.model, torch.from_numpy(pixels), inputs)
        return {name: getattr(prediction, name).numpy() for name in OUTPUTS}

    return call


def run(
    runtimes: Mapping[str, Runtime], given: Any
) -> tuple[dict[str, list[Predicted]], dict[str, float]]:
    """Outputs for each picture with its words, and the median milliseconds of a picture."""
    outputs: dict[str, list[Predicted]] = {name: [] for name in runtimes}
    seconds: dict[str, list[float]] = {name: [] for name in runtimes}
    for pixels, words in given:
        for name, runtime in runtimes.items():
            started = time.perf_counter()
            outputs[name].append(runtime(pixels, words))
            seconds[name].append(time.perf_counter() - started)
    return outputs, {name: 1000 * float(np.median(of_one)) for name, of_one in seconds.items()}


def differences(given: Sequence[Predicted], exact: Sequence[Predicted] | None) -> Predicted:
    """The largest of each output; None beside nothing."""
    return {
        f"{name}_difference": None
        if exact is None
        else max(float(np.abs(a[name] - b[name]).max()) for a, b in zip(given, exact, strict=True))
        for name in OUTPUTS
    }


def iou(prompted: PromptedImages, images: Sequence[int], outputs: Sequence[Predicted]) -> float:
    """The mean over true objects, as in plots/sam3_methods.csv, of prompts in words."""
    config = load_params(ROOT / "params.yaml").sam3.evaluation
    tables: list[Table] = []
    for image, predicted in zip(images, outputs, strict=True):
        prompts = prompted.prompts[image]
        pairs = [(image, place) for place, prompt in enumerate(prompts) if prompt.box is None]
        truth = true_detections(prompted.ground_truth(pairs, config.mask_size))
        tensors: Any = {name: torch.from_numpy(predicted[name]) for name in OUTPUTS}
        found = predicted_detections(
            Prediction(**tensors), score=config.score, size=config.mask_size
        )
        tables.append(compare(found, truth))
    value = mask_metrics(joined(tables))["matched_iou"]
    assert value is not None
    return value


if __name__ == "__main__":
    main()

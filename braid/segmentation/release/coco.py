"""Predictions as files that others' evaluators read: COCO's JSON with run lengths.

    python -m braid.segmentation.release.coco models/sam3_student/distilled predictions

writes truth.json and results.json for the test prompts of data/sa1b that are words and whose
truth is known, and prints the mask AP that pycocotools finds between them. As in SA-Co, an «image»
is a prompt on an image: it holds `text_input`, and all of its objects are of one category. Prompts
with a box are left out: the format has no place for it, and their truth may be the example alone.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from braid.segmentation.data.prompted import (
    Pair,
    PromptedImages,
    image_batches,
    open_prompted,
    prompt_batch,
)
from braid.segmentation.data.sa1b import pixel_box
from braid.segmentation.release.pictures import found_of, run_lengths
from braid.segmentation.release.segmenter import open_segmenter
from braid.segmentation.sam3.predictor import Predictor

CATEGORY = 1
AT_ONCE = 8  # images
CPU = torch.device("cpu")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; what is wrong is said in one line."""
    parser = argparse.ArgumentParser("braid.segmentation.release.coco", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("model", help="folder of a student")
    parser.add_argument("out", type=Path, help="folder to be written")
    parser.add_argument("--data", type=Path, default=Path("data/sa1b"), help="(data/sa1b)")
    options = parser.parse_args(arguments)
    try:
        prompted = open_prompted(options.data, cache_mib=128)
        pairs = word_pairs(prompted)
        segmenter = open_segmenter(options.model)
    except ValueError as error:
        sys.exit(f"error: {error}")
    texts = prompted.texts(pairs)
    predictor = Predictor.of(segmenter.model, texts, segmenter.tokenizer, CPU)
    truth, results = ground_truth(prompted, pairs), predictions(prompted, pairs, predictor)
    options.out.mkdir(parents=True, exist_ok=True)
    for name, content in {"truth": truth, "results": results}.items():
        path = options.out / f"{name}.json"
        path.write_text(json.dumps(content) + "\n", encoding="utf-8")
    ap = mask_ap(truth, results)
    print(f"{options.out}: {len(pairs)} prompts, {len(results)} masks, mask AP {ap:.4f}")


def word_pairs(prompted: PromptedImages) -> list[Pair]:
    """The test prompts of words whose targets are known, and then all there are.

    Raises:
        ValueError: there is none.
    """
    known = prompted.pairs("test", known=True)
    pairs = [pair for pair in known if prompted.prompt(pair).box is None]
    if not pairs:
        raise ValueError("no test prompt of words has a known truth, expected one or more")
    return pairs


def ground_truth(prompted: PromptedImages, pairs: Sequence[Pair]) -> dict[str, Any]:
    """The targets of prompts of words, as COCO's instances; all are known."""
    images, annotations = [], list[dict[str, Any]]()
    for number, pair in enumerate(pairs, start=1):
        record, prompt = prompted.images.record(pair[0]), prompted.prompt(pair)
        images.append(
            {
                "id": number,
                "file_name": record.file,
                "width": record.width,
                "height": record.height,
                "text_input": prompt.text,
                "is_instance_exhaustive": 1,
            }
        )
        for target in prompt.targets or ():
            rle = record.annotations[target].rle
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": CATEGORY,
                    "segmentation": {"size": list(rle["size"]), "counts": rle["counts"]},
                    "bbox": list(pixel_box(rle)),
                    "area": int(record.annotations[target].mask().sum()),
                    "iscrowd": 0,
                }
            )
    categories = [{"id": CATEGORY, "name": "object"}]
    return {"images": images, "annotations": annotations, "categories": categories}


def predictions(
    prompted: PromptedImages, pairs: Sequence[Pair], predictor: Predictor
) -> list[dict[str, Any]]:
    """All masks of a model that are not empty, as COCO's results; `image_id` as above."""
    numbers = {pair: number for number, pair in enumerate(pairs, start=1)}
    results = []
    for batch in image_batches(pairs, AT_ONCE):
        prediction = predictor(prompt_batch(prompted, batch)).to(CPU)
        for row, pair in enumerate(batch):
            record = prompted.images.record(pair[0])
            found = found_of(
                prompted.prompt(pair).text,
                prediction.masks[row].numpy(),
                prediction.boxes[row].numpy(),
                prediction.logits[row].numpy(),
                prediction.presence[row, 0].item(),
                (record.width, record.height),
                score=0.0,
            )
            for score, mask in zip(found.scores, found.masks, strict=True):
                if mask.any():
                    rle = run_lengths(mask)
                    results.append(
                        {
                            "image_id": numbers[pair],
                            "category_id": CATEGORY,
                            "segmentation": rle,
                            "bbox": list(pixel_box(rle)),
                            "score": round(float(score), 6),
                        }
                    )
    return results


def mask_ap(truth: dict[str, Any], results: Sequence[dict[str, Any]]) -> float:
    """pycocotools' average precision of masks, IoU .50 to .95; -1 without any object, as there."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = truth
        coco.createIndex()
        if not results:
            return 0.0 if truth["annotations"] else -1.0
        evaluation = COCOeval(coco, coco.loadRes([dict(result) for result in results]), "segm")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return float(np.asarray(evaluation.stats)[0])


if __name__ == "__main__":
    main()

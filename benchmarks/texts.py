"""Which text embedding separates prompts and pseudo-classes better: the shards' or WordLlama's?

    python -m benchmarks.texts

needs `pip install -e '.[words]'` and what `dvc repro` makes. It quantizes the clips anew with each,
by text alone and by text and keyframes together, and evaluates the spaces as
`evaluate_representation` does: docs/results/texts.csv. A minute.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pandas as pd
import torch

from benchmarks.seeds import ROOT
from braid.clips.config import TextSource
from braid.clips.preparation.moving_digits import read_words
from braid.clips.shards.dataset import Clips, open_clips
from braid.clustering.kmeans import kmeans
from braid.common.rng import generator
from braid.data.splits import SPLITS
from braid.pseudo_classes.quantizer import ConditionEncoder, Pooling, PseudoClasses, Quantizer
from braid.representation.evaluation import Space, evaluate, read_sample
from braid.representation.separation import label_agreement, label_chance
from braid.stage.params import Params, load_params

TABLE = ROOT / "docs/results/texts.csv"
TEXTS: tuple[TextSource, ...] = ("shards", "wordllama")
MODES: tuple[Literal["text", "joint"], ...] = ("text", "joint")
FIGURES = ("classes", "silhouette", "retrieval_at_10", "family_agreement", "keyframe_mse")


def main() -> None:
    """Measure, tabulate, print."""
    params = load_params(ROOT / "params.yaml")
    torch.set_num_threads(params.hardware.threads)
    rows = []
    for text in TEXTS:
        clips = open_clips(ROOT / "data/clips", text=text)
        rows += [{"space": f"{text}_{mode}", **figures(clips, params, mode)} for mode in MODES]
    table = pd.DataFrame(rows)
    table.to_csv(TABLE, index=False, float_format="%.3f")
    print(table.to_string(index=False))


def figures(clips: Clips, params: Params, mode: Literal["text", "joint"]) -> dict[str, Any]:
    """Of the space of condition embeddings, which are quantized as the stage `quantize` does."""
    config, seed = params.clips, params.seed
    conditions = config.conditions.model_copy(update={"mode": mode})
    pooling, splits = Pooling(conditions), {name: clips.indices(name) for name in SPLITS}
    pooled = pooling.read(clips, len(clips))
    fitted = {block: values[splits["train"]] for block, values in pooled.items()}
    encoder = ConditionEncoder.fit(fitted, conditions)
    h = encoder.embed(pooled)
    draw = generator(seed, "kmeans")
    clusters = kmeans(h[splits["train"]], params.drift.K, config.quantizer, draw)
    quantizer = Quantizer.of(encoder, clusters, config.quantizer.min_count)
    pseudo = PseudoClasses(quantizer.label(h), quantizer.classes, h, splits)

    settings, draw = config.representation, generator(seed, "sample")
    sample, _ = read_sample(clips, pseudo, pooling, {}, settings, draw, torch.device("cpu"))
    points = h[sample.indices].numpy()
    space, temperatures = Space(points, points), params.drift.loss.temperatures
    evaluation = evaluate(space, sample, settings, config.quantizer, temperatures, seed)
    chances = ("retrieval_chance", "family_agreement_chance", "keyframe_mse_chance")
    row: dict[str, Any] = {"classes": quantizer.classes}
    row |= {name: evaluation.metrics[name] for name in (*FIGURES[1:], *chances)}
    for word, numbers in (read_words(sample.prompts) or {}).items():
        labels = np.asarray(numbers)
        agree = label_agreement(labels, sample.is_query, evaluation.neighbors)
        row |= {f"{word}_agreement": agree.mean()}
        row |= {f"{word}_agreement_chance": label_chance(labels, sample.is_query)}
    return row


if __name__ == "__main__":
    main()

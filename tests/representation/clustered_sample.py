"""A sample of synthetic clips whose points, texts and families follow the class."""

from __future__ import annotations

from typing import Any

import numpy as np

from braid.clips.config import QuantizerConfig, RepresentationConfig
from braid.representation.evaluation import Evaluation, Sample, Space, evaluate

N, K = 96, 4
RNG = np.random.default_rng(0)
LABELS = np.arange(N) % K
CLUSTERS = (np.eye(K)[LABELS] * 5 + RNG.normal(size=(N, K)) * 0.1).astype(np.float32)
CLOUD = RNG.normal(size=(N, 6)).astype(np.float32)


def sample(labels: np.ndarray = LABELS) -> Sample:
    """Texts, keyframes and families follow the label."""
    texts = np.random.default_rng(1).normal(size=(K, 8)).astype(np.float32)
    return Sample(
        indices=np.arange(N),
        labels=labels,
        counts=np.bincount(labels),
        is_query=np.arange(N) // K % 3 == 0,
        prompts=[f"clip {n} of class {label}" for n, label in enumerate(labels)],
        families=[("drift", "spin")[label % 2] for label in labels],
        texts=texts[labels],
        keyframes=CLUSTERS,
    )


def config(**changed: Any) -> RepresentationConfig:
    settings = {
        "clips": N,
        "components": 6,
        "neighbors": (1, 5, 10),
        "bootstrap": 50,
        "map": "tsne",
        "map_clips": 60,
        "families": {},
        "exemplar_classes": 2,
    }
    return RepresentationConfig(**settings | changed)


KMEANS = QuantizerConfig(
    seeding_rows=96,
    projection=4,
    candidates=2,
    projected_iterations=2,
    exact_iterations=2,
    min_count=1,
)


def evaluated(
    space: Space,
    of: Sample | None = None,
    temperatures: tuple[float, ...] = (0.02, 0.05),
    seed: int = 0,
    **changed: Any,
) -> Evaluation:
    return evaluate(space, of or sample(), config(**changed), KMEANS, temperatures, seed)

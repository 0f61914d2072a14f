"""A sample of made-up clips for the tests of the representation's evaluation."""

from __future__ import annotations

import numpy as np

from braid.representation.samples import Sample

N, K = 96, 4
RNG = np.random.default_rng(0)
LABELS = np.arange(N) % K
CLUSTERS = (np.eye(K)[LABELS] * 5 + RNG.normal(size=(N, K)) * 0.1).astype(np.float32)
CLOUD = RNG.normal(size=(N, 6)).astype(np.float32)


def sample(labels: np.ndarray = LABELS) -> Sample:
    """Texts and keyframes follow the label, families do so too."""
    words = np.random.default_rng(1).normal(size=(K, 8)).astype(np.float32)
    return Sample(
        indices=np.arange(N),
        labels=labels,
        counts=np.bincount(labels),
        is_query=np.arange(N) // K % 3 == 0,
        prompts=[f"clip {each} of class {label}" for each, label in enumerate(labels)],
        families=[("drift", "spin")[label % 2] for label in labels],
        texts=words[labels],
        keyframes=CLUSTERS,
    )

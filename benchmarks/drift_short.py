"""What a regression starts from, is conditioned on and refines to: short trainings, one of each.

    python -m benchmarks.drift_short
    python -m benchmarks.drift_short gauss_0.5 text

needs what `dvc repro` makes. Noise is that of missing frames; given keyframes get none. In a
temporary copy it trains each case from fresh weights and evaluates held-out clips without the
reader, as benchmarks/drift_seeds.py does: rows of docs/results/drift_short.csv. Half a minute each.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from benchmarks.drift_seeds import FOLDERS, VARIED, figures_without_reader, settings_of
from benchmarks.seeds import ROOT, copy_parts, run_stage
from recipes.overrides import merge

TABLE = ROOT / "docs/results/drift_short.csv"
UPDATES = 80
TEST_CLIPS = 512  # at most
SIGMAS = (0.1, 0.5)  # latent units; the standard deviation of latents is about 1
REFINER = "short"
CASES: dict[str, dict[str, Any]] = {  # what differs from params.yaml
    "default": {},
    **{
        f"{noise}_{sigma}": {"corruption": {"noise": noise, "sigma": sigma}}
        for noise in ("dist", "gauss", "bridge")
        for sigma in SIGMAS
    },
    "finer": {"refiners": {REFINER: {"target": "finer"}}},
    "text": {"refiner": {"beside": "text"}},
    "embedding": {"refiner": {"beside": "embedding"}},
}


def main() -> None:
    """Train, tabulate, print."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        copy_parts(copy, (*FOLDERS, "models/drift"))
        for case in sys.argv[1:] or CASES:
            settings = short(CASES[case])
            (copy / "params.yaml").write_text(yaml.safe_dump(settings))
            run_stage(copy, "train_drift", REFINER)
            save(case, figures_without_reader(copy, settings))
    print(pd.read_csv(TABLE).to_string(index=False))


def short(changes: Mapping[str, Any]) -> dict[str, Any]:
    """params.yaml with a short regression that is evaluated, changed."""
    settings = settings_of("default")
    refiners = settings["drift"]["refiners"]
    refiners[REFINER] = {**refiners["paired"], "steps": UPDATES, "validate_every": UPDATES}
    settings["drift"]["evaluation"] |= {"refiner": REFINER, "test_clips": TEST_CLIPS}
    return merge(settings, {"drift": changes})


def save(case: str, figures: Mapping[str, float]) -> None:
    """Write a case's row, in the order of cases."""
    row = {"case": case, "updates": UPDATES, **{name: figures[name] for name in VARIED}}
    table = pd.DataFrame([row]).set_index("case")
    if TABLE.exists():
        old = pd.read_csv(TABLE, index_col="case")
        table = pd.concat([old.drop(index=case, errors="ignore"), table])
    table = table.loc[[name for name in CASES if name in table.index]]
    table.to_csv(TABLE, float_format="%.3f")


if __name__ == "__main__":
    main()

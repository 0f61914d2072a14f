"""Do teacher features help? Stage 2 variants against the control at equal steps, over seeds.

    python -m benchmarks.feature_seeds bricks 0 1 2

needs the scene's teacher, features and VAE (`dvc repro`). In a temporary copy of the repository it
trains Stage 1B and every variant once per seed, the teacher staying the same, and writes what they
reach to benchmarks/results/feature_seeds_<scene>.csv. A variant's effect is the mean over seeds of
its PSNR less that of the control *of the same seed*, with a 95 % t-interval.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import yaml
from scipy import stats

from braid.stage.params import load_yaml

ROOT = Path(__file__).parents[1]
PARTS = ("stages", "braid", "data/teacher", "data/scenes", "data/features", "models/feature_vae")


def main() -> None:
    """Train, tabulate, print."""
    scene, *seeds = sys.argv[1:]
    path = ROOT / f"benchmarks/results/feature_seeds_{scene}.csv"
    path.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        for part in PARTS:
            shutil.copytree(ROOT / part, copy / part)
        for file in ("dvc.yaml", "built_in", "none"):
            shutil.copy(ROOT / file, copy)
        rows: list[dict[str, object]] = []
        for seed in seeds:
            rows += _train(copy, scene, int(seed))
            table = pd.DataFrame(rows)
            table.to_csv(path, index=False, float_format="%.4f")
    print(effects(table).to_string(index=False, float_format=lambda value: f"{value:+.3f}"))


def _train(copy: Path, scene: str, seed: int) -> Iterator[dict[str, object]]:
    params = load_yaml(ROOT / "params.yaml")
    (copy / "params.yaml").write_text(yaml.safe_dump({**params, "seed": seed}))
    for student in params["radiance"]["students"]:
        stage = ["distill_response", scene]
        if student != "response":
            stage = ["distill_features", scene, student]
        for name, *item in (stage, ["evaluate_radiance", scene, student]):
            environment = {**os.environ, "BRAID_SCRATCH": str(copy / "scratch")}
            command = [sys.executable, "-m", f"stages.{name}", *item]
            subprocess.run(command, cwd=copy, env=environment, check=True)
        table = pd.read_csv(copy / f"metrics/tables/radiance/{scene}/{student}.csv")
        figures = {key: table[key][0] for key in ("psnr", "ssim", "psnr_foreground")}
        yield {"scene": scene, "seed": seed, "variant": student, **figures}


def effects(table: pd.DataFrame) -> pd.DataFrame:
    """Mean PSNR difference to the control of the same seed, with its 95 % t-interval."""
    psnr = table.pivot(index="seed", columns="variant", values="psnr")
    rows = []
    for variant in table["variant"].unique():
        gain = psnr[variant] - psnr["control"]
        half = (
            stats.t.ppf(0.975, len(gain) - 1) * stats.sem(gain) if len(gain) > 1 else float("nan")
        )
        row = {"psnr": psnr[variant].mean(), "gain": gain.mean()}
        rows.append(
            {"variant": variant, **row, "low": gain.mean() - half, "high": gain.mean() + half}
        )
    return pd.DataFrame(rows)


if __name__ == "__main__":
    main()

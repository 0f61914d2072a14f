"""A repository with the plots and stages of dvc.yaml and small files for them."""

from __future__ import annotations

import io
import json
import subprocess
from pathlib import Path

from PIL import Image

DVC = """
stages:
  train:
    foreach: [a, b]
    do:
      cmd: "true"
      deps: [braid/radiance/config.py]
      outs: [models/x, "plots/loss/${item}.csv", "metrics/runtime/train/${item}.json"]
      metrics: ["metrics/train/${item}.json"]
  evaluate:
    cmd: "true"
    deps: [braid/clips/shards, models/x]
    outs: [plots/pictures, plots/bars.csv, metrics/runtime/cards/evaluate.md]
    metrics: [metrics/evaluate.json]
plots:
  - plots/pictures
  - plots/loss: {title: "Loss <of> a model", x: step, y: [loss, other]}
  - bars: {title: By method, x: method, y: {plots/bars.csv: score}, template: bar_horizontal}
"""


def picture(width: int = 40, color: str = "red") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, 20), color).save(buffer, format="PNG")
    return buffer.getvalue()


def animation() -> bytes:
    frames = [Image.new("RGB", (30, 20), color) for color in ("red", "blue", "green")]
    buffer = io.BytesIO()
    frames[0].save(buffer, format="GIF", save_all=True, append_images=frames[1:], duration=80)
    return buffer.getvalue()


def write_repository(root: Path) -> None:
    files: dict[str, str | bytes] = {
        "dvc.yaml": DVC,
        "params.yaml": "seed: 0\n",
        "plots/pictures/still.png": picture(),
        "plots/pictures/moving.gif": animation(),
        "plots/loss/a.csv": "step,loss,other\n0,2,\n1,1.5,3\n",
        "plots/loss/b.csv": "step,loss,other\n0,4,1\n1,3.5,2\n",
        "plots/bars.csv": "method,score\nours,0.5\ntheirs,0.25\n",
        "metrics/train/a.json": json.dumps({"psnr": 30.5, "status": "ok"}),
        "metrics/train/b.json": json.dumps({"psnr": 29.25, "status": "collapsed"}),
        "metrics/evaluate.json": json.dumps({"frechet": {"refined": 0.25}, "lpips": None}),
        "metrics/runtime/train/a.json": json.dumps({"seconds": 1.5}),
        "metrics/runtime/train/b.json": json.dumps({"seconds": 2.5}),
        "metrics/runtime/cards/evaluate.md": (
            "# evaluate\n\n**keep**: it is <better>\n\n## Header\n\n| | |\n|---|---|\n"
            "| date | today |\n| path | <i>a\\|b |\n"
        ),
    }
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content.encode() if isinstance(content, str) else content)
    for command in (
        ["init", "-q"],
        ["config", "user.email", "test@example.org"],
        ["config", "user.name", "test"],
    ):
        subprocess.run(["git", "-C", str(root), *command], check=True)
    (root / ".dvc").mkdir()
    (root / ".dvc/config").touch()
    commit(root)


def commit(root: Path) -> None:
    subprocess.run(["git", "-C", str(root), "add", "-A"], check=True)
    subprocess.run(["git", "-C", str(root), "commit", "-qm", "results"], check=True)

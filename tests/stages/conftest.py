"""A small repository in which all stages have run once, on a user's own scene and `.ply`.

Stages run in this process.
"""

from __future__ import annotations

import importlib
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from braid.radiance.gaussians.field import render_all
from braid.radiance.gaussians.gaussians import save_ply
from braid.radiance.scenes.blender import Views, save_views
from tests.radiance.tiny_teacher import ball, views
from tests.tiny import TINY, override

ROOT = Path(__file__).parents[2]
CHAIN = (
    ("prepare_scene", "own"),
    ("fit_teacher", "own"),
    ("render_teacher", "own"),
    ("export_features", "own"),
    ("train_vae", "own"),
    ("distill_response", "own"),
    ("distill_features", "own", "sh_opacity"),
    ("evaluate_radiance", "own", "response"),
)


def run(repo: Path, name: str, *item: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(repo)
        patch.setattr(sys, "argv", [name, *item])
        importlib.import_module(f"stages.{name}").main()


def write_own_scene(folder: Path) -> None:
    counts = {"train": 6, "val": 1, "test": 2}
    cameras = views(sum(counts.values()), width=16)
    rgba = torch.from_numpy(render_all(ball(), cameras).rgba.astype(np.float32))
    start = 0
    for split, count in counts.items():
        chosen = slice(start, start + count)
        save_views(folder / "scene", split, Views(cameras[chosen], rgba[chosen]))
        start += count
    save_ply(folder / "gaussians.ply", ball())


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All stages have run once, on the user's own scene and teacher."""
    repo = tmp_path_factory.mktemp("bad_input") / "repo"
    for folder in ("braid", "stages"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / folder, repo / folder, ignore=ignored)
    for file in ("params.yaml", "dvc.yaml", "built_in", "none"):
        shutil.copy(ROOT / file, repo)
    write_own_scene(repo / "mine")
    override(repo, TINY)
    source = {"source": "mine/scene", "teacher": "mine/gaussians.ply", "downsample": 1}
    small = {
        "radiance.scenes": {"own": source},
        "radiance.vae.steps": 4,
        "radiance.response.steps": 4,
        "radiance.distill.steps": 4,
        "radiance.renders.random_poses": 2,
        "radiance.renders.voxels": 12,
        "radiance.renders.field_points": 100,
    }
    override(repo, small)
    for name, *item in CHAIN:
        run(repo, name, *item)
    return repo


@pytest.fixture(autouse=True)
def other_tests_keep_their_settings() -> Iterator[None]:
    """Stages set determinism and the treatment of denormals for the whole process."""
    yield
    torch.use_deterministic_algorithms(False)
    torch.set_flush_denormal(False)


@pytest.fixture
def repo(finished: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(finished, tmp_path / "repo"))


def made(repo: Path) -> dict[str, bytes]:
    folders = [repo / name for name in ("data", "models", "metrics", "plots")]
    paths = [path for folder in folders for path in folder.rglob("*")]
    files = [path for path in paths if path.is_file() and ".partial" not in path.parts]
    return {str(path.relative_to(repo)): path.read_bytes() for path in files}


def fault(repo: Path, name: str, *item: str) -> str:
    """The stage's line; checks that it is one, and that all outs are as they were."""
    before = made(repo)
    with pytest.raises(SystemExit) as stop:
        run(repo, name, *item)
    line = stop.value.code
    assert isinstance(line, str)
    assert "\n" not in line
    start = f"error: {' '.join([name, *item])}: "
    assert line.startswith(start)
    assert made(repo) == before
    return line.removeprefix(start)

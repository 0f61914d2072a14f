"""The whole DAG at a tiny size, driven by DVC as its user drives it."""

from __future__ import annotations

import json
import re
import runpy
import shlex
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest
import torch

from braid.stage.dag import Declaration, declarations
from braid.stage.params import load_yaml
from tests.conftest import TinyRepo, make_tiny_repo
from tests.tiny import TRAININGS

ROOT = Path(__file__).parents[2]
RUN = re.compile(r"Running stage '([^']+)'")


def test_every_stage_runs_and_leaves_its_outs(tiny_repo: TinyRepo) -> None:
    for stage in declarations(tiny_repo.root):
        for out in stage.outs:
            assert (tiny_repo.root / out).exists(), f"{stage.address} did not make {out}"


def test_a_second_repro_does_nothing_and_status_is_clean(tiny_repo: TinyRepo) -> None:
    assert not RUN.findall(tiny_repo.run("dvc", "repro").stdout)
    assert "up to date" in tiny_repo.run("dvc", "status").stdout


def front_page(pattern: str) -> list[list[str]]:
    """Commands of README.md that begin like this, split into words."""
    lines = re.findall(rf"(?m)^(?:\$ )?({pattern} .*)$", (ROOT / "README.md").read_text())
    return [shlex.split(line, comments=True) for line in lines]


def test_the_front_page_s_experiment_reruns_what_depends_on_its_param(tiny_repo: TinyRepo) -> None:
    (experiment,), (difference,) = front_page("dvc exp run"), front_page("dvc metrics diff")
    result = tiny_repo.run(*experiment)
    of_variant = {
        f"{stage}@bricks-gaussian_all" for stage in ("distill_features", "evaluate_radiance")
    }
    assert set(RUN.findall(result.stdout)) == of_variant
    back_to_the_commit(tiny_repo)
    lines = tiny_repo.run(*difference).stdout.splitlines()
    assert lines[0].split()[:2] == ["Path", "Metric"]
    assert {line.split()[0] for line in lines[1:]} == {"metrics/radiance/bricks/gaussian_all.json"}


def test_what_was_trained_is_used_as_the_front_page_says(
    tiny_repo: TinyRepo, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny_repo.root)
    tiny = {"0 3 8": "0 2 4"}  # frames of a clip
    commands = front_page("python -m braid")
    assert len(commands) >= 4
    for words in commands:
        line = shlex.join(words)
        for full, here in tiny.items():
            line = line.replace(full, here)
        module, *arguments = shlex.split(line)[2:]
        monkeypatch.setattr(sys, "argv", [module, *arguments])
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch, "use_deterministic_algorithms", lambda *_, **__: None)
            runpy.run_module(module, run_name="__main__")
    for made in (
        "turn.gif",
        "clip.safetensors",
        "efficient_sam3/config.json",
        "predictions/sa_1.png",
    ):
        assert Path(made).exists()


def test_the_metrics_of_another_number_of_classes_fit_on_a_screen(tiny_repo: TinyRepo) -> None:
    tiny_repo.run("dvc", "exp", "run", "-S", "drift.K=4")
    lines = tiny_repo.run("dvc", "metrics", "diff").stdout.splitlines()
    back_to_the_commit(tiny_repo)
    assert any("quantize.json" in line and " K " in line for line in lines)
    assert 10 < len(lines) <= 30


def test_metrics_fit_on_a_screen(tiny_repo: TinyRepo) -> None:
    header, *rows = tiny_repo.run("dvc", "metrics", "show", "--md").stdout.strip().splitlines()
    assert len(header.strip("|").split("|")) <= 60
    assert len(rows) - 1 <= 40  # less the line below the header


@pytest.mark.parametrize(
    "name", [".context.py.swp", ".DS_Store", "context.py~", "._context.py", ".#dag.py", "a.pyc"]
)
def test_stray_files_below_a_folder_of_code_change_nothing(tiny_repo: TinyRepo, name: str) -> None:
    stray = tiny_repo.root / "braid/stage" / name
    stray.write_bytes(b"of an editor or a system")
    try:
        assert "up to date" in tiny_repo.run("dvc", "status").stdout
    finally:
        stray.unlink()


def test_data_of_one_s_own_may_be_tracked_below_data(tiny_repo: TinyRepo) -> None:
    (tiny_repo.root / "data/own/scene").mkdir(parents=True)
    (tiny_repo.root / "data/own/scene/a.txt").write_text("mine")
    tiny_repo.run("dvc", "add", "data/own/scene")
    changed = tiny_repo.run("git", "status", "--porcelain", "-uall").stdout.split()[1::2]
    assert changed == ["data/own/.gitignore", "data/own/scene.dvc"]
    shutil.rmtree(tiny_repo.root / "data/own")


def back_to_the_commit(repo: TinyRepo) -> None:
    repo.run("git", "checkout", "-q", ".")
    repo.run("dvc", "checkout")


def test_metrics_and_plots_show_without_a_warning(tiny_repo: TinyRepo) -> None:
    metrics = tiny_repo.run("dvc", "metrics", "show", "--json")
    shown = json.loads(metrics.stdout)[""]["data"]
    templates = load_yaml(tiny_repo.root / "dvc.yaml")["stages"]
    declared = {
        out
        for stage in declarations(tiny_repo.root)
        if "metrics" in templates[stage.name].get("do", templates[stage.name])
        for out in stage.outs
        if out.startswith("metrics/") and not out.startswith("metrics/runtime/")
    }
    assert {out for out in declared if out.endswith(".json")} == set(shown)
    assert not [path for path, entry in shown.items() if "error" in entry]
    plots = tiny_repo.run("dvc", "plots", "show")
    assert "WARNING" not in plots.stderr
    page = (tiny_repo.root / "dvc_plots/index.html").read_text()
    assert page.count("<img") + page.count("vega-embed") > 3


def deterministic_outs(repo: TinyRepo, stage: Declaration) -> dict[str, bytes]:
    found = {}
    for out in stage.outs:
        path = repo.root / out
        files = sorted(path.rglob("*")) if path.is_dir() else [path]
        for file in files:
            if file.is_file() and "runtime" not in file.parts:
                found[str(file.relative_to(repo.root))] = file.read_bytes()
    return found


@pytest.fixture(scope="module")
def second_repo(tiny_repo: TinyRepo, tmp_path_factory: pytest.TempPathFactory) -> TinyRepo:
    """A copy of the finished tiny repository, to run stages in by hand."""
    root = tmp_path_factory.mktemp("second") / "repo"
    shutil.copytree(tiny_repo.root, root, symlinks=False)
    repo = TinyRepo(root)
    repo.run("git", "checkout", "-q", ".")
    return repo


@pytest.mark.parametrize("address", TRAININGS)
def test_killed_and_resumed_gives_the_bytes_of_an_unbroken_run(
    second_repo: TinyRepo, address: str
) -> None:
    name = address.split("@")[0]
    stage = next(each for each in declarations(second_repo.root) if each.address == address)
    command = ("python", "-m", f"stages.{name}", *stage.item)
    unbroken = deterministic_outs(second_repo, stage)
    for out in stage.outs:
        path = second_repo.root / out
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    scratch = second_repo.root / "scratch" / address
    process = second_repo.start(*command)
    deadline = time.monotonic() + 120
    while not list(scratch.rglob("*.pt")) and process.poll() is None:
        assert time.monotonic() < deadline, "no checkpoint appeared"
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert list(scratch.rglob("*.pt")), f"{address} was not killed between two checkpoints"
    assert not any((second_repo.root / out).exists() for out in stage.outs)
    second_repo.run(*command)
    assert deterministic_outs(second_repo, stage) == unbroken


def test_the_same_seed_gives_the_same_bytes_in_a_second_clone(
    tiny_repo: TinyRepo, tmp_path: Path
) -> None:
    repo = make_tiny_repo(tmp_path / "repo")
    repo.run("dvc", "repro", "evaluate_radiance@bricks-gaussian_all_vae", "evaluate_drift")
    for stage in declarations(repo.root):
        if all((repo.root / out).exists() for out in stage.outs):
            assert deterministic_outs(repo, stage) == deterministic_outs(tiny_repo, stage)


def test_a_clone_that_pulls_has_nothing_left_to_run(tiny_repo: TinyRepo, tmp_path: Path) -> None:
    tiny_repo.run("dvc", "remote", "add", "--local", "-d", "store", str(tmp_path / "store"))
    tiny_repo.run("dvc", "push")
    clone = TinyRepo(tmp_path / "clone/repo")
    clone.root.parent.mkdir()
    tiny_repo.run("git", "clone", "-q", str(tiny_repo.root), str(clone.root))
    clone.run("dvc", "remote", "add", "--local", "-d", "store", str(tmp_path / "store"))
    clone.run("dvc", "pull")
    assert not RUN.findall(clone.run("dvc", "repro").stdout)
    assert "up to date" in clone.run("dvc", "status").stdout


def test_the_way_back_from_an_experiment_needs_no_other_strand(
    tiny_repo: TinyRepo, tmp_path: Path
) -> None:
    """In a clone that ran one strand, DVC lacks what the others would have made."""
    clone = TinyRepo(tmp_path / "repo")
    tiny_repo.run("git", "clone", "-q", str(tiny_repo.root), str(clone.root))
    clone.run("dvc", "repro", "prepare_images")
    clone.run("dvc", "exp", "run", "-S", "images.val_fraction=0.1", "prepare_images")
    clone.run("git", "reset", "-q", "--hard")
    clone.run("dvc", "checkout", "--allow-missing")
    assert "up to date" in clone.run("dvc", "status", "prepare_images").stdout

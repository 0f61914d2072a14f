"""The stage contract: atomic outs, keyed scratch, one-line faults."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from dvc.repo import Repo

from braid.stage.context import _tensorboard, open_stage
from tests.stage.conftest import DAG, ROOT, write_everything


def test_a_finished_stage_shows_all_its_outs(repo: Path) -> None:
    with open_stage("toy") as stage:
        assert stage.item == ("bricks",)
        assert stage.dep("data/in").read_text() == "declared"
        write_everything(stage)
        stage.runtime["fps"] = 3.0
        assert not (repo / "models/bricks.bin").exists()  # nothing shows before the end
    assert (repo / "data/out/bricks/a.txt").read_text() == "made"
    assert json.loads((repo / "metrics/toy/bricks.json").read_text()) == {
        "score": 1.5,
        "lpips": None,
    }
    runtime = json.loads((repo / "metrics/runtime/toy/bricks.json").read_text())
    assert runtime["fps"] == 3.0
    assert 0 <= runtime["seconds"] < 60
    assert runtime["peak_rss_mib"] > 1
    assert not list(repo.rglob(".partial"))


def test_a_failed_stage_leaves_what_was_there(repo: Path, capsys: pytest.CaptureFixture) -> None:
    (repo / "models").mkdir()
    (repo / "models/bricks.bin").write_bytes(b"older")
    with pytest.raises(SystemExit) as fault, open_stage("toy") as stage:
        write_everything(stage)
        raise ValueError("data/in/bricks.txt: expected 3 columns")
    assert fault.value.code == "error: toy bricks: data/in/bricks.txt: expected 3 columns"
    assert (repo / "models/bricks.bin").read_bytes() == b"older"


def test_an_out_that_is_not_written_fails(repo: Path) -> None:
    with (
        pytest.raises(SystemExit, match=r"declared but not written: data/out/bricks"),
        open_stage("toy") as stage,
    ):
        stage.out("models").write_bytes(b"weights")
        stage.write_metrics({"score": 1.0})


def test_a_file_that_cannot_be_opened_is_one_line(repo: Path) -> None:
    with pytest.raises(SystemExit, match=r"^error: toy bricks: .*No such file.*data/in/bricks"):
        with open_stage("toy") as stage:
            path = stage.dep("data/in")
            (path / "deeper").read_text() if path.is_dir() else (path.parent / "bricks").read_text()


def test_a_fault_of_several_lines_is_put_on_one(repo: Path) -> None:
    with pytest.raises(SystemExit) as fault, open_stage("toy"):
        raise ValueError("weights:\n\tsize mismatch\n  for a")
    assert fault.value.code == "error: toy bricks: weights: size mismatch for a"


def test_a_programming_error_keeps_its_traceback(repo: Path) -> None:
    with pytest.raises(TypeError, match="no such argument"), open_stage("toy"):
        raise TypeError("no such argument")


def test_a_fault_keeps_its_traceback_where_asked(
    repo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BRAID_TRACEBACK", "1")
    with pytest.raises(ValueError, match="bad"), open_stage("toy"):
        raise ValueError("bad")


def test_outs_of_an_earlier_run_are_replaced_whole(repo: Path) -> None:
    (repo / "data/out/bricks").mkdir(parents=True)
    (repo / "data/out/bricks/stale.txt").write_text("of an earlier run")
    with open_stage("toy") as stage:
        write_everything(stage)
    assert [path.name for path in (repo / "data/out/bricks").iterdir()] == ["a.txt"]


def test_what_a_killed_run_left_unfinished_is_not_shown(repo: Path) -> None:
    with suppress(KeyboardInterrupt), open_stage("toy") as stage:
        write_everything(stage)
        (stage.out("data/out") / "half.txt").write_text("half")
        raise KeyboardInterrupt
    assert not (repo / "models/bricks.bin").exists()
    with open_stage("toy") as stage:
        write_everything(stage)
    assert not (repo / "data/out/bricks/half.txt").exists()


def test_an_undeclared_params_section_fails_with_its_name(repo: Path) -> None:
    message = "reads the params 'hardware', which dvc.yaml does not list under its params"
    with pytest.raises(SystemExit, match=message), open_stage("toy") as stage:
        _ = stage.params.hardware


def test_a_missing_dep_is_named(repo: Path) -> None:
    (repo / "data/in/bricks.txt").unlink()
    with (
        pytest.raises(SystemExit, match=r"data/in/bricks.txt: missing"),
        open_stage("toy") as stage,
    ):
        stage.dep("data/in")


def test_an_unknown_item_lists_the_known_ones(repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["toy", "castle"])
    with pytest.raises(SystemExit, match=r"no stage toy@castle \(it has: toy@bricks\)"):
        with open_stage("toy"):
            pass


def scratch(repo: Path) -> Path:
    found = []
    with pytest.raises(SystemExit), open_stage("toy") as stage:
        found.append(stage.scratch())
        raise ValueError("killed")
    return found[0]


def test_scratch_is_kept_by_a_rerun_and_not_shared_with_other_inputs(repo: Path) -> None:
    first = scratch(repo)
    assert scratch(repo) == first
    (repo / "data/in/bricks.txt").write_text("other data")
    other_data = scratch(repo)
    (repo / "code.py").write_text("x = 2\n")
    other_code = scratch(repo)
    text = (repo / "params.yaml").read_text()
    (repo / "params.yaml").write_text(text.replace("seed: 0", "seed: 1", 1))
    other_params = scratch(repo)
    (repo / "params.yaml").write_text(text.replace("seed: 0", "seed: 1 # a comment", 1))
    assert scratch(repo) == other_params
    assert len({first, other_data, other_code, other_params}) == 4


@pytest.mark.parametrize("change", ["version", "device"])
def test_scratch_is_not_shared_where_numbers_are_rounded_otherwise(
    repo: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    first = scratch(repo)
    if change == "version":
        monkeypatch.setattr(torch, "__version__", "9.0")
    else:
        other = 0 if torch.cuda.device_count() else 1
        monkeypatch.setattr(torch.cuda, "device_count", lambda: other)
    assert scratch(repo) != first


def test_a_stage_opens_while_another_removes_the_empty_folder_for_partial_outs(
    repo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, removed = os.mkdir, []

    def mkdir(path: str, *arguments: int) -> None:
        make(path, *arguments)
        if Path(path).name == ".partial" and len(removed) < 3:
            Path(path).rmdir()
            removed.append(path)

    monkeypatch.setattr(os, "mkdir", mkdir)
    with open_stage("toy") as stage:
        write_everything(stage)
    assert len(removed) == 3
    assert (repo / "models/bricks.bin").exists()


def test_scratch_is_not_shared_between_counts_of_processes(
    repo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (repo / "dvc.yaml").write_text(DAG.replace("python -m", "${launch.train}"))
    alone = scratch(repo)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert scratch(repo) != alone


STRAY = (
    "__pycache__/a.pyc",
    "a.pyc",
    ".a.py.swp",
    ".DS_Store",
    "a.py~",
    "._a.py",
    ".#a.py",
    ".ipynb_checkpoints/a-checkpoint.py",
)


def test_scratch_knows_the_names_and_contents_of_a_folder_but_nothing_stray(repo: Path) -> None:
    (repo / "dvc.yaml").write_text(DAG.replace("code.py", "code"))
    shutil.copy(ROOT / ".dvcignore", repo)
    (repo / "code").mkdir()
    (repo / "code/a.py").write_text("x = 1\n")
    first = scratch(repo)
    for name in STRAY:
        (repo / "code" / name).parent.mkdir(exist_ok=True)
        (repo / "code" / name).write_bytes(b"of an editor or a system")
    assert scratch(repo) == first
    (repo / "code/a.py").rename(repo / "code/b.py")
    renamed = scratch(repo)
    (repo / "code/b.py").write_text("x = 2\n")
    assert len({first, renamed, scratch(repo)}) == 3


@pytest.mark.parametrize("name", STRAY)
def test_dvc_leaves_out_the_same_stray_files(name: str) -> None:
    with Repo(str(ROOT)) as theirs:
        assert theirs.dvcignore.is_ignored_file(str(ROOT / "braid/stage" / name))
        assert not theirs.dvcignore.is_ignored_file(str(ROOT / "braid/stage/context.py"))


def test_a_finished_run_keeps_the_training_state_of_other_runs(repo: Path) -> None:
    killed = scratch(repo)
    (killed / "training.pt").write_bytes(b"state of a killed run")
    (repo / "data/in/bricks.txt").write_text("other data")
    with open_stage("toy") as stage:
        own = stage.scratch()
        write_everything(stage)
    assert not own.exists()
    assert (killed / "training.pt").read_bytes() == b"state of a killed run"


@pytest.mark.parametrize("linked", ["data", "data/out"])
def test_a_link_out_of_the_repository_is_refused_before_the_work(repo: Path, linked: str) -> None:
    """DVC would refuse the out after the work."""
    elsewhere = repo.parent / f"{repo.name}_disk"
    if (repo / linked).exists():
        shutil.move(repo / linked, elsewhere)
    else:
        elsewhere.mkdir()
    (repo / linked).symlink_to(elsewhere)
    message = r"data/out/bricks: a link leads out of the repository, which DVC refuses; expected"
    with pytest.raises(SystemExit, match=message), open_stage("toy"):
        raise AssertionError("the stage must not start")


@pytest.mark.parametrize("mount", ["data", "data/out"])
def test_an_output_folder_may_be_a_disk_of_its_own(
    repo: Path, mount: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Renaming across disks is refused by the system: outs are staged on theirs, or copied."""
    (repo / "data/out/bricks").mkdir(parents=True)
    (repo / "data/out/bricks/stale.txt").write_text("of an earlier run")

    def replace(source: Path, target: Path) -> None:
        if len({path.is_relative_to(repo / mount) for path in (source, target)}) == 2:
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        os.replace(source, target)

    monkeypatch.setattr(Path, "replace", replace)
    with open_stage("toy") as stage:
        write_everything(stage)
    assert [path.name for path in (repo / "data/out").iterdir()] == ["bricks"]
    assert [path.name for path in (repo / "data/out/bricks").iterdir()] == ["a.txt"]


def test_items_may_be_called_as_ignored_folders_are(repo: Path) -> None:
    """`scratch` and `runs` are the repository's own at its root alone."""
    shutil.copy(ROOT / ".dvcignore", repo)
    (repo / "dvc.yaml").write_text(DAG.replace("code.py", "code"))
    (repo / "code/scratch").mkdir(parents=True)
    (repo / "code/scratch/a.py").write_text("x = 1\n")
    first = scratch(repo)
    (repo / "code/scratch/a.py").write_text("x = 2\n")
    assert scratch(repo) != first
    with Repo(str(ROOT)) as theirs:
        assert not theirs.dvcignore.is_ignored_dir(str(ROOT / "data/scenes/scratch"))
        assert theirs.dvcignore.is_ignored_dir(str(ROOT / "scratch"))


def test_scratch_is_removed_when_the_stage_has_finished(repo: Path) -> None:
    with open_stage("toy") as stage:
        folder = stage.scratch()
        (folder / "checkpoint.pt").write_bytes(b"state")
        write_everything(stage)
    assert not folder.exists()


def test_scratch_may_lie_elsewhere(
    repo: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path_factory.mktemp("scratch")
    monkeypatch.setenv("BRAID_SCRATCH", str(elsewhere))
    assert scratch(repo).is_relative_to(elsewhere)


def test_a_rank_that_is_not_the_main_one_shows_nothing(
    repo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (repo / "dvc.yaml").write_text(DAG.replace("python -m", "${launch.train}"))
    monkeypatch.setenv("RANK", "1")
    with open_stage("toy") as stage:
        write_everything(stage)
    assert not (repo / "models").exists()


def test_a_stage_that_is_not_launched_is_alone_whatever_a_pod_has_set(
    repo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable, value in {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(variable, value)
    with open_stage("toy") as stage:
        write_everything(stage)
    assert (repo / "models/bricks.bin").exists()
    assert "WORLD_SIZE" not in os.environ


def test_a_nan_is_no_metric(repo: Path) -> None:
    with pytest.raises(SystemExit, match=r"score is nan, expected a finite number or null"):
        with open_stage("toy") as stage:
            stage.write_metrics({"score": float("nan")})


def test_a_fault_is_one_line_on_standard_error(repo: Path) -> None:
    script = "from braid.stage.context import open_stage\nwith open_stage('toy'): pass"
    result = subprocess.run(
        [sys.executable, "-c", script, "castle"],
        capture_output=True,
        text=True,
        check=False,
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
    )
    assert result.returncode == 1
    assert result.stderr.startswith("error: toy castle: dvc.yaml declares no stage toy@castle")
    assert result.stderr.count("\n") == 1


def test_tensorboard_holds_a_point_per_logged_row(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = _tensorboard(tmp_path)
    for step in range(3):
        log({"step": step, "loss": float(step)})
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [point.value for point in events.Scalars("loss")] == [0.0, 1.0, 2.0]
    assert [point.step for point in events.Scalars("loss")] == [0, 1, 2]
    assert events.Tags()["scalars"] == ["loss"]


def test_a_finished_stage_says_its_figures_in_one_line(
    repo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with open_stage("toy") as stage:
        write_everything(stage)
        figures = {
            "frechet": {"refined": 0.123456, "real": 7},
            "status": "collapsed",
            "lpips": None,
        }
        stage.write_metrics({"K": 3, "accuracy": 0.5, **figures})
        (stage.out("data/out") / "first.png").write_bytes(b"a picture")
    line = capsys.readouterr().out
    assert re.fullmatch(
        r"toy@bricks: \d+\.\d s; status collapsed, K 3, accuracy 0\.5, frechet\.real 7, "
        r"frechet\.refined 0\.1235; pictures: data/out/bricks\n",
        line,
    )


def test_other_ranks_and_failed_stages_say_no_figures(
    repo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit), open_stage("toy") as stage:
        write_everything(stage)
        raise ValueError("of another kind")
    assert capsys.readouterr().out == ""

"""The parts of the DAG side by side: what they are, how many at a time, and their faults."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from braid.stage.dag import Declaration, declarations
from launch import repro
from launch.repro import parts

ROOT = Path(__file__).parents[2]

# Stands in for DVC: notes when it begins and ends, and does what its target says.
STAND_IN = """
import sys, time
from pathlib import Path
log, target = Path("log"), sys.argv[-1]
def note(what):
    with log.open("a") as file:
        file.write(f"{what} {target}\\n")
note("begin")
print("line of", target, flush=True)
try:
    time.sleep(60 if target == "slow" else 0.3)
except KeyboardInterrupt:
    note("interrupted")
    raise SystemExit(1)
note("end")
sys.exit(7 if target == "broken" else 0)
"""


def stage(name: str, deps: tuple[str, ...] = (), outs: tuple[str, ...] = ()) -> Declaration:
    return Declaration(name, (), deps, outs, ())


def test_parts_share_no_stage_and_hold_all() -> None:
    stages = list(declarations(ROOT))
    found = parts(stages)
    assert sorted(s.address for part in found for s in part.stages) == sorted(
        s.address for s in stages
    )
    assert len(found) >= 4  # radiance, clips, images, segmentation
    by_stage = {s.name: part for part in found for s in part.stages}
    assert by_stage["prepare_clips"] is by_stage["impute_storyboard"]
    assert by_stage["prepare_scene"] is by_stage["compare_radiance"]
    assert by_stage["prepare_clips"] is not by_stage["prepare_scene"]


def test_stages_are_joined_by_files_within_folders() -> None:
    stages = [
        stage("a", outs=("data/a",)),
        stage("b", outs=("data/b/file",)),
        stage("c", deps=("data/a/file", "data/shared"), outs=("data/c",)),
        stage("d", deps=("data/b", "data/shared")),
        stage("e", deps=("data/a", "data/ab"), outs=("models/e",)),
    ]
    first, second = sorted(parts(stages), key=lambda part: part.name)
    assert first.targets == ("d",)
    assert second.targets == ("c", "e")
    assert {s.name for s in second.stages} == {"a", "c", "e"}


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "stand_in.py").write_text(STAND_IN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(repro, "DVC", (sys.executable, "stand_in.py"))
    return tmp_path


def runs(monkeypatch: pytest.MonkeyPatch, work: Path, names: str, jobs: int) -> tuple[int, str]:
    monkeypatch.setattr(repro, "declarations", lambda _: map(stage, names.split()))
    status = repro.run(work, jobs)
    return status, (work / "log").read_text()


@pytest.mark.parametrize("jobs", [1, 2])
def test_no_more_than_the_jobs_run_at_once(
    jobs: int, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    status, log = runs(monkeypatch, work, "a b c", jobs)
    assert status == 0
    running, most = 0, 0
    for line in log.splitlines():
        running += 1 if line.startswith("begin") else -1
        most = max(most, running)
    assert (running, most) == (0, jobs)


def test_the_part_that_took_longest_is_first(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in {"a": 3, "b": 60, "c": 20}.items():
        (work / "metrics/runtime").mkdir(parents=True, exist_ok=True)
        (work / f"metrics/runtime/{name}.json").write_text(f'{{"seconds": {seconds}}}')
    _, log = runs(monkeypatch, work, "a b c", 1)
    assert [line[6:] for line in log.splitlines() if line.startswith("begin")] == ["b", "c", "a"]


def test_a_part_that_fails_names_itself_and_leaves_the_others(
    work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    status, log = runs(monkeypatch, work, "broken good other", 2)
    assert status == 7
    assert {"end good", "end other"} <= set(log.splitlines())
    out, err = capsys.readouterr()
    assert err == "error: broken failed (exit status 7)\n"
    assert "good   | line of good\n" in out


def test_an_interrupt_stops_all(work: Path) -> None:
    script = (
        "import signal, sys\nfrom launch import repro\nfrom braid.stage.dag import Declaration\n"
        # A shell's background jobs ignore interrupts, and what they start does too.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "repro.DVC = (sys.executable, 'stand_in.py')\n"
        "repro.declarations = lambda _: [Declaration('slow', (), (), (), ())]\n"
        "repro.load_params = lambda _: None\n"
        "sys.argv = ['repro']\nrepro.main()\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script], env={"PYTHONPATH": str(ROOT)})
    deadline = time.monotonic() + 30
    while not (work / "log").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGINT)
    assert process.wait(timeout=30) == 128 + signal.SIGINT
    assert (work / "log").read_text().split("\n")[:2] == ["begin slow", "interrupted slow"]


def test_wrong_params_are_refused_before_dvc(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A null that names a dep is an «unexpected error» to DVC."""
    text = (ROOT / "params.yaml").read_text()
    (work / "params.yaml").write_text(text.replace("  sd_vae: none ", "  sd_vae: null ", 1))
    monkeypatch.setattr(sys, "argv", ["repro"])
    with pytest.raises(SystemExit, match=r"^error: params\.yaml: images\.sd_vae: [^\n]+null\)$"):
        repro.main()
    assert not (work / "log").exists()

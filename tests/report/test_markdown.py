"""The Markdown flavor, the command and the revisions that it takes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from report.markdown import to_markdown
from report.metrics import change, text
from report.page import open_report
from report.revisions import open_revisions
from tests.report.repository import commit, write_repository

ROOT = Path(__file__).parents[2]


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    write_repository(tmp_path)
    return tmp_path


def run(repo: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "report", *arguments],
        cwd=repo,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "HOME": str(repo)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_changes_come_first_then_the_figures_of_each_strand(repo: Path) -> None:
    (repo / "metrics/train/a.json").write_text('{"psnr": 30.0, "status": "collapsed"}')
    commit(repo)
    page = to_markdown(open_report(repo, open_revisions(repo, ["HEAD~1", "HEAD"])))
    assert "| metric | HEAD~1 | HEAD | change |" in page
    assert "| train/a: psnr | 30.5 | 30 | -0.5 (-1.6 %) |" in page
    assert "| train/a: status | ok | collapsed | – |" in page
    assert page.index("## Changes") < page.index("<details><summary>Radiance</summary>")
    assert "| frechet.refined | 0.25 |" in page
    assert "train/b: psnr" not in page


def test_what_did_not_change_is_said(repo: Path) -> None:
    page = to_markdown(open_report(repo, open_revisions(repo, ["HEAD"])))
    assert "Every figure is the same." in page
    assert "`workspace`" in page


def test_it_fits_into_a_comment() -> None:
    assert len(to_markdown(open_report(ROOT, open_revisions(ROOT, [])))) < 30_000


def test_the_command_writes_both_flavors_and_says_where(repo: Path) -> None:
    (repo / "report").mkdir()
    page = run(repo)
    assert page.returncode == 0
    size = (repo / "report/index.html").stat().st_size
    assert page.stdout == f"report/index.html: {size / 1000:,.0f} kB\n"
    assert (repo / "report/index.html").read_text().startswith("<!DOCTYPE html>")
    assert run(repo, "--format", "md", "--out", str(repo / "a.md"), "HEAD").returncode == 0
    assert (repo / "a.md").read_text().startswith("# Figures")


def test_an_unknown_revision_is_one_line(repo: Path) -> None:
    result = run(repo, "HEAD", "no-such-experiment")
    assert result.returncode == 1
    assert result.stderr == "error: report: no commit, branch or experiment 'no-such-experiment'\n"


def test_an_experiment_is_found_by_its_name(repo: Path) -> None:
    (repo / "metrics/train/a.json").write_text('{"psnr": 40.0, "status": "ok"}')
    commit(repo)
    experiment = ["git", "-C", str(repo), "rev-parse", "HEAD"]
    sha = subprocess.run(experiment, capture_output=True, text=True, check=True).stdout.strip()
    base = _parent(repo)
    reference = f"refs/exps/{base[:2]}/{base[2:]}/exp1"
    subprocess.run(["git", "-C", str(repo), "update-ref", reference, sha], check=True)
    subprocess.run(["git", "-C", str(repo), "reset", "-q", "--hard", "HEAD~1"], check=True)
    first, second = open_revisions(repo, ["HEAD", "exp1"])
    assert first.json("metrics/train/a.json")["psnr"] == 30.5
    assert second.json("metrics/train/a.json")["psnr"] == 40.0


def _parent(repo: Path) -> str:
    command = ["git", "-C", str(repo), "rev-parse", "HEAD~1"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_numbers_have_five_digits_and_changes_a_sign() -> None:
    assert [text(v) for v in (30.147031, 0.000123456, 1685984, 1.23e7, None, True)] == [
        *("30.147", "0.00012346", "1,685,984", "12,300,000", "–", "True"),
    ]
    assert change(2.0, 1.0) == "-1 (-50.0 %)"
    assert change(0, 3) == "+3"
    assert change("ok", 3) == "–"

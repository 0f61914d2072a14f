"""License, citation, contributing page, hooks, CI and issue templates: what they state is true."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest

from braid.segmentation.preparation.built_in import PHOTOS
from braid.stage.params import load_yaml

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
TEMPLATES = sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml"))
PAGES = ("CONTRIBUTING.md", ".pre-commit-config.yaml", ".github/workflows/ci.yml")


def targets() -> set[str]:
    """The targets of the Makefile."""
    lines = (ROOT / "Makefile").read_text().splitlines()
    return {match[1] for line in lines if (match := re.match(r"([a-z-]+):", line))}


def hooks() -> list[dict[str, Any]]:
    (repository,) = load_yaml(ROOT / ".pre-commit-config.yaml")["repos"]
    return list(repository["hooks"])


def tracked() -> list[Path]:
    listing = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-z"], capture_output=True, text=True, check=True
    )
    paths = (ROOT / name for name in listing.stdout.split("\0") if name)
    return [path for path in paths if path.is_file()]


def test_the_license_is_the_whole_of_apache_2_and_named_alike_everywhere() -> None:
    text = (ROOT / "LICENSE").read_text()
    assert "Version 2.0, January 2004" in text
    assert [f"   {number}. " in text for number in range(1, 10)] == [True] * 9
    assert "END OF TERMS AND CONDITIONS" in text
    citation = load_yaml(ROOT / "CITATION.cff")
    assert PROJECT["license"] == citation["license"] == "Apache-2.0"
    assert PROJECT["version"] == citation["version"]
    assert {"cff-version", "message", "title", "authors"} <= set(citation)


def test_the_notice_names_all_data_that_packages_ship_and_no_other() -> None:
    notice = (ROOT / "NOTICE").read_text()
    listed = re.findall(r"\b(?:skimage|sklearn)/[\w/.]+", notice)
    assert sorted(listed) == sorted(photo.file for photo in PHOTOS)
    sources = "\n".join(path.read_text() for path in (ROOT / "braid").rglob("*.py"))
    loaders = set(re.findall(r"\b(?:load_\w+|fetch_\w+)(?=\(\))", sources))
    assert "load_digits" in loaders
    assert {name for name in loaders if f"sklearn.datasets import {name}" in sources} == {
        name for name in re.findall(r"`(\w+)`", notice) if name in loaders
    }


@pytest.mark.parametrize("page", PAGES)
def test_targets_of_make_that_are_named_exist(page: str) -> None:
    named = re.findall(r"(?m)(?:`|run: |^ +)make ([a-z-]+)", (ROOT / page).read_text())
    assert named
    assert set(named) <= targets()


def test_files_that_the_contributing_page_names_exist() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    paths = [name for name in re.findall(r"`([\w./]+)`", text) if "/" in name or ".yaml" in name]
    assert len(paths) > 10
    assert [name for name in paths if not (ROOT / name).exists()] == []


def test_hooks_run_the_tools_of_the_environment_and_let_every_tracked_file_pass() -> None:
    by_name = {hook["id"]: hook for hook in hooks()}
    lock = (ROOT / "requirements.lock").read_text()
    local = [hook["entry"].split()[0] for hook in hooks() if hook["language"] == "system"]
    assert set(local) == {".venv/bin/ruff", ".venv/bin/mypy"}
    assert [name for name in local if f"\n{Path(name).name}==" not in lock] == []
    limit = re.search(r"--maxkb=(\d+)", by_name["check-added-large-files"]["entry"])
    assert limit is not None
    assert [path for path in tracked() if path.stat().st_size > 1024 * int(limit[1])] == []
    pages = [path for path in tracked() if path.suffix in {".yaml", ".yml", ".cff"}]
    assert len(pages) > 30
    for path in pages:
        load_yaml(path)


def test_ci_runs_the_two_commands_on_every_python_of_the_project() -> None:
    jobs = load_yaml(ROOT / ".github/workflows/ci.yml")["jobs"]
    steps = {step["run"] for job in jobs.values() for step in job["steps"] if "run" in step}
    assert {"make test", "make repro"} <= steps
    low, high = (int(minor) for minor in re.findall(r"3\.(\d+)", PROJECT["requires-python"]))
    versions = jobs["test"]["strategy"]["matrix"]["python"]
    assert versions == [f"3.{minor}" for minor in range(low, high)]
    for tool in re.findall(r"\.venv/bin/(\w+)", "\n".join(steps)):
        assert tool in {"dvc", "python"}


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda path: path.stem)
def test_an_issue_template_is_a_form(template: Path) -> None:
    form = load_yaml(template)
    if template.stem == "config":
        assert set(form) == {"blank_issues_enabled"}
        return
    assert {"name", "description", "body"} <= set(form)
    ids = [field["id"] for field in form["body"]]
    assert len(ids) == len(set(ids))
    for field in form["body"]:
        assert field["type"] in {"textarea", "input", "dropdown", "checkboxes"}
        assert field["attributes"]["label"]

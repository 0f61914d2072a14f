"""The stage contract: what was not declared is neither read nor written."""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from braid.stage.context import open_stage
from tests.stage.conftest import write_everything


def test_an_undeclared_read_fails_with_its_path(repo: Path) -> None:
    message = r"stage toy@bricks reads secret.txt, which dvc.yaml does not list in its deps"
    with pytest.raises(SystemExit, match=message), open_stage("toy"):
        (repo / "secret.txt").read_text()


def test_an_undeclared_read_fails_though_a_library_swallows_the_error(repo: Path) -> None:
    with pytest.raises(SystemExit, match=r"reads secret.txt"), open_stage("toy") as stage:
        write_everything(stage)
        with suppress(Exception):
            np.loadtxt("secret.txt")


@pytest.mark.parametrize("where", ["notes.txt", "data/in/bricks.txt", "models/bricks.bin"])
def test_a_write_that_is_no_out_fails_with_its_path(repo: Path, where: str) -> None:
    (repo / "models").mkdir()
    message = f"stage toy@bricks writes {where}, which dvc.yaml does not list in its outs"
    with pytest.raises(SystemExit, match=message), open_stage("toy"):
        (repo / where).write_text("x")


def test_removing_a_file_counts_as_a_write(repo: Path) -> None:
    with pytest.raises(SystemExit, match=r"writes secret.txt"), open_stage("toy"):
        (repo / "secret.txt").unlink()
    assert (repo / "secret.txt").exists()


def test_removing_a_folder_counts_as_a_write(repo: Path) -> None:
    with pytest.raises(SystemExit, match=r"writes data/in"), open_stage("toy"):
        shutil.rmtree(repo / "data/in")
    assert (repo / "data/in/bricks.txt").exists()


@pytest.mark.parametrize("change", ["rename", "link", "symlink", "mkdir", "truncate", "append"])
def test_every_kind_of_change_counts_as_a_write(repo: Path, change: str) -> None:
    with pytest.raises(SystemExit, match=r"writes (secret|moved|made)"), open_stage("toy"):
        if change == "rename":
            (repo / "secret.txt").rename(repo / "moved.txt")
        elif change in ("link", "symlink"):
            getattr(os, change)(repo / "secret.txt", repo / "made")
        elif change == "mkdir":
            (repo / "made").mkdir()
        elif change == "truncate":
            os.truncate(repo / "secret.txt", 0)
        else:
            (repo / "secret.txt").open("a").close()
    assert (repo / "secret.txt").read_text() == "undeclared"
    assert not (repo / "made").exists()


def test_moving_a_dep_away_is_a_write(repo: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    with pytest.raises(SystemExit, match=r"writes data/in/bricks.txt"), open_stage("toy") as stage:
        stage.dep("data/in").rename(elsewhere / "bricks.txt")


def test_a_library_s_temporary_folder_is_its_own_affair(repo: Path) -> None:
    """Python empties it by names relative to a descriptor, which look like the repository's."""
    (repo / "sub").write_text("undeclared")
    with open_stage("toy") as stage:
        write_everything(stage)
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "inner").mkdir()
            (Path(folder) / "inner/secret.txt").write_text("x")
            (Path(folder) / "secret.txt").write_text("x")
    assert (repo / "secret.txt").exists()


def test_nothing_is_guarded_once_a_stage_is_over(repo: Path) -> None:
    with suppress(SystemExit), open_stage("toy"):
        (repo / "secret.txt").read_text()
    (repo / "secret.txt").write_text("changed")
    assert (repo / "secret.txt").read_text() == "changed"

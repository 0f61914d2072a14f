"""The reading of dvc.yaml agrees with DVC's own."""

from __future__ import annotations

from pathlib import Path

import pytest
from dvc.repo import Repo

from braid.stage.dag import declaration, declarations

ROOT = Path(__file__).parents[2]


def test_stages_deps_and_outs_are_those_that_dvc_resolves() -> None:
    with Repo(str(ROOT)) as repo:
        theirs = {stage.addressing: stage for stage in repo.index.stages}
        ours = {each.address: each for each in declarations(ROOT)}
        assert set(ours) == set(theirs)
        for address, stage in theirs.items():
            params = [dep for dep in stage.deps if hasattr(dep, "params")]
            deps = {dep.def_path for dep in stage.deps if dep not in params}
            assert deps == set(ours[address].deps), address
            assert {out.def_path for out in stage.outs} == set(ours[address].outs), address
            sections = {name for dep in params for name in dep.params}
            assert sections == set(ours[address].params), address


def test_a_template_that_names_nothing_is_reported(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text("seed: 0\n")
    (tmp_path / "dvc.yaml").write_text("stages: {a: {cmd: x, deps: ['${no.such}']}}\n")
    with pytest.raises(ValueError, match=r"\$\{no\.such\} names nothing in params\.yaml"):
        list(declarations(tmp_path))


def test_an_unknown_stage_lists_what_there_is() -> None:
    with pytest.raises(ValueError, match="declares no stage fit_techer"):
        declaration(ROOT, "fit_techer", ())

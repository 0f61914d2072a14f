"""dvc.yaml held against the code: deps, params, outs and plots say what the stages really do."""

from __future__ import annotations

import ast
import csv
import re
import sys
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path

import pytest

from braid.stage.dag import Declaration, declarations
from braid.stage.params import load_params, load_yaml
from braid.stage.sections import Params

ROOT = Path(__file__).parents[2]
STAGES = list(declarations(ROOT))
BY_SCRIPT = {each.name: each for each in STAGES}
WHOLE_ROOMS = ("braid/pipeline", "braid/training")  # every stage stands on these


def is_bare_package(path: Path) -> bool:
    """A package file with nothing in it but its docstring cannot change what a stage does."""
    body = ast.parse(path.read_text()).body
    return path.name == "__init__.py" and all(isinstance(node, ast.Expr) for node in body)


def with_packages(name: str) -> Iterator[str]:
    """A dotted name and the packages around it, which importing it runs."""
    yield from accumulate(name.split("."), "{}.{}".format)


def imported_modules(path: Path) -> Iterator[Path]:
    """The repository's modules that a file imports anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.module, f"{path} imports relatively, which this closure does not follow"
            assert not node.level, f"{path} imports relatively, which this closure does not follow"
            names = [node.module] + [f"{node.module}.{alias.name}" for alias in node.names]
        for package in {package for name in names for package in with_packages(name)}:
            base = ROOT / package.replace(".", "/")
            if base.with_suffix(".py").exists():
                yield base.with_suffix(".py")
            elif (base / "__init__.py").exists():
                yield base / "__init__.py"


def packages(path: Path) -> Iterator[Path]:
    """The packages around a module, whose `__init__` runs before it."""
    yield from (each for each in path.parents if (each / "__init__.py").exists())


def closure(script: Path) -> set[str]:
    seen: set[Path] = set()
    waiting = [script]
    while waiting:
        path = waiting.pop()
        if path not in seen:
            seen.add(path)
            waiting.extend(imported_modules(path))
            waiting.extend(parent / "__init__.py" for parent in packages(path))
    return {str(path.relative_to(ROOT)) for path in seen if not is_bare_package(path)}


def covers(declared: str, module: str) -> bool:
    return module == declared or module.startswith(f"{declared}/")


@pytest.mark.parametrize("stage", BY_SCRIPT.values(), ids=lambda stage: stage.name)
def test_declared_code_is_the_static_import_closure(stage: Declaration) -> None:
    modules = closure(ROOT / "stages" / f"{stage.name}.py")
    code = {dep for dep in stage.deps if dep.startswith(("braid/", "stages/"))}
    missing = {each for each in modules if not any(covers(dep, each) for dep in code)}
    unused = {dep for dep in code if not any(covers(dep, each) for each in modules)}
    assert not missing, f"{stage.name} imports what dvc.yaml does not declare"
    assert not unused, f"{stage.name} declares code that it does not import"
    assert {dep for dep in code if not dep.endswith(".py")} <= set(WHOLE_ROOMS)


def params_sections_read(script: Path) -> set[str]:
    """Sections a stage script reads, as `stage.params.<section>` (or `params.<section>`)."""
    return {
        node.attr
        for node in ast.walk(ast.parse(script.read_text()))
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Attribute | ast.Name)
        and (node.value.attr if isinstance(node.value, ast.Attribute) else node.value.id)
        == "params"
        and node.attr in Params.model_fields
    }


@pytest.mark.parametrize("stage", BY_SCRIPT.values(), ids=lambda stage: stage.name)
def test_declared_params_are_those_the_script_reads(stage: Declaration) -> None:
    declared = {each.split(".")[0] for each in stage.params}
    assert declared == params_sections_read(ROOT / "stages" / f"{stage.name}.py")


def test_every_section_of_params_yaml_is_declared_by_some_stage_or_templated() -> None:
    declared = {each.split(".")[0] for stage in STAGES for each in stage.params}
    templated = (ROOT / "dvc.yaml").read_text()
    for section in Params.model_fields:
        assert section in declared or re.search(rf"\$\{{{section}[.}}]", templated), section


def test_every_stage_script_is_a_stage_and_the_reverse() -> None:
    scripts = {path.stem for path in (ROOT / "stages").glob("*.py")} - {"__init__"}
    assert scripts == set(load_yaml(ROOT / "dvc.yaml")["stages"])


def test_params_yaml_is_valid_and_complete() -> None:
    load_params(ROOT / "params.yaml")
    for name, section in load_yaml(ROOT / "params.yaml").items():
        assert name in Params.model_fields
        assert section is not None


def test_every_out_stands_in_an_output_folder_and_belongs_to_one_stage() -> None:
    outs = [out for stage in STAGES for out in stage.outs]
    assert len(outs) == len(set(outs))
    assert all(out.split("/")[0] in {"data", "models", "metrics", "plots"} for out in outs)


def test_every_data_dep_inside_the_repository_is_some_stage_s_out() -> None:
    outs = {out for stage in STAGES for out in stage.outs}
    for stage in STAGES:
        for dep in stage.deps:
            if dep.split("/")[0] in {"data", "models", "metrics", "plots"}:
                made = any(covers(dep, out) for out in outs)
                assert made, f"{stage.address} depends on {dep}, which no stage makes"


def plotted_columns() -> Iterator[tuple[str, str, str]]:
    """(plot, file, column) for each CSV column that dvc.yaml's plots name."""
    for entry in load_yaml(ROOT / "dvc.yaml").get("plots", []):
        for plot, body in entry.items() if isinstance(entry, dict) else []:
            body = body or {}
            files = body.get("y", {})
            for file, columns in files.items() if isinstance(files, dict) else []:
                for column in [columns] if isinstance(columns, str) else columns:
                    yield plot, file, column
                    if isinstance(body.get("x"), str):
                        yield plot, file, body["x"]


@pytest.mark.parametrize(("plot", "file", "column"), sorted(set(plotted_columns())))
def test_plotted_columns_exist_in_the_committed_csv(plot: str, file: str, column: str) -> None:
    with (ROOT / file).open() as content:
        header = next(csv.reader(content))
    assert column in header, f"plot {plot} draws {column}, which {file} does not hold"


def test_plotted_files_are_outs_of_stages() -> None:
    outs = {out for stage in STAGES for out in stage.outs}
    assert {file for _, file, _ in plotted_columns()} <= outs
    named = {each for each in load_yaml(ROOT / "dvc.yaml")["plots"] if isinstance(each, str)}
    assert {each for each in named if not any(covers(each, out) for out in outs)} == set()


def test_the_closure_follows_every_way_of_importing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    modules = {
        "room/a.py": "from room.b import late\nimport room.c\n",
        "room/b.py": "def late():\n    from room.d import thing\n",
        "room/c.py": "import os\n",
        "room/d.py": "thing = 1\n",
        "room/unused.py": "",
        "room/__init__.py": '"""Nothing."""\n',
    }
    (tmp_path / "room").mkdir()
    for name, text in modules.items():
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    assert closure(tmp_path / "room/a.py") == {f"room/{each}.py" for each in "abcd"}
    (tmp_path / "room/__init__.py").write_text("from room import unused\n")
    assert closure(tmp_path / "room/a.py") >= {"room/__init__.py", "room/unused.py"}
    (tmp_path / "room/c.py").write_text("from . import d\n")
    with pytest.raises(AssertionError, match="imports relatively"):
        closure(tmp_path / "room/a.py")


ROOMS = ("pipeline", "training", "radiance", "drifting", "clips", "images", "segmentation")


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_do_not_import_one_another(room: str) -> None:
    """Strands may use training; nothing in the library knows pipeline or the stages."""
    allowed = {room} if room in {"pipeline", "training"} else {room, "training"}
    for path in (ROOT / "braid" / room).glob("**/*.py"):
        for module in imported_modules(path):
            parts = module.relative_to(ROOT).parts
            assert parts[0] == "braid", f"{path} imports {module}"
            assert len(parts) == 2 or parts[1] in allowed, f"{path} imports {module}"

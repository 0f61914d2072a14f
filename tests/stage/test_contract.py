"""dvc.yaml held against the code: deps, params, outs and plots say what the stages really do."""

from __future__ import annotations

import ast
import csv
import re
import subprocess
import sys
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest

from braid.common.io import read_json
from braid.stage.context import RUNTIME, runtime_file
from braid.stage.dag import Declaration, declarations
from braid.stage.params import MODELS, Params, load_params, load_yaml

ROOT = Path(__file__).parents[2]
STAGES = list(declarations(ROOT))
BY_SCRIPT = {stage.name: stage for stage in STAGES}
SECTIONS = set(Params.__annotations__)


def is_bare_package(path: Path) -> bool:
    """A package file with nothing in it but its docstring cannot change what a stage does."""
    body = ast.parse(path.read_text()).body
    return path.name == "__init__.py" and all(isinstance(node, ast.Expr) for node in body)


def with_packages(name: str) -> Iterator[str]:
    """A dotted name and the packages around it, which importing it runs."""
    yield from accumulate(name.split("."), "{}.{}".format)


def executed(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes but those that only a type checker reads."""
    for node in ast.iter_child_nodes(tree):
        if not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"):
            yield node
            yield from executed(node)


def imported_modules(path: Path) -> Iterator[Path]:
    """The repository's modules that a file imports anywhere in it."""
    for node in executed(ast.parse(path.read_text())):
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
    yield from (parent for parent in path.parents if (parent / "__init__.py").exists())


def closure(*start: Path) -> set[str]:
    seen: set[Path] = set()
    waiting = list(start)
    while waiting:
        path = waiting.pop()
        if path not in seen:
            seen.add(path)
            waiting.extend(imported_modules(path))
            waiting.extend(parent / "__init__.py" for parent in packages(path))
    return {str(path.relative_to(ROOT)) for path in seen if not is_bare_package(path)}


def covers(declared: str, module: str) -> bool:
    return module == declared or module.startswith(f"{declared}/")


def models_of(stage: Declaration) -> set[Path]:
    """The modules whose models check the params that a stage declares."""
    sections = {name.split(".")[0] for name in stage.params} - {"seed"}
    modules = {MODELS[section].rpartition(".")[0] for section in sections}
    return {ROOT / f"{module.replace('.', '/')}.py" for module in modules}


@pytest.mark.parametrize("stage", BY_SCRIPT.values(), ids=lambda stage: stage.name)
def test_declared_code_is_the_static_import_closure(stage: Declaration) -> None:
    modules = closure(ROOT / "stages" / f"{stage.name}.py", *models_of(stage))
    code = {dep for dep in stage.deps if dep.startswith(("braid/", "stages/"))}
    missing = {module for module in modules if not any(covers(dep, module) for dep in code)}
    unused = {dep for dep in code if not any(covers(dep, module) for module in modules)}
    assert not missing, f"{stage.name} imports what dvc.yaml does not declare"
    assert not unused, f"{stage.name} declares code that it does not import"


@pytest.mark.parametrize("stage", BY_SCRIPT.values(), ids=lambda stage: stage.name)
def test_code_deps_are_the_lowest_folders_of_the_library(stage: Declaration) -> None:
    """And the `config.py` of a strand, which stands beside its folders."""
    for dep in stage.deps:
        if dep.startswith("braid/") and not dep.endswith("/config.py"):
            folders = [path.name for path in (ROOT / dep).iterdir() if path.is_dir()]
            assert (ROOT / dep).is_dir()
            assert set(folders) <= {"__pycache__"}, dep


class ParamsRead(ast.NodeVisitor):
    """Dotted params that a stage script reads, through names that it gives to parts of them."""

    def __init__(self, script: Path) -> None:
        self.names: dict[str, str] = {}
        self.read: set[str] = set()
        self.visit(ast.parse(script.read_text()))

    def dotted(self, node: ast.AST) -> str | None:
        if isinstance(node, ast.Name):
            return self.names.get(node.id)
        if isinstance(node, ast.Subscript):
            return self.dotted(node.value)
        if isinstance(node, ast.Attribute):
            if ast.unparse(node) == "stage.params":
                return ""
            before = self.dotted(node.value)
            return None if before is None else f"{before}.{node.attr}".lstrip(".")
        return None

    def visit_Assign(self, node: ast.Assign) -> None:
        target, value = node.targets[0], node.value
        pairs = [(target, value)]
        if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
            pairs = list(zip(target.elts, value.elts, strict=True))
        for name, part in pairs:
            dotted = self.dotted(part)
            if isinstance(name, ast.Name) and dotted is not None:
                self.names[name.id] = dotted
            self.visit(part)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        dotted = self.dotted(node)
        if dotted:
            self.read.add(dotted)
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        calls = {"stage.training": {"seed", "hardware", "training"}}
        calls["stage.device"] = {"seed", "hardware"}
        self.read |= calls.get(ast.unparse(node.func), set())
        self.generic_visit(node)


@pytest.mark.parametrize("stage", BY_SCRIPT.values(), ids=lambda stage: stage.name)
def test_declared_params_are_those_the_script_reads(stage: Declaration) -> None:
    read = ParamsRead(ROOT / "stages" / f"{stage.name}.py").read
    template = load_yaml(ROOT / "dvc.yaml")["stages"][stage.name]
    declared = [re.sub(r"\.\$\{.*\}$", "", name) for name in template.get("do", template)["params"]]
    unread = {name for name in declared if not any(covers_key(name, key) for key in read)}
    hidden = {key for key in read if not any(related(name, key) for name in declared)}
    assert not unread, f"{stage.name} declares params that it does not read"
    assert not hidden, f"{stage.name} reads params that dvc.yaml does not declare"


def covers_key(declared: str, key: str) -> bool:
    return key == declared or key.startswith(f"{declared}.")


def related(declared: str, key: str) -> bool:
    return covers_key(declared, key) or covers_key(key, declared)


def test_every_section_of_params_yaml_is_declared_by_some_stage_or_templated() -> None:
    declared = {name.split(".")[0] for stage in STAGES for name in stage.params}
    templated = (ROOT / "dvc.yaml").read_text()
    for section in SECTIONS:
        assert section in declared or re.search(rf"\$\{{{section}[.}}]", templated), section


def leaves(value: Any, prefix: str = "") -> Iterator[str]:
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from leaves(inner, f"{prefix}.{name}".lstrip("."))
    else:
        yield prefix


def test_every_param_is_declared_by_some_stage_or_templated() -> None:
    declared = {name for stage in STAGES for name in stage.params}
    templated = set(re.findall(r"\$\{([^}]+)\}", (ROOT / "dvc.yaml").read_text()))
    for leaf in leaves(load_yaml(ROOT / "params.yaml")):
        assert any(covers_key(name, leaf) for name in declared | templated), leaf


def test_every_stage_script_is_a_stage_and_the_reverse() -> None:
    scripts = {path.stem for path in (ROOT / "stages").glob("*.py")} - {"__init__"}
    assert scripts == set(load_yaml(ROOT / "dvc.yaml")["stages"])


@pytest.mark.parametrize(
    "script", sorted((ROOT / "stages").glob("*.py")), ids=lambda path: path.stem
)
def test_a_stage_script_is_short(script: Path) -> None:
    assert len(script.read_text().splitlines()) <= 60


def test_params_yaml_is_valid_complete_and_has_few_sections() -> None:
    load_params(ROOT / "params.yaml")
    assert set(load_yaml(ROOT / "params.yaml")) == SECTIONS
    assert len(SECTIONS) <= 14


def test_dvc_yaml_and_the_library_can_be_read() -> None:
    # 650, and 40 for the two stages from text to clip
    assert len((ROOT / "dvc.yaml").read_text().splitlines()) <= 690
    modules = [path for path in (ROOT / "braid").rglob("*.py") if path.name != "__init__.py"]
    # 120, two of Wan's network, two from text to clip, two that stream shards, and the params of
    # images and trajectories, whose one file with those of clips had 624 lines
    assert len(modules) <= 128


def test_tests_mirror_the_library() -> None:
    """A test of the library is named after a module, and stands where that stands."""
    apart = {"tests", "stages", "recipes", "benchmarks", "launch", "rehearse", "docs", "report"}
    apart |= {"examples"}
    for path in (ROOT / "tests").rglob("test_*.py"):
        folder = ROOT / "braid" / path.parent.relative_to(ROOT / "tests")
        if path.parent.name not in apart:
            stems = [module.stem for module in folder.glob("*.py")] + ["contract"]
            named = [stem for stem in stems if f"{path.stem}_".startswith(f"test_{stem}_")]
            assert named, f"{path.relative_to(ROOT)} tests no module of {folder.relative_to(ROOT)}"


def test_every_out_stands_in_an_output_folder_and_belongs_to_one_stage() -> None:
    outs = [out for stage in STAGES for out in stage.outs]
    assert len(outs) == len(set(outs))
    assert all(out.split("/")[0] in {"data", "models", "metrics", "plots"} for out in outs)


def test_git_ignores_the_outs_of_dvc_and_keeps_the_others() -> None:
    """An out that git did not ignore would make DVC write a `.gitignore` of its own."""
    outs = [out for stage in STAGES for out in stage.outs]
    asked = "\n".join(out if Path(out).suffix else f"{out}/" for out in outs)
    command = ["git", "-C", str(ROOT), "check-ignore", "--stdin", "--no-index"]
    result = subprocess.run(command, input=asked, capture_output=True, text=True, check=False)
    ignored = {line.rstrip("/") for line in result.stdout.splitlines()}
    assert ignored == {out for out in outs if out.startswith(("data/", "models/"))}


def test_runtime_files_follow_the_rule_and_are_no_metrics() -> None:
    for stage in STAGES:
        runtime = [out for out in stage.outs if covers(RUNTIME, out) and out.endswith(".json")]
        assert runtime == [runtime_file(stage)]
    for template in load_yaml(ROOT / "dvc.yaml")["stages"].values():
        metrics = template.get("do", template).get("metrics", [])
        assert not [metric for metric in metrics if covers(RUNTIME, next(iter(metric)))]


def test_only_the_comparison_depends_on_runtime_files() -> None:
    """A clock's file among the deps would rerun what needs no clock."""
    for stage in STAGES:
        if stage.name != "compare_radiance":
            assert not [dep for dep in stage.deps if covers(RUNTIME, dep)], stage.address


def test_every_data_dep_inside_the_repository_is_some_stage_s_out() -> None:
    outs = {out for stage in STAGES for out in stage.outs}
    for stage in STAGES:
        for dep in stage.deps:
            if dep.split("/")[0] in {"data", "models", "metrics", "plots"}:
                made = any(covers(dep, out) or covers(out, dep) for out in outs)
                assert made, f"{stage.address} depends on {dep}, which no stage makes"


def plots() -> list[tuple[str, dict[str, Any]]]:
    """Id and body of each plot."""
    entries = load_yaml(ROOT / "dvc.yaml").get("plots", [])
    return [
        next(iter(entry.items())) if isinstance(entry, dict) else (entry, {}) for entry in entries
    ]


def as_list(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else list(value)


def plotted_columns() -> Iterator[tuple[str, str]]:
    """(file, column) of each CSV column that dvc.yaml's plots name; of a folder, each CSV in it."""
    for name, body in plots():
        sources = body.get("y", {})
        if not isinstance(sources, dict):
            files = (
                sorted((ROOT / name).rglob("*.csv")) if (ROOT / name).is_dir() else [ROOT / name]
            )
            sources = {str(file.relative_to(ROOT)): sources for file in files}
        for file, columns in sources.items():
            for column in [*as_list(columns), *as_list(body.get("x", []))]:
                yield file, column


@pytest.mark.parametrize(("file", "column"), sorted(set(plotted_columns())))
def test_plotted_columns_exist_in_the_committed_csv(file: str, column: str) -> None:
    with (ROOT / file).open() as content:
        header, *rows = csv.reader(content)
    drawn = bool(rows)  # DVC passes over a table of a folder that has none
    assert column in header or not drawn, f"{file} does not hold {column}"


def test_plotted_files_are_outs_of_stages() -> None:
    outs = {out for stage in STAGES for out in stage.outs}
    named = {
        file for _, body in plots() for file in body.get("y", {}) if isinstance(body["y"], dict)
    }
    named |= {name for name, body in plots() if not isinstance(body.get("y"), dict)}
    assert {name for name in named if not any(covers(name, out) for out in outs)} == set()


def test_no_item_s_name_stands_in_the_plots() -> None:
    """A user's own scene or student is drawn as the committed ones are."""
    section = (ROOT / "dvc.yaml").read_text().partition("\nplots:\n")[2]
    files = re.findall(r"[\w/.-]+/[\w/.-]+", section)
    items = {part for stage in STAGES for part in stage.item}
    assert not [
        file for file in files for part in Path(file).with_suffix("").parts[2:] if part in items
    ]


def test_the_closure_follows_every_way_of_importing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    modules = {
        "room/a.py": "from room.b import late\nimport room.c\n",
        "room/b.py": "def late():\n    from room.d import thing\n",
        "room/c.py": "if TYPE_CHECKING:\n    import room.unused\n",
        "room/d.py": "thing = 1\n",
        "room/unused.py": "",
        "room/__init__.py": '"""Nothing."""\n',
    }
    (tmp_path / "room").mkdir()
    for name, text in modules.items():
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    assert closure(tmp_path / "room/a.py") == {f"room/{module}.py" for module in "abcd"}
    (tmp_path / "room/__init__.py").write_text("from room import unused\n")
    assert closure(tmp_path / "room/a.py") >= {"room/__init__.py", "room/unused.py"}
    (tmp_path / "room/c.py").write_text("from . import d\n")
    with pytest.raises(AssertionError, match="imports relatively"):
        closure(tmp_path / "room/a.py")


def test_params_are_followed_through_names(tmp_path: Path) -> None:
    script = tmp_path / "stage.py"
    script.write_text(
        "config, K = stage.params.drift, stage.params.drift.K\n"
        "loss = DriftLoss(config.loss)\n"
        "scene = stage.params.radiance.scenes[name]\n"
        "run = stage.training()\n"
        "print(other.params.clips, scene.source)\n"
    )
    read = ParamsRead(script).read
    assert {"drift.K", "drift.loss", "radiance.scenes.source", "seed", "training"} <= read
    assert not [key for key in read if key.startswith("clips")]


# What each folder of the library may import besides itself; strands do not import one another.
BELOW = {
    "common": set(),
    "training": {"common"},
    "metrics": {"common"},
    "stage": {"common", "training"},
    "data": {"common"},
    "clustering": {"common"},
    "clips": {"data", "clustering", "common", "training"},
    "images": {"data", "clustering", "common", "training"},
    "mazes": {"data", "metrics", "common"},
    "pseudo_classes": {"data", "clustering", "common", "training", "clips"},
    "representation": {"clustering", "common", "training", "metrics", "clips", "pseudo_classes"},
    "radiance": {"common", "training", "metrics"},
    "drifting": {"common", "training", "metrics"},
    "segmentation": {"common", "training", "metrics"},
}


def folder_of(path: Path) -> str:
    return str(path.relative_to(ROOT / "braid").parent)


def test_the_library_is_a_tree_of_folders() -> None:
    """Every package is in the table; none imports what stands above it."""
    assert set(BELOW) == {path.parent.name for path in (ROOT / "braid").glob("*/__init__.py")}
    for path in (ROOT / "braid").glob("*/**/*.py"):
        package = path.relative_to(ROOT / "braid").parts[0]
        for module in imported_modules(path):
            parts = module.relative_to(ROOT).parts
            assert parts[0] == "braid", f"{path} imports {module}"
            if len(parts) > 2:
                allowed = BELOW[package] | {package}
                assert parts[1] in allowed, f"{path.relative_to(ROOT)} imports {module}"


def test_there_is_no_circle_between_folders() -> None:
    below: dict[str, set[str]] = {}
    for path in (ROOT / "braid").rglob("*.py"):
        targets = {
            folder_of(module) for module in imported_modules(path) if module.name != "__init__.py"
        }
        below.setdefault(folder_of(path), set()).update(targets - {folder_of(path)})
    # A strand's `config.py` stands beside its folders and is imported by them.
    while leaf := next((name for name, targets in below.items() if not targets & set(below)), None):
        del below[leaf]
    assert not below, f"folders that import one another: {below}"


def committed_metrics() -> dict[str, dict[str, Any]]:
    """Each metrics file that dvc.yaml declares, as committed."""
    declared = load_yaml(ROOT / "dvc.yaml")["stages"].values()
    templates = [
        next(iter(metric))
        for entry in declared
        for metric in entry.get("do", entry).get("metrics", [])
    ]
    patterns = [re.sub(r"\$\{[^}]+\}", "*", template) for template in templates]
    files = {path for pattern in patterns for path in ROOT.glob(pattern)}
    return {str(path.relative_to(ROOT)): read_json(path) for path in sorted(files)}


def test_a_metrics_file_has_at_most_12_figures() -> None:
    for name, figures in committed_metrics().items():
        assert len(list(leaves(figures))) <= 12, name


def test_metrics_of_all_stages_fit_on_a_screen() -> None:
    """`dvc metrics show` has a row a file, and a column a key and one of paths."""
    files = committed_metrics()
    assert len(files) <= 40
    # 60, and the length of trajectories
    assert len({leaf for figures in files.values() for leaf in leaves(figures)}) + 1 <= 61

"""What the documents say of the tree is so."""

from __future__ import annotations

import re
import shlex
import subprocess
import tomllib
from fnmatch import fnmatchcase
from functools import reduce
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import pytest
from dvc.cli import parse_args

from benchmarks.rerun_cost import moves
from braid.stage.dag import declarations
from braid.stage.params import load_yaml
from recipes.overrides import command as overridden

ROOT = Path(__file__).parents[1]


def tracked() -> list[Path]:
    """What git tracks or would track, as far as it is text."""
    listing = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-co", "--exclude-standard", "-z"],
        capture_output=True,
        text=True,
        check=True,
    )
    paths = (ROOT / name for name in listing.stdout.split("\0") if name)
    return [path for path in paths if path.suffix != ".png" and path.is_file()]


def tree(folder: str) -> dict[str, str]:
    """Pattern of a path and the stage that makes it, as the folder's page lists them."""
    block = (ROOT / folder / "README.md").read_text().split("```")[1]
    lines = [line.split() for line in block.splitlines()[2:] if not line.startswith(" ")]
    return {f"{folder}/{path.rstrip('/')}": stage for path, stage, *_ in lines}


def pattern(path: str) -> str:
    return re.sub(r"<\w+>", "*", path)


@pytest.mark.parametrize("folder", ["data", "models"])
def test_the_tree_of_an_output_folder_is_that_of_dvc_yaml(folder: str) -> None:
    outs = {
        (out, stage.name)
        for stage in declarations(ROOT)
        for out in stage.outs
        if out.startswith(f"{folder}/")
    }
    listed = tree(folder).items()

    def same(out: tuple[str, str], entry: tuple[str, str]) -> bool:
        return out[1] == entry[1] and fnmatchcase(out[0], pattern(entry[0]))

    assert [out for out in outs if not any(same(out, entry) for entry in listed)] == []
    assert [entry for entry in listed if not any(same(out, entry) for out in outs)] == []


def test_pages_of_output_folders_are_tracked_and_outputs_are_not() -> None:
    for folder in ("data", "models"):
        assert ROOT / folder / "README.md" in tracked()
        first = next(iter(tree(folder)))
        command = ["git", "-C", str(ROOT), "check-ignore", "-q", "--no-index", first]
        assert subprocess.run(command, check=False).returncode == 0


def test_nothing_tells_anybody_to_install_our_names_from_a_registry() -> None:
    """`braid` is somebody else's package, and `braid-pipeline` could be tomorrow."""
    advice = re.compile(r"\b(?:install|add|with)\b[^\n]*\bbraid(?:-pipeline)?\b(?![/.]\w)")
    tool = re.compile(r"\b(?:pip|pipx|uv|poetry|conda)\b")
    for path in tracked():
        for line in path.read_text(errors="replace").splitlines():
            advises = tool.search(line) and advice.search(line)
            assert not advises or path == Path(__file__), f"{path.relative_to(ROOT)}: {line}"
    assert advice.search("pip install 'braid[decode]'")
    assert advice.search("uv add braid-pipeline")
    assert not advice.search("pip install -e '.[wan]' in the folder of braid/images")


def test_extras_that_are_named_exist() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["name"] == "braid-pipeline"
    named = {
        extra
        for path in tracked()
        for extra in re.findall(r"'(?:\.|/environment)\[(\w+)\]'", path.read_text(errors="replace"))
    }
    assert {"wan", "umap", "dev"} <= named <= set(project["optional-dependencies"])
    assert f"--exclude {project['name']} " in (ROOT / "Makefile").read_text()


def test_files_of_the_changelog_are_where_it_says() -> None:
    moved = moves((ROOT / "CHANGELOG.md").read_text())
    assert len(moved) > 150
    gone = [old for old in moved if (ROOT / old).exists() and old not in moved[old]]
    absent = {new for files in moved.values() for new in files if not (ROOT / new).is_file()}
    assert (gone, absent) == ([], set())


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)


def shown(page: Path) -> str:
    """What a reader sees: without the templates of figures."""
    return COMMENT.sub("", page.read_text())


TOOLS = "dvc|make|python|git|pip|docker|source"
COMMAND = re.compile(rf"(?:[A-Z]+=(?:'[^']*'|\S+) )*(?:{TOOLS}) ")


def commands(page: Path) -> list[list[str]]:
    """The commands of a page, split into words; ellipses and what they print are left out."""
    blocks = re.findall(r"```(?:console|sh|bash)\n(.*?)```", shown(page), re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", "").splitlines()]
    lines += [line.replace("\n", " ") for line in re.findall(r"`([^`]+)`", shown(page))]
    ours = [line.removeprefix("$ ") for line in lines if COMMAND.match(line.removeprefix("$ "))]
    whole = [line for line in ours if not re.search("[…<]", line)]
    return [shlex.split(part, comments=True) for line in whole for part in line.split("&&")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_of_a_page_lead_somewhere(page: Path) -> None:
    outs = {out for stage in declarations(ROOT) for out in stage.outs}
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", shown(page)):
        if "://" in target:
            continue
        path = (page.parent / target).resolve().relative_to(ROOT)
        made = any(path.is_relative_to(out) for out in outs)
        assert made or (ROOT / path).exists(), f"{page.name}: {target}"


def test_the_readme_is_short() -> None:
    assert len(shown(ROOT / "README.md").split()) <= 1200


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_of_a_page_name_stages_params_and_targets_that_exist(page: Path) -> None:
    stages = {name for s in declarations(ROOT) for name in (s.name, s.address)}
    goals = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    params = load_yaml(ROOT / "params.yaml")
    added = {"impute_storyboard@mine"}
    for words in commands(page):
        if words[0] not in ("make", "dvc"):
            continue
        if words[0] == "make":
            assert {w for w in words[1:2] if "=" not in w} <= goals, words
        named = [w for w in words if re.match(r"[a-z]+_[a-z0-9_]+(@[\w-]+)?$", w)]
        assert set(named) <= stages | added, f"{page.name}: {named}"
        for before, word in pairwise(words):
            key = word.split("=")[0]
            if before == "-S" and not key.startswith("+"):
                assert reduce(lambda scope, part: scope[part], key.split("."), params) is not None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_of_a_page_are_such_that_their_tools_take_them(page: Path) -> None:
    """With all their options and params; `tests/stages` runs those of the front page."""
    for words in commands(page):
        while re.match(r"[A-Z]+=", words[0]):
            words = words[1:]
        tool, *arguments = words
        if words in (["make", "exp"], ["dvc", "metrics"]):
            continue  # a tool that is named
        if words[:2] == ["make", "exp"]:
            variables = dict(word.split("=", 1) for word in arguments[1:])
            overridden(ROOT, variables["RECIPE"], shlex.split(variables.get("ARGS", "")))
        elif words[:3] == ["dvc", "exp", "run"]:
            overridden(ROOT, "ga_ablate", arguments[2:])  # which changes nothing by itself
        elif tool == "dvc" and arguments[0] != "--wait-for-lock":
            parse_args(arguments)
        elif words[:2] == ["python", "-m"]:
            assert (spec := find_spec(words[2])) is not None, words
            assert spec.origin is not None
            assert Path(spec.origin).is_relative_to(ROOT)


def test_messages_that_are_explained_are_those_of_the_code() -> None:
    sources = [*ROOT.glob("braid/**/*.py"), *ROOT.glob("recipes/*.py"), *ROOT.glob("stages/*.py")]
    code = "".join(re.sub(r'"\s*\n\s*f?"', "", path.read_text()) for path in sources)
    foreign = ("Could not override", "ERROR: unexpected error", "Unable to acquire lock")  # DVC
    foreign += ("operator torchvision",)
    page = (ROOT / "docs/troubleshooting.md").read_text()
    messages = re.findall(r"^\| `([^`]+)`", page, re.MULTILINE)
    assert len(messages) > 10
    for message in messages:
        parts = re.split(r"…|<[^>]*>|^status:|drift\.K|^stage", message)
        known = all(part.strip(" ,:`") in code for part in parts)
        assert known or message.startswith(foreign), message

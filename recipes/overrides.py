"""What a recipe makes of params.yaml, and the `-S` of `dvc exp run` for it: one for each leaf.

A recipe is a sparse params.yaml over the committed one: what it has replaces, what it has not
stays, and `bricks: null` takes an entry with settings of its own away. `base: lego_200` makes it
go on from another recipe, so that a value stands in one place.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from braid.stage.params import check_params, load_yaml, renamed

# `params.yaml:` in front is optional; `+` adds a key, `++` adds or replaces, `~` takes away.
_OVERRIDE = re.compile(r"(?:params\.yaml:)?(?P<sign>~|\+{0,2})(?P<key>[^=:]+)(?:=.*)?", re.DOTALL)
DVC_FLAGS = "qvfisPpRk"  # of `dvc exp run`, those without a value
_BEFORE_QUOTE = re.compile(r"(\\*)('|$)")


def command(root: Path, name: str, arguments: Sequence[str]) -> list[str]:
    """The `dvc exp run` of the recipe `name` with further arguments, all of its settings checked.

    Raises:
        ValueError: no such recipe, or an unknown or old key or a value that params.yaml cannot have
            among the recipe's or the arguments' `-S`; one line that names it.
    """
    params = load_yaml(root / "params.yaml")
    settings = resolve(root, name, committed_params(root) or params)
    check_params(settings, f"recipes/{name}.yaml")
    given = _given(arguments)
    _check_keys(given, settings)
    for changed in _changed(given, settings):
        check_params(changed, "-S")
    flags = [word for override in overrides(params, settings) for word in ("-S", override)]
    return ["dvc", "exp", "run", *flags, *arguments]


def committed_params(root: Path) -> dict[str, Any] | None:
    """params.yaml of the last commit; None outside of git.

    An experiment leaves its values in the workspace: recipes run one after another would add up.
    """
    if shutil.which("git") is None:
        return None
    command = ["git", "-C", str(root), "show", "HEAD:./params.yaml"]
    shown = subprocess.run(command, capture_output=True, check=False)
    if shown.returncode:
        return None
    with TemporaryDirectory() as folder:
        path = Path(folder) / "params.yaml"
        path.write_bytes(shown.stdout)
        return load_yaml(path)


def names(root: Path) -> list[str]:
    """All recipes of the repository."""
    return sorted(path.stem for path in (root / "recipes").glob("*.yaml"))


def resolve(root: Path, name: str, params: Mapping[str, Any]) -> dict[str, Any]:
    """The whole of params.yaml with the recipe in it.

    Raises:
        ValueError: no such recipe; the message lists those that there are.
    """
    if name not in names(root):
        fault = f"no recipe '{name}'" if name else "no recipe is named (RECIPE=…)"
        raise ValueError(f"{fault}; there are {', '.join(names(root))}")
    recipe = load_yaml(root / f"recipes/{name}.yaml")
    base = recipe.pop("base", None)
    return merge(params if base is None else resolve(root, base, params), recipe)


def merge(settings: Mapping[str, Any], recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with what the recipe has instead; null takes a mapping away, if it is there."""
    merged = dict(settings)
    for key, value in recipe.items():
        present = settings.get(key)
        if isinstance(present, Mapping) and isinstance(value, Mapping):
            merged[key] = merge(present, value)
        elif value is None and (isinstance(present, Mapping) or key not in settings):
            merged.pop(key, None)
        else:
            merged[key] = value
    return merged


def overrides(
    params: Mapping[str, Any], settings: Mapping[str, Any], prefix: str = ""
) -> Iterator[str]:
    """What turns `params` into `settings`, in the grammar of `dvc exp run -S`."""
    yield from (f"~{prefix}{key}" for key in params if key not in settings)
    for key, value in settings.items():
        present = params.get(key)
        if isinstance(value, Mapping) and (value or isinstance(present, Mapping)):
            inner = present if isinstance(present, Mapping) else {}
            yield from overrides(inner, value, f"{prefix}{key}.")
        elif key not in params:
            yield f"+{prefix}{key}={_quoted(value)}"
        elif value != present:
            yield f"{prefix}{key}={_quoted(value)}"


def _quoted(value: Any) -> str:
    """A value in Hydra's grammar; a string always in quotes, so that none of it is grammar."""
    if isinstance(value, str):
        return "'" + _BEFORE_QUOTE.sub(_escaped, value).replace("${", r"\${") + "'"
    if isinstance(value, list):
        return f"[{','.join(map(_quoted, value))}]"
    return json.dumps(value)


def _escaped(match: re.Match[str]) -> str:
    """Backslashes are plain but in front of a quote, where each is written twice."""
    return match[1] * 2 + match[2].replace("'", r"\'")


def _given(arguments: Sequence[str]) -> list[str]:
    """The `-S` among the arguments of `dvc exp run`."""
    parser = argparse.ArgumentParser(add_help=False, exit_on_error=False)
    parser.add_argument("-S", "--set-param", action="append", default=[])
    for flag in DVC_FLAGS:  # which may stand before S in one word: -fS
        parser.add_argument(f"-{flag}", action="count")
    try:
        given: list[str] = parser.parse_known_args(arguments)[0].set_param
    except argparse.ArgumentError as error:
        raise ValueError(str(error)) from None
    return given


def _check_keys(given: Sequence[str], settings: Mapping[str, Any]) -> None:
    """Refuse keys that are old, or that are neither there nor added."""
    for match in filter(None, map(_OVERRIDE.fullmatch, given)):
        key = match["key"]
        if _has(settings, key):
            continue
        if new := renamed(key):
            raise ValueError(f"{key}: is now {new}")
        if not match["sign"].startswith("+"):
            raise ValueError(f"{key}: no such key")


def _changed(given: Sequence[str], settings: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """What DVC makes of the settings by `-S`; several, where one is a sweep (drift.K=64,512)."""
    if not given:
        return
    from dvc.exceptions import InvalidArgumentError  # takes half a second
    from dvc.utils.cli_parse import to_path_overrides
    from dvc.utils.hydra import apply_overrides, get_hydra_sweeps, to_hydra_overrides
    from hydra.errors import HydraException

    try:
        ours = {"params.yaml": to_path_overrides(given).get("params.yaml", [])}
        sweeps = any(each.is_sweep_override() for each in to_hydra_overrides(ours["params.yaml"]))
        with TemporaryDirectory() as folder:
            path = Path(folder) / "params.yaml"
            for chosen in get_hydra_sweeps(ours) if sweeps else [ours]:
                path.write_text(yaml.safe_dump(dict(settings)), encoding="utf-8")
                apply_overrides(path, chosen["params.yaml"])
                yield load_yaml(path)
    except (HydraException, InvalidArgumentError) as error:
        raise ValueError(f"-S: {' '.join(str(error.__cause__ or error).split())}") from None


def _has(settings: Any, key: str) -> bool:
    for part in key.split("."):
        if not isinstance(settings, Mapping) or part not in settings:
            return False
        settings = settings[part]
    return True

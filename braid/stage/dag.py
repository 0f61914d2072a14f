"""What dvc.yaml declares for each stage, with `${...}` filled in from params.yaml.

DVC resolves the same templates itself; this small reading of them lets a running stage know its
own deps, outs and params sections without importing DVC (which costs half a second a stage).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from braid.stage.params import load_yaml

_TEMPLATE = re.compile(r"\$\{([^}]+)\}")


@dataclass(frozen=True)
class Declaration:
    """One concrete stage: its template's name, its item and what it declares."""

    name: str
    item: tuple[str, ...]
    deps: tuple[str, ...]
    outs: tuple[str, ...]  # outs, metrics and plots alike
    params: tuple[str, ...]
    launched: bool = False  # by `launch.train` or `.data`, perhaps as one of several processes

    @property
    def address(self) -> str:
        """The name that DVC gives it: `stage` or `stage@item`."""
        return f"{self.name}@{'-'.join(self.item)}" if self.item else self.name


def declarations(root: Path) -> Iterator[Declaration]:
    """Every concrete stage of `root/dvc.yaml`, in the order of the file."""
    params = load_yaml(root / "params.yaml")
    for name, entry in load_yaml(root / "dvc.yaml")["stages"].items():
        for item, scope in _items(entry, params):
            yield _declaration(name, item, entry.get("do", entry), {**params, **scope})


def declaration(root: Path, name: str, item: tuple[str, ...]) -> Declaration:
    """The declaration of `name` for `item`.

    Raises:
        ValueError: dvc.yaml has no such stage or item.
    """
    known = [declared for declared in declarations(root) if declared.name == name]
    for declared in known:
        if declared.item == item:
            return declared
    choices = ", ".join(declared.address for declared in known) or "no stage of that name"
    wanted = f"{name}@{'-'.join(item)}" if item else name
    raise ValueError(f"dvc.yaml declares no stage {wanted} (it has: {choices})")


def _items(
    entry: Mapping[str, Any], params: Mapping[str, Any]
) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    if "foreach" in entry:
        values = _fill(entry["foreach"], params)
        pairs = values.items() if isinstance(values, Mapping) else ((str(v), v) for v in values)
        for key, value in pairs:
            yield (str(key),), {"key": key, "item": value}
    elif "matrix" in entry:
        axes = {axis: _fill(values, params) for axis, values in entry["matrix"].items()}
        for combination in product(*axes.values()):
            item = tuple(str(value) for value in combination)
            yield item, {"key": "-".join(item), "item": dict(zip(axes, item, strict=True))}
    else:
        yield (), {}


def _declaration(
    name: str, item: tuple[str, ...], body: Mapping[str, Any], scope: Mapping[str, Any]
) -> Declaration:
    def paths(*kinds: str) -> tuple[str, ...]:
        entries = [entry for kind in kinds for entry in body.get(kind, [])]
        names = [next(iter(entry)) if isinstance(entry, Mapping) else entry for entry in entries]
        return tuple(str(_fill(name, scope)) for name in names)

    outs = paths("outs", "metrics", "plots")
    launched = "${launch." in body["cmd"]
    return Declaration(name, item, paths("deps"), outs, paths("params"), launched)


def _fill(template: Any, scope: Mapping[str, Any]) -> Any:
    """Fill in `${a.b}`; a template that is nothing but one reference keeps the value's type."""
    if not isinstance(template, str):
        return template
    if whole := _TEMPLATE.fullmatch(template):
        return _look_up(whole[1], scope)
    return _TEMPLATE.sub(lambda match: str(_look_up(match[1], scope)), template)


def _look_up(reference: str, scope: Mapping[str, Any]) -> Any:
    value: Any = scope
    for part in reference.strip().split("."):
        if not isinstance(value, Mapping) or part not in value:
            raise ValueError(f"dvc.yaml: ${{{reference}}} names nothing in params.yaml")
        value = value[part]
    return value

"""params.yaml, read once, checked against the typed sections of `braid.pipeline.sections`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

import yaml
from pydantic import BaseModel, ValidationError

from braid.pipeline.sections import Params


class UndeclaredParam(RuntimeError):
    """A stage asked for a params section that dvc.yaml does not declare for it."""


class _Yaml12Loader(yaml.CSafeLoader):
    """PyYAML reads YAML 1.1, DVC writes 1.2: there `1e-05` is a float and `on` is a string.

    `50_000` is an integer in both of DVC's readers, though not in the standard.
    """


_CORE_SCHEMA = {
    "tag:yaml.org,2002:null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "tag:yaml.org,2002:bool": (r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    "tag:yaml.org,2002:int": (r"[-+]?[0-9]+(_[0-9]+)*", list("-+0123456789")),
    "tag:yaml.org,2002:float": (
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
}
_Yaml12Loader.yaml_implicit_resolvers = {}
for _tag, (_pattern, _first) in _CORE_SCHEMA.items():
    _Yaml12Loader.add_implicit_resolver(_tag, re.compile(rf"^(?:{_pattern})$"), _first)
_Yaml12Loader.add_implicit_resolver("tag:yaml.org,2002:merge", re.compile(r"^<<$"), ["<"])


def _int(loader: yaml.CSafeLoader, node: yaml.ScalarNode) -> int:
    return int(loader.construct_scalar(node))


def _float(loader: yaml.CSafeLoader, node: yaml.ScalarNode) -> float:
    return float(re.sub(r"\.(?=inf|nan)", "", loader.construct_scalar(node).lower()))


_Yaml12Loader.add_constructor("tag:yaml.org,2002:int", _int)
_Yaml12Loader.add_constructor("tag:yaml.org,2002:float", _float)


def load_yaml(path: Path) -> dict[str, Any]:
    """A YAML 1.2 mapping.

    Raises:
        ValueError: the file is missing, no YAML, or no mapping; the message names it.
    """
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_Yaml12Loader)
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a mapping of sections")
    return content


def load_params(path: Path) -> Params:
    """The whole of params.yaml, typed.

    Raises:
        ValueError: one line that names each wrong key and what was expected of it.
    """
    try:
        return Params.model_validate(load_yaml(path))
    except ValidationError as error:
        faults = [
            f"{'.'.join(str(part) for part in fault['loc']) or 'params'}: {fault['msg']}"
            + (f" (got {fault['input']!r})" if not isinstance(fault["input"], dict) else "")
            for fault in error.errors()
        ]
        raise ValueError(f"{path.name}: {'; '.join(faults)}") from None


class _DeclaredParams:
    """Hands out only what a stage declared: whole sections, `scenes.bricks` or `drift.K` alone."""

    def __init__(self, params: BaseModel, declared: Iterable[str], stage: str, of: str) -> None:
        self._params = params
        self._declared = tuple(declared)
        self._stage = stage
        self._of = of  # what the names stand below, "" at the top

    def __getattr__(self, name: str) -> Any:
        if name not in type(self._params).model_fields:
            raise AttributeError(f"params.yaml has no {self._of}{name}")
        value = getattr(self._params, name)
        if name in self._declared:
            return value
        keys = {each.split(".", 1)[1] for each in self._declared if each.startswith(f"{name}.")}
        if not keys:
            raise UndeclaredParam(
                f"stage {self._stage} reads the params section '{self._of}{name}', "
                "which dvc.yaml does not list under its params"
            )
        if isinstance(value, Mapping):
            return {key: value[key] for key in keys}
        return _DeclaredParams(value, keys, self._stage, f"{self._of}{name}.")


def declared_params(params: Params, declared: Iterable[str], stage: str) -> Params:
    """A view of `params` that raises `UndeclaredParam` outside of the `declared` sections."""
    return cast(Params, _DeclaredParams(params, declared, stage, ""))

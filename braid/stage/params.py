"""params.yaml, read once: composed of the strands' models, each declared in its `config.py`.

The models are imported by name at run time, so that a stage's code does not depend on the settings
of strands that it does not use, though all of params.yaml is checked before any work starts.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import yaml
from pydantic import Field, ValidationError, create_model

from braid.common.config import NAME_FORM, Config

if TYPE_CHECKING:
    from braid.clips.config import ClipsConfig
    from braid.drifting.config import DriftConfig, ImageMaeConfig, LatentMaeConfig
    from braid.drifting.image.config import ImageDriftConfig
    from braid.drifting.maze.config import MazeDriftConfig
    from braid.images.config import ImagesConfig
    from braid.mazes.config import MazesConfig
    from braid.radiance.config import RadianceConfig
    from braid.segmentation.config import Sam3Config
    from braid.training.config import HardwareConfig, LaunchConfig, TrainingConfig


@dataclass(frozen=True)
class Params:
    """The whole of params.yaml."""

    seed: int
    launch: LaunchConfig
    hardware: HardwareConfig
    training: TrainingConfig
    radiance: RadianceConfig
    clips: ClipsConfig
    latent_mae: LatentMaeConfig
    drift: DriftConfig
    images: ImagesConfig
    image_mae: ImageMaeConfig
    image_drift: ImageDriftConfig
    mazes: MazesConfig
    maze_drift: MazeDriftConfig
    sam3: Sam3Config


# Where the model of each section is declared; a test holds the names against the annotations above.
MODELS = {
    "launch": "braid.training.config.LaunchConfig",
    "hardware": "braid.training.config.HardwareConfig",
    "training": "braid.training.config.TrainingConfig",
    "radiance": "braid.radiance.config.RadianceConfig",
    "clips": "braid.clips.config.ClipsConfig",
    "latent_mae": "braid.drifting.config.LatentMaeConfig",
    "drift": "braid.drifting.config.DriftConfig",
    "images": "braid.images.config.ImagesConfig",
    "image_mae": "braid.drifting.config.ImageMaeConfig",
    "image_drift": "braid.drifting.image.config.ImageDriftConfig",
    "mazes": "braid.mazes.config.MazesConfig",
    "maze_drift": "braid.drifting.maze.config.MazeDriftConfig",
    "sam3": "braid.segmentation.config.Sam3Config",
}


class UndeclaredParam(RuntimeError):
    """A stage reads a param that dvc.yaml does not declare for it."""


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
        ValueError: the file is missing, no YAML, no mapping, or has a key twice; the message names
            it.
    """
    try:
        loader = _Yaml12Loader(path.read_text(encoding="utf-8"))
        node = loader.get_single_node()
        repeated = next(_repeated(node), None) if node else None
        content = loader.construct_document(node) if node else None
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if repeated:
        raise ValueError(f"{path}: {repeated}: stands there twice")
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a mapping of sections")
    return content


def _repeated(node: yaml.Node, prefix: str = "") -> Iterator[str]:
    """Dotted keys that a mapping has twice, of which YAML would take the last."""
    if not isinstance(node, yaml.MappingNode):
        return
    keys = [str(key.value) for key, _ in node.value]
    yield from (f"{prefix}{key}" for key in keys if keys.count(key) > 1)
    for key, value in node.value:
        yield from _repeated(value, f"{prefix}{key.value}.")


def load_params(path: Path) -> Params:
    """The whole of params.yaml, typed.

    Raises:
        ValueError: one line that names each wrong key and what was expected of it.
    """
    return check_params(load_yaml(path), path.name)


def check_params(values: Mapping[str, Any], source: str) -> Params:
    """Values of params.yaml, typed; `source` says in messages where they are from.

    Raises:
        ValueError: as `load_params`.
    """
    try:
        model = _whole().model_validate(values)
    except ValidationError as error:
        faults = [line for fault in error.errors() for line in _described(fault)]
        raise ValueError(f"{source}: {'; '.join(faults)}") from None
    return Params(**{name: getattr(model, name) for name in type(model).model_fields})


def renamed(key: str) -> str | None:
    """What an old dotted key is called now; None for one that never was."""
    table = _renamed()
    old = max((old for old in table if f"{key}.".startswith(f"{old}.")), key=len, default=None)
    return None if old is None else table[old] + key[len(old) :]


@cache
def _renamed() -> dict[str, str]:
    return load_yaml(Path(__file__).with_name("renamed.yaml"))


Seed = Annotated[int, Field(ge=0, lt=2**32)]  # what NumPy's generators take


@cache
def _whole() -> type[Config]:
    fields: dict[str, Any] = {"seed": (Seed, ...)}
    for section, place in MODELS.items():
        module, _, name = place.rpartition(".")
        fields[section] = (getattr(import_module(module), name), ...)
    return create_model("Params", __base__=Config, **fields)


def _described(fault: Any) -> Iterator[str]:
    """A fault of validation in words; an old key, each of its leaves, with its new name."""
    place, message, value = ".".join(map(str, fault["loc"])), fault["msg"], fault["input"]
    if fault["loc"][-1:] == ("[key]",):
        place = ".".join(map(str, fault["loc"][:-2])) or "params"
        message = f"expected a name of {NAME_FORM}"
    elif fault["type"] == "extra_forbidden":
        for key in _leaves(place, value):
            new = renamed(key)
            yield f"{key}: " + (f"is now {new}" if new else "no such key")
        return
    if fault["type"] == "string_type" and value is None:
        message += ", the word none where there is no file"
    got = "null" if value is None else repr(value)
    shown = "" if isinstance(value, Mapping) else f" (got {got})"
    yield f"{place or 'params'}: {message}{shown}"


def _leaves(prefix: str, value: Any) -> Iterator[str]:
    """Dotted keys of the leaves below `prefix`; itself where there are none."""
    if not isinstance(value, Mapping) or not value:
        yield prefix
        return
    for key, inner in value.items():
        yield from _leaves(f"{prefix}.{key}", inner)


class _DeclaredParams:
    """Hands out only what a stage declared: `radiance.student`, `drift.K`, all of `hardware`."""

    def __init__(self, values: Any, declared: Iterable[str], stage: str, prefix: str) -> None:
        self._values = values
        self._declared = tuple(declared)
        self._stage = stage
        self._prefix = prefix  # what the names stand below, "" at the top

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or not hasattr(self._values, name):
            raise AttributeError(f"params.yaml has no {self._prefix}{name}")
        return self._inner(name, getattr(self._values, name))

    def __getitem__(self, name: str) -> Any:
        return self._inner(name, self._values[name])

    def _inner(self, name: str, value: Any) -> Any:
        if name in self._declared:
            return value
        below = [key.split(".", 1)[1] for key in self._declared if key.startswith(f"{name}.")]
        if not below:
            raise UndeclaredParam(
                f"stage {self._stage} reads the params '{self._prefix}{name}', "
                "which dvc.yaml does not list under its params"
            )
        return _DeclaredParams(value, below, self._stage, f"{self._prefix}{name}.")


def declared_params(params: Params, declared: Iterable[str], stage: str) -> Params:
    """A view of `params` that raises `UndeclaredParam` outside of what is `declared`."""
    return cast(Params, _DeclaredParams(params, declared, stage, ""))

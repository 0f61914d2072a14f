"""Which strand a file of metrics/ or plots/ belongs to, by the stage that makes it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from braid.stage.params import load_yaml

# Title and the folder of the library that only its stages import, the most particular first.
STRANDS = {
    "Radiance": "braid/radiance/",
    "Segmentation": "braid/segmentation/",
    "Images": "braid/images/",
    "Mazes": "braid/mazes/",
    "Clips": "braid/clips/",
}
OTHER = "Other"


@dataclass(frozen=True)
class Template:
    """A stage of dvc.yaml before its items are filled in."""

    name: str
    strand: str
    outs: tuple[str, ...]  # patterns
    deps: tuple[str, ...]  # patterns

    def makes(self, path: str) -> bool:
        """Whether the path is an out of the stage, or lies in one."""
        return any(fnmatchcase(path, out) or fnmatchcase(path, f"{out}/*") for out in self.outs)

    def needs(self, other: Template) -> bool:
        """Whether a dep of the stage is an out of the other, lies in one or holds one."""
        return any(
            other.makes(dep) or any(fnmatchcase(out, f"{dep}/*") for out in other.outs)
            for dep in self.deps
        )


def templates(root: Path) -> list[Template]:
    """The stages, in the order of dvc.yaml."""
    stages = load_yaml(root / "dvc.yaml")["stages"].items()
    return [_template(name, entry.get("do", entry)) for name, entry in stages]


def strand_of(path: str, stages: list[Template]) -> str:
    """The strand whose stage makes the path, or files below it; that of no stage is `Other`.

    An older revision has paths that no stage of today's dvc.yaml makes.
    """
    for stage in stages:
        if stage.makes(path) or any(out.startswith(f"{path}/") for out in stage.outs):
            return stage.strand
    return OTHER


def _template(name: str, body: Mapping[str, Any]) -> Template:
    deps = tuple(dep for dep in _patterns(body, "deps") if dep != "*")  # a file that a param names
    strand = next(
        (
            title
            for title, code in STRANDS.items()
            if any(f"{dep}/".startswith(code) for dep in deps)
        ),
        OTHER,
    )
    return Template(name, strand, tuple(_patterns(body, "outs", "metrics", "plots")), deps)


def _patterns(body: Mapping[str, Any], *kinds: str) -> Iterator[str]:
    for kind in kinds:
        for entry in body.get(kind, []):
            path = next(iter(entry)) if isinstance(entry, Mapping) else entry
            yield re.sub(r"\$\{[^}]+\}", "*", path)

"""Write a job that runs a recipe on several nodes: `python -m launch slurm wan --nodes 4 > job.sh`.

A SLURM batch script, a SkyPilot task or a PyTorchJob of Kubeflow's training operator, from the
files in launch/templates. Nothing is submitted. All nodes must see the repository's folder.
"""

from __future__ import annotations

import argparse
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from recipes.overrides import command

ROOT = Path(__file__).parents[1]
TEMPLATES = {"slurm": "slurm.sh.in", "sky": "sky.yaml.in", "k8s": "k8s.yaml.in"}
TARGETS = re.compile(r"^# command: .*ARGS=(?:\"([^\"]*)\"|(\S+))", re.MULTILINE)
FIELD = re.compile(r"\{\{(\w+)\}\}")


def render(engine: str, recipe: str, fields: Mapping[str, object], targets: Sequence[str]) -> str:
    """The job of a recipe; without targets those that its head names.

    Raises:
        ValueError: no such recipe or engine, fewer than two nodes, or a folder that is relative.
    """
    if engine not in TEMPLATES:
        raise ValueError(f"no engine '{engine}', expected one of {', '.join(TEMPLATES)}")
    command(ROOT, recipe, [])  # its settings are checked
    if int(str(fields["nodes"])) < 2:
        raise ValueError(f"--nodes is {fields['nodes']}, expected 2 or more: one needs no job")
    if not str(fields["folder"]).startswith("/"):
        raise ValueError(f"--folder is {fields['folder']}, expected an absolute path")
    head = TARGETS.search((ROOT / f"recipes/{recipe}.yaml").read_text(encoding="utf-8"))
    wanted = list(targets) or ((head[1] or head[2]).split() if head else [])
    values = {
        **fields,
        "recipe": recipe,
        "name": f"braid-{recipe}".replace("_", "-"),
        "workers": int(str(fields["nodes"])) - 1,
        "folder": shlex.quote(str(fields["folder"])),
        "targets": shlex.join(wanted),
    }
    text = (ROOT / "launch/templates" / TEMPLATES[engine]).read_text(encoding="utf-8")
    return FIELD.sub(lambda field: str(values[field[1]]), text)


def main() -> None:
    """Print a job; a fault ends in one line."""
    parser = argparse.ArgumentParser(prog="python -m launch", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("engine", choices=list(TEMPLATES))
    parser.add_argument("recipe", help="a file of recipes/, without .yaml")
    parser.add_argument("targets", nargs="*", help="stages; default: those of the recipe's head")
    parser.add_argument("--nodes", type=int, default=2)
    parser.add_argument("--gpus", type=int, default=8, help="of a node (8), a process each")
    parser.add_argument("--gpu", default="H100", help="their kind, for SkyPilot")
    parser.add_argument("--image", default="braid", help="the container, for Kubernetes")
    parser.add_argument("--folder", default="/braid", help="the repository, on all nodes")
    options = vars(parser.parse_args())
    engine, recipe, targets = (options.pop(name) for name in ("engine", "recipe", "targets"))
    try:
        sys.stdout.write(render(engine, recipe, options, targets))
    except ValueError as error:
        sys.exit(f"error: launch: {error}")


if __name__ == "__main__":
    main()

"""What edits cost: the seconds that `dvc repro` reruns after a commit, on the average of the last.

    python -m benchmarks.rerun_cost 21            # the last 21 commits that touched braid/
    python -m benchmarks.rerun_cost 21 c7e86ac    # the last 21 up to that one

A stage reruns when a commit touched a file of its code deps, or when a stage that it depends on
reran. Deps are those of today's dvc.yaml, seconds those of the last run (`metrics/runtime`), and
files that have moved since are looked up in the table of CHANGELOG.md.

Expected for 21 commits up to c7e86ac: at most 56 % of the seconds of all stages, which is what the
layout of that day came to (430 s of 770 s by its own clocks).
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path

from braid.stage.dag import Declaration, declarations

ROOT = Path(__file__).parents[1]
_CODE = ("braid/", "stages/")


@dataclass(frozen=True)
class Commit:
    """A commit, and what code it touched by the names that the files have today."""

    name: str
    subject: str
    files: frozenset[str]


def main() -> None:
    """Print the cost of each commit and their mean."""
    count, revision = int(sys.argv[1]), (sys.argv[2:] or ["HEAD"])[0]
    stages = list(declarations(ROOT))
    seconds = {stage: clock(ROOT, stage) for stage in stages}
    moved = moves((ROOT / "CHANGELOG.md").read_text())
    costs = []
    for commit in commits(ROOT, count, revision, moved):
        stale = rerun(stages, commit.files)
        costs.append(sum(seconds[stage] for stage in stale))
        print(f"{commit.name}  {costs[-1]:5.0f} s  {len(stale):2d} stages  {commit.subject}")
    mean, whole = sum(costs) / len(costs), sum(seconds.values())
    print(f"mean of {len(costs)} commits: {mean:.0f} s, {100 * mean / whole:.0f} % of", end=" ")
    print(f"all {len(stages)} stages: {whole:.0f} s")


def rerun(stages: Sequence[Declaration], touched: AbstractSet[str]) -> list[Declaration]:
    """The stages that run again once the files `touched` have changed, in order of their turn."""
    stale: list[Declaration] = []
    changed, fresh = set(touched), list(stages)
    while turn := [stage for stage in fresh if _reads(stage, changed)]:
        stale += turn
        changed = {out for stage in turn for out in stage.outs}
        fresh = [stage for stage in fresh if stage not in turn]
    return stale


def _reads(stage: Declaration, changed: AbstractSet[str]) -> bool:
    return any(_overlap(dep, path) for dep in stage.deps for path in changed)


def _overlap(one: str, other: str) -> bool:
    return f"{one}/".startswith(f"{other}/") or f"{other}/".startswith(f"{one}/")


def clock(root: Path, stage: Declaration) -> float:
    """Seconds of the stage's last run; 0 for a stage that declares no runtime file."""
    for out in stage.outs:
        if out.startswith("metrics/runtime/") and out.endswith(".json"):
            return float(json.loads((root / out).read_text())["seconds"])
    return 0.0


def commits(root: Path, count: int, revision: str, moved: Mapping[str, set[str]]) -> list[Commit]:
    """The last `count` commits up to `revision` that touched braid/, the newest first."""
    form = "--format=%x00%h%x09%s"
    options = [f"-n{count}", form, "--name-only", "--no-renames", "--no-merges", "--full-diff"]
    command = ["git", "-C", str(root), "log", *options, revision, "--", "braid"]
    log = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return [_commit(entry, moved) for entry in log.split("\0")[1:]]


def _commit(entry: str, moved: Mapping[str, set[str]]) -> Commit:
    (head, *paths) = entry.splitlines()
    name, subject = head.split("\t", 1)
    code = [path for path in paths if path.startswith(_CODE)]
    return Commit(name, subject, frozenset().union(*(moved.get(path, {path}) for path in code)))


def moves(changelog: str) -> dict[str, set[str]]:
    """Where the changelog's tables say that files of braid/ have gone to."""
    places: dict[str, set[str]] = {}
    for old, new in _rows(changelog):
        for path in _files(old):
            places.setdefault(path, set()).update(_files(new))
    return places


def _rows(text: str) -> Iterator[tuple[str, str]]:
    for line in text.splitlines():
        cells = line.strip().strip("|").split("|")
        if line.startswith("|") and len(cells) == 2:
            yield cells[0], cells[1]


def _files(cell: str) -> list[str]:
    return re.findall(r"`(braid/[\w/]+\.py)`", cell)


if __name__ == "__main__":
    main()

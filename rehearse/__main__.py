"""Rehearse recipes, one after another: `python -m rehearse lego_800 wan`.

    python -m rehearse                  # all of them
    python -m rehearse wan --gib 16 -S clips.representation.clips=4

Every recipe has a folder below `--folder` with its inputs, a copy of the repository and what was
measured. A rehearsal that was killed or mended goes on: DVC skips the stages that are done. At
the end the tables of docs/results are written anew.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rehearse.plans import PLANS
from rehearse.rehearsal import Rehearsal
from rehearse.tables import write_tables

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "scratch/rehearsals"


def main() -> None:
    """Run them; the exit status is that of the last that failed."""
    parser = argparse.ArgumentParser(prog="python -m rehearse", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("recipes", nargs="*", metavar="RECIPE", help="all, if none is named")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where to work")
    parser.add_argument("--gib", type=float, default=22, help="memory that a stage may take")
    parser.add_argument(
        "-S",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="more",
        help="a further override, of which the tables do not know",
    )
    given = parser.parse_args()
    if unknown := sorted(set(given.recipes) - set(PLANS)):
        sys.exit(f"error: rehearse: no plan for {', '.join(unknown)}; there are {', '.join(PLANS)}")
    failed = 0
    for name in given.recipes or PLANS:
        rehearsal = Rehearsal(ROOT, name, PLANS[name], given.folder.resolve() / name)
        failed = rehearsal.run(given.gib, given.more) or failed
        write_tables(ROOT / "docs/results", rehearsal)
    sys.exit(failed)


if __name__ == "__main__":
    main()

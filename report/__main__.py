"""Write the report: `python -m report [--format md] [REV ...]`, or `make report REV="HEAD exp1"`.

Without a revision it is of the working tree. The first of several is what the others are compared
with; one alone is compared with the working tree. Experiments are named as in `dvc exp show`.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from report.markdown import to_markdown
from report.page import open_report, to_html
from report.revisions import open_revisions

WRITERS = {"html": ("index.html", to_html), "md": ("report.md", to_markdown)}


def main() -> None:
    """Write the file and say where; a fault ends in one line."""
    root = Path.cwd()
    parser = argparse.ArgumentParser(prog="python -m report", description=__doc__)
    parser.add_argument(
        "revisions", nargs="*", metavar="REV", help="commits, branches, experiments"
    )
    parser.add_argument("--format", choices=sorted(WRITERS), default="html", help="html or md")
    parser.add_argument("--out", type=Path, help="file to write, instead of the one in report/")
    options = parser.parse_args()
    name, write = WRITERS[options.format]
    path = options.out or root / "report" / name
    try:
        content = write(open_report(root, open_revisions(root, options.revisions)))
        path.write_text(content, encoding="utf-8")
    except (ValueError, OSError) as error:
        sys.exit(f"error: report: {' '.join(str(error).split())}")
    shown = path.relative_to(root) if path.is_relative_to(root) else path
    print(f"{shown}: {len(content.encode()) / 1e3:,.0f} kB")


if __name__ == "__main__":
    main()

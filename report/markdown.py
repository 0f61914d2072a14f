"""The report's figures as Markdown, for a pull request."""

from __future__ import annotations

from report.metrics import Table, differences, figures, headline_tables
from report.page import Report

LIMIT = 60_000  # characters; a comment on GitHub holds 65,536


def to_markdown(report: Report) -> str:
    """What differs, then the headline figures of the last revision, folded.

    Raises:
        ValueError: it is longer than LIMIT.
    """
    names = ", ".join(f"`{r.name}` ({r.commit})" for r in report.revisions)
    lines = ["# Figures", "", f"Of {names}.", ""]
    if len(report.revisions) > 1:
        paths = {path for revision in report.revisions for path in figures(revision)}
        table = differences(report.revisions, paths)
        lines += [f"## Changes from `{report.revisions[0].name}`", ""]
        lines += [*_table(table), ""] if table.rows else ["Every figure is the same.", ""]
    metrics = figures(report.latest)
    for strand in report.strands:
        files = {path: metrics[path] for path in report.of(strand, list(metrics))}
        lines += [f"<details><summary>{strand}</summary>", ""]
        for headline in headline_tables(files):
            lines += [f"`{headline.title}`", "", *_table(headline), ""]
        lines += ["</details>", ""]
    text = "\n".join(lines)
    if len(text) > LIMIT:
        raise ValueError(f"{len(text)} characters, expected at most {LIMIT}; name fewer revisions")
    return text


def _table(table: Table) -> list[str]:
    rule = "|".join("---" for _ in table.header)
    rows = [" | ".join(cell.replace("|", "\\|") for cell in row) for row in table.rows]
    return [f"| {' | '.join(table.header)} |", f"|{rule}|", *(f"| {row} |" for row in rows)]

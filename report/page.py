"""The report as one HTML file that loads nothing."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path, PurePosixPath

from report.charts import Plot, charts, draw, read_plots
from report.dag import draw_dag
from report.metrics import Table, differences, figures, headline_tables, seconds, summary_tables
from report.pictures import Picture, data_uris, pictures
from report.revisions import Revision
from report.strands import Template, strand_of, templates

LIMIT = 15_000_000  # bytes of the page
_WIDE = 900  # pixels from which a picture takes a row
_LONG = 40  # characters of a cell that may break


@dataclass(frozen=True)
class Report:
    """What a report is made of."""

    stages: list[Template]
    plots: list[Plot]
    revisions: list[Revision]

    @property
    def latest(self) -> Revision:
        """The revision whose figures are shown in full."""
        return self.revisions[-1]

    @property
    def strands(self) -> list[str]:
        """In the order of dvc.yaml, and last what only an older revision has."""
        paths = {path for revision in self.revisions for path in figures(revision)}
        shown = [stage.strand for stage in self.stages]
        shown += [strand_of(path, self.stages) for path in sorted(paths)]
        return list(dict.fromkeys(shown))

    def of(self, strand: str, paths: Sequence[str]) -> list[str]:
        """The paths that stages of the strand make."""
        return [path for path in paths if strand_of(path, self.stages) == strand]


def open_report(root: Path, revisions: list[Revision]) -> Report:
    """The report of the plots and stages that dvc.yaml has now."""
    return Report(templates(root), read_plots(root), revisions)


def to_html(report: Report) -> str:
    """The page, at most LIMIT bytes.

    Raises:
        ValueError: a file cannot be read, or the pictures are too many.
    """
    style = (Path(__file__).parent / "style.css").read_text(encoding="utf-8")
    shown = {
        plot: pictures(plot.name, report.revisions) for plot in report.plots if not plot.columns
    }
    drawn = {
        plot: [
            _figure(chart.title, draw(chart, report.revisions), wide=False)
            for chart in charts(plot, report.revisions)
        ]
        for plot in report.plots
        if plot.columns
    }
    sections = "".join(_section(report, strand, drawn, shown) for strand in report.strands)
    links = "".join(f'<a href="#{_id(strand)}">{strand}</a>' for strand in report.strands)
    page = (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Braid: {escape(_name(report))}</title><style>{style}</style></head>"
        '<body><a class="skip" href="#main">To the figures</a>'
        f'<header><h1>Braid</h1>{_origin(report)}<nav aria-label="Strands">{links}</nav></header>'
        f'<main id="main">{sections}</main></body></html>'
    )
    every = [picture for found in shown.values() for picture in found]
    room = LIMIT - len(page.encode())
    for picture, uri in data_uris(every, room).items():
        page = page.replace(_slot(picture), uri)
    return page


def _section(
    report: Report,
    strand: str,
    drawn: dict[Plot, list[str]],
    shown: dict[Plot, list[Picture]],
) -> str:
    """A strand: figures, differences, curves, pictures, cards, stages."""
    metrics = figures(report.latest)
    files = {path: metrics[path] for path in report.of(strand, list(metrics))}
    tables = [t for t in summary_tables(report.latest) if report.of(strand, [t.title])]
    own = [plot for plot in report.plots if report.of(strand, [plot.path])]
    curves = [figure for plot in own for figure in drawn.get(plot, [])]
    several = len(report.revisions) > 1
    images = [_picture(picture, several) for plot in own for picture in shown.get(plot, [])]
    cards = report.of(strand, report.latest.below("metrics/runtime/cards", ".md"))
    parts = [
        f'<section aria-labelledby="{_id(strand)}"><h2 id="{_id(strand)}">{strand}</h2>',
        f'<p class="note">{_runtime(report, strand)}</p>',
        _changes(report, strand),
        _details("Figures", _tables([*headline_tables(files), *tables]), opened=True),
        _details(f"Curves ({len(curves)})", _grid(curves), opened=True),
        _details(f"Pictures ({len(images)})", _grid(images), opened=True),
        *(_details(*_card(path, report.latest)) for path in cards),
        _details("Stages", draw_dag(strand, report.stages)),
    ]
    return "".join([*parts, "</section>"])


def _changes(report: Report, strand: str) -> str:
    """What differs between the revisions, where there are several."""
    if len(report.revisions) == 1:
        return ""
    paths = {path for revision in report.revisions for path in figures(revision)}
    table = differences(report.revisions, set(report.of(strand, sorted(paths))))
    if not table.rows:
        return f'<p class="note">{escape(_name(report))}: every figure is the same.</p>'
    return _details("Differences", _table(table), opened=True)


def _origin(report: Report) -> str:
    names = "; ".join(f"{r.name}: commit {r.commit}" for r in report.revisions)
    first = "" if len(report.revisions) == 1 else f" Changes are from {report.revisions[0].name}."
    return f'<p class="note">{escape(names)}.{escape(first)}</p>'


def _runtime(report: Report, strand: str) -> str:
    taken = seconds(report.latest)
    total = sum(taken[path] for path in report.of(strand, list(taken)))
    return f"{len(report.of(strand, list(taken)))} stages took {total:,.0f} s by their own clocks."


def _tables(tables: Sequence[Table]) -> str:
    return f'<div class="tables">{"".join(map(_table, tables))}</div>' if tables else ""


def _table(table: Table) -> str:
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in table.header)
    rows = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in table.rows)
    caption = f"<caption>{escape(table.title)}</caption>" if table.title else ""
    label = escape(table.title or "differences", quote=True)
    notes = "".join(f'<p class="note">{escape(note)}</p>' for note in table.notes)
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{label}">'
        f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>{notes}</div>"
    )


def _cell(words: str) -> str:
    kind = ' class="long"' if len(words) > _LONG else ""
    return f"<td{kind}>{escape(words)}</td>"


def _details(summary: str, content: str, *, opened: bool = False) -> str:
    if not content:
        return ""
    state = " open" if opened else ""
    return f"<details{state}><summary>{escape(summary)}</summary>{content}</details>"


def _grid(entries: Sequence[str]) -> str:
    return f'<div class="grid">{"".join(entries)}</div>' if entries else ""


def _figure(caption: str, content: str, *, wide: bool) -> str:
    kind = ' class="wide"' if wide else ""
    return f"<figure{kind}><figcaption>{escape(caption)}</figcaption>{content}</figure>"


def _picture(picture: Picture, several: bool) -> str:
    width, height = picture.size
    image = (
        f'<img src="{_slot(picture)}" alt="{escape(picture.alt, quote=True)}" '
        f'width="{width}" height="{height}" loading="lazy">'
    )
    caption = f"{picture.path} ({picture.revision})" if several else picture.path
    return _figure(caption, image, wide=width > _WIDE)


def _slot(picture: Picture) -> str:
    """What stands for a picture until it is known how large pictures may be."""
    return f"{{{picture.revision}:{picture.path}}}"


def _card(path: str, revision: Revision) -> tuple[str, str]:
    """An experiment card: its summary line and its tables."""
    parts: list[str] = []
    rows: list[tuple[str, ...]] = []
    title, heading = PurePosixPath(path).stem, ""
    for line in [*revision.files[path].decode().splitlines(), "## "]:
        cells = tuple(cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1])
        if line.startswith("## "):
            if rows:
                parts.append(_table(Table(heading, ("", "value"), tuple(rows))))
            heading, rows = line[3:], []
        elif len(cells) == 2 and any(cells) and set(cells[0]) != {"-"}:
            rows.append((cells[0], cells[1].replace("\\|", "|")))
        elif line.startswith("**"):
            title = f"Card {title}: {line.replace('**', '')}"
    return title, f'<div class="tables">{"".join(parts)}</div>'


def _name(report: Report) -> str:
    return " and ".join(revision.name for revision in report.revisions)


def _id(strand: str) -> str:
    return strand.lower()

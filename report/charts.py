"""The curves of dvc.yaml's plots as SVG that takes its ink from the page.

A plot is an entry of `plots:`. One with columns of named CSVs, or of a single CSV in its folder,
is a chart with a line a column; a folder of several CSVs is a chart a column, with a line a CSV,
so that items can be compared. Revisions differ by the dashes of their lines.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from braid.common.plotting import BLUE, GREEN, INK, ORANGE, styled
from braid.stage.params import load_yaml
from report.revisions import Revision

COLORS = (BLUE, ORANGE, GREEN, "#CC79A7", "#E69F00", "#56B4E9", "#8a8a8a")  # Okabe and Ito
DASHES = ("-", "--", ":", "-.")  # of the revisions
_INCHES = (4.3, 2.8)
_LEGEND = 50  # characters of a legend's line
_HEAD = re.compile(r"^.*?(?=<svg)", re.DOTALL)  # XML declaration and document type
_METADATA = re.compile(r"<metadata>.*?</metadata>", re.DOTALL)
_NAMESPACE = re.compile(r'\sxmlns(:\w+)?="[^"]*"')
_SIZE = re.compile(r'(<svg[^>]*?)\swidth="[^"]*"', re.DOTALL)
_HEIGHT = re.compile(r'(<svg[^>]*?)\sheight="[^"]*"', re.DOTALL)


@dataclass(frozen=True)
class Plot:
    """An entry of dvc.yaml's plots."""

    name: str
    title: str
    x: str
    columns: tuple[tuple[str, str], ...]  # (file or folder, column); none: pictures
    y_label: str
    template: str

    @property
    def path(self) -> str:
        """A file or folder that it shows."""
        return self.columns[0][0] if self.columns else self.name


@dataclass(frozen=True)
class Line:
    """One line of a chart; categories instead of numbers where x names things."""

    label: str
    x: tuple[str, ...]
    y: tuple[float, ...]
    revision: int  # of the report's revisions
    shared: bool  # the same in all of them


@dataclass
class Chart:
    """One pair of axes."""

    plot: Plot
    title: str
    y_label: str
    lines: list[Line] = field(default_factory=list)


def read_plots(root: Path) -> list[Plot]:
    """The plots of dvc.yaml, in its order."""
    entries = load_yaml(root / "dvc.yaml").get("plots", [])
    return [
        _plot(*next(iter(entry.items()))) if isinstance(entry, Mapping) else _plot(entry, {})
        for entry in entries
    ]


def charts(plot: Plot, revisions: Sequence[Revision]) -> list[Chart]:
    """What a plot of columns shows; a column or file that is nowhere leaves no line."""
    sources = [
        (file, column)
        for path, column in plot.columns
        for file in dict.fromkeys(f for revision in revisions for f in revision.below(path, ".csv"))
    ]
    files = list(dict.fromkeys(file for file, _ in sources))
    names = list(dict.fromkeys(column for _, column in sources))
    if len(files) < 2:
        chart = Chart(plot, plot.title, plot.y_label or (names[0] if len(names) == 1 else ""))
        _add_lines(chart, plot, sources, revisions, by_file=False)
        return [chart]
    made = []
    for name in names:
        title = plot.title if len(names) == 1 else f"{plot.title}: {name}"
        chart = Chart(plot, title, plot.y_label or name)
        chosen = [(file, column) for file, column in sources if column == name]
        _add_lines(chart, plot, chosen, revisions, by_file=True)
        made.append(chart)
    return made


def _add_lines(
    chart: Chart,
    plot: Plot,
    sources: Sequence[tuple[str, str]],
    revisions: Sequence[Revision],
    *,
    by_file: bool,
) -> None:
    """A line for each source, and one for each further revision where it differs."""
    for file, column in sources:
        label = PurePosixPath(file).stem if by_file else column
        every = [_points(revision, file, plot.x, column) for revision in revisions]
        for number, points in enumerate(every):
            if points[0] and points not in every[:number]:
                shared = every.count(points) == len(every)
                chart.lines.append(Line(label, *points, revision=number, shared=shared))


def _points(
    revision: Revision, file: str, x: str, y: str
) -> tuple[tuple[str, ...], tuple[float, ...]]:
    """The rows of a CSV that have both."""
    content = revision.files.get(file, b"").decode()
    rows = [row for row in csv.DictReader(io.StringIO(content)) if row.get(x) and row.get(y)]
    return tuple(row[x] for row in rows), tuple(float(row[y]) for row in rows)


def _plot(name: str, body: Mapping[str, Any]) -> Plot:
    y = body.get("y", {})
    sources = y if isinstance(y, Mapping) else {name: y}
    columns = tuple(
        (file, column)
        for file, value in sources.items()
        for column in ([value] if isinstance(value, str) else value)
    )
    title, label = body.get("title", name), body.get("y_label", "")
    return Plot(name, title, body.get("x", ""), columns, label, body.get("template", "linear"))


# ---- Drawing ------------------------------------------------------------------------------------


def describe(chart: Chart, revisions: Sequence[Revision]) -> str:
    """The chart in words: what it shows and where each line ends."""
    kind = "bars" if chart.plot.template.startswith("bar") else f"by {chart.plot.x}"
    if kind == "bars":
        values = [
            f"{x} {y:.4g}" for line in chart.lines for x, y in zip(line.x, line.y, strict=True)
        ]
    else:
        values = [
            f"{_label(line, revisions)} {line.y[0]:.4g} to {line.y[-1]:.4g}" for line in chart.lines
        ]
    return f"{chart.title}, {kind}: {'; '.join(values) or 'no data'}"


def draw(chart: Chart, revisions: Sequence[Revision]) -> str:
    """The chart as an SVG element without a size of its own; equal data, equal text."""
    settings: dict[Any, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": f"{chart.plot.name} {chart.title}",
    }
    with styled(), matplotlib.rc_context(settings):
        figure = Figure(figsize=_INCHES, layout="constrained")
        axes = figure.subplots()
        (_draw_bars if chart.plot.template.startswith("bar") else _draw_lines)(
            axes, chart, revisions
        )
        if len(chart.lines) > 1:
            longest = max(len(_label(line, revisions)) for line in chart.lines)
            columns = min(len(chart.lines), max(1, _LEGEND // longest))
            figure.legend(loc="outside lower center", ncols=columns, fontsize=7, frameon=False)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return _for_page(buffer.getvalue(), describe(chart, revisions))


def _draw_lines(axes: Axes, chart: Chart, revisions: Sequence[Revision]) -> None:
    labels = list(dict.fromkeys(line.label for line in chart.lines))
    for line in chart.lines:
        numbers = _numbers(line.x)
        dots = chart.plot.template == "scatter" or len(line.x) < 8
        axes.plot(
            line.x if numbers is None else numbers,
            line.y,
            color=COLORS[labels.index(line.label) % len(COLORS)],
            linestyle="" if chart.plot.template == "scatter" else DASHES[line.revision % 4],
            marker="os^D"[line.revision % 4] if dots else None,
            markersize=3.5,
            linewidth=1.2,
            label=_label(line, revisions),
        )
    axes.set(xlabel=chart.plot.x, ylabel=chart.y_label)


def _draw_bars(axes: Axes, chart: Chart, revisions: Sequence[Revision]) -> None:
    names = list(dict.fromkeys(x for line in chart.lines for x in line.x))
    height = 0.8 / max(1, len(chart.lines))
    for turn, line in enumerate(chart.lines):
        places = [names.index(x) + (turn - 0.5 * (len(chart.lines) - 1)) * height for x in line.x]
        color = COLORS[turn % len(COLORS)]
        bars = axes.barh(places, line.y, height, color=color, label=_label(line, revisions))
        axes.bar_label(bars, fmt="%.3g", padding=2, fontsize=7)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set(xlabel=chart.y_label)


def _label(line: Line, revisions: Sequence[Revision]) -> str:
    return line.label if line.shared else f"{line.label}, {revisions[line.revision].name}"


def _numbers(values: Sequence[str]) -> list[float] | None:
    try:
        return [float(value) for value in values]
    except ValueError:
        return None


def _for_page(svg: str, description: str) -> str:
    """Without what an SVG file needs and an element of a page does not; ink as the page's."""
    for pattern in (_HEAD, _METADATA, _NAMESPACE):
        svg = pattern.sub("", svg)
    svg = _HEIGHT.sub(r"\1", _SIZE.sub(r"\1", svg, count=1), count=1)
    svg = svg.replace(INK, "currentColor")
    label = _attribute(description)
    return svg.replace("<svg", f'<svg role="img" aria-label="{label}"', 1).strip()


def _attribute(words: str) -> str:
    return words.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")

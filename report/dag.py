"""The DAG of stages as an SVG: strands side by side, time from top to bottom."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from report.strands import Template

_BOX, _GAP_X, _GAP_Y = (168, 26), 14, 22


def draw_dag(strand: str, stages: Sequence[Template]) -> str:
    """The stages of one strand, each below all that it needs; nothing where there are none."""
    own = [stage for stage in stages if stage.strand == strand]
    if not own:
        return ""
    needs = {
        stage.name: [other.name for other in own if stage is not other and stage.needs(other)]
        for stage in own
    }
    rows = _rows(_direct(needs))
    place = {
        name: (column * (_BOX[0] + _GAP_X), row * (_BOX[1] + _GAP_Y))
        for row, names in enumerate(rows)
        for column, name in enumerate(names)
    }
    width = max(x for x, _ in place.values()) + _BOX[0]
    height = max(y for _, y in place.values()) + _BOX[1]
    words = "; ".join(f"{n} needs {', '.join(needs[n])}" for n in needs if needs[n])
    label = escape(f"Stages of {strand}: {words or ', '.join(needs)}", quote=True)
    parts = [
        f'<svg role="img" aria-label="{label}" class="dag" style="max-width:{width}px" '
        f'viewBox="-1 -1 {width + 2} {height + 2}">'
    ]
    for name, others in _direct(needs).items():
        parts += [_edge(place[other], place[name]) for other in others]
    for name, (x, y) in place.items():
        parts.append(
            f'<rect x="{x}" y="{y}" width="{_BOX[0]}" height="{_BOX[1]}" rx="5"/>'
            f'<text x="{x + _BOX[0] / 2}" y="{y + 17}">{escape(name)}</text>'
        )
    return "".join([*parts, "</svg>"])


def _rows(needs: dict[str, list[str]]) -> list[list[str]]:
    """Names by the length of the longest way to them, those of a row from left to right."""
    depth: dict[str, int] = {}

    def below(name: str) -> int:
        if name not in depth:
            depth[name] = 1 + max(map(below, needs[name]), default=-1)
        return depth[name]

    rows: list[list[str]] = [[] for _ in range(1 + max(map(below, needs)))]
    for name in needs:
        rows[below(name)].append(name)
    column: dict[str, int] = {}
    for row in rows:  # under what they need, so that few lines cross
        row.sort(key=lambda name: sum(column[n] for n in needs[name]) / max(1, len(needs[name])))
        column |= {name: turn for turn, name in enumerate(row)}
    return rows


def _direct(needs: dict[str, list[str]]) -> dict[str, list[str]]:
    """Without the needs that another need has too: the picture shows the same order."""

    def all_needs(name: str) -> set[str]:
        return {n for other in needs[name] for n in {other, *all_needs(other)}}

    return {
        name: [o for o in others if not any(o in all_needs(other) for other in others)]
        for name, others in needs.items()
    }


def _edge(source: tuple[float, float], target: tuple[float, float]) -> str:
    x0, y0 = source[0] + _BOX[0] / 2, source[1] + _BOX[1]
    x1, y1 = target[0] + _BOX[0] / 2, target[1]
    middle = (y0 + y1) / 2
    return f'<path d="M{x0} {y0}C{x0} {middle} {x1} {middle} {x1} {y1}"/>'

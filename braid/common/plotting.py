"""How the pictures of every strand look.

Equal inputs give equal bytes: PNGs carry no date and no version, and the style does not depend on
the reader's matplotlib settings.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import matplotlib.style
from matplotlib.figure import Figure

INK, PALE = "#222222", "#8a8a8a"
BLUE, ORANGE, GREEN = "#0072B2", "#D55E00", "#009E73"  # Okabe and Ito's, safe for the color-blind
STYLE: dict[str, Any] = {
    "figure.dpi": 160,
    "savefig.dpi": 160,
    "font.family": "DejaVu Sans",
    "font.size": 8,
    "axes.titlesize": 9,
    "axes.labelsize": 8,
    "axes.edgecolor": PALE,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "image.interpolation": "nearest",
}


def styled() -> AbstractContextManager[None]:
    """Within, figures are drawn in the house style, whatever the reader's settings are."""
    return matplotlib.style.context(["default", STYLE])


def save(figure: Figure, path: Path) -> None:
    """Equal figures, equal bytes: matplotlib would write its own version into the file."""
    figure.savefig(path, format="png", metadata={"Software": None})

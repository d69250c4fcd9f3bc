"""Charts: that of ``strongroom bench --plot``, and how any is written."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from typing import Any

from strongroom.cli.measure import Measurement
from strongroom.errors import MissingExtra, NotFound, UsageError
from strongroom.model.output import FileOutput

__all__ = ["check_chart_name", "draw_chart", "save_figure"]

_FORMATS = ("png", "svg", "pdf")
_BAR, _RUN, _GRID = "#4c78a8", "#1b2a3a", "#d8dce2"


def check_chart_name(path: str) -> str:
    """The format that the name of a chart asks for.

    Raises:
        UsageError: none that can be drawn.
        NotFound: there is no folder for it.
        MissingExtra: matplotlib is not installed.
    """
    kind = path.rsplit(".", 1)[-1].lower() if "." in path else ""
    if kind not in _FORMATS:
        raise UsageError(f"{path}: a chart is a .png, .svg or .pdf file.")
    folder = os.path.dirname(path) or "."
    if not os.path.isdir(folder):
        # Now, and not when all has been measured.
        raise NotFound(f"{folder}: no such directory.")
    try:
        import matplotlib  # noqa: F401 - only whether it is there
    except ImportError:
        raise MissingExtra("Drawing a chart", "plot") from None
    return kind


def draw_chart(path: str, title: str, steps: Sequence[Measurement], *, force: bool) -> None:
    """Draw one bar per step, as GB/s of the median run, with a dot for every run."""
    kind = check_chart_name(path)
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 1.1 + 0.6 * len(steps)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    names = [step.step for step in steps]
    rates = [step.rate / 1e9 for step in steps]
    axes.barh(names, rates, height=0.55, color=_BAR, zorder=2)
    for row, step in enumerate(steps):
        runs = [step.size / value / 1e9 for value in step.seconds if value > 0]
        axes.plot(runs, [row] * len(runs), "o", color=_RUN, markersize=3.5, zorder=3)
        label = f"{rates[row]:.2f} GB/s · {step.median:.3f} s"
        axes.annotate(
            label,
            (max([rates[row], *runs]), row),
            xytext=(8, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
        )
    axes.invert_yaxis()
    axes.margins(x=0.3)
    axes.set_xlim(left=0)
    axes.set_xlabel("GB/s (bar: median; dots: runs)")
    axes.set_title(title, loc="left", fontsize=10)
    axes.grid(axis="x", color=_GRID, zorder=1)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    save_figure(figure, path, kind, force=force)


def save_figure(figure: Any, path: str, kind: str, *, force: bool) -> None:
    """Write a figure of matplotlib.

    Raises:
        AlreadyExists: there is a file already, and ``force`` is not said.
    """
    drawn = io.BytesIO()
    figure.savefig(drawn, format=kind, dpi=150)
    output = FileOutput(path, overwrite=force, mode=0o666)
    try:
        output.write(drawn.getvalue())
        output.commit()
    except BaseException:
        output.abort()
        raise

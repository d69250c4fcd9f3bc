"""The chart of ``strongroom loadtest --plot``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from strongroom.cli.chart import check_chart_name, save_figure

if TYPE_CHECKING:
    from strongroom.loadtest.results import Outcome

__all__ = ["draw_latencies"]

_BAR, _LINE, _GRID = "#4c78a8", "#1b2a3a", "#d8dce2"
_DOTS = 20_000
_BINS = 60
_SLICES = 50


def draw_latencies(path: str, title: str, outcome: Outcome, *, force: bool) -> None:
    """Draw how often each latency occurred, and the latency over time with its percentiles."""
    kind = check_chart_name(path)
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    took = outcome.recorder.latencies() * 1e3
    moments = outcome.recorder.moments() - outcome.begun
    figure = Figure(figsize=(9, 6.4), layout="constrained")
    FigureCanvasAgg(figure)
    often, over_time = figure.subplots(2, 1)
    low, high = max(float(took.min()), 1e-3), float(took.max())
    often.hist(took, np.geomspace(low, max(high, low * 1.01), _BINS), color=_BAR, zorder=2)
    often.set_xscale("log")
    often.set_yscale("log")
    often.set_xlabel("latency, ms")
    often.set_ylabel("queries")
    statistics = outcome.statistics()
    for name in ("p50", "p90", "p99", "p99.9"):
        often.axvline(statistics[name], color=_LINE, linewidth=0.8, zorder=3)
        label = f" {name} {statistics[name]:.2f} ms"
        often.text(statistics[name], often.get_ylim()[1], label, rotation=90, va="top", fontsize=8)
    step = -(-len(took) // _DOTS)
    over_time.plot(
        moments[::step],
        took[::step],
        ".",
        color=_BAR,
        markersize=2,
        alpha=0.5,
        zorder=2,
        rasterized=True,
    )
    edges = np.linspace(0, max(float(moments.max()), 1e-6), _SLICES + 1)
    where = np.digitize(moments, edges[1:-1])
    slices = [(index, took[where == index]) for index in range(_SLICES)]
    for quantile, style in ((0.5, "-"), (0.9, "-."), (0.99, "--")):
        points = [(edges[i] + edges[i + 1], np.quantile(s, quantile)) for i, s in slices if s.size]
        line = np.array(points).reshape(-1, 2)
        over_time.plot(line[:, 0] / 2, line[:, 1], style, color=_LINE, linewidth=1, zorder=3)
    over_time.legend(
        ["a query", "p50", "p90", "p99"],
        fontsize=8,
        ncols=4,
        loc="lower right",
        bbox_to_anchor=(1, 1),
        frameon=False,
    )
    over_time.set_yscale("log")
    over_time.set_xlabel("time, s")
    over_time.set_ylabel("latency, ms")
    for axes in (often, over_time):
        axes.grid(color=_GRID, zorder=1)
        axes.spines[["top", "right"]].set_visible(False)
    often.set_title(title, loc="left", fontsize=10)
    save_figure(figure, path, kind, force=force)

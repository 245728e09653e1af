"""The picture of accuracy so far against what was sent up: a line a configuration, the range of its seeds shaded."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from functools import reduce
from pathlib import Path

import matplotlib as mpl
import numpy as np

mpl.use("Agg")
from curves import Array
from matplotlib import pyplot as plt
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from pictures import COLOURS, MARKERS, save
from seeds import COUNTS, Row, title

LINE_STYLES = ("-", "--", ":", "-.")
NUM_MARKERS = 12  # of a line, at most
LABEL_WIDTH = 78  # characters


def curve(row: Row, count: str) -> tuple[Array, Array]:
    """Return mean upload in MB (num_tests,) and the accuracy so far in percent (num_runs, num_tests).

    Of the rounds in which all of the row's runs that have a test were tested.
    """
    runs = [one for one in row.runs if len(one.rounds)]
    at = [np.isin(one.rounds, reduce(np.intersect1d, [other.rounds for other in runs])) for one in runs]
    sent = [one.upload_nbytes[count][here] / 1e6 for one, here in zip(runs, at, strict=True)]
    reached = [100 * one.accuracy[here] for one, here in zip(runs, at, strict=True)]
    return np.mean(sent, axis=0), np.array(reached)


def marks(lines: Sequence[Array]) -> list[list[int]]:
    """Return which tests of each line get a marker; accuracies in percent, (num_tests,) each.

    Every test of a few, else such as are about equally far apart on a logarithmic axis. Lines of equal accuracies, as
    of runs that differ in a lossless codec, lie on each other under the paper's count: they mark tests in turn.
    """
    marked = []
    for i, line in enumerate(lines):
        tests = np.arange(len(line))
        if len(line) > NUM_MARKERS:
            tests = np.unique(np.geomspace(1, len(line), NUM_MARKERS).round().astype(np.int64)) - 1
        equal = [j for j, other in enumerate(lines) if np.array_equal(line, other)]
        marked.append(tests[equal.index(i) :: len(equal)].tolist())
    return marked


def plot(rows: Sequence[Row], counts: Sequence[str], caps: Mapping[str, float], figure_name: str, out: Path) -> None:
    """Draw a panel a count and save them; the suffix of `out` says the format."""
    rows = [row for row in rows if any(len(one.rounds) for one in row.runs)]
    plt.rcParams.update({"font.size": 11, "axes.spines.top": False, "axes.spines.right": False})
    labels = [textwrap.fill(row.label, LABEL_WIDTH, subsequent_indent="    ") for row in rows]
    width = 7.2 if len(counts) == 1 else 11.0
    num_columns = max(1, int(11 * width) // (10 + max(map(len, labels))))
    num_lines = sum(label.count("\n") + 1 for label in labels) / num_columns
    figure, panels = plt.subplots(
        1, len(counts), figsize=(width, 4.4 + 0.23 * num_lines), layout="constrained", sharey=True, squeeze=False
    )
    marked = marks([curve(row, counts[0])[1].mean(axis=0) for row in rows])
    for axes, count in zip(panels[0], counts, strict=True):
        for i, row in enumerate(rows):
            sent_mb, reached = curve(row, count)
            colour = COLOURS[i % len(COLOURS)]
            axes.plot(
                sent_mb,
                reached.mean(axis=0),
                linestyle=LINE_STYLES[i // len(COLOURS) % len(LINE_STYLES)],
                marker=MARKERS[i % len(MARKERS)],
                markevery=marked[i],
                markersize=8,
                markeredgecolor="white",
                markeredgewidth=0.8,
                linewidth=1.8,
                label=labels[i],
                color=colour,
                zorder=3,
            )
            if len(row.runs) > 1:
                low, high = reached.min(axis=0), reached.max(axis=0)
                axes.fill_between(sent_mb, low, high, color=colour, alpha=0.2, linewidth=0)
        for name, cap_nbytes in caps.items():
            axes.axvline(cap_nbytes / 1e6, color="0.55", linewidth=0.8, zorder=1)
            place = {"transform": axes.get_xaxis_transform(), "ha": "center", "va": "bottom"}
            axes.text(cap_nbytes / 1e6, 1.01, name, color="0.35", fontsize=9, **place)
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.tick_params(axis="x", labelsize=9)
        axes.set_xlabel(f"sent up, by all clients (MB = 10$^6$ bytes,\n{COUNTS[count]})")
        axes.grid(color="0.9", linewidth=0.8)
    panels[0, 0].set_ylabel(f"{figure_name} so far (%)".replace(", ", ",\n"))
    figure.suptitle(title(rows), fontsize=11, x=0.01, ha="left")
    # Below the axes, where labels of any length cover no curve.
    handles, names = panels[0, 0].get_legend_handles_labels()
    legend = figure.legend(handles, names, loc="outside lower left", ncols=num_columns, frameon=False)
    for line in legend.get_lines():
        line.set_markevery([1])  # the middle of three points
    save(figure, out)
    plt.close(figure)

"""Plot test accuracy against megabytes sent, as measured, or against rounds; one line a run.

python analysis/accuracy_vs_bytes.py RUN [RUN ...] -o OUT.png [--direction up] [--rounds]

RUN is the folder of a run or a ledger. Runs in which no round was tested are left out, with a warning. Runs of the same
algorithm are told apart by the settings in which they differ.
"""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
import yaml

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from pictures import (
    COLOURS,
    MARKERS,
    PictureError,
    alike,
    differences,
    flat_settings,
    ledger_path,
    picture_path,
    run,
    save,
)

from fedmpi.ledger.reader import Ledger

LINE_WIDTH = 1.8  # points
DASH = 4  # line widths
NUM_MARKERS = 15  # of a curve that lies alone, about
LABEL_WIDTH = 78  # characters
# Closer than this, in the mean over the tests, two lines hide each other.
HIDDEN_PERCENT = 0.3
# Beyond this ratio of bytes a linear axis would squeeze the small runs against its left end.
LOG_RATIO = 8.0
# Whose bytes are counted, and the columns of the ledger's rounds that have them.
DIRECTIONS = {
    "up": ("sent up, by clients", ("cum_up_nbytes",)),
    "down": ("sent down, to clients", ("cum_down_nbytes",)),
    "both": ("sent, down and up together", ("cum_down_nbytes", "cum_up_nbytes")),
}


class UntestedError(Exception):
    """A run has no test to draw."""


ROUNDS = "rounds"
"""In place of a direction: rounds done so far."""


class Curve(NamedTuple):
    """A run's tests: label, MB sent so far (num_tests,), accuracy in percent (num_tests,); settings by dotted key.

    Against rounds, `sent_mb` are the rounds done so far.
    """

    label: str
    sent_mb: np.ndarray[Any, Any]
    accuracy_percent: np.ndarray[Any, Any]
    settings: Mapping[str, Any]
    done: bool


def read_curve(path: Path, direction: str = "both") -> Curve:
    """Read the tested rounds of a ledger; raises OutputError as `Ledger` does, UntestedError if there are none."""
    with Ledger(path) as ledger:
        rounds, status = ledger.rounds, ledger.status
        config = yaml.safe_load(ledger.config_yaml) or {}
    tested = ~np.isnan(rounds["test_accuracy"])
    if not tested.any():
        raise UntestedError(f"{path}: no round was tested; {why_untested(config, status, len(tested))}")
    if direction == ROUNDS:
        so_far = rounds["round_idx"] + 1.0
    else:
        so_far = np.sum([rounds[column] for column in DIRECTIONS[direction][1]], axis=0) / 1e6
    label = config.get("algorithm", {}).get("name", path.stem)
    settings, done = dict(flat_settings(config)), status == "done"
    return Curve(label, so_far[tested], 100 * rounds["test_accuracy"][tested], settings, done)


def why_untested(config: Mapping[str, Any], status: str, num_rounds: int) -> str:
    """Return why no round of a run was tested, and what to do."""
    every = config.get("evaluate", {}).get("every")
    if every == 0:
        return "evaluate.every is 0, which is never; set it to 1 or more and run again"
    ended = {"running": "was killed (or goes on)", "stopped": "was stopped"}.get(status, "failed")
    return f"it {ended} after {num_rounds} rounds (`fedmpi info` says more), the first test was due after {every}"


def read_curves(paths: Sequence[Path], direction: str = "both") -> list[Curve]:
    """Read the curves of those ledgers that have one, and warn of the others; raises PictureError if none has."""
    curves, found, untested = [], [], []
    for path in paths:
        try:
            curves.append(read_curve(path, direction))
            found.append(path)
        except UntestedError as error:
            untested.append(str(error))
    if not curves:
        raise PictureError("\n".join(["nothing to draw", *untested]))
    for words in untested:
        print(f"warning: left out {words}", file=sys.stderr)
    return distinct(curves, found)


def distinct(curves: Sequence[Curve], paths: Sequence[Path]) -> list[Curve]:
    """Complete the labels: by the settings that differ, where these do not by the end of the path, and by the state."""
    labels = [curve.label for curve in curves]
    for same in alike(labels):
        for i, words in zip(same, differences([curves[i].settings for i in same]), strict=True):
            labels[i] += f": {words}" if words else ""
    runs = [path.parent if path.name == "ledger.h5" else path for path in paths]
    for same in alike(labels):
        for i in same:
            labels[i] += f" ({'/'.join(runs[i].parts[-2:])})"
    states = ["" if curve.done else " (unfinished)" for curve in curves]
    return [c._replace(label=label + state) for c, label, state in zip(curves, labels, states, strict=True)]


def coincide(a: Curve, b: Curve) -> bool:
    """Return whether one curve hides the other."""
    return (
        a.sent_mb.shape == b.sent_mb.shape
        and np.allclose(a.sent_mb, b.sent_mb, rtol=0.01)
        and float(np.abs(a.accuracy_percent - b.accuracy_percent).mean()) < HIDDEN_PERCENT
    )


def gaps(curves: Sequence[Curve], i: int) -> dict[str, Any]:
    """Return line style and places of markers of a curve, so that all are seen where several coincide.

    The lowest is solid; those above it have dashes in turn, and markers too.
    """
    num_below = sum(coincide(curves[i], other) for other in curves[:i])
    num_equal = 1 + num_below + sum(coincide(curves[i], other) for other in curves[i + 1 :])
    step = max(1, len(curves[i].sent_mb) // NUM_MARKERS)
    dashes = ((num_equal - num_below) * DASH, (DASH, (num_equal - 1) * DASH))
    return {"linestyle": dashes if num_below else "-", "markevery": (num_below * step, num_equal * step)}


def plot(curves: Sequence[Curve], out: Path, direction: str = "both") -> None:
    """Draw the curves and save them; the suffix of `out` says the format."""
    plt.rcParams.update({"font.size": 11, "axes.spines.top": False, "axes.spines.right": False})
    labels = [textwrap.fill(curve.label, LABEL_WIDTH, subsequent_indent="    ") for curve in curves]
    num_columns = max(1, 80 // (10 + max(map(len, labels))))
    num_lines = sum(label.count("\n") + 1 for label in labels) / num_columns
    figure, axes = plt.subplots(figsize=(7.2, 4 + 0.23 * num_lines), layout="constrained")
    for i, curve in enumerate(curves):
        axes.plot(
            curve.sent_mb,
            curve.accuracy_percent,
            color=COLOURS[i % len(COLOURS)],
            marker=MARKERS[i % len(MARKERS)],
            markersize=6,
            markeredgecolor="white",
            markeredgewidth=0.7,
            linewidth=LINE_WIDTH,
            label=labels[i],
            clip_on=False,
            zorder=3,
            **gaps(curves, i),
        )
    ends = [curve.sent_mb[-1] for curve in curves]
    if direction != ROUNDS and max(ends) > LOG_RATIO * min(ends) > 0:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    else:
        axes.set_xlim(left=0)
    sent = "rounds" if direction == ROUNDS else f"{DIRECTIONS[direction][0]} (MB = 10$^6$ bytes, measured)"
    axes.set_xlabel(sent)
    axes.set_ylabel("test accuracy (%)")
    axes.grid(color="0.9", linewidth=0.8)
    # Above the axes, where labels of any length cover no curve.
    legend = figure.legend(loc="outside upper left", ncols=num_columns, frameon=False)
    for line in legend.get_lines():
        line.set_linestyle("-")  # in so short a line dashes would hardly be seen
    save(figure, out)
    plt.close(figure)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ledgers", nargs="+", type=ledger_path, metavar="RUN", help="folder of a run, or its ledger")
    parser.add_argument("-o", "--out", type=picture_path, required=True, metavar="OUT", help="picture: png, pdf, svg")
    parser.add_argument("--direction", choices=DIRECTIONS, default="both", help="whose bytes (default: %(default)s)")
    parser.add_argument("--rounds", action="store_true", help="against rounds in place of bytes")
    args = parser.parse_args(argv)
    against = ROUNDS if args.rounds else args.direction
    return run(lambda: plot(read_curves(args.ledgers, against), args.out, against))


if __name__ == "__main__":
    sys.exit(main())

"""Plot test accuracy against megabytes sent, down and up together, as measured; one line a run.

python analysis/accuracy_vs_bytes.py RUN [RUN ...] -o OUT.png

RUN is the folder of a run or a ledger. Runs in which no round was tested are left out, with a warning.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
import yaml

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from pictures import PictureError, ledger_path, picture_path, run, save

from fedmpi.ledger.reader import Ledger

# Okabe and Ito's colours, which also the colour-blind tell apart; the markers do so in print.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vP*X"
# Where curves coincide all are seen: each next line is thinner than the one that it lies on, and has gaps of its own.
DASHES = ("-", (0, (4, 2)), (0, (1.2, 1.6)), (0, (6, 1.5, 1.2, 1.5)))
THINNEST, STEP, MAX_STEPS = 1.8, 1.5, 4  # line widths in points
# Closer than this, in the mean over the tests, two lines of the usual width hide each other.
HIDDEN_PERCENT = 0.3
# Beyond this ratio of bytes a linear axis would squeeze the small runs against its left end.
LOG_RATIO = 8.0


class UntestedError(Exception):
    """A run has no test to draw."""


class Curve(NamedTuple):
    """A run's tests: label, MB sent so far (num_tests,), accuracy in percent (num_tests,)."""

    label: str
    sent_mb: np.ndarray[Any, Any]
    accuracy_percent: np.ndarray[Any, Any]


def read_curve(path: Path) -> Curve:
    """Read the tested rounds of a ledger; raises OutputError as `Ledger` does, UntestedError if there are none."""
    with Ledger(path) as ledger:
        rounds, status = ledger.rounds, ledger.status
        config = yaml.safe_load(ledger.config_yaml) or {}
    tested = ~np.isnan(rounds["test_accuracy"])
    if not tested.any():
        raise UntestedError(f"{path}: no round was tested; {why_untested(config, status, len(tested))}")
    sent_nbytes = rounds["cum_down_nbytes"] + rounds["cum_up_nbytes"]
    label = config.get("algorithm", {}).get("name", path.stem)
    if status != "done":
        label += " (unfinished)"
    return Curve(label, sent_nbytes[tested] / 1e6, 100 * rounds["test_accuracy"][tested])


def why_untested(config: Mapping[str, Any], status: str, num_rounds: int) -> str:
    """Return why no round of a run was tested, and what to do."""
    every = config.get("evaluate", {}).get("every")
    if every == 0:
        return "evaluate.every is 0, which is never; set it to 1 or more and run again"
    ended = {"running": "was killed (or goes on)", "stopped": "was stopped"}.get(status, "failed")
    return f"it {ended} after {num_rounds} rounds (`fedmpi info` says more), the first test was due after {every}"


def read_curves(paths: Sequence[Path]) -> list[Curve]:
    """Read the curves of those ledgers that have one, and warn of the others; raises PictureError if none has."""
    curves, found, untested = [], [], []
    for path in paths:
        try:
            curves.append(read_curve(path))
            found.append(path)
        except UntestedError as error:
            untested.append(str(error))
    if not curves:
        raise PictureError("\n".join(["nothing to draw", *untested]))
    for words in untested:
        print(f"warning: left out {words}", file=sys.stderr)
    return distinct(curves, found)


def distinct(curves: Sequence[Curve], paths: Sequence[Path]) -> list[Curve]:
    """Add the end of the run's path to labels that occur twice."""
    labels = [curve.label for curve in curves]
    runs = [path.parent if path.name == "ledger.h5" else path for path in paths]
    return [
        curve._replace(label=f"{curve.label} ({'/'.join(run.parts[-2:])})") if labels.count(curve.label) > 1 else curve
        for curve, run in zip(curves, runs, strict=True)
    ]


def coincide(a: Curve, b: Curve) -> bool:
    """Return whether one curve hides the other."""
    return (
        a.sent_mb.shape == b.sent_mb.shape
        and np.allclose(a.sent_mb, b.sent_mb, rtol=0.01)
        and float(np.abs(a.accuracy_percent - b.accuracy_percent).mean()) < HIDDEN_PERCENT
    )


def plot(curves: Sequence[Curve], out: Path) -> None:
    """Draw the curves and save them; the suffix of `out` says the format."""
    plt.rcParams.update({"font.size": 11, "axes.spines.top": False, "axes.spines.right": False})
    figure, axes = plt.subplots(figsize=(7.2, 4.5), layout="constrained")
    for i, curve in enumerate(curves):
        num_above = sum(coincide(curve, other) for other in curves[i + 1 :])
        num_below = sum(coincide(curve, other) for other in curves[:i])
        width = THINNEST + STEP * min(num_above, MAX_STEPS)
        axes.plot(
            curve.sent_mb,
            curve.accuracy_percent,
            color=COLOURS[i % len(COLOURS)],
            marker=MARKERS[i % len(MARKERS)],
            markersize=6 + 1.2 * (width - THINNEST),
            markeredgecolor="white",
            markeredgewidth=0.7,
            markevery=max(1, len(curve.sent_mb) // 15),
            linestyle=DASHES[num_below % len(DASHES)],
            linewidth=width,
            label=curve.label,
            clip_on=False,
            zorder=3,
        )
    ends = [curve.sent_mb[-1] for curve in curves]
    if max(ends) > LOG_RATIO * min(ends) > 0:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    else:
        axes.set_xlim(left=0)
    axes.set_xlabel("sent, down and up together (MB = 10$^6$ bytes, measured)")
    axes.set_ylabel("test accuracy (%)")
    axes.grid(color="0.9", linewidth=0.8)
    # Above the axes, where labels of any length cover no curve.
    num_columns = max(1, 80 // (10 + max(len(curve.label) for curve in curves)))
    figure.legend(loc="outside upper left", ncols=num_columns, frameon=False)
    save(figure, out)
    plt.close(figure)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ledgers", nargs="+", type=ledger_path, metavar="RUN", help="folder of a run, or its ledger")
    parser.add_argument("-o", "--out", type=picture_path, required=True, metavar="OUT", help="picture: png, pdf, svg")
    args = parser.parse_args(argv)
    return run(lambda: plot(read_curves(args.ledgers), args.out))


if __name__ == "__main__":
    sys.exit(main())

"""Plot test accuracy against megabytes sent, down and up together, as measured; one line a ledger.

python analysis/accuracy_vs_bytes.py LEDGER [LEDGER ...] -o OUT.png
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
import yaml

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.ticker import FuncFormatter

from fedmpi.ledger.reader import Ledger

# Okabe and Ito's colours, which also the colour-blind tell apart; the markers do so in print.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vP*X"
# Beyond this ratio of bytes a linear axis would squeeze the small runs against its left end.
LOG_RATIO = 8.0


class Curve(NamedTuple):
    """A run's tests: label, MB sent so far (num_tests,), accuracy in percent (num_tests,)."""

    label: str
    sent_mb: np.ndarray[Any, Any]
    accuracy_percent: np.ndarray[Any, Any]


def read_curve(path: Path) -> Curve:
    """Read the tested rounds of a ledger; raises OutputError as `Ledger` does, SystemExit if none was tested."""
    with Ledger(path) as ledger:
        rounds, status = ledger.rounds, ledger.status
        config = yaml.safe_load(ledger.config_yaml) or {}
    tested = ~np.isnan(rounds["test_accuracy"])
    if not tested.any():
        raise SystemExit(f"error: {path}: expected at least one tested round, got none; set evaluate.every above 0")
    sent_nbytes = rounds["cum_down_nbytes"] + rounds["cum_up_nbytes"]
    label = config.get("algorithm", {}).get("name", path.stem)
    if status != "done":
        label += " (unfinished)"
    return Curve(label, sent_nbytes[tested] / 1e6, 100 * rounds["test_accuracy"][tested])


def distinct(curves: Sequence[Curve], paths: Sequence[Path]) -> list[Curve]:
    """Add the end of the path to labels that occur twice."""
    labels = [curve.label for curve in curves]
    return [
        curve._replace(label=f"{curve.label} ({'/'.join(path.parts[-2:])})") if labels.count(curve.label) > 1 else curve
        for curve, path in zip(curves, paths, strict=True)
    ]


def plot(curves: Sequence[Curve], out: Path) -> None:
    """Draw the curves and save them; the suffix of `out` says the format."""
    plt.rcParams.update({"font.size": 11, "axes.spines.top": False, "axes.spines.right": False})
    figure, axes = plt.subplots(figsize=(7.2, 4.5), layout="constrained")
    for i, curve in enumerate(curves):
        axes.plot(
            curve.sent_mb,
            curve.accuracy_percent,
            color=COLOURS[i % len(COLOURS)],
            marker=MARKERS[i % len(MARKERS)],
            markersize=6,
            markeredgecolor="white",
            markeredgewidth=0.7,
            markevery=max(1, len(curve.sent_mb) // 15),
            linewidth=1.8,
            label=curve.label,
            clip_on=False,
            zorder=3,
        )
    ends = [curve.sent_mb[-1] for curve in curves]
    if max(ends) > LOG_RATIO * min(ends) > 0:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    else:
        axes.set_xlim(left=0)
    axes.set_xlabel("sent, down and up together (MB = 10$^6$ bytes, measured)")
    axes.set_ylabel("test accuracy (%)")
    axes.grid(color="0.9", linewidth=0.8)
    # Above the axes, where labels of any length cover no curve.
    num_columns = max(1, 80 // (10 + max(len(curve.label) for curve in curves)))
    figure.legend(loc="outside upper left", ncols=num_columns, frameon=False)
    figure.savefig(out, dpi=160)
    plt.close(figure)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ledgers", nargs="+", type=Path, metavar="LEDGER")
    parser.add_argument("-o", "--out", type=Path, required=True, metavar="OUT", help="image to write: png, pdf, svg")
    args = parser.parse_args(argv)
    try:
        curves = [read_curve(path) for path in args.ledgers]
        plot(distinct(curves, args.ledgers), args.out)
    except Exception as error:
        # fedmpi's errors carry words for the user and an exit status; any other is a bug to be seen whole.
        exit_status: int | None = getattr(error, "exit_status", None)
        if exit_status is None:
            raise
        print(f"error: {error}", file=sys.stderr)
        return exit_status
    return 0


if __name__ == "__main__":
    sys.exit(main())

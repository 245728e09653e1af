"""Say which accuracy runs reached before the clients' upload passed given caps: a table, and a plot with -o.

python analysis/accuracy_at_cap.py RUN [RUN ...] [--caps 1/16,1/8,1/4,1/2,1] [--mean-of K] [--tests] [-o OUT.png]
    [--csv FILE] [--markdown]

RUN is the folder of a run or a ledger. A cap is a share of what the clients of so many rounds would send up as plain
float32 (--of-dense-rounds; as many rounds as the longest run has), or an amount of bytes, such as 500MB (10^6 bytes) or
2GiB (2^30). A test counts for a cap if all that was sent up to and with its round is at most the cap. Uploads are
counted as measured (wire) and as the paper counts (paper). The accuracy is that on the test set, or with --metric
client the mean over clients of that on their own classes. Runs that differ in their seeds alone are one row: the mean,
and the smallest and the largest in brackets. Rows of the same algorithm name every setting in which they differ.

Of the tests under a cap the best counts. The best of many noisy tests is more than that of a few, which is what a run
that sends more a round has under a small cap: --mean-of K takes the mean of the last K tests under the cap instead, or
of as many as there are. --tests says behind each accuracy how many tests are under its cap; --csv always does.

The plot has a marker at every test of a run that has few, else at some, about equally far apart on its axis of bytes;
at the same tests in both panels. Rows of equal accuracies, which hide each other, have theirs in turn.
"""

from __future__ import annotations

import argparse
import csv
import re
import sys
import textwrap
from collections.abc import Mapping, Sequence
from fractions import Fraction
from functools import reduce
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

UNITS = {"B": 1, **{f"{p}B": 1000**n for n, p in enumerate("kMGT", 1)}}
UNITS |= {f"{p}iB": 1024**n for n, p in enumerate("KMGT", 1)}
METRICS = {"test": "test accuracy", "client": "mean client accuracy"}
COUNTS = {"wire": "as measured on the wire", "paper": "as the paper counts"}
# Settings that make no other configuration: repeats differ in the seed, machines in where the data lie.
NOT_TOLD_APART = ("seed", "data.root")
# A dense message's header and counts, at most: N dense rounds are to fit the cap of N dense rounds.
FRAME_NBYTES = 64
# Of bounded length: a float overflows, and exact fractions of huge numbers take forever.
CAP = re.compile(r"([0-9./]{1,20}(?:e[0-9]{1,2})?) ?([A-Za-z]*)")
MAX_DIGITS = 9
LINE_STYLES = ("-", "--", ":", "-.")
NUM_MARKERS = 12  # of a line, at most
LABEL_WIDTH = 78  # characters

Array = np.ndarray[Any, Any]


class Cap(NamedTuple):
    """A cap as typed, and what it says: so many units of bytes, or where `unit_nbytes` is 0, of the dense upload."""

    text: str
    amount: Fraction
    unit_nbytes: int

    def nbytes(self, dense_nbytes: int) -> float:
        """Return the cap in bytes."""
        return float(self.amount * (self.unit_nbytes or dense_nbytes))


class Run(NamedTuple):
    """A run's tests: rounds, accuracy in [0, 1], and by count the upload so far in bytes, (num_tests,) each.

    The accuracy is what the tests so far come to: the best of them, or the mean of the last K. `num_params` is 0 if no
    message was sent yet, `num_clients` the number of clients that hold data.
    """

    path: Path
    settings: Mapping[str, Any]
    rounds: Array
    accuracy: Array
    upload_nbytes: Mapping[str, Array]
    num_rounds: int
    num_params: int
    num_clients: int
    done: bool

    @property
    def seed(self) -> Any:
        """The run's seed."""
        return self.settings.get("seed")

    def num_tests(self, count: str, cap_nbytes: float) -> int:
        """Return the number of tests under a cap."""
        return int(np.sum(self.upload_nbytes[count] <= cap_nbytes))


class Row(NamedTuple):
    """Runs that differ in their seeds alone, and what they are called."""

    label: str
    runs: Sequence[Run]

    @property
    def unfinished(self) -> str:
        """Which runs are not over, in words; empty if all are."""
        return "; ".join(
            f"seed {one.seed}: {one.num_rounds} of {one.settings.get('rounds')} rounds"
            for one in self.runs
            if not one.done
        )

    @property
    def num_rounds(self) -> int:
        """The rounds that each of its runs has when it is over."""
        return int(self.runs[0].settings.get("rounds") or self.runs[0].num_rounds)


def so_far(accuracy: Array, mean_of: int | None) -> Array:
    """Return the best of the tests up to each, or with `mean_of` the mean of the last so many, shape (num_tests,)."""
    if mean_of is None:
        best: Array = np.maximum.accumulate(accuracy)
        return best
    return np.array([accuracy[max(0, end - mean_of) : end].mean() for end in range(1, len(accuracy) + 1)])


def read_run(path: Path, metric: str, mean_of: int | None) -> Run:
    """Read a ledger; raises OutputError as `Ledger` does, PictureError if its tests have no such accuracy."""
    with Ledger(path) as ledger:
        rounds, messages, done = ledger.rounds, ledger.messages, ledger.status == "done"
        settings = dict(flat_settings(yaml.safe_load(ledger.config_yaml) or {}))
        partition = ledger.partition
    accuracy = rounds.get(f"{metric}_accuracy", np.full(len(rounds["round_idx"]), np.nan))
    tested = ~np.isnan(accuracy)
    if not tested.any() and not np.isnan(rounds["test_accuracy"]).all():
        raise PictureError(
            f"{path}: expected the mean over clients of the accuracy on their own classes (rounds/client_accuracy), "
            f"got none in any round; runs of before that column and runs on text have none: take --metric test"
        )
    is_up, num_rounds = messages["direction"] == "up", int(rounds["round_idx"].max(initial=-1)) + 1
    paper_nbytes = np.bincount(messages["round_idx"][is_up], messages["paper_nbits"][is_up] / 8, num_rounds)
    upload_nbytes = {"wire": rounds["cum_up_nbytes"], "paper": np.cumsum(paper_nbytes)[rounds["round_idx"]]}
    # Of a few messages more is sent than a model, such as a mask that changed; most are about the model alone.
    sizes, times = np.unique(messages["num_params"], return_counts=True)
    return Run(
        path,
        settings,
        rounds["round_idx"][tested],
        so_far(accuracy[tested], mean_of),
        {count: nbytes[tested] for count, nbytes in upload_nbytes.items()},
        len(tested),
        int(sizes[times.argmax()]) if len(sizes) else 0,
        len(partition[0]) if partition else settings.get("partition.num_clients") or 0,
        done,
    )


def read_rows(paths: Sequence[Path], metric: str, mean_of: int | None = None) -> list[Row]:
    """Read ledgers and put those together that differ in their seeds alone.

    Raises
    ------
    OutputError
        As `Ledger` does.
    PictureError
        If data sets or partitions differ, if the same run is there twice, or if no run has a test.
    """
    runs = [read_run(path, metric, mean_of) for path in paths]
    check_one_task(runs)
    if not any(len(one.accuracy) for one in runs):
        raise PictureError(f"nothing to show: no round was tested in {', '.join(str(one.path) for one in runs)}")
    together: dict[str, list[Run]] = {}
    for one in runs:
        others = together.setdefault(repr(sorted(told_apart(one).items())), [])
        twice = next((other for other in others if other.seed == one.seed), None)
        if twice is not None:
            raise PictureError(f"{twice.path} and {one.path} are runs of the same settings and seed; give one of them")
        others.append(one)
    groups = list(together.values())
    labels = [str(group[0].settings.get("algorithm.name", group[0].path.stem)) for group in groups]
    for same in alike(labels):
        words = differences([told_apart(groups[i][0]) for i in same], fewest=False)
        for i, setting in zip(same, words, strict=True):
            labels[i] += f": {setting.replace('algorithm.', '')}" if setting else ""
    return [Row(label, group) for label, group in zip(labels, groups, strict=True)]


def told_apart(one: Run) -> dict[str, Any]:
    """Return the settings that make a row."""
    return {key: value for key, value in one.settings.items() if key not in NOT_TOLD_APART}


def check_one_task(runs: Sequence[Run]) -> None:
    """Raise PictureError if the runs do not all have the same data and partition."""
    first = runs[0]
    for other in runs[1:]:
        for key in dict.fromkeys([*first.settings, *other.settings]):
            ours, theirs = first.settings.get(key), other.settings.get(key)
            if key.startswith(("data.", "partition.")) and key not in NOT_TOLD_APART and ours != theirs:
                raise PictureError(
                    f"runs of one table have the same data and partition, but {key} is {ours} in {first.path} and "
                    f"{theirs} in {other.path}; make a table of each"
                )


def dense_round_nbytes(runs: Sequence[Run]) -> int:
    """Return what the clients of one round would send up as plain float32; raises PictureError if runs disagree."""
    # A run that was cut off before its first message has no say.
    sizes = {(int(one.settings.get("participation.clients_per_round") or 0), one.num_params): one for one in runs}
    sizes = {size: one for size, one in sizes.items() if all(size)}
    if len(sizes) != 1:
        found = "; ".join(f"{n} of {size} in {one.path}" for (n, size), one in sizes.items()) or "no message"
        raise PictureError(
            f"a cap that is a share of dense rounds needs runs with equally many clients a round and parameters, got "
            f"{found}; give caps in bytes, such as --caps 500MB,2GB"
        )
    ((clients_per_round, num_params),) = sizes
    return clients_per_round * (4 * num_params + FRAME_NBYTES)


def dense_upload(rows: Sequence[Row], caps: Sequence[Cap], num_rounds: int | None) -> tuple[int, int]:
    """Return how many dense rounds caps are shares of, and the bytes of these; zeros if no cap is a share."""
    if all(cap.unit_nbytes for cap in caps):
        return 0, 0
    runs = [one for row in rows for one in row.runs]
    num_rounds = num_rounds or max(one.num_rounds for one in runs)
    return num_rounds, num_rounds * dense_round_nbytes(runs)


def under_cap(row: Row, count: str, cap_nbytes: float) -> tuple[Array, Array]:
    """Return accuracy and number of tests under a cap of each run that has a test there, (num_runs_under_cap,) each."""
    tests = [one.num_tests(count, cap_nbytes) for one in row.runs]
    # Uploads grow: the tests under a cap are a run's first.
    values = [one.accuracy[n - 1] for one, n in zip(row.runs, tests, strict=True) if n]
    return np.array(values), np.array([n for n in tests if n], np.int64)


def cell(row: Row, count: str, cap_nbytes: float, with_tests: bool) -> str:
    """Return what the table says of a row and a cap, in percent."""
    accuracies, tests = under_cap(row, count, cap_nbytes)
    if not len(accuracies):
        return "-"
    values = 100 * accuracies
    words = f"{values.mean():.2f}"
    if len(row.runs) > 1:
        words += f" [{values.min():.2f}, {values.max():.2f}]"
    beside = []
    if with_tests:
        beside.append(str(tests[0]) if tests.min() == tests.max() else f"{tests.min()} to {tests.max()}")
    if len(values) < len(row.runs):
        beside.append(f"{len(values)} of {len(row.runs)} runs")
    return words + (f" ({'; '.join(beside)})" if beside else "")


def table(
    rows: Sequence[Row], count: str, caps: Mapping[str, float], *, markdown: bool = False, with_tests: bool = False
) -> str:
    """Return the table of one count as aligned lines; `caps` has the bytes of each by its name.

    What all runs share has no column: how many rounds, and that none is unfinished.
    """
    unfinished, unequal = any(row.unfinished for row in rows), len({row.num_rounds for row in rows}) > 1
    numbers = ["runs", *(["rounds"] if unequal else [])]
    lines = [["", *numbers, *caps, *(["unfinished"] if unfinished else [])]]
    for row in rows:
        cells = [str(len(row.runs)), *([str(row.num_rounds)] if unequal else [])]
        cells += [cell(row, count, cap_nbytes, with_tests) for cap_nbytes in caps.values()]
        lines.append([row.label, *cells, *([row.unfinished] if unfinished else [])])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    # Words to the left, numbers to the right.
    sides = [str.ljust, *[str.rjust] * (len(numbers) + len(caps)), str.ljust][: len(widths)]
    if markdown:
        lines[1] = [rule if side is str.ljust else f"{rule[1:]}:" for rule, side in zip(lines[1], sides, strict=True)]
    padded = ([side(text, width) for side, text, width in zip(sides, line, widths, strict=True)] for line in lines)
    return "\n".join(f"| {' | '.join(line)} |" if markdown else "  ".join(line).rstrip() for line in padded)


def title(rows: Sequence[Row]) -> str:
    """Return data set, partition and numbers of clients."""
    runs = [one for row in rows for one in row.runs]
    settings = runs[0].settings
    clients = " or ".join(f"{n:,}" for n in sorted({one.num_clients for one in runs}))
    a_round = " or ".join(map(str, sorted({str(one.settings.get("participation.clients_per_round")) for one in runs})))
    return f"{settings.get('data.name')}, {settings.get('partition.name')}: {clients} clients, {a_round} a round"


def amount(nbytes: float) -> str:
    """Return bytes in a decimal unit that suits them."""
    unit = next((unit for unit in ("GB", "MB", "kB") if nbytes >= UNITS[unit]), "B")
    return f"{nbytes / UNITS[unit]:.4g} {unit}"


def write_csv(
    rows: Sequence[Row], counts: Sequence[str], caps: Mapping[str, float], mean_of: int | None, out: Path
) -> None:
    """Write a line for each row, count and cap; accuracies as fractions, empty if there is none.

    `mean_of` is empty where the best test counts. Numbers of tests are those of the runs that have one under the cap.
    """
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with out.open("w", newline="") as file:
            writer = csv.writer(file)
            names = [f"accuracy_{part}" for part in ("mean", "min", "max")] + ["num_tests_min", "num_tests_max"]
            names += ["num_runs_under_cap", "num_runs", "num_rounds", "unfinished"]
            writer.writerow(["run", "count", "cap", "cap_nbytes", "mean_of", *names])
            for row in rows:
                for count in counts:
                    for name, cap_nbytes in caps.items():
                        values, tests = under_cap(row, count, cap_nbytes)
                        found = ["", "", "", 0, 0]
                        if len(values):
                            found = [values.mean(), values.min(), values.max(), tests.min(), tests.max()]
                        found += [len(values), len(row.runs), row.num_rounds, row.unfinished]
                        writer.writerow([row.label, count, name, round(cap_nbytes), mean_of or "", *found])
    except OSError as error:
        raise PictureError(f"cannot write {out}: {error.strerror or error}; choose another with --csv") from error


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


def report(args: argparse.Namespace) -> None:
    """Print the tables, and write what was asked for."""
    rows = read_rows(args.ledgers, args.metric, args.mean_of)
    num_dense_rounds, dense_nbytes = dense_upload(rows, args.caps, args.of_dense_rounds)
    caps = {cap.text: cap.nbytes(dense_nbytes) for cap in args.caps}
    counts = list(COUNTS) if args.count == "both" else [args.count]
    figure_name = f"best {METRICS[args.metric]}"
    if args.mean_of is not None:
        last = f"{args.mean_of} tests" if args.mean_of > 1 else "test"
        figure_name = f"{METRICS[args.metric]}, mean of the last {last}"
    if args.out is not None:
        plot(rows, counts, caps, figure_name, args.out)
    if args.csv is not None:
        write_csv(rows, counts, caps, args.mean_of, args.csv)
    print(title(rows))
    if num_dense_rounds:
        print(f"1 is the upload of {num_dense_rounds} dense rounds: {amount(dense_nbytes)}")
    if len(lengths := sorted({row.num_rounds for row in rows})) > 1:
        longest = "; the longest sets what 1 means" if num_dense_rounds and args.of_dense_rounds is None else ""
        print(f"runs of unequal length: {', '.join(map(str, lengths[:-1]))} and {lengths[-1]} rounds{longest}")
    shares = {cap.text for cap in args.caps if not cap.unit_nbytes}
    headed = {f"{name} ({amount(nbytes)})" if name in shares else name: nbytes for name, nbytes in caps.items()}
    tests = "; in parentheses the tests until then" if args.tests else ""
    for count in counts:
        print(f"\n{figure_name} (%) before the upload, {COUNTS[count]}, passes{tests}\n")
        print(table(rows, count, headed, markdown=args.markdown, with_tests=args.tests))


def parse_caps(text: str) -> list[Cap]:
    """Return the caps that a comma-separated list means; raises ArgumentTypeError."""
    caps = []
    for word in filter(None, (part.strip() for part in text.split(","))):
        parts = CAP.fullmatch(word)
        try:
            value = Fraction(parts[1]) if parts else None
        except (ValueError, ZeroDivisionError):
            value = None
        if parts is None or not value or (parts[2] and parts[2] not in UNITS):
            raise argparse.ArgumentTypeError(
                f"a cap must be a positive share of the dense upload, such as 1/8 or 0.125, or positive bytes in one "
                f"of {', '.join(UNITS)}, in at most 20 digits and an exponent up to e99, got {word!r}"
            )
        caps.append(Cap(word, value, UNITS.get(parts[2], 0)))
    if not caps:
        raise argparse.ArgumentTypeError(f"must be at least one cap, such as 1/8, got {text!r}")
    return caps


def positive(text: str) -> int:
    """Return a whole number from 1; raises ArgumentTypeError."""
    if not text.isdecimal() or len(text) > MAX_DIGITS or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1, of at most {MAX_DIGITS} digits, got {text!r}")
    return int(text)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ledgers", nargs="+", type=ledger_path, metavar="RUN", help="folder of a run, or its ledger")
    usual = "1/16,1/8,1/4,1/2,1"
    parser.add_argument("--caps", type=parse_caps, default=usual, help="shares or bytes (default: %(default)s)")
    parser.add_argument(
        "--of-dense-rounds", type=positive, metavar="N", help="rounds of the dense upload (default: the longest run's)"
    )
    parser.add_argument("--metric", choices=METRICS, default="test", help="which accuracy (default: %(default)s)")
    parser.add_argument("--count", choices=[*COUNTS, "both"], default="both", help="whose bytes (default: %(default)s)")
    parser.add_argument(
        "--mean-of", type=positive, metavar="K", help="mean of the last K tests under a cap (default: the best test)"
    )
    parser.add_argument("--tests", action="store_true", help="print how many tests are under each cap")
    parser.add_argument("-o", "--out", type=picture_path, metavar="OUT", help="picture: png, pdf, svg")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="the table as CSV, accuracies as fractions")
    parser.add_argument("--markdown", action="store_true", help="print the tables as Markdown")
    args = parser.parse_args(argv)
    return run(lambda: report(args))


if __name__ == "__main__":
    sys.exit(main())

"""Say which accuracy runs reached before the clients' upload passed given caps: a table, and a plot with -o.

python analysis/accuracy_at_cap.py RUN [RUN ...] [--caps 1/16,1/8,1/4,1/2,1] [--mean-of K] [--tests] [-o OUT.png]
    [--csv FILE] [--markdown] [--save-curves FOLDER]

RUN is the folder of a run, a ledger, or a curve file: a few kilobytes of CSV that say of a run what the table and the
plot need. --save-curves writes one a run, CONFIG_seedN.csv, after the folders that the run lies in.

A cap is a share of what the clients of so many rounds would send up as plain float32 (--of-dense-rounds; as many as the
longest run has), or an amount of bytes, such as 500MB (10^6 bytes) or 2GiB (2^30). A test counts for a cap if all that
was sent up to and with its round is at most the cap. Uploads are counted as measured (wire) and as the paper counts
(paper). The accuracy is that on the test set, or with --metric client the mean over clients of that on their own
classes.

Runs that differ in their seeds alone are one row: the mean, and in brackets each seed's figure, in ascending order of
the seeds; in the plot a line, and the range shaded. Rows of the same algorithm name every setting in which they differ.

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
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import numpy as np
from cap_picture import plot
from curves import Array, read_curve, save_curves
from pictures import PictureError, ledger_path, picture_path, run
from seeds import COUNTS, METRICS, Row, dense_round_nbytes, rows_of, title

UNITS = {"B": 1, **{f"{p}B": 1000**n for n, p in enumerate("kMGT", 1)}}
UNITS |= {f"{p}iB": 1024**n for n, p in enumerate("KMGT", 1)}
# Of bounded length: a float overflows, and exact fractions of huge numbers take forever.
CAP = re.compile(r"([0-9./]{1,20}(?:e[0-9]{1,2})?) ?([A-Za-z]*)")
MAX_DIGITS = 9


class Cap(NamedTuple):
    """A cap as typed, and what it says: so many units of bytes, or where `unit_nbytes` is 0, of the dense upload."""

    text: str
    amount: Fraction
    unit_nbytes: int

    def nbytes(self, dense_nbytes: int) -> float:
        """Return the cap in bytes."""
        return float(self.amount * (self.unit_nbytes or dense_nbytes))


def dense_upload(rows: Sequence[Row], caps: Sequence[Cap], num_rounds: int | None) -> tuple[int, int]:
    """Return how many dense rounds caps are shares of, and the bytes of these; zeros if no cap is a share."""
    if all(cap.unit_nbytes for cap in caps):
        return 0, 0
    runs = [one for row in rows for one in row.runs]
    num_rounds = num_rounds or max(one.num_rounds for one in runs)
    return num_rounds, num_rounds * dense_round_nbytes(runs)


def under_cap(row: Row, count: str, cap_nbytes: float) -> tuple[Array, Array]:
    """Return accuracy and number of tests under a cap of each run, (num_runs,) each; NaN and 0 where it has none."""
    tests = [one.num_tests(count, cap_nbytes) for one in row.runs]
    # Uploads grow: the tests under a cap are a run's first.
    values = [one.accuracy[n - 1] if n else np.nan for one, n in zip(row.runs, tests, strict=True)]
    return np.array(values), np.array(tests, np.int64)


def cell(row: Row, count: str, cap_nbytes: float, with_tests: bool) -> str:
    """Return what the table says of a row and a cap, in percent."""
    accuracies, tests = under_cap(row, count, cap_nbytes)
    values, num_tests = 100 * accuracies[tests > 0], tests[tests > 0]
    if not len(values):
        return "-"
    words = f"{values.mean():.2f}"
    if len(row.runs) > 1:
        words += f" [{', '.join('-' if np.isnan(value) else f'{100 * value:.2f}' for value in accuracies)}]"
    beside = []
    if with_tests:
        low, high = num_tests.min(), num_tests.max()
        beside.append(str(low) if low == high else f"{low} to {high}")
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


def amount(nbytes: float) -> str:
    """Return bytes in a decimal unit that suits them."""
    unit = next((unit for unit in ("GB", "MB", "kB") if nbytes >= UNITS[unit]), "B")
    return f"{nbytes / UNITS[unit]:.4g} {unit}"


def write_csv(
    rows: Sequence[Row], counts: Sequence[str], caps: Mapping[str, float], mean_of: int | None, out: Path
) -> None:
    """Write a line for each row, count and cap; accuracies as fractions, empty if there is none.

    `mean_of` is empty where the best test counts. Numbers of tests are those of the runs that have one under the cap.
    `accuracy_by_seed` is as in "1:0.31 2:0.29".
    """
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with out.open("w", newline="") as file:
            writer = csv.writer(file)
            names = [f"accuracy_{part}" for part in ("mean", "min", "max")] + ["num_tests_min", "num_tests_max"]
            names += ["num_runs_under_cap", "num_runs", "num_rounds", "unfinished", "accuracy_by_seed"]
            writer.writerow(["run", "count", "cap", "cap_nbytes", "mean_of", *names])
            for row in rows:
                for count in counts:
                    for name, cap_nbytes in caps.items():
                        accuracies, tests = under_cap(row, count, cap_nbytes)
                        values, num_tests = accuracies[tests > 0], tests[tests > 0]
                        found = ["", "", "", 0, 0]
                        if len(values):
                            found = [values.mean(), values.min(), values.max(), num_tests.min(), num_tests.max()]
                        each = [(one.seed, value) for one, value in zip(row.runs, accuracies, strict=True)]
                        words = " ".join(f"{seed}:{value}" for seed, value in each if not np.isnan(value))
                        found += [len(values), len(row.runs), row.num_rounds, row.unfinished, words]
                        writer.writerow([row.label, count, name, round(cap_nbytes), mean_of or "", *found])
    except OSError as error:
        raise PictureError(f"cannot write {out}: {error.strerror or error}; choose another with --csv") from error


def report(args: argparse.Namespace) -> None:
    """Print the tables, and write what was asked for."""
    curves = [read_curve(path) for path in args.runs]
    if args.data_note is not None:
        curves = [one._replace(facts={**one.facts, "data_note": args.data_note}) for one in curves]
    if args.save_curves is not None:
        for path in save_curves(curves, args.save_curves):
            print(f"saved {path}")
    rows = rows_of(curves, args.metric, args.mean_of)
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
    seeds = "; in brackets each seed's, in ascending order" if any(len(row.runs) > 1 for row in rows) else ""
    tests = f"{seeds}{'; in parentheses the tests until then' if args.tests else ''}"
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
    parser.add_argument(
        "runs", nargs="+", type=ledger_path, metavar="RUN", help="folder of a run, its ledger, or a curve file"
    )
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
    parser.add_argument("--save-curves", type=Path, metavar="FOLDER", help="write a curve file a run")
    parser.add_argument(
        "--data-note",
        metavar="TEXT",
        help="what tables, pictures and curve files say of the data besides its name (default: as curve files do)",
    )
    args = parser.parse_args(argv)
    return run(lambda: report(args))


if __name__ == "__main__":
    sys.exit(main())

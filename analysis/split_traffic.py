"""Tell how many bytes each phase of training takes, a client and round, and draw it; one bar a run.

python analysis/split_traffic.py RUN [RUN ...] [-o OUT.png] [--by paper] [--to RUN] [--markdown]

RUN is the folder of a run or a ledger. A phase is the first word of a message's kind: init, weights (also "seed" and
"model"), activation, gradient, logits, labels, control. Messages down and up count together, as measured or, with
`--by payload`, without frames' headers, or as papers count. init is sent once a client, whatever the number of rounds,
and stands apart: it is not in the sum. The last column says how many times the bytes of the run --to (by default the
smallest sum) each takes.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib as mpl
import numpy as np
import yaml

mpl.use("Agg")
from matplotlib import pyplot as plt
from pictures import COLOURS, PictureError, alike, differences, flat_settings, ledger_path, picture_path, run, save

from fedmpi.ledger.reader import Ledger

PHASES = ("weights", "activation", "gradient", "logits", "labels", "control")
ONCE = "init"
SAME = {"seed": "weights", "model": "weights"}
COUNTS = {"wire": ("wire_nbytes", 1), "payload": ("payload_nbytes", 1), "paper": ("paper_nbits", 8)}


class Traffic(NamedTuple):
    """What a run sent.

    Attributes
    ----------
    label : str
    nbytes : mapping of str to float
        Mean bytes a client and round by phase, those of `PHASES` and any other kind's first word.
    once_nbytes : float
        Mean bytes of `ONCE` a client that was sent any.
    settings : mapping
        By dotted key.
    num_rounds : int
        That are complete.
    """

    label: str
    nbytes: Mapping[str, float]
    once_nbytes: float
    settings: Mapping[str, object]
    num_rounds: int

    @property
    def sum_nbytes(self) -> float:
        """Bytes a client and round, without what is sent once."""
        return sum(self.nbytes.values())


def read_traffic(path: Path, by: str) -> Traffic:
    """Read a ledger; raises OutputError as `Ledger` does, PictureError if it has no messages."""
    with Ledger(path) as ledger:
        messages, rounds = ledger.messages, ledger.rounds
        config = yaml.safe_load(ledger.config_yaml) or {}
    num_turns = int(rounds["num_clients"].sum())
    if not num_turns or not len(messages["kind"]):
        raise PictureError(f"{path}: no round is complete, nothing to tell")
    column, divisor = COUNTS[by]
    # Of the rounds that are complete: a run that goes on may have sent some of the next.
    complete = messages["round_idx"] < len(rounds["round_idx"])
    sent = np.where(complete, messages[column], 0) / divisor
    nbytes: dict[str, float] = {}
    once_nbytes, words = 0.0, [re.split(r"\W", kind)[0] for kind in messages["kind"].tolist()]
    first = np.array([SAME.get(word, word) for word in words])
    for phase in dict.fromkeys(first.tolist()):
        of_phase = first == phase
        if phase == ONCE:
            got = set(messages["client_id"][of_phase & complete].tolist())
            once_nbytes = float(sent[of_phase].sum()) / max(1, len(got))
        else:
            nbytes[phase] = float(sent[of_phase].sum()) / num_turns
    label = str(config.get("algorithm", {}).get("name", path.stem))
    return Traffic(label, nbytes, once_nbytes, dict(flat_settings(config)), len(rounds["round_idx"]))


def distinct(runs: Sequence[Traffic]) -> list[Traffic]:
    """Tell runs of one algorithm apart by the settings in which they differ."""
    labels = [one.label for one in runs]
    for same in alike(labels):
        for i, words in zip(same, differences([runs[i].settings for i in same]), strict=True):
            labels[i] += f": {words}" if words else ""
    return [one._replace(label=label) for one, label in zip(runs, labels, strict=True)]


def phases_of(runs: Sequence[Traffic]) -> list[str]:
    """Return the phases that any of the runs has, in their order."""
    found = dict.fromkeys(phase for one in runs for phase in one.nbytes)
    return [phase for phase in PHASES if phase in found] + [phase for phase in found if phase not in PHASES]


def table(runs: Sequence[Traffic], reference: Traffic, *, markdown: bool = False) -> str:
    """Return the bytes a client and round by phase, their sum, and how many times the reference's that is."""
    phases = phases_of(runs)
    header = ["bytes a client and round", *phases, "sum", "times", "once"]
    rows = []
    for one in runs:
        cells = [f"{one.nbytes.get(phase, 0.0):,.0f}" if phase in one.nbytes else "-" for phase in phases]
        times = f"{one.sum_nbytes / reference.sum_nbytes:.2f}"
        rows.append([one.label, *cells, f"{one.sum_nbytes:,.0f}", times, f"{one.once_nbytes:,.0f}"])
    if markdown:
        lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
        return "\n".join("| " + " | ".join(line) + " |" for line in lines)
    widths = [max(len(line[i]) for line in (header, *rows)) for i in range(len(header))]
    lines = [header, ["-" * width for width in widths], *rows]
    # The first column reads from the left, numbers from the right.
    return "\n".join("  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]) for line in lines)


def plot(runs: Sequence[Traffic], out: Path) -> None:
    """Draw a bar a run, made of its phases."""
    plt.rcParams.update({"font.size": 11, "axes.spines.top": False, "axes.spines.right": False})
    figure, axes = plt.subplots(figsize=(7.2, 1.4 + 0.45 * len(runs)), layout="constrained")
    left = np.zeros(len(runs))
    for i, phase in enumerate(phases_of(runs)):
        megabytes = np.array([one.nbytes.get(phase, 0.0) for one in runs]) / 1e6
        axes.barh(range(len(runs)), megabytes, left=left, color=COLOURS[i % len(COLOURS)], label=phase, zorder=3)
        left += megabytes
    for i, one in enumerate(runs):
        axes.text(left[i], i, f" {one.sum_nbytes / 1e6:.3g}", va="center", fontsize=9)
    axes.set_yticks(range(len(runs)), [one.label for one in runs])
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_xlabel("sent down and up, a client and round (MB = 10$^6$ bytes)")
    axes.grid(axis="x", color="0.9", linewidth=0.8)
    figure.legend(loc="outside upper left", ncols=6, frameon=False, fontsize=9)
    save(figure, out)
    plt.close(figure)


def tell(args: argparse.Namespace) -> None:
    """Print the table, and draw the picture if one is wanted."""
    runs = distinct([read_traffic(path, args.by) for path in args.ledgers])
    reference = min(runs, key=lambda one: one.sum_nbytes)
    if args.to is not None:
        reference = read_traffic(args.to, args.by)
    if not reference.sum_nbytes:
        raise PictureError("the run to compare with sent nothing; name another with --to")
    print(table(runs, reference, markdown=args.markdown))
    for one in {one.label: one for one in (*runs, reference)}.values():
        period = one.settings.get("algorithm.period")
        if isinstance(period, int) and one.num_rounds % period:
            print(
                f"warning: {one.label} has {one.num_rounds} rounds, no multiple of algorithm.period={period}: a "
                "round's bytes are not those of a long run",
                file=sys.stderr,
            )
    if args.out is not None:
        plot(runs, args.out)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ledgers", nargs="+", type=ledger_path, metavar="RUN", help="folder of a run, or its ledger")
    parser.add_argument("-o", "--out", type=picture_path, metavar="OUT", help="picture: png, pdf, svg")
    parser.add_argument("--by", choices=COUNTS, default="wire", help="which bytes (default: %(default)s)")
    parser.add_argument("--to", type=ledger_path, metavar="RUN", help="the run whose bytes are 1")
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    args = parser.parse_args(argv)
    return run(lambda: tell(args))


if __name__ == "__main__":
    sys.exit(main())

"""Say when runs would have reached given accuracies on given links and devices: a table, and a plot with -o.

python analysis/time_to_accuracy.py RUN [RUN ...] [--link PRESET] [--device PRESET] [--server PRESET] [--target 0.8,0.9]
    [--of mean,max] [--per-round] [-o OUT.png] [--markdown]

RUN is the folder of a run or a ledger. Links and devices are presets of `fedmpi.netmodel` or numbers: a link as
DOWN/UP/LATENCY in bits a second and seconds (20e6/5e6/0.05), a device as operations a second. All presets are
assumptions. Several links, in commas, make a table each. A round's virtual time is worked out from the bytes that were
measured and the operations that were counted: the mean over its clients, the sum (one client after the other) or the
max (all at once, until the slowest is through); docs/time_model.md says how. "overlap" is a bound from below: links,
device and server are at work at once, as far as a conversation may allow.

Operations are in the ledgers of runs that had a section `time`, whichever presets that named. For others leave out
--device and --server: devices then take no time. A target is reached at the first test of at least that accuracy.

With --per-round the table has the mean time of a round instead, of runs without tests, too: take rounds that are a
multiple of EcoFed's period. What is sent once, before a client's first round (init), is left out.
"""

from __future__ import annotations

import argparse
import math
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
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
from fedmpi.netmodel import DEVICES, LINKS, Link, System, Turns, round_times, turn_times, turns_of

Array = np.ndarray[Any, Any]

OF = {"mean": "mean over clients", "sum": "one client after the other", "max": "slowest client"}
WAYS = {"": False, " overlap": True}
LINE_STYLES = {False: "-", True: "--"}
LABEL_WIDTH = 78  # characters
NUM_MARKERS = 12  # of a line, about
DEFAULT_TARGETS = 4


class Run(NamedTuple):
    """What a run's virtual time follows from, and its tests.

    `turn_round` is the place of each turn's round among the rounds, `device_ops` and `server_ops` are of turns,
    `aggregate_ops` and `accuracy` of rounds; the accuracy is NaN in rounds that were not tested.
    """

    label: str
    settings: Mapping[str, Any]
    seed: int
    turns: Turns
    turn_round: Array
    device_ops: Array
    server_ops: Array
    aggregate_ops: Array
    accuracy: Array

    def seconds(self, system: System, of: str, overlap: bool) -> Array:
        """Return the virtual time up to and with each round, (num_rounds,) float64."""
        turn_s = turn_times(system, self.seed, self.turns, self.device_ops, self.server_ops, overlap=overlap)
        times = round_times(turn_s, self.turn_round, self.aggregate_ops / system.server_ops_per_s)
        return np.cumsum(getattr(times, of))


def read_run(path: Path, needs_ops: bool, per_round: bool = False) -> Run:
    """Read a ledger; raises OutputError as `Ledger` does, PictureError if it lacks what counts: tests, operations.

    `per_round` leaves out what is sent once, and wants rounds that are over in place of tests.
    """
    with Ledger(path) as ledger:
        rounds, messages, turns = ledger.rounds, ledger.messages, ledger.turns
        settings = dict(flat_settings(yaml.safe_load(ledger.config_yaml) or {}))
    if per_round:
        if not len(rounds["round_idx"]):
            raise PictureError(f"{path}: no round is over")
        is_init = np.char.startswith(messages["kind"].astype(str), "init")
        messages = {name: column[~is_init] for name, column in messages.items()}
    elif np.isnan(rounds["test_accuracy"]).all():
        raise PictureError(f"{path}: no round was tested; set evaluate.every to 1 or more and run again")
    round_idx = rounds["round_idx"]
    if len(turns["round_idx"]):
        of_round, client_id = turns["round_idx"], turns["client_id"]
        ops = {f"{who}_ops": turns[f"{who}_ops"] for who in ("device", "server")}
    elif needs_ops:
        raise PictureError(
            f"{path}: expected operations (turns), got none: the run had no section `time`. Leave out --device and "
            f"--server, so that only links take time, or run again with one"
        )
    else:
        pairs = np.unique(np.stack([messages["round_idx"], messages["client_id"]]), axis=1)
        of_round, client_id = pairs
        ops = dict.fromkeys(("device_ops", "server_ops"), np.zeros(len(client_id)))
    # A run that was cut short has turns of the round that it was in.
    whole = np.isin(of_round, round_idx)
    of_round, client_id = of_round[whole], client_id[whole]
    return Run(
        str(settings.get("algorithm.name", path.stem)),
        settings,
        int(settings.get("seed") or 0),
        turns_of(of_round, client_id, messages),
        np.searchsorted(round_idx, of_round),
        ops["device_ops"][whole],
        ops["server_ops"][whole],
        np.nan_to_num(rounds["aggregate_ops"]),
        rounds["test_accuracy"],
    )


def read_runs(paths: Sequence[Path], needs_ops: bool, per_round: bool = False) -> list[Run]:
    """Read ledgers; runs of the same algorithm are told apart by their settings, else by the end of their paths."""
    runs = [read_run(path, needs_ops, per_round) for path in paths]
    labels = [one.label for one in runs]
    for same in alike(labels):
        for i, words in zip(same, differences([runs[i].settings for i in same]), strict=True):
            labels[i] += f": {words.replace('algorithm.', '')}" if words else ""
    folders = [path.parent if path.name == "ledger.h5" else path for path in paths]
    for same in alike(labels):
        for i in same:
            labels[i] += f" ({'/'.join(folders[i].parts[-2:])})"
    return [one._replace(label=label) for one, label in zip(runs, labels, strict=True)]


def time_to(accuracy: Array, seconds: Array, target: float) -> float | None:
    """Return the virtual time of the first test of at least `target`; None if there is none."""
    reached = np.flatnonzero(accuracy >= target)
    return float(seconds[reached[0]]) if len(reached) else None


def usual_targets(runs: Sequence[Run]) -> list[float]:
    """Return round accuracies up to the lowest of the runs' best, in steps of 5 percent."""
    best = min(float(np.nanmax(one.accuracy)) for one in runs)
    steps = math.floor(best * 20 + 1e-9)
    return [step / 20 for step in range(max(1, steps - DEFAULT_TARGETS + 1), max(1, steps) + 1)]


def table(
    runs: Sequence[Run], system: System, of: Sequence[str], targets: Sequence[float] | None, markdown: bool
) -> str:
    """Return aligned lines: a row a run and way of counting, a column a target, or one of a round; virtual seconds."""
    columns = ["s a round"] if targets is None else [f"{100 * target:g} %" for target in targets]
    lines = [["", "round", *columns]]
    for one in runs:
        for name in of:
            for words, overlap in WAYS.items():
                seconds = one.seconds(system, name, overlap)
                found: list[float | None] = [float(seconds[-1]) / len(seconds)]
                if targets is not None:
                    found = [time_to(one.accuracy, seconds, target) for target in targets]
                lines.append([one.label, f"{name}{words}", *("-" if s is None else f"{s:.4g}" for s in found)])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    sides = [str.ljust, str.ljust, *[str.rjust] * len(columns)]
    if markdown:
        lines[1] = [rule if side is str.ljust else f"{rule[1:]}:" for rule, side in zip(lines[1], sides, strict=True)]
    padded = ([side(text, width) for side, text, width in zip(sides, line, widths, strict=True)] for line in lines)
    return "\n".join(f"| {' | '.join(line)} |" if markdown else "  ".join(line).rstrip() for line in padded)


def plot(runs: Sequence[Run], systems: Mapping[str, System], of: str, out: Path) -> None:
    """Draw accuracy against virtual time, a panel a link; solid in sequence, dashed with overlap."""
    plt.rcParams.update({"font.size": 11, "axes.spines.top": False, "axes.spines.right": False})
    labels = [textwrap.fill(one.label, LABEL_WIDTH, subsequent_indent="    ") for one in runs]
    width = 3 + 4.2 * len(systems)
    num_columns = max(1, int(11 * width) // (10 + max(map(len, labels))))
    num_lines = sum(label.count("\n") + 1 for label in labels) / num_columns
    figure, panels = plt.subplots(
        1, len(systems), figsize=(width, 4.4 + 0.23 * num_lines), layout="constrained", sharey=True, squeeze=False
    )
    for axes, (name, system) in zip(panels[0], systems.items(), strict=True):
        for i, one in enumerate(runs):
            tested = ~np.isnan(one.accuracy)
            for overlap, style in LINE_STYLES.items():
                axes.plot(
                    one.seconds(system, of, overlap)[tested],
                    100 * one.accuracy[tested],
                    linestyle=style,
                    color=COLOURS[i % len(COLOURS)],
                    marker=MARKERS[i % len(MARKERS)],
                    markevery=max(1, int(tested.sum()) // NUM_MARKERS),
                    markersize=6,
                    markeredgecolor="white",
                    markeredgewidth=0.7,
                    linewidth=1.8,
                    label=None if overlap else labels[i],
                    zorder=3,
                )
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.tick_params(axis="x", labelsize=9)
        axes.set_title(name, fontsize=11)
        axes.set_xlabel(f"virtual time (s, {OF[of]};\nsolid in sequence, dashed with overlap)")
        axes.grid(color="0.9", linewidth=0.8)
    panels[0, 0].set_ylabel("test accuracy (%)")
    handles, names = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower left", ncols=num_columns, frameon=False)
    save(figure, out)
    plt.close(figure)


def spelled(link: Link) -> str:
    """Return a link's numbers in words."""
    down, up = (f"{rate / 1e6:g} Mbit/s" for rate in (link.down_bits_per_s, link.up_bits_per_s))
    return f"{down} down, {up} up, {1000 * link.latency_s:g} ms a message"


def report(args: argparse.Namespace) -> None:
    """Print the tables, and draw if that was asked for."""
    needs_ops = math.isfinite(args.device[1]) or math.isfinite(args.server[1])
    runs = read_runs(args.ledgers, needs_ops, args.per_round)
    systems = {
        name: System(link, args.device[1], args.server[1], args.link_spread, args.device_spread)
        for name, link in args.link.items()
    }
    targets = None if args.per_round else args.target or usual_targets(runs)
    if args.out is not None:
        plot(runs, systems, args.of[0], args.out)
    rates = [f"{who} {name} ({rate:g} operations/s)" if math.isfinite(rate) else f"no time for the {who}"
             for who, (name, rate) in (("device", args.device), ("server", args.server))]  # fmt: skip
    print(f"assumed, not measured: {', '.join(rates)}")
    for name, system in systems.items():
        what = "of a round" if targets is None else "to reach an accuracy"
        print(f"\nvirtual seconds {what} on {name} ({spelled(system.link)})\n")
        print(table(runs, system, args.of, targets, args.markdown))


def parse_links(text: str) -> dict[str, Link]:
    """Return links by name from presets and DOWN/UP/LATENCY; raises ArgumentTypeError."""
    links = {}
    for word in filter(None, (part.strip() for part in text.split(","))):
        if word in LINKS:
            links[word] = LINKS[word]
            continue
        try:
            down, up, latency = map(float, word.split("/"))
        except ValueError:
            down = up = latency = math.nan
        if not (0 < down < math.inf and 0 < up < math.inf and 0 <= latency < math.inf):
            raise argparse.ArgumentTypeError(
                f"a link must be one of {', '.join(LINKS)}, or DOWN/UP/LATENCY in bits a second and seconds, such as "
                f"20e6/5e6/0.05, got {word!r}"
            )
        links[word] = Link(up, down, latency)
    if not links:
        raise argparse.ArgumentTypeError(f"must be at least one link, such as wifi_100m, got {text!r}")
    return links


def parse_device(text: str) -> tuple[str, float]:
    """Return a device's name and operations a second; raises ArgumentTypeError."""
    if text in DEVICES:
        return text, DEVICES[text]
    try:
        rate = float(text)
    except ValueError:
        rate = math.nan
    if not 0 < rate < math.inf:
        raise argparse.ArgumentTypeError(
            f"a device must be one of {', '.join(DEVICES)}, or operations a second, got {text!r}"
        )
    return "as given", rate


def parse_targets(text: str) -> list[float]:
    """Return accuracies in (0, 1]; raises ArgumentTypeError."""
    try:
        targets = [float(word) for word in text.split(",")]
    except ValueError:
        targets = []
    if not targets or not all(0 < target <= 1 for target in targets):
        raise argparse.ArgumentTypeError(f"targets must be accuracies in (0, 1], such as 0.8,0.9, got {text!r}")
    return targets


def parse_of(text: str) -> list[str]:
    """Return names of ways to make a round of its turns; raises ArgumentTypeError."""
    names = text.split(",")
    if not set(names) <= set(OF):
        raise argparse.ArgumentTypeError(f"must be some of {', '.join(OF)}, got {text!r}")
    return names


def at_least(low: float) -> Callable[[str], float]:
    """Return what reads a finite number from `low`."""

    def number(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not low <= value < math.inf:
            raise argparse.ArgumentTypeError(f"must be a number of at least {low:g}, got {text!r}")
        return value

    return number


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ledgers", nargs="+", type=ledger_path, metavar="RUN", help="folder of a run, or its ledger")
    parser.add_argument("--link", type=parse_links, default="wifi_100m,lte_20m_5m", help="links (default: %(default)s)")
    no_time = ("", math.inf)
    for who in ("device", "server"):
        parser.add_argument(f"--{who}", type=parse_device, default=no_time, help="preset, or operations a second")
    for what in ("link", "device"):
        parser.add_argument(
            f"--{what}-spread",
            type=at_least(0),
            default=0.0,
            metavar="SIGMA",
            help="of clients' own factors, default 0",
        )
    parser.add_argument("--target", type=parse_targets, metavar="ACC", help="accuracies, such as 0.8,0.9")
    parser.add_argument(
        "--of", type=parse_of, default="mean,max", help="mean, sum, max; the first is drawn (default: %(default)s)"
    )
    parser.add_argument("--per-round", action="store_true", help="the mean time of a round, not that to a target")
    parser.add_argument("-o", "--out", type=picture_path, metavar="OUT", help="picture: png, pdf, svg")
    parser.add_argument("--markdown", action="store_true", help="print the tables as Markdown")
    args = parser.parse_args(argv)
    if args.per_round and (args.target or args.out):
        parser.error("--per-round has no targets and no picture: leave out --target and -o")
    return run(lambda: report(args))


if __name__ == "__main__":
    sys.exit(main())

"""What logging one message costs: process time of append + convert + write + flush, creation and close apart.

    python benchmarks/ledger.py [--rounds 200] [--messages 20] [--round-s 0.015] [--repeats 7]

A round is slept, so every call meets cold caches, as after training. The cost of reading the clock is measured in the
same way, without logging, and shown. Prints medians (and ranges) over repeats.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

from fedmpi.ledger.schema import ROUND_COLUMNS, MessageRow
from fedmpi.ledger.writer import LedgerWriter

TARGET_US = 3.0
MODES = {
    "clock": "reading the clock, nothing logged",
    "messages": "messages, flushed once a second",
    "rounds": "the same and a row of rounds each round",
    "each": "messages, flushed after each row",
}
ROUND_VALUES = {column.name: 10 for column in ROUND_COLUMNS}


def make_row(round_idx: int, i: int) -> MessageRow:
    """Return a plausible row; its numbers are Python's own, as the engine's are."""
    up = i % 2
    return MessageRow(
        round_idx, 0, i // 2, 1 + i % 3, ("down", "up")[up], ("model", "masked_values")[up], ("dense", "bitmask")[up],
        96, 421642 + i, 421738 + i, 13176, 408466, 421642, 3373136.0 + i, 3373136.0, 105410, 105410 - i,
        1.1e-4, 0.9e-4, round_idx + 0.1, round_idx + 0.2,
    )  # fmt: skip


def measure(mode: str, path: Path, args: argparse.Namespace) -> float:
    """Return microseconds of process time a message; `mode` is a key of `MODES`."""
    writer = LedgerWriter(path, attrs={"num_ranks": 4}, config_yaml="rounds: 1\n", flush_s=1.0)
    used_s = 0.0
    for round_idx in range(args.rounds):
        rows = [make_row(round_idx, i) for i in range(args.messages)]
        time.sleep(0.0 if mode == "each" else args.round_s)
        begin = time.process_time()
        if mode == "each":
            for row in rows:
                writer.add_message(row)
                writer.flush()
        elif mode != "clock":
            for row in rows:
                writer.add_message(row)
            if mode == "rounds":
                writer.add_round({**ROUND_VALUES, "round_idx": round_idx})
            writer.write_due()
        used_s += time.process_time() - begin
    begin = time.process_time()
    writer.flush()
    used_s += time.process_time() - begin
    writer.finish("done", {})
    return used_s / float(args.rounds * args.messages) * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--messages", type=int, default=20, help="messages a round")
    parser.add_argument("--round-s", type=float, default=0.015, help="length of a round, slept")
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    figures: dict[str, list[float]] = {mode: [] for mode in MODES}
    with tempfile.TemporaryDirectory() as folder:
        for repeat in range(args.repeats):
            for mode in MODES:
                figures[mode].append(measure(mode, Path(folder, f"{mode}{repeat}.h5"), args))
    clock_us = statistics.median(figures["clock"])
    for mode, words in MODES.items():
        median_us = statistics.median(figures[mode])
        less = "" if mode == "clock" else f", less the clock {median_us - clock_us:.2f}"
        print(f"{words}: {median_us:.2f} us/message ({min(figures[mode]):.2f} to {max(figures[mode]):.2f}){less}")
    print(f"target: {TARGET_US} us/message, flushed once a second")


if __name__ == "__main__":
    main()

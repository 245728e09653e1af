"""Run a set of experiments one after the other; started again, leave out those that are finished.

python jobs/run_set.py CONFIG_OR_FOLDER[@SEED,SEED] ... [-n RANKS] [-o OUT] [--only PATTERN] [--list] [key=value ...]

A folder stands for the .yaml files in it; without seeds a file's own is taken. NAME.yaml runs in OUT/NAME/seedSEED; its
output is in log.txt there. It is left out if the ledger there is done, and refused if that has other settings (but for
data.root, where the data lie): what is done is never replaced. What was cut off begins anew. A run without its data
is left out too, and counted at the end. The status is 1 if a run failed or was refused, 3 if all that was to do lacks
its data, 130 after Ctrl-C, 141 if nobody reads the output any more, as after `| head`.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from fnmatch import fnmatchcase
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

from fedmpi.config import RunConfig
from fedmpi.configfile import load_config
from fedmpi.engine.setup import resolve
from fedmpi.errors import ConfigError, DataError, OutputError
from fedmpi.ledger.reader import Ledger

INTERRUPTED = 128 + signal.SIGINT


class Wanted(NamedTuple):
    """One run: its configuration's file, what replaces settings there, and its folder."""

    config: Path
    overrides: list[str]
    out: Path


def expand(word: str, overrides: Sequence[str], out: Path) -> Iterator[Wanted]:
    """Yield the runs that CONFIG_OR_FOLDER[@SEED,SEED] means; raises ConfigError."""
    name, at, seeds = word.partition("@")
    files = sorted(Path(name).glob("*.yaml")) if Path(name).is_dir() else [Path(name)]
    if not files or (at and not all(seed.isdecimal() for seed in seeds.split(","))):
        raise ConfigError(f"expected FILE, FOLDER with .yaml files in it, or either with @SEED,SEED, got {word!r}")
    for file in files:
        for seed in seeds.split(",") if at else [load_config(file, overrides).seed]:
            yield Wanted(file, [*overrides, f"seed={seed}"], out / file.stem / f"seed{seed}")


def is_done(run: Wanted) -> bool:
    """Return whether a run's folder holds it, done; raises ConfigError if what is done there had other settings."""
    wanted, done = resolve(load_config(run.config, run.overrides)), False
    with suppress(OutputError), Ledger(run.out / "ledger.h5") as ledger:
        done = ledger.status == "done"
    if not done:
        return False
    found = resolve(load_config(run.out / "config.yaml"))
    found = found.model_copy(update={"data": found.data.model_copy(update={"root": wanted.data.root})})
    if other := [key for key in RunConfig.model_fields if getattr(found, key) != getattr(wanted, key)]:
        raise ConfigError(f"{run.out} is done with other settings of {', '.join(other)}; remove it or take another -o")
    return True


def on_interruption(handler: Callable[[int, FrameType | None], Any]) -> None:
    """Say what Ctrl-C and a wish to end do; in a shell's background the first would be ignored."""
    for wish in (signal.SIGINT, signal.SIGTERM):
        signal.signal(wish, handler)


def launch(run: Wanted, num_ranks: int) -> int:
    """Run it; return its exit status, 130 after Ctrl-C."""
    words = ["-n", num_ranks, run.config, *run.overrides, "-o", run.out, "--overwrite"]
    command = [sys.executable, "-m", "fedmpi", "launch", *map(str, words)]
    # In a session of its own the run gets a terminal's Ctrl-C from here alone: a second one would cut its end short.
    # One that comes while the run is being started waits until there is a process to pass it on to.
    early: list[int] = []
    on_interruption(lambda number, _: early.append(number))
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True)
    try:
        on_interruption(signal.default_int_handler)
        if early:
            raise KeyboardInterrupt
        return process.wait()
    except KeyboardInterrupt:
        process.send_signal(signal.SIGINT)
        process.wait()
        return INTERRUPTED


def do(run: Wanted, args: argparse.Namespace) -> tuple[int | None, str]:
    """Do what is to be done about a run; return its status, None if nothing was, and what to say."""
    try:
        if is_done(run):
            return None, f"skipped, done in {run.out}"
    except ConfigError as error:
        return error.exit_status, f"refused: {error}"
    if args.list:
        return 0, f"to run in {run.out}"
    start, status = time.monotonic(), launch(run, args.num_ranks)
    if status == DataError.exit_status:
        return status, "left out, no data"
    words = {0: "done", INTERRUPTED: "interrupted"}.get(status, f"failed with status {status}")
    return status, f"{words} in {time.monotonic() - start:.0f} s"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    try:
        return run_set(argv)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read has read enough. Python would try once more to write what is left, and say that it cannot.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE


def run_set(argv: Sequence[str] | None) -> int:
    """Do what the command line asks for; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="+", metavar="CONFIG_OR_FOLDER[@SEED,SEED] or key=value")
    parser.add_argument("-n", dest="num_ranks", type=int, default=1, metavar="RANKS", help="default: %(default)s")
    parser.add_argument("-o", dest="out", type=Path, default=Path("runs/feddst"), help="default: %(default)s")
    parser.add_argument("--only", default="*", metavar="PATTERN", help="only files of such names, as in 'cifar10_*'")
    parser.add_argument("--list", action="store_true", help="say what would be done, and do nothing")
    args = parser.parse_intermixed_args(argv)
    overrides = [word for word in args.words if "=" in word]
    try:
        runs = [run for word in args.words if "=" not in word for run in expand(word, overrides, args.out)]
    except ConfigError as error:
        parser.error(str(error))
    if not (runs := [run for run in runs if fnmatchcase(run.config.stem, args.only)]):
        parser.error(f"expected a run at least, got none with --only {args.only}")
    on_interruption(signal.default_int_handler)
    statuses = []
    for run in runs:
        status, words = do(run, args)
        print(f"{run.config.stem} {run.out.name}: {words}", flush=True)
        if status == INTERRUPTED:
            return INTERRUPTED
        if status is not None:
            statuses.append(status)
    if num_left_out := statuses.count(DataError.exit_status):
        words = f"{num_left_out} of {len(runs)} runs left out, no data: the lines of errors say where it was looked for"
        print(words, flush=True)
    if set(statuses) <= {0, DataError.exit_status}:
        return DataError.exit_status if 0 < num_left_out == len(statuses) else 0
    return 1


if __name__ == "__main__":
    sys.exit(main())

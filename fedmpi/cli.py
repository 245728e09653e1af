"""The command line. Heavy imports wait until a command needs them, so that help is quick."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from fedmpi import __version__
from fedmpi.errors import FedmpiError


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; return its exit status."""
    parser = _parser()
    # Overrides may stand before options and after them, which argparse alone does not allow below a command.
    args, rest = parser.parse_known_args(argv)
    if rest:
        if not hasattr(args, "overrides") or any(word.startswith("-") for word in rest):
            parser.error(f"unrecognized arguments: {' '.join(rest)}")
        args.overrides += rest
    try:
        status: int = args.command(args)
        return status
    except FedmpiError as error:
        if _launched_rank() == 0:  # ranks that a launcher started would all say the same
            print(f"fedmpi: error: {error}", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        print("fedmpi: error: interrupted", file=sys.stderr)
        return 128 + signal.SIGINT


def _launched_rank() -> int:
    from fedmpi.comm.launcher import launched_as

    launched = launched_as()
    return launched[1] if launched else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fedmpi",
        description="Simulate communication-efficient federated learning over MPI, with every byte measured.",
        epilog="Exit statuses: 0 done, 1 unexpected error, 2 configuration or usage, 3 data missing, 4 placement or "
        "launch, 5 protocol or time-out, 6 output, 75 stopped early.",
    )
    parser.add_argument("--version", action="version", version=f"fedmpi {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    run = commands.add_parser(
        "run", help="run a configuration, alone or under mpirun",
        description="Run a configuration. Under mpirun or srun rank 0 is the server and the others are workers; "
        "without, one process is both and sends itself the same bytes.",
    )  # fmt: skip
    _add_run_arguments(run)
    run.set_defaults(command=_run)

    launch = commands.add_parser(
        "launch", help="run a configuration on N ranks of this machine",
        description="Start this environment's own mpiexec with N ranks of `fedmpi run`, with what root and more ranks "
        "than cores need, and say what happened if a rank dies.",
    )  # fmt: skip
    launch.add_argument(
        "-n", dest="num_ranks", type=int, required=True, metavar="N", help="ranks: a server and N-1 workers"
    )
    _add_run_arguments(launch)
    launch.set_defaults(command=_launch)

    info = commands.add_parser(
        "info", help="summarize a ledger", description="Summarize a ledger, of a killed run too."
    )
    info.add_argument("file", type=Path, metavar="FILE", help="ledger.h5, or the folder of a run")
    info.add_argument("--json", action="store_true", help="print JSON")
    info.set_defaults(command=_info)
    return parser


def _add_run_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", type=Path, metavar="CONFIG.yaml")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="settings that replace the file's")
    parser.add_argument("-o", "--out", type=Path, metavar="OUT", help="output folder (default: runs/CONFIG)")
    parser.add_argument("--overwrite", action="store_true", help="replace the run that OUT holds")


def _run(args: argparse.Namespace) -> int:
    # Until the run has its own handler, a wish to stop must not kill the process.
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    from fedmpi.config import load_config

    config = load_config(args.config, args.overrides)
    from fedmpi.comm.launcher import connect
    from fedmpi.engine.setup import resolve

    config = resolve(config)
    # Threads are set from the configuration; without this, torch first starts one a core.
    os.environ.setdefault(
        "OMP_NUM_THREADS", "1" if config.placement.threads == "auto" else str(config.placement.threads)
    )
    comm = connect(config.comm)
    from fedmpi.runner import run

    return run(config, _out(args), comm, overwrite=args.overwrite)


def _out(args: argparse.Namespace) -> Path:
    out: Path = args.out if args.out is not None else Path("runs") / args.config.stem
    return out


def _launch(args: argparse.Namespace) -> int:
    from fedmpi.launch import launch

    command = ["run", str(args.config), *args.overrides, "-o", str(_out(args))]
    return launch(args.num_ranks, command + (["--overwrite"] if args.overwrite else []), _out(args))


def _info(args: argparse.Namespace) -> int:
    from fedmpi.ledger.reader import Ledger

    # The folder of a run stands for its ledger.
    with Ledger(args.file / "ledger.h5" if args.file.is_dir() else args.file) as ledger:
        summary = ledger.summary()
    if args.json:
        print(json.dumps(summary, indent=2))
    else:
        from fedmpi.report.summary import info_text

        print(info_text(summary))
    return 0

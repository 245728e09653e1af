"""The command line: what can be typed. Heavy imports wait until a command needs them, so that help is quick."""

from __future__ import annotations

import argparse
import errno
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from fedmpi import __version__
from fedmpi.errors import ConfigError, FedmpiError, OutputError, PlacementError


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; return its exit status."""
    # Overrides may stand before options and after them, which argparse alone does not allow below a command.
    args, rest = _parser().parse_known_args(argv)
    if rest:
        if not hasattr(args, "overrides") or any(word.startswith("-") for word in rest):
            args.parser.refuse_unknown(rest)
        args.overrides = [*args.overrides, *rest]
    try:
        status: int = args.command(args)
        sys.stdout.flush()
        return status
    except FedmpiError as error:
        if _speaks():
            print(f"fedmpi: error: {error}", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        print("fedmpi: error: interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
    except BrokenPipeError:
        # Whoever read has read enough, as `head` does.
        _give_up_output()
        return 128 + signal.SIGPIPE
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EIO) or error.filename is not None:
            raise
        _give_up_output()  # standard output is a file on a full disk
        print(f"fedmpi: error: cannot write the output: {error.strerror}", file=sys.stderr)
        return OutputError.exit_status


def _give_up_output() -> None:
    """Let Python close standard output without a word: it would try once more to write what is left."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _speaks() -> bool:
    from fedmpi.comm.launcher import speaks

    return speaks()


class _Parser(argparse.ArgumentParser):
    """A parser whose errors begin as all others of the program do, whichever the command."""

    def error(self, message: str) -> NoReturn:
        if _speaks():
            self.print_usage(sys.stderr)
            print(f"fedmpi: error: {message}", file=sys.stderr)
        self.exit(ConfigError.exit_status)

    def refuse_unknown(self, words: Sequence[str]) -> NoReturn:
        """End with an error about words that no argument takes, and the option that one of them may mean."""
        from fedmpi.problems import did_you_mean

        options = [option for action in self._actions for option in action.option_strings if option.startswith("--")]
        hints = [did_you_mean(word.partition("=")[0], options) for word in words if word.startswith("--")]
        self.error(f"unrecognized arguments: {' '.join(words)}{next(filter(None, hints), '')}")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="fedmpi",
        description="Simulate communication-efficient federated learning over MPI, with every byte measured.",
        epilog="Exit statuses: 0 done, 1 unexpected error, 2 configuration or usage, 3 data missing, 4 placement or "
        "launch, 5 protocol or time-out, 6 output, 75 stopped early; docs/exit_statuses.md has causes and ways out.",
    )
    parser.add_argument("--version", action="version", version=f"fedmpi {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, handler: Callable[[argparse.Namespace], int], short: str, long: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=short, description=long)
        command.set_defaults(command=handler, parser=command)
        return command

    run = add(
        "run", _run, "run a configuration, alone or under mpirun",
        "Run a configuration. Under mpirun or srun rank 0 is the server and the others are workers; without, one "
        "process is both and sends itself the same bytes.",
    )  # fmt: skip
    _add_run_arguments(run)
    launch = add(
        "launch", _launch, "run a configuration on N ranks of this machine",
        "Start this environment's own mpiexec with N ranks of `fedmpi run`, with what root and more ranks than cores "
        "need, and say what happened if a rank dies.",
    )  # fmt: skip
    launch.add_argument(
        "-n", dest="num_ranks", type=_num_ranks, required=True, metavar="N", help="ranks: a server and N-1 workers"
    )
    _add_run_arguments(launch)

    pretrain = add(
        "pretrain", _pretrain, "train a model centrally and write its weights",
        "Train a model in one process, on data that a federated run need not see (data.classes, another data.name), "
        "and write it with its settings, accuracy and a hash of the data. `fedmpi config pretrain` lists settings.",
    )  # fmt: skip
    _add_config_arguments(pretrain)
    pretrain.add_argument(
        "-o", "--out", type=_file, metavar="FILE", required=True, help="where to: it must end in .safetensors"
    )
    pretrain.add_argument("--overwrite", action="store_true", help="replace FILE")
    pretrain.add_argument("--dry-run", action="store_true", help="check everything; train and write nothing")

    info = add("info", _late("info"), "summarize ledgers", "Summarize ledgers, of killed runs too.")
    _add_ledger_argument(info, several=True)
    info.add_argument("--json", action="store_true", help="print JSON; a list if there are several files")
    check = add(
        "check", _late("check"), "check that ledgers are sound",
        "Check that ledgers are whole and that their numbers agree with each other; status 6 if one is not.",
    )  # fmt: skip
    _add_ledger_argument(check, several=True)
    check.add_argument("-v", "--verbose", action="store_true", help="print each rule that was checked, too")
    export = add(
        "export", _late("export"), "write a ledger's tables as CSV",
        "Write a ledger's tables as CSV: messages, rounds, faults, partition, placement and attributes.",
    )  # fmt: skip
    _add_ledger_argument(export)
    export.add_argument("--csv", action="store_true", default=True, help="the format: the only one, and the default")
    export.add_argument(
        "-o", "--out", type=_folder, metavar="OUT", help="folder for the files (default: csv/ beside FILE)"
    )
    export.add_argument("--table", metavar="NAME", help="print this table alone to standard output")
    export.add_argument("--overwrite", action="store_true", help="replace files that are there")

    wire = add(
        "wire", _late("wire"), "say what an array of one's own weighs as a message",
        "Send a .npy file's array as a real message, there and back: the codec picked, bytes on the wire, the Shannon "
        "bound, CPU time. It is checked that it comes back bit for bit (else status 5).",
    )  # fmt: skip
    wire.add_argument(
        "array", type=Path, metavar="ARRAY.npy", help="what to send: bool, whole numbers or floats, of any shape"
    )
    wire.add_argument(
        "--kind", metavar="KIND", help="mask, sparse, quantized or dense (default: bool is a mask, whole numbers are "
        "quantized; floats are quantized with --bits, sparse with a --base of bool, dense with one of numbers, else "
        "sparse if at least half of them are 0, dense if not)",
    )  # fmt: skip
    held = wire.add_mutually_exclusive_group()
    held.add_argument(
        "--prior", type=Path, metavar="P.npy", help="probabilities of a mask's bits, held by both ends, which round "
        "them to 1/4096",
    )  # fmt: skip
    held.add_argument(
        "--base", type=Path, metavar="OLD.npy", help="what both ends hold: a mask, or for dense arrays numbers of the "
        "same dtype",
    )  # fmt: skip
    wire.add_argument(
        "--bits", type=int, metavar="B", help="1 to 8, of quantized numbers; floats are rounded to so many first"
    )
    wire.add_argument(
        "--dtype", metavar="bfloat16", help="the file holds, as uint16, the bit patterns of bfloat16, which numpy lacks"
    )
    wire.add_argument(
        "--codec", default="auto", metavar="NAME", help="one that the kind has in `fedmpi config wire`; for sparse "
        "arrays of the positions, or both: uint32+raw (default: the smallest)",
    )  # fmt: skip
    wire.add_argument("--json", action="store_true", help="print JSON")

    listing = add(
        "list", _late("list_choices"), "list algorithms, data sets, partitions, models, codecs",
        "List what a configuration can name, one line each.",
    )  # fmt: skip
    listing.add_argument("what", nargs="?", metavar="WHAT", help="only one of the five, such as `models`")
    config = add(
        "config", _late("config"), "list every setting with type, default and meaning",
        "List every key of a configuration with its type, default, range and meaning.",
    )  # fmt: skip
    config.add_argument("key", nargs="?", metavar="KEY", help="only this section or key, such as `train` or `train.lr`")
    config.add_argument("--markdown", action="store_true", help="as docs/configuration.md has it")
    fetch = add(
        "fetch", _late("fetch"), "download a data set",
        "Download a data set's files into the cache, checked against their published checksums and resumed where an "
        "earlier try was cut off. A run never downloads anything.",
    )  # fmt: skip
    fetch.add_argument("name", metavar="DATASET")
    fetch.add_argument(
        "-o", "--out", type=_folder, metavar="FOLDER", help="folder (default: the cache, where runs look)"
    )
    return parser


def _num_ranks(text: str) -> int:
    """Return the number of ranks that a word of the command line means."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text!r}")
    return int(text)


def _folder(text: str) -> Path:
    """Return the folder that a word of the command line means; an empty word would be the folder one is in."""
    if not text:
        raise argparse.ArgumentTypeError("must be a folder, got an empty word")
    return Path(text)


def _file(text: str) -> Path:
    """Return the file that a word of the command line means."""
    if not text:
        raise argparse.ArgumentTypeError("must be a file, got an empty word")
    return Path(text)


def _late(name: str) -> Callable[[argparse.Namespace], int]:
    """Return a handler that imports `fedmpi.commands` when it is called."""

    def handler(args: argparse.Namespace) -> int:
        from fedmpi import commands

        status: int = getattr(commands, name)(args)
        return status

    return handler


def _add_ledger_argument(parser: argparse.ArgumentParser, *, several: bool = False) -> None:
    parser.add_argument(
        "file", type=Path, metavar="FILE", nargs="+" if several else None, help="ledger.h5, or the folder of a run"
    )


def _add_config_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", type=Path, metavar="CONFIG.yaml")
    parser.add_argument(
        "overrides", nargs="*", default=[], metavar="section.key=value", help="settings that replace the file's"
    )


def _add_run_arguments(parser: argparse.ArgumentParser) -> None:
    _add_config_arguments(parser)
    parser.add_argument("-o", "--out", type=_folder, metavar="OUT", help="output folder (default: runs/CONFIG)")
    parser.add_argument("--overwrite", action="store_true", help="replace the run that OUT holds")
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="check everything; print placement, memory a rank and bytes a round by kind of message; train nothing",
    )


def _run(args: argparse.Namespace) -> int:
    # Until the run has its own handler, a wish to stop must not kill the process.
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    from fedmpi.comm.launcher import launched_as

    if args.dry_run:
        size, rank = launched_as() or (1, 0)
        return _dry_run(args, size) if rank == 0 else 0
    from fedmpi.config import CommConfig
    from fedmpi.configfile import load_config

    config = problem = None
    try:
        config = load_config(args.config, args.overrides)
        _set_threads(config.placement.threads)
        from fedmpi.engine.setup import resolve

        config = resolve(config)
    except FedmpiError as error:
        if launched_as() is None:
            raise
        # Another rank may have read its files without a problem and wait in MPI: it is told there.
        config, problem = None, error
    from fedmpi.comm.launcher import connect

    comm = connect(config.comm if config is not None else CommConfig())
    from fedmpi.runner import run

    return run(config, _out(args), comm, overwrite=args.overwrite, problem=problem)


def _set_threads(threads: int | str) -> None:
    """Have torch start as many threads as the configuration says: it would first start one a core."""
    os.environ.setdefault("OMP_NUM_THREADS", "1" if threads == "auto" else str(threads))


def _pretrain(args: argparse.Namespace) -> int:
    from fedmpi.comm.launcher import launched_as

    size, _ = launched_as() or (1, 0)
    if size > 1:
        raise PlacementError(f"fedmpi pretrain is one process, got {size} ranks; start it without a launcher")
    from fedmpi.configfile import load_pretrain_config

    config = load_pretrain_config(args.config, args.overrides)
    _set_threads(config.placement.threads)
    from fedmpi.pretrain import pretrain

    return pretrain(config, args.out, overwrite=args.overwrite, dry_run=args.dry_run)


def _dry_run(args: argparse.Namespace, num_ranks: int) -> int:
    from fedmpi.configfile import load_config

    config = load_config(args.config, args.overrides)
    _set_threads(config.placement.threads)
    from fedmpi.dryrun import dry_run
    from fedmpi.engine.setup import resolve

    return dry_run(resolve(config), _out(args), num_ranks, overwrite=args.overwrite)


def _out(args: argparse.Namespace) -> Path:
    out: Path = args.out if args.out is not None else Path("runs") / args.config.stem
    return out


def _launch(args: argparse.Namespace) -> int:
    if args.dry_run:
        return _dry_run(args, args.num_ranks)
    from fedmpi.launch import launch

    command = ["run", str(args.config), *args.overrides, "-o", str(_out(args))]
    return launch(args.num_ranks, command + (["--overwrite"] if args.overwrite else []), _out(args))

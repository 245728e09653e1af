"""The commands beside those that run: on ledgers, on what a configuration can name, and the one that fetches data."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from fedmpi.errors import ConfigError, OutputError
from fedmpi.ledger.schema import LEDGER_NAME
from fedmpi.problems import did_you_mean


def _ledger_path(path: Path) -> Path:
    """Return the ledger that a path means: the folder of a run stands for the one in it."""
    return path / LEDGER_NAME if path.is_dir() else path


def info(args: argparse.Namespace) -> int:
    """Summarize ledgers."""
    from fedmpi.ledger.reader import Ledger
    from fedmpi.report.summary import info_table, info_text

    summaries = []
    for path in args.file:
        with Ledger(_ledger_path(path)) as ledger:
            summaries.append(ledger.summary())
    if args.json:
        print(json.dumps(summaries if len(summaries) > 1 else summaries[0], indent=2))
    elif len(summaries) > 1:
        print(info_table(list(zip(args.file, summaries, strict=True))))
    else:
        print(info_text(summaries[0]))
    return 0


def check(args: argparse.Namespace) -> int:
    """Check ledgers; the status is that of an unusable output if one is not sound."""
    from fedmpi.ledger.check import Check

    status = 0
    for path in map(_ledger_path, args.file):
        checked: list[str] = []
        try:
            found = Check(path)
            checked, problems = found.checked, found.problems
        except OutputError as error:
            problems = [str(error)]
        print(f"{path}: {'sound' if not problems else 'NOT sound'}")
        if args.verbose:
            for rule in checked:
                print(f"  checked: {rule}")
        for problem in problems:
            print(f"  {problem}")
            status = OutputError.exit_status
    return status


def export(args: argparse.Namespace) -> int:
    """Write a ledger's tables as CSV."""
    from fedmpi.ledger.export import export_csv, write_table

    path = _ledger_path(args.file)
    if args.table is not None:
        write_table(path, args.table, sys.stdout)
        return 0
    for written in export_csv(path, args.out or path.parent / "csv", overwrite=args.overwrite):
        print(written)
    return 0


def fetch(args: argparse.Namespace) -> int:
    """Download a data set."""
    from fedmpi.data.fetch import fetch as fetch_files

    for path in fetch_files(args.name, folder=args.out, report=print):
        print(path)
    return 0


def wire(args: argparse.Namespace) -> int:
    """Say what an array weighs as a message."""
    from fedmpi.weigh.arrays import Options
    from fedmpi.weigh.report import weigh, weigh_text

    figures = weigh(args.array, args.kind, args.codec, Options(args.prior, args.base, args.bits, args.dtype))
    print(json.dumps(figures, indent=2) if args.json else weigh_text(figures))
    return 0


def config(args: argparse.Namespace) -> int:
    """List the settings."""
    from fedmpi.report.settings import settings_markdown, settings_text

    if args.markdown and args.key:
        raise ConfigError("--markdown is the whole page; leave out the key")
    print(settings_markdown().rstrip("\n") if args.markdown else settings_text(args.key or ""))
    return 0


def list_choices(args: argparse.Namespace) -> int:
    """List what a configuration can name."""
    from fedmpi.report.choices import GROUPS, choices_text

    if args.what is not None and args.what not in GROUPS:
        raise ConfigError(f"fedmpi list knows {', '.join(GROUPS)}, got {args.what!r}{did_you_mean(args.what, GROUPS)}")
    print(choices_text([args.what] if args.what else list(GROUPS)))
    return 0

"""One place that prints: to the terminal and, the same lines, to the run's log file."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from tqdm import tqdm

from fedmpi.errors import OutputError

_FLUSH_S = 0.1

BAR_COLUMNS = "FEDMPI_BAR_COLUMNS"
"""Set by `fedmpi launch` if it runs on a terminal: its width."""


class Console:
    """Prints lines to standard output and, once it is told where, the same lines to a log."""

    def __init__(self) -> None:
        self._log: TextIO | None = None
        self._so_far: list[str] = []
        self._flushed = 0.0

    def log_to(self, path: Path) -> None:
        """Write to a log what has been printed, and from now on what is.

        A log that cannot be written is given up, with a warning: the run and its ledger go on.
        """
        with self._giving_up_the_log(path):
            self._log = open(path, "w")  # noqa: SIM115
            self._log.writelines(line + "\n" for line in self._so_far)
            self._log.flush()

    @contextmanager
    def _giving_up_the_log(self, path: Path | str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            log, self._log = self._log, None
            if log is not None:
                with suppress(OSError):
                    log.close()
            sys.stdout.write(f"warning: {path} is given up: {error.strerror}\n")

    def print(self, text: str = "") -> None:
        """Print a text; a live bar stays below it."""
        with _naming_full_disks():
            if on_terminal():
                tqdm.write(text, file=sys.stdout)
            else:
                sys.stdout.write(text + "\n")
        if self._log is not None:
            with self._giving_up_the_log(self._log.name):
                self._log.write(text + "\n")
        else:
            self._so_far.append(text)
        # With rounds of milliseconds, flushing every line costs more than anything else the server does.
        if time.monotonic() > self._flushed + _FLUSH_S:
            self.flush()

    def flush(self) -> None:
        """Let everything printed be seen."""
        with _naming_full_disks():
            sys.stdout.flush()
        if self._log is not None:
            with self._giving_up_the_log(self._log.name):
                self._log.flush()
        self._flushed = time.monotonic()

    def close(self) -> None:
        """Close the log."""
        with suppress(OSError):
            self.flush()
        if self._log is not None:
            with self._giving_up_the_log(self._log.name):
                self._log.close()
            self._log = None


@contextmanager
def _naming_full_disks() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputError(f"cannot write the output: {error.strerror}") from error


def on_terminal() -> bool:
    """Return whether what is printed ends on a terminal: this process's own, or that of `fedmpi launch`."""
    return sys.stdout.isatty() or BAR_COLUMNS in os.environ


def table(header: Sequence[str], rows: Sequence[Sequence[object]], *, left: int = 1) -> str:
    """Lay out a table: the first `left` columns flush left, the others flush right."""
    cells = [list(header), *([str(cell) for cell in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    lines = []
    for row in cells:
        parts = (
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        lines.append("  " + "  ".join(parts).rstrip())
    lines.insert(1, "  " + "  ".join("-" * width for width in widths))
    return "\n".join(lines)


def megabytes(nbytes: float) -> str:
    """Write a number of bytes in MB = 10^6 bytes."""
    return f"{nbytes / 1e6:.3f}"

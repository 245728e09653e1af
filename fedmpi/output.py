"""Where output goes: what must hold of it before anything is done, and how an earlier run in a folder is replaced."""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

from fedmpi.config import RunConfig
from fedmpi.configfile import describe
from fedmpi.errors import OutputError
from fedmpi.ledger.schema import LEDGER_NAME
from fedmpi.ledger.writer import LedgerWriter

CONFIG_NAME = "config.yaml"


def check_output(out: Path, overwrite: bool) -> None:
    """Raise `OutputError` if a run cannot be written to `out`; nothing is made."""
    ledger = out / LEDGER_NAME
    if ledger.exists():
        if not overwrite:
            raise _holds_a_run(out)
        if ledger.is_dir():
            raise OutputError(f"{ledger} is a folder, so it cannot be overwritten; choose another folder with -o")
        if _is_being_written(ledger):
            raise OutputError(f"{out} holds a run that is going on; choose another folder with -o, or stop it first")
    for folder in (out, *out.absolute().parents):
        if folder.exists():
            break
    if not folder.is_dir():
        raise OutputError(f"cannot make the output folder {out}: {folder} is a file; choose another with -o")
    _check_writable(folder, f"the output folder {out} is not writable", "choose another with -o")


def check_state_dir(template: Path | None, rank: int) -> None:
    """Raise `OutputError` if ``placement.state_dir`` cannot be made or written on this rank's node."""
    if template is None:
        return
    folder = Path(str(template).replace("{rank}", str(rank)))
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make placement.state_dir {folder}: {error.strerror}; name another folder") from error
    _check_writable(folder, f"placement.state_dir {folder} is not writable", "name another folder")


def begin_output(
    out: Path, attrs: Mapping[str, str | int | float], config: RunConfig, *, overwrite: bool
) -> LedgerWriter:
    """Begin a ledger and write the configuration; an earlier run is replaced when both exist, and not before.

    Raises
    ------
    OutputError
        If that cannot be done, or another run has begun here meanwhile; then nothing has changed.
    """
    path, new = out / LEDGER_NAME, out / f"{LEDGER_NAME}.new"
    config_path, new_config = out / CONFIG_NAME, out / f"{CONFIG_NAME}.new"
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make the output folder {out}: {error.strerror}; choose another with -o") from error
    if new.exists() and not _is_being_written(new):
        with contextlib.suppress(OSError):
            new.unlink()  # a run was killed here while it began
    ledger = LedgerWriter(new, attrs=attrs, config_yaml=describe(config), flush_s=config.ledger.flush_s)
    try:
        # Two runs may have found the folder empty; this one has the new name to itself.
        if path.exists() and not overwrite:
            raise _holds_a_run(out)
        new_config.write_text(describe(config))
        os.replace(new_config, config_path)
        os.replace(new, path)
    except BaseException as error:
        ledger.finish("failed: not begun", {})
        for begun in (new, new_config):
            with contextlib.suppress(OSError):
                begun.unlink()
        if isinstance(error, OSError):
            raise OutputError(f"cannot write to the output folder {out}: {error.strerror}") from error
        raise
    ledger.path = path
    return ledger


def check_file(path: Path, overwrite: bool) -> None:
    """Raise `OutputError` if a file cannot be written, or is there and is not to be replaced; nothing is made."""
    if path.is_dir():
        raise OutputError(f"{path} is a folder; choose a file in it with -o")
    if path.exists() and not overwrite:
        raise OutputError(f"{path} exists already; choose another file with -o, or --overwrite it")
    for folder in path.absolute().parents:
        if folder.exists():
            break
    if not folder.is_dir():
        raise OutputError(f"cannot write {path}: {folder} is a file; choose another with -o")
    _check_writable(folder, f"cannot write {path}", "choose another file with -o")


def _holds_a_run(out: Path) -> OutputError:
    return OutputError(f"{out} holds a run already; choose another folder with -o, or --overwrite it")


def _is_being_written(path: Path) -> bool:
    """Return whether a process has the file open to write: HDF5 holds a lock then, where the file system has locks."""
    try:
        with open(path, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _check_writable(folder: Path, what: str, way_out: str) -> None:
    try:
        # Asking the file system beats asking about permissions, which root always has.
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OutputError(f"{what} ({folder}: {error.strerror}); {way_out}") from error

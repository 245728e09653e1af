"""Decoded arrays that all ranks of a node share: memory-mapped copies that are written by whoever comes first."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
import tempfile
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedmpi.data.arrays import Arrays

_UNUSABLE = (OSError, ValueError, EOFError)  # what numpy.load and json raise for files that are missing or damaged
_INPUTS_AND_LABELS = Arrays._fields[:4]
_GROUPS = "train_groups.npy"
_GROUP_NAMES = "group_names.json"


def cache_dir() -> Path:
    """Return ``$FEDMPI_CACHE``, else ``$XDG_CACHE_HOME/fedmpi``, else ``~/.cache/fedmpi``; it need not exist."""
    if override := os.environ.get("FEDMPI_CACHE"):
        return Path(override)
    # os.path.expanduser, as Path.home() raises for a user without a home.
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "fedmpi"


def shared_arrays(name: str, files: Sequence[Path], settings: str, decode: Callable[[], Arrays]) -> Arrays:
    """Return what `decode` makes of `files`, memory-mapped if there is a folder that can be written to.

    Parameters
    ----------
    name : str
        Of the data set; begins the folder's name.
    files : sequence of Path
        What is read: their paths, sizes and times tell one copy from another.
    settings : str
        All else that the arrays depend on.
    decode : callable
        Reads the files; called only if no copy is there.
    """
    key = hashlib.blake2b(b"3", digest_size=8)  # 3: version of what is stored
    key.update(f"\0{settings}".encode())
    for path in files:
        status = path.stat()
        key.update(f"\0{path.resolve()}\0{status.st_size}\0{status.st_mtime_ns}".encode())
    arrays = None
    for base in _array_folders():
        folder = base / f"{name}-{key.hexdigest()}"
        try:
            return _open_arrays(folder)
        except _UNUSABLE:
            arrays = arrays or decode()
        with suppress(OSError):  # Not writable, or full: sharing saves memory, but a run can do without.
            return _publish(folder, arrays)
    return arrays or decode()


def _array_folders() -> Iterator[Path]:
    yield cache_dir() / "arrays"
    with suppress(OSError):
        yield _private_tmp()


def _private_tmp() -> Path:
    """Return this user's own folder under the temporary folder; `OSError` if somebody else could write there."""
    folder = Path(tempfile.gettempdir()) / f"fedmpi-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise PermissionError(f"{folder} is not a folder of this user alone")
    return folder


def _open_arrays(folder: Path) -> Arrays:
    # The names say whether there are groups, so that a copy whose groups were lost is not taken for one without.
    names = tuple(json.loads((folder / _GROUP_NAMES).read_text()))
    inputs_and_labels = (_open(folder / f"{field}.npy") for field in _INPUTS_AND_LABELS)
    return Arrays._make((*inputs_and_labels, _open(folder / _GROUPS) if names else None, names))


def _open(path: Path) -> NDArray[Any]:
    # Copy-on-write rather than read-only: the pages are shared all the same, and torch.from_numpy does not warn.
    return np.asarray(np.load(path, mmap_mode="c"))


def _publish(folder: Path, arrays: Arrays) -> Arrays:
    """Write `arrays` beside `folder`, rename them into place in one step, and open what lies there then.

    A folder that another process has put there meanwhile is kept: replacing files that are mapped on another node
    would kill that node's ranks on a network file system.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}")
    temporary.mkdir()
    try:
        for field in _INPUTS_AND_LABELS:
            np.save(temporary / f"{field}.npy", getattr(arrays, field))
        if arrays.train_groups is not None:
            np.save(temporary / _GROUPS, arrays.train_groups)
        (temporary / _GROUP_NAMES).write_text(json.dumps(arrays.group_names))
        try:
            os.replace(temporary, folder)
        except OSError:
            try:
                return _open_arrays(folder)
            except _UNUSABLE:  # It appears in one step: what is there and cannot be opened is damaged.
                shutil.rmtree(folder)
                os.replace(temporary, folder)
        return _open_arrays(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)

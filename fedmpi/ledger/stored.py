"""A ledger's file as HDF5 has it: opening it, its columns and string tables, and plain words for what is wrong."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from fedmpi.errors import OutputError
from fedmpi.ledger.schema import DIRECTIONS, NAME_COLUMNS, Column

Array = np.ndarray[Any, Any]


def open_file(path: Path) -> h5py.File:
    """Open an HDF5 file for reading.

    Raises
    ------
    OutputError
        If it is missing, empty, no HDF5, truncated, being written, or cannot be read.
    """
    wanted = f"{path}: expected a fedmpi ledger, got"
    if not path.exists():
        raise OutputError(f"{wanted} no such file; give the path of the ledger that a run wrote")
    try:
        return h5py.File(path, "r", locking="best-effort")
    except OSError as error:
        words = str(error)
        sizes = re.search(r"eof = (\d+), .*stored_eof = (\d+)", words)
        if "unable to lock" in words:
            raise OutputError(
                f"{path}: is being written by a run that goes on; wait for its end, or copy the file and read the copy"
            ) from None
        if sizes:
            why = f"a truncated file, {sizes[1]} of {sizes[2]} bytes; copy it again, or run again"
        elif path.is_file() and not path.stat().st_size:
            why = "an empty file; copy it again, or run again"
        elif "signature not found" in words:
            why = "a file that is not HDF5; give the path of the ledger that a run wrote"
        elif error.errno:
            why = f"a file that cannot be read ({os.strerror(error.errno)}); check its path and its permissions"
        else:
            why = "a file that HDF5 cannot open: it is damaged or cut off; copy it again, or run again"
        raise OutputError(f"{wanted} {why}") from error


def column_lengths(file: h5py.File, group: str) -> dict[str, int]:
    """Return the number of rows of each 1-D dataset of a group; empty if the file has no such group."""
    if group not in file:
        return {}
    return {name: len(dset) for name, dset in file[group].items() if isinstance(dset, h5py.Dataset) and dset.ndim == 1}


def read_columns(file: h5py.File, group: str, columns: Sequence[Column]) -> dict[str, Array]:
    """Read a group's columns, codes replaced by names, cut to the rows that a torn flush left whole.

    Parameters
    ----------
    file : h5py.File
    group : str
    columns : sequence of Column
        Those to read; one that the file lacks is full of its default.

    Returns
    -------
    dict of str to ndarray, each of shape (num_rows,)
        In the order of `columns`.

    Raises
    ------
    ValueError
        If a column without a default is missing, or one is not 1-D of its dtype.
    """
    datasets = {
        column.name: _checked(file, f"{group}/{column.name}", column.dtype)
        for column in columns
        if column.default is None or f"{group}/{column.name}" in file
    }
    num_rows = min(len(dataset) for dataset in datasets.values())
    stored = {name: dataset[:num_rows] for name, dataset in datasets.items()}
    tables = {name: table for name in stored if (table := _names(file, name)) is not None}
    for name, table in tables.items():
        # A torn flush can also leave rows whose name did not reach the file.
        unknown = np.flatnonzero(stored[name] >= len(table))
        num_rows = min(num_rows, int(unknown[0])) if len(unknown) else num_rows
    values = {}
    for column in columns:
        if column.name not in stored:
            values[column.name] = np.full(num_rows, column.default, column.dtype)
        elif column.name in tables:
            values[column.name] = tables[column.name][stored[column.name][:num_rows]]
        else:
            values[column.name] = stored[column.name][:num_rows]
    return values


def empty_columns(columns: Sequence[Column]) -> dict[str, Array]:
    """Return what `read_columns` returns of no rows."""
    coded = {column.name for column in NAME_COLUMNS} | {"direction"}
    return {column.name: np.zeros(0, str if column.name in coded else column.dtype) for column in columns}


def _names(file: h5py.File, column: str) -> Array | None:
    """Return the names that a column's codes stand for, as str; None if it holds no codes."""
    if column == "direction":
        return np.array(DIRECTIONS)
    for table in NAME_COLUMNS:
        if table.name == column:
            names = _checked(file, f"names/{column}")
            if names.dtype.kind not in "SO":  # of any width
                raise ValueError(f"/names/{column} has dtype {names.dtype.str}, not strings")
            names = names[:].astype(str)
            return np.array(names.tolist(), dtype=str)  # as wide as the longest, not as the table
    return None


def read_array(file: h5py.File, path: str, dtype: str, ndim: int) -> Array:
    """Read a whole dataset, or raise a ValueError if it is missing, or not of this dtype and number of dimensions."""
    return np.asarray(_checked(file, path, dtype, ndim)[()])


def _checked(file: h5py.File, path: str, dtype: str | None = None, ndim: int = 1) -> h5py.Dataset:
    dataset = file.get(path)
    if not isinstance(dataset, h5py.Dataset):
        raise ValueError(f"/{path} is missing")
    if dataset.ndim != ndim or (dtype is not None and dataset.dtype != np.dtype(dtype)):
        wanted = f"{ndim}-D" + ("" if dtype is None else f" of {dtype}")
        raise ValueError(f"/{path} has dtype {dataset.dtype.str} and shape {dataset.shape}, not {wanted}")
    return dataset

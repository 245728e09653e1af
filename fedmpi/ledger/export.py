"""A ledger's tables as CSV files (RFC 4180), for programs that do not read HDF5."""

from __future__ import annotations

import contextlib
import csv
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from fedmpi.errors import ConfigError, OutputError
from fedmpi.ledger.reader import Ledger
from fedmpi.ledger.schema import EXPORTED_TABLES
from fedmpi.ledger.stored import Array
from fedmpi.problems import did_you_mean

# Rows that are turned into Python's objects at a time.
_CHUNK_ROWS = 1 << 16
# Files that an error lists.
_NAMED = 3


def export_csv(path: Path | str, folder: Path | str, *, overwrite: bool = False) -> list[Path]:
    """Write all tables of a ledger, one file each: beside their names first, renamed when all are whole.

    Parameters
    ----------
    path : Path
        The ledger.
    folder : Path
        Where ``messages.csv``, ``rounds.csv``, ``faults.csv``, ``class_tests.csv``, ``turns.csv``,
        ``partition.csv``, ``placement.csv`` and ``attributes.csv`` go; made if it is not there.
    overwrite : bool
        Replace files of these names.

    Returns
    -------
    list of Path
        The files, in the order of `schema.EXPORTED_TABLES`. A table that the ledger lacks has a header only.

    Raises
    ------
    OutputError
        If the ledger cannot be read, a file exists that is not to be replaced, or one cannot be written.
    """
    folder = Path(folder)
    targets = {table: folder / f"{table}.csv" for table in EXPORTED_TABLES}
    there = [str(target) for target in targets.values() if target.exists()]
    if there and not overwrite:
        more = [f"and {len(there) - _NAMED} more"] if len(there) > _NAMED else []
        raise OutputError(
            "the export would replace files; --overwrite replaces them, -o FOLDER writes elsewhere:\n  "
            + "\n  ".join(there[:_NAMED] + more)
        )
    parts = {table: folder / f".{table}.csv.{os.getpid()}" for table in EXPORTED_TABLES}
    with Ledger(path) as ledger:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for table, part in parts.items():
                with open(part, "w", newline="", encoding="utf-8") as stream:
                    _write(ledger, table, stream)
            for table, part in parts.items():
                part.replace(targets[table])
        except OSError as error:
            raise OutputError(f"cannot export {path} to {folder}: {error.strerror or error}") from error
        finally:
            for part in parts.values():
                with contextlib.suppress(OSError):
                    part.unlink()
    return list(targets.values())


def write_table(path: Path | str, table: str, stream: TextIO) -> None:
    """Write one table of a ledger as CSV.

    Parameters
    ----------
    path : Path
        The ledger.
    table : str
        One of `schema.EXPORTED_TABLES`.
    stream : text file
        Open for writing. Lines end in CR LF, so a file is to be opened with ``newline=""``.

    Raises
    ------
    ConfigError
        If there is no such table.
    OutputError
        If the ledger cannot be read. What goes wrong with the stream is its own OSError.
    """
    if table not in EXPORTED_TABLES:
        hint = did_you_mean(table, EXPORTED_TABLES)
        raise ConfigError(f"--table: expected one of {', '.join(EXPORTED_TABLES)}, got {table!r}{hint}")
    with Ledger(path) as ledger:
        _write(ledger, table, stream)


def _write(ledger: Ledger, table: str, stream: TextIO) -> None:
    columns = _columns(ledger, table)
    writer = csv.writer(stream)
    writer.writerow(columns)
    num_rows = min(map(len, columns.values()))
    for start in range(0, num_rows, _CHUNK_ROWS):
        end = min(start + _CHUNK_ROWS, num_rows)
        writer.writerows(zip(*(_fields(values[start:end]) for values in columns.values()), strict=True))


def _columns(ledger: Ledger, table: str) -> Mapping[str, Array | list[Any]]:
    if table == "messages":
        return ledger.messages
    if table == "rounds":
        return ledger.rounds
    if table == "faults":
        return ledger.faults
    if table == "class_tests":
        return ledger.class_tests
    if table == "turns":
        return ledger.turns
    if table == "partition":
        sizes, class_counts = ledger.partition or (np.zeros(0, np.int64), np.zeros((0, 0), np.int64))
        by_class = {f"class_{i}": counts for i, counts in enumerate(class_counts.T)}
        return {"client_id": np.arange(len(sizes)), "num_samples": sizes, **by_class}
    if table == "placement":
        rows = ledger.placement
        return {name: [row[name] for row in rows] for name in (rows[0] if rows else ("rank",))}
    # Of what both have, an attribute stands where the summary knows nothing.
    facts = {**ledger.attrs, **{k: v for k, v in ledger.summary().items() if v is not None or k not in ledger.attrs}}
    return {"name": list(facts), "value": list(facts.values())}


def _fields(values: Array | list[Any]) -> Iterable[Any]:
    """Return a column's values as csv writes them: floats by their shortest form that reads back as the same value."""
    if isinstance(values, list):
        return [None if isinstance(value, float) and math.isnan(value) else value for value in values]
    if values.dtype.kind != "f":
        fields: list[Any] = values.tolist()
        return fields
    # As float64, a float32 would get the digits of a precision that it does not have.
    fields = values.astype(str).tolist() if values.dtype.itemsize < 8 else values.tolist()
    for row in np.flatnonzero(np.isnan(values)).tolist():
        fields[row] = None
    return fields

"""Writing the ledger: rows are kept in a list and go to the file in batches, one dataset a column."""

from __future__ import annotations

import json
import math
import os
import struct
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from fedmpi.errors import OutputError
from fedmpi.ledger.schema import (
    CLASS_TEST_COLUMNS,
    DIRECTIONS,
    FAULT_COLUMNS,
    FILETYPE,
    FORMAT_VERSION,
    MESSAGE_COLUMNS,
    NAME_COLUMNS,
    NAME_NBYTES,
    ROUND_COLUMNS,
    TURN_COLUMNS,
    Column,
    MessageRow,
    extra_round_column,
)
from fedmpi.ledger.space import NoRoomError, Space
from fedmpi.ledger.table import Table

# Of each column HDF5 would keep a megabyte in memory; appending needs the chunk that is being filled.
_CACHE_NBYTES = 1 << 16
_TEXT = h5py.string_dtype()
_STRUCT_CODES = {"|u1": "B", "<u2": "H", "<u4": "I", "<u8": "Q", "<i4": "i", "<i8": "q", "<f4": "f", "<f8": "d"}
_ROUND_DEFAULTS = {column.name: column.default for column in ROUND_COLUMNS if column.default is not None}


class LedgerWriter:
    """The one writer of a run's ledger.

    Parameters
    ----------
    path : Path
        File to create; its folder exists, the file does not.
    attrs : mapping of str to str, int or float
        Root attributes known at the start: versions, commit, command, ``num_ranks``.
    config_yaml : str
        The resolved configuration.
    flush_s : float
        Seconds between flushes by `write_due`; a killed run loses at most the rows since.

    Raises
    ------
    OutputError
        Here and in every method that writes: naming the file and the cause. Space is reserved before HDF5 is asked to
        write, so a full disk leaves the file as the last flush left it, and the rows wait for the next try. A ledger
        that cannot be begun leaves no file.
    """

    def __init__(self, path: Path, *, attrs: Mapping[str, str | int | float], config_yaml: str, flush_s: float) -> None:
        self.path = Path(path)
        self._flush_s = flush_s
        self._values: list[Any] = []  # of the rows that wait, one after the other
        self._faults: list[Any] = []  # in the same way
        self._class_tests: list[Any] = []  # in the same way
        self._turns: list[Any] = []  # in the same way
        self._rounds: list[dict[str, float]] = []
        self._codes: dict[str, dict[str, int]] = {column.name: {} for column in NAME_COLUMNS}
        self._codes["direction"] = {name: code for code, name in enumerate(DIRECTIONS)}
        self._space = Space()
        self._broken = False
        self._file: h5py.File | None = None
        try:  # not left to HDF5: only who made the file may remove it
            os.close(os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        except FileExistsError:
            raise OutputError(f"{self.path} is there: another run begins in this folder; choose another") from None
        except OSError as error:
            raise OutputError(f"cannot write the ledger {self.path}: {error.strerror}") from None
        try:
            with self._naming_errors():
                self._create(attrs, config_yaml)
            self.flush()
        except BaseException:
            self._remove()
            raise

    def _create(self, attrs: Mapping[str, str | int | float], config_yaml: str) -> None:
        # Locking by "best-effort" because some cluster file systems cannot lock at all.
        root = self._file = h5py.File(self.path, "w", locking="best-effort", rdcc_nbytes=_CACHE_NBYTES)
        self._reserve(len(config_yaml.encode()))
        root.attrs.update({**attrs, "filetype": FILETYPE, "format_version": FORMAT_VERSION, "status": "running"})
        root.create_dataset("config", data=config_yaml, dtype=_TEXT)
        names = root.create_group("names")
        self._name_tables = {column.name: Table(names, [column], chunk_rows=16) for column in NAME_COLUMNS}
        self._message_table = Table(root.create_group("messages"), MESSAGE_COLUMNS, chunk_rows=2048)
        self._fault_table = Table(root.create_group("faults"), FAULT_COLUMNS, chunk_rows=256)
        self._class_test_table = Table(root.create_group("class_tests"), CLASS_TEST_COLUMNS, chunk_rows=512)
        self._turn_table = Table(root.create_group("turns"), TURN_COLUMNS, chunk_rows=512)
        self._round_table = Table(root.create_group("rounds"), ROUND_COLUMNS, chunk_rows=256)

    def _remove(self) -> None:
        """Take back a file that could not be begun."""
        file, self._file = self._file, None
        with suppress(OSError):
            self.path.unlink()
        with suppress(OSError, RuntimeError):  # HDF5 writes once more, to a file that has no name any longer
            if file is not None:
                file.close()

    def add_message(self, row: MessageRow) -> None:
        """Keep one row for the next flush."""
        self._values.extend(row)

    def add_fault(self, round_idx: int, client_id: int, rank: int, fault: str) -> None:
        """Keep one row of `faults` for the next flush: a client's reply was lost or refused.

        Parameters
        ----------
        round_idx, client_id : int
        rank : int
            MPI rank that played the client.
        fault : str
            What happened, ASCII, at most 64 letters: ``"dropout"``, ``"nonfinite"``, ...
        """
        self._faults += (round_idx, client_id, rank, fault)

    def add_class_tests(
        self, round_idx: int, num_correct: np.ndarray[Any, Any], num_tested: np.ndarray[Any, Any]
    ) -> None:
        """Keep the rows of `class_tests` of one test for the next flush, one a class.

        Parameters
        ----------
        round_idx : int
            Round whose model was tested.
        num_correct, num_tested : int ndarray, shape (num_classes,)
            Test samples of each class: those that were told rightly, and all.
        """
        counts = enumerate(zip(num_correct.tolist(), num_tested.tolist(), strict=True))
        self._class_tests += [value for class_idx, pair in counts for value in (round_idx, class_idx, *pair)]

    def add_turn(self, round_idx: int, client_id: int, device_ops: float, server_ops: float) -> None:
        """Keep one row of `turns` for the next flush: the operations of a client and of the server for it."""
        self._turns += (round_idx, client_id, device_ops, server_ops)

    def add_round(self, values: Mapping[str, float]) -> None:
        """Keep one row of `rounds`: its fixed columns, and any scalar by the name of its column.

        A missing column reads as its default or, if it is a float, NaN. Any other missing integer, or a scalar whose
        name holds a slash, is a ValueError of the next flush, as is a value that its column cannot hold.
        """
        self._rounds.append(dict(values))

    def write_due(self, now: float | None = None) -> None:
        """Flush if rows wait and ``flush_s`` has passed since the last flush.

        Parameters
        ----------
        now : float, optional
            A reading of `time.monotonic`, seconds.
        """
        if now is None:
            now = time.monotonic()
        if now - self._flushed_at >= self._flush_s and self._is_waiting():
            self.flush()

    def flush(self) -> None:
        """Write and flush everything now."""
        self._flushed_at = time.monotonic()
        with self._naming_errors():
            if self._is_waiting():
                num_values = len(self._values) + len(self._faults) + len(self._class_tests) + len(self._turns)
                self._reserve(32 * num_values + 512 * len(self._rounds))
                self._write_rows(self._message_table, MESSAGE_COLUMNS, self._values)
                self._write_rows(self._fault_table, FAULT_COLUMNS, self._faults)
                self._write_rows(self._class_test_table, CLASS_TEST_COLUMNS, self._class_tests)
                self._write_rows(self._turn_table, TURN_COLUMNS, self._turns)
                self._write_rounds()
            self._open_file().flush()

    def set_placement(self, rows: Sequence[Mapping[str, str | int]]) -> None:
        """Store the placement table, one row a rank; all rows have the keys of the first."""
        with self._naming_errors():
            self._reserve(1024 * len(rows))
            group = self._open_file().create_group("placement")
            for name in rows[0] if rows else ():
                values = [row[name] for row in rows]
                group.create_dataset(name, data=values, dtype=_TEXT if isinstance(values[0], str) else "<i8")

    def set_partition(self, sizes: np.ndarray[Any, Any], class_counts: np.ndarray[Any, Any]) -> None:
        """Store who holds what.

        Parameters
        ----------
        sizes : int ndarray, shape (num_clients,)
            Training samples of each client.
        class_counts : int ndarray, shape (num_clients, num_classes)
            The same by class.
        """
        with self._naming_errors():
            self._reserve(8 * (sizes.size + class_counts.size))
            group = self._open_file().create_group("partition")
            group.create_dataset("sizes", data=sizes, dtype="<i8")
            group.create_dataset("class_counts", data=class_counts, dtype="<i8")

    def set_model(
        self,
        state_f32: np.ndarray[Any, Any],
        ints_i64: np.ndarray[Any, Any],
        layout: Sequence[tuple[str, Sequence[int], int]],
    ) -> None:
        """Store the final model.

        Parameters
        ----------
        state_f32 : ndarray of float32, shape (num_floats,)
            Parameters, then floating buffers, in stored order.
        ints_i64 : ndarray of int64, shape (num_ints,)
            Integer buffers.
        layout : sequence of (name, shape, offset)
            Where each tensor lies; the offset counts elements.
        """
        text = json.dumps([[name, list(shape), offset] for name, shape, offset in layout])
        with self._naming_errors():
            self._reserve(state_f32.nbytes + ints_i64.nbytes + len(text))
            group = self._open_file().create_group("model")
            group.create_dataset("state", data=state_f32, dtype="<f4")
            group.create_dataset("ints", data=ints_i64, dtype="<i8")
            group.create_dataset("layout", data=text, dtype=_TEXT)

    def finish(self, status: str, totals: Mapping[str, str | int | float]) -> None:
        """Write all that waits, the totals and the status, and close; a second call does nothing.

        Parameters
        ----------
        status : str
            ``"done"``, ``"stopped"`` or ``"failed: words"``; replaced by the latter if the rows cannot be written.
        totals : mapping of str to str, int or float
            Root attributes: ``wall_s``, ``simulation_nbytes``, ``model_digest``, ...
        """
        if self._file is None:
            return
        failure: Exception | None = None
        try:
            self.flush()
        except Exception as error:  # whatever it was, the file is to be closed with words in it
            failure, status = error, f"{status}; {error}" if status.startswith("failed") else f"failed: {error}"
        file, self._file = self._file, None
        try:
            with self._naming_errors():
                if not self._broken:
                    file.attrs.update({**totals, "status": status})
                    file.flush()
                nbytes = file.id.get_filesize()
                file.close()
                os.truncate(self.path, min(nbytes, self.path.stat().st_size))
        except OutputError as error:
            failure = failure or error
        if failure is not None:
            raise failure

    def _open_file(self) -> h5py.File:
        if self._file is None:
            raise OutputError(f"{self.path}: the ledger is finished, nothing can be added to it")
        if self._broken:
            raise OutputError(f"{self.path}: an earlier write failed, nothing can be added to it")
        return self._file

    def _is_waiting(self) -> bool:
        return bool(self._values or self._faults or self._class_tests or self._turns or self._rounds)

    def _write_rows(self, table: Table, columns: Sequence[Column], waiting: list[Any]) -> None:
        """Append rows, whose values lie one after the other, and forget them."""
        if not waiting:
            return
        width = len(columns)
        batch = {}
        for i, column in enumerate(columns):
            values = waiting[i::width]
            if column.name in self._codes:
                values = self._encode_names(column.name, values)
            try:  # np.array(values, dtype) takes more than twice as long
                packed = struct.pack(f"<{len(values)}{_STRUCT_CODES[column.dtype]}", *values)
            except struct.error as error:
                raise ValueError(f"column {column.name} of {table.name}: {error}") from error
            batch[column.name] = np.frombuffer(packed, column.dtype)
        table.append(batch, len(waiting) // width)
        waiting.clear()

    def _encode_names(self, column: str, names: Sequence[str]) -> list[int]:
        codes = self._codes[column]
        new = sorted(set(names) - codes.keys())
        if new and column not in self._name_tables:
            raise ValueError(f"{column} must be one of {list(codes)}, got {new}")
        if new:
            encoded = np.array([name.encode("ascii") for name in new])
            if encoded.itemsize > NAME_NBYTES:
                raise ValueError(f"a {column} must have a name of at most {NAME_NBYTES} letters, got {new}")
            table = self._name_tables[column]
            table.append({column: encoded.astype(table.dtypes[column])}, len(new))
            codes.update({name: len(codes) + i for i, name in enumerate(new)})
        return [codes[name] for name in names]

    def _write_rounds(self) -> None:
        if not self._rounds:
            return
        for name in dict.fromkeys(name for row in self._rounds for name in row):
            if name not in self._round_table.dtypes:
                if "/" in name:
                    raise ValueError(f"a scalar's name becomes a dataset's: expected one without '/', got {name!r}")
                self._round_table.add_column(extra_round_column(name))
        batch = {
            name: np.array([row.get(name, _ROUND_DEFAULTS.get(name, math.nan)) for row in self._rounds], dtype)
            for name, dtype in self._round_table.dtypes.items()
        }
        self._round_table.append(batch, len(self._rounds))
        self._rounds.clear()

    def _reserve(self, nbytes: int) -> None:
        self._space.reserve(self._open_file(), nbytes)

    @contextmanager
    def _naming_errors(self) -> Iterator[None]:
        try:
            yield
        except NoRoomError as error:
            raise OutputError(f"cannot write the ledger {self.path}: {error.strerror}; make room there") from None
        except (OSError, RuntimeError) as error:  # h5py: RuntimeError where HDF5's error class says no more
            self._broken = True
            raise OutputError(f"cannot write the ledger {self.path}: {error}") from error

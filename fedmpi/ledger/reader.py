"""Reading a ledger; needs neither torch nor MPI."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any

import h5py
import numpy as np

from fedmpi.errors import OutputError
from fedmpi.ledger.digest import ledger_digest, model_digest
from fedmpi.ledger.schema import (
    CLASS_TEST_COLUMNS,
    DIRECTIONS,
    FAULT_COLUMNS,
    FILETYPE,
    FORMAT_VERSION,
    MESSAGE_COLUMNS,
    ROUND_COLUMNS,
    TURN_COLUMNS,
)
from fedmpi.ledger.stored import Array, column_lengths, empty_columns, open_file, read_array, read_columns

# Rounds that an error lists.
_NAMED = 5


class Ledger:
    """A ledger opened for reading; use it in a ``with`` statement.

    Parts are read when first asked for. Datasets that a torn flush left unequally long are cut to their common prefix.

    Parameters
    ----------
    path : Path
        The HDF5 file.

    Attributes
    ----------
    attrs : dict of str to str, int or float
        Root attributes: versions, commit, totals.

    Raises
    ------
    OutputError
        If the file is missing, no HDF5, no ledger, of a newer format, truncated, or being written; and when a part
        that is asked for cannot be read.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self._file = open_file(self.path)
        try:
            with self._naming_errors():
                self.attrs: dict[str, Any] = {name: _plain(value) for name, value in self._file.attrs.items()}
            self._check_format()
        except OutputError:
            self.close()
            raise

    def __enter__(self) -> Ledger:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; parts already read stay."""
        self._file.close()

    @property
    def status(self) -> str:
        """``"done"``, ``"stopped"``, ``"failed: words"``, or ``"running"`` if no end was recorded."""
        return str(self.attrs.get("status", "running"))

    @cached_property
    def config_yaml(self) -> str:
        """The run's resolved configuration."""
        with self._naming_errors():
            return str(self._file["config"].asstr()[()])

    @cached_property
    def messages(self) -> dict[str, Array]:
        """Columns of `schema.MESSAGE_COLUMNS`, each of shape (num_messages,); direction, kind and codec as str."""
        with self._naming_errors():
            return read_columns(self._file, "messages", MESSAGE_COLUMNS)

    @cached_property
    def faults(self) -> dict[str, Array]:
        """Columns of `schema.FAULT_COLUMNS`, each of shape (num_faults,); fault as str. Older files have none."""
        with self._naming_errors():
            if "faults" not in self._file:
                return empty_columns(FAULT_COLUMNS)
            return read_columns(self._file, "faults", FAULT_COLUMNS)

    @cached_property
    def rounds(self) -> dict[str, Array]:
        """Columns of `schema.ROUND_COLUMNS` and the algorithm's scalars (float64), each of shape (num_rounds,)."""
        with self._naming_errors():
            columns = read_columns(self._file, "rounds", ROUND_COLUMNS)
            num_rows = len(columns["round_idx"])
            for name in column_lengths(self._file, "rounds"):
                dataset = self._file["rounds"][name]
                # What a later fedmpi added may have another dtype: it is no scalar of the algorithm's.
                if name not in columns and dataset.dtype == np.float64:
                    values = dataset[:num_rows]
                    columns[name] = np.pad(values, (0, num_rows - len(values)), constant_values=np.nan)
        return columns

    @cached_property
    def class_tests(self) -> dict[str, Array]:
        """Columns of `schema.CLASS_TEST_COLUMNS`, each of shape (num_rows,): none of text, none in older files."""
        with self._naming_errors():
            if "class_tests" not in self._file:
                return empty_columns(CLASS_TEST_COLUMNS)
            return read_columns(self._file, "class_tests", CLASS_TEST_COLUMNS)

    @cached_property
    def turns(self) -> dict[str, Array]:
        """Columns of `schema.TURN_COLUMNS`, each of shape (num_turns,): none without virtual time or in older files."""
        with self._naming_errors():
            if "turns" not in self._file:
                return empty_columns(TURN_COLUMNS)
            return read_columns(self._file, "turns", TURN_COLUMNS)

    def client_accuracies(self, round_idx: int) -> Array:
        """Return every client's own accuracy after one round, from `class_tests` and `partition`.

        Parameters
        ----------
        round_idx : int
            A round that was tested.

        Returns
        -------
        float64 ndarray, shape (num_clients,)
            As `client_accuracies` says.

        Raises
        ------
        OutputError
            If the file has no partition, or not the counts of all classes after this round.
        """
        if self.partition is None:
            raise OutputError(f"{self.path}: expected to read who holds which classes, got a ledger without /partition")
        class_counts, tests = self.partition[1], self.class_tests
        rows = np.flatnonzero(tests["round_idx"] == round_idx)
        order = rows[np.argsort(tests["class_idx"][rows])]
        if not np.array_equal(tests["class_idx"][order], np.arange(class_counts.shape[1])):
            raise OutputError(
                f"{self.path}: expected a round that was tested, with a row in /class_tests for each of "
                f"{class_counts.shape[1]} classes, got round {round_idx} with {len(rows)} rows; "
                f"rounds there: {_some(np.unique(tests['round_idx']))}"
            )
        return client_accuracies(class_counts, tests["num_correct"][order], tests["num_tested"][order])

    @cached_property
    def placement(self) -> list[dict[str, Any]]:
        """The placement table, one dict of str and int a rank; empty if none was stored."""
        with self._naming_errors():
            if "placement" not in self._file:
                return []
            group = self._file["placement"]
            columns = [dset.asstr()[:] if h5py.check_string_dtype(dset.dtype) else dset[:] for dset in group.values()]
            return [dict(zip(group, map(_plain, row), strict=True)) for row in zip(*columns, strict=False)]

    @cached_property
    def partition(self) -> tuple[Array, Array] | None:
        """Samples of each client, shape (num_clients,), and by class, (num_clients, num_classes), int64; or None."""
        with self._naming_errors():
            if "partition" not in self._file:
                return None
            sizes = read_array(self._file, "partition/sizes", "<i8", 1)
            return sizes, read_array(self._file, "partition/class_counts", "<i8", 2)

    @cached_property
    def model(self) -> tuple[Array, Array] | None:
        """The final model's floats (float32, 1-D) and integer buffers (int64, 1-D), or None."""
        with self._naming_errors():
            if "model" not in self._file:
                return None
            return read_array(self._file, "model/state", "<f4", 1), read_array(self._file, "model/ints", "<i8", 1)

    @cached_property
    def model_layout(self) -> list[tuple[str, tuple[int, ...], int]]:
        """Name, shape and offset (in elements) of each of the model's tensors; empty if no model was stored."""
        with self._naming_errors():
            if "model" not in self._file:
                return []
            entries = json.loads(self._file["model/layout"].asstr()[()])
        return [(name, tuple(shape), offset) for name, shape, offset in entries]

    def stored_lengths(self) -> dict[str, dict[str, int]]:
        """Return the number of rows in the file of each column, by group; more than `messages` has: a torn flush."""
        with self._naming_errors():
            groups = ("messages", "faults", "class_tests", "turns", "rounds", "placement")
            return {group: lengths for group in groups if (lengths := column_lengths(self._file, group))}

    def summary(self) -> dict[str, Any]:
        """Return what a run came to; a value that the file does not hold is None.

        Returns
        -------
        dict
            algorithm, data, partition, model (names); seed; rounds_planned; status; rounds, num_messages,
            num_faults, num_ranks (counts); accuracy (fraction), client_accuracy (fraction) and loss of the last test;
            up_nbytes, down_nbytes and their sum wire_nbytes, from the message rows, so that a killed run has them;
            simulation_nbytes; wall_s; model_digest, ledger_digest (hex).
        """
        messages, rounds, planned = self.messages, self.rounds, self._planned()
        tested = np.flatnonzero(~np.isnan(rounds["test_accuracy"]))
        is_down = messages["direction"] == DIRECTIONS[0]
        down_nbytes = int(messages["wire_nbytes"][is_down].sum())
        up_nbytes = int(messages["wire_nbytes"][~is_down].sum())
        num_rounds = len(rounds["round_idx"])
        return {
            **{name: _at(planned, name, "name") for name in ("algorithm", "data", "partition", "model")},
            "seed": _at(planned, "seed"),
            "rounds_planned": _at(planned, "rounds"),
            "status": self.status,
            "rounds": num_rounds,
            "accuracy": float(rounds["test_accuracy"][tested[-1]]) if len(tested) else None,
            "client_accuracy": _number(rounds["client_accuracy"][tested[-1]]) if len(tested) else None,
            "loss": float(rounds["test_loss"][tested[-1]]) if len(tested) else None,
            "num_messages": len(is_down),
            "num_faults": len(self.faults["fault"]),
            "up_nbytes": up_nbytes,
            "down_nbytes": down_nbytes,
            "wire_nbytes": down_nbytes + up_nbytes,
            "simulation_nbytes": self.attrs.get("simulation_nbytes"),
            "wall_s": self.attrs.get("wall_s", float(rounds["wall_s"].sum()) if num_rounds else None),
            "num_ranks": self.attrs.get("num_ranks", len(self.placement) or None),
            "model_digest": self.attrs.get("model_digest", model_digest(*self.model) if self.model else None),
            "ledger_digest": ledger_digest(messages),
        }

    def _planned(self) -> Any:
        """Return the run's configuration as a tree; None if it cannot be read, as a summary has more to say."""
        import yaml

        try:
            return yaml.safe_load(self.config_yaml)
        except (OutputError, yaml.YAMLError):
            return None

    def _check_format(self) -> None:
        filetype = self.attrs.get("filetype")
        if filetype != FILETYPE:
            raise OutputError(
                f"{self.path}: expected a fedmpi ledger (attribute filetype = {FILETYPE!r}), got an HDF5 file with "
                f"filetype = {filetype!r}; give the ledger that a run wrote"
            )
        version = self.attrs.get("format_version")
        if not isinstance(version, int) or not 1 <= version <= FORMAT_VERSION:
            raise OutputError(
                f"{self.path}: expected a ledger of format version at most {FORMAT_VERSION}, got {version}; read it "
                f"with the fedmpi that wrote it, or a newer one"
            )

    @contextmanager
    def _naming_errors(self) -> Iterator[None]:
        try:
            yield
        except (OSError, RuntimeError, LookupError, ValueError, TypeError, AttributeError) as error:
            # h5py's errors differ with what is damaged: TypeError and AttributeError for a dataset of another kind.
            words = error.args[0] if isinstance(error, KeyError) and error.args else error
            if isinstance(error, (TypeError, AttributeError)):
                words = "a group or a dataset is missing, or of another kind"
            raise OutputError(
                f"{self.path}: expected a whole ledger, got a part that cannot be read ({words}); the file is damaged: "
                f"copy it again, or run again"
            ) from error


def client_accuracies(class_counts: Array, num_correct: Array, num_tested: Array) -> Array:
    """Return each client's accuracy on all test samples of the classes of which it holds training samples.

    That is what testing the model on each client's own share of the test set comes to, without testing a sample twice.

    Parameters
    ----------
    class_counts : int ndarray, shape (num_clients, num_classes)
        Training samples of each client by class.
    num_correct, num_tested : int ndarray, shape (num_classes,)
        Test samples of each class: those that were told rightly, and all.

    Returns
    -------
    float64 ndarray, shape (num_clients,)
        From 0 to 1; NaN for a client none of whose classes has test samples.
    """
    correct, tested = ((class_counts > 0) @ np.stack([num_correct, num_tested], axis=1)).T
    accuracies = np.full(len(tested), np.nan)
    np.divide(correct, tested, out=accuracies, where=tested > 0)
    return accuracies


def mean_and_std(accuracies: Array) -> tuple[float, float]:
    """Return the mean and the population standard deviation of the accuracies that are not NaN; NaN of none."""
    known = accuracies[~np.isnan(accuracies)]
    return (float(known.mean()), float(known.std())) if len(known) else (math.nan, math.nan)


def _some(rounds: Array) -> str:
    """Return the first of some rounds in words."""
    named = [str(round_idx) for round_idx in rounds[:_NAMED].tolist()]
    more = [f"and {len(rounds) - _NAMED} more"] if len(rounds) > _NAMED else []
    return ", ".join(named + more) or "none"


def _number(value: float) -> float | None:
    """Return a number, None if it is NaN."""
    return None if math.isnan(value) else float(value)


def _at(tree: Any, *keys: str) -> Any:
    """Return a word or a number of a tree of mappings; None if there is none."""
    for key in keys:
        tree = tree.get(key) if isinstance(tree, dict) else None
    return tree if isinstance(tree, (str, int, float)) else None


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value

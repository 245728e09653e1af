"""Opening a ledger's file: what is said of one that is cut off, empty, foreign or not to be read."""

import os
from pathlib import Path

import h5py
import numpy as np
import pytest

from fedmpi.errors import OutputError
from fedmpi.ledger.reader import Ledger
from fedmpi.ledger.schema import FAULT_COLUMNS, MessageRow
from fedmpi.ledger.stored import column_lengths, empty_columns, open_file, read_columns
from fedmpi.ledger.writer import LedgerWriter


@pytest.fixture
def path(tmp_path) -> Path:
    writer = LedgerWriter(tmp_path / "ledger.h5", attrs={}, config_yaml="a: 1\n", flush_s=1.0)
    for i in range(100):
        writer.add_message(MessageRow(i, 0, 0, 1, "up", "k", "raw", 10, 100, 110, *[0] * 11))
    writer.add_fault(3, 1, 1, "dropout")
    writer.finish("done", {})
    return tmp_path / "ledger.h5"


def words_of(path: Path) -> str:
    with pytest.raises(OutputError) as caught:
        open_file(path)
    words = str(caught.value)
    assert words.startswith(f"{path}: expected a fedmpi ledger, got ")
    for inner in ("Unable", "sblock", "eof", "errno", "flags", "\n"):
        assert inner not in words
    return words.removeprefix(f"{path}: expected a fedmpi ledger, got ")


def test_what_is_no_ledger(tmp_path):
    (tmp_path / "text").write_text("round,accuracy\n" * 1000)
    (tmp_path / "empty").touch()
    assert words_of(tmp_path / "text") == "a file that is not HDF5; give the path of the ledger that a run wrote"
    assert words_of(tmp_path / "empty") == "an empty file; copy it again, or run again"
    assert words_of(tmp_path / "none") == "no such file; give the path of the ledger that a run wrote"
    assert "Is a directory" in words_of(tmp_path)


@pytest.mark.skipif(os.getuid() == 0, reason="root may read everything")
def test_no_permission(path):
    path.chmod(0)
    assert "Permission denied" in words_of(path)


def test_cut_off_anywhere(path):
    data = path.read_bytes()
    for nbytes in [*range(1, 100, 7), 200, 500, 2047, 2048, 2049, len(data) // 3, len(data) // 2, len(data) - 1]:
        path.write_bytes(data[:nbytes])
        words = words_of(path)
        assert "copy it again" in words or (nbytes < 8 and "not HDF5" in words)
        if nbytes > 60:
            assert words == f"a truncated file, {nbytes} of {len(data)} bytes; copy it again, or run again"


def test_read_columns(path):
    with open_file(path) as file:
        assert column_lengths(file, "faults") == dict.fromkeys(("round_idx", "client_id", "rank", "fault"), 1)
        assert column_lengths(file, "none") == {}
        columns = read_columns(file, "faults", FAULT_COLUMNS)
        assert {name: values.tolist() for name, values in columns.items()} == {
            "round_idx": [3], "client_id": [1], "rank": [1], "fault": ["dropout"],
        }  # fmt: skip
        empty = empty_columns(FAULT_COLUMNS)
        assert list(empty) == list(columns)
        assert [np.concatenate([values, empty[name]]).dtype for name, values in columns.items()] == [
            values.dtype for values in columns.values()
        ]


def test_names_of_variable_length(path):
    """Another program that copies a ledger may store its strings in HDF5's other way."""
    with h5py.File(path, "r+") as file:
        del file["names/kind"]
        file["names/kind"] = ["k"]
    with open_file(path) as file:
        assert read_columns(file, "faults", FAULT_COLUMNS)["fault"].tolist() == ["dropout"]
    with Ledger(path) as ledger:
        assert set(ledger.messages["kind"].tolist()) == {"k"}

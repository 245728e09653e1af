"""The export: what is read back from the CSV files is what the ledger holds, bit for bit."""

import csv
import io
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from fedmpi.errors import ConfigError, OutputError
from fedmpi.ledger.export import export_csv, write_table
from fedmpi.ledger.reader import Ledger
from fedmpi.ledger.schema import EXPORTED_TABLES, MESSAGE_COLUMNS, MessageRow
from fedmpi.ledger.writer import LedgerWriter

COMMAND = 'fedmpi run "a b.yaml", x=1\nsecond line, µ'


def make(path: Path, num_messages: int = 300) -> Path:
    rng = np.random.default_rng(1)
    writer = LedgerWriter(path, attrs={"command": COMMAND, "hours": 0.1}, config_yaml="a: 1\n", flush_s=1.0)
    for i in range(num_messages):
        x = rng.random(6).tolist()
        writer.add_message(
            MessageRow(
                i, 0, i, 1, ("down", "up")[i % 2], f"kind_{i % 3}", "raw", 96, 2**63 + i, 2**63 + i + 96, 0, 0,
                2**40, x[0] / 3, x[1] * 1e-300, 7, 6, x[2], x[3], 1e9 * x[4], np.nan if i == 5 else x[5],
            )
        )  # fmt: skip
    fixed = dict.fromkeys(("num_clients", "down_nbytes", "up_nbytes", "cum_down_nbytes", "cum_up_nbytes"), 3)
    writer.add_round({"round_idx": 0, "test_accuracy": 1 / 3, "rho": np.inf, "num_faults": 1, **fixed})
    writer.add_round({"round_idx": 1, **fixed})
    writer.add_fault(0, 2, 1, "dropout")
    writer.add_class_tests(0, np.array([2, 2**62, 0]), np.array([9, 2**62 + 1, 0]))
    writer.add_turn(0, 2, 1e15, 0.0)
    writer.set_partition(np.array([3, 4]), np.array([[1, 2, 0], [0, 0, 4]]))
    writer.set_placement([{"rank": 0, "host": "n,1", "gpu": "-"}, {"rank": 1, "host": 'n"2', "gpu": "H200"}])
    writer.finish("done", {"wall_s": 2.5})
    return path


@pytest.fixture
def path(tmp_path) -> Path:
    return make(tmp_path / "ledger.h5")


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream, strict=True))


def test_every_table_comes_back(path, tmp_path):
    files = export_csv(path, tmp_path / "new" / "csv")
    assert [file.name for file in files] == [f"{name}.csv" for name in EXPORTED_TABLES]
    assert sorted(os.listdir(tmp_path / "new" / "csv")) == sorted(file.name for file in files)
    tables = {file.stem: rows(file) for file in files}
    with Ledger(path) as ledger:
        for name in ("messages", "rounds", "faults", "class_tests", "turns"):
            want = getattr(ledger, name)
            assert list(tables[name][0]) == list(want)
            for column, values in want.items():
                text = [row[column] for row in tables[name]]
                if values.dtype.kind == "f":
                    back = np.array([float(field or "nan") for field in text])
                    np.testing.assert_array_equal(back.astype(values.dtype), values)
                    assert ("" in text) == np.isnan(values).any()
                else:
                    assert text == [str(value) for value in values.tolist()]
        # The round that was tested has no loss: NaN.
        summary = {name: "" if value in (None, "nan") else value for name, value in _words(ledger.summary()).items()}
    assert list(tables["messages"][0]) == [column.name for column in MESSAGE_COLUMNS]
    assert tables["messages"][5]["recv_t"] == ""
    assert tables["rounds"][0]["rho"] == "inf"
    assert tables["rounds"][0]["test_accuracy"] == repr(1 / 3)
    assert tables["faults"] == [{"round_idx": "0", "client_id": "2", "rank": "1", "fault": "dropout"}]
    assert tables["class_tests"][1:] == [
        {"round_idx": "0", "class_idx": "1", "num_correct": str(2**62), "num_tested": str(2**62 + 1)},
        {"round_idx": "0", "class_idx": "2", "num_correct": "0", "num_tested": "0"},
    ]
    assert tables["rounds"][1]["client_accuracy"] == ""
    assert tables["partition"] == [
        {"client_id": "0", "num_samples": "3", "class_0": "1", "class_1": "2", "class_2": "0"},
        {"client_id": "1", "num_samples": "4", "class_0": "0", "class_1": "0", "class_2": "4"},
    ]
    assert [row["host"] for row in tables["placement"]] == ["n,1", 'n"2']
    attributes = {row["name"]: row["value"] for row in tables["attributes"]}
    assert attributes["command"] == COMMAND
    assert attributes["hours"] == "0.1"
    assert attributes.items() >= summary.items()
    assert len(attributes) == len(tables["attributes"])


def _words(summary: dict) -> dict:
    return {name: None if value is None else str(value) for name, value in summary.items()}


def test_floats_of_single_precision_are_short(path, tmp_path):
    export_csv(path, tmp_path / "csv")
    with Ledger(path) as ledger:
        values = ledger.messages["encode_s"]
    text = [row["encode_s"] for row in rows(tmp_path / "csv" / "messages.csv")]
    assert text == [str(value) for value in values]
    assert max(map(len, text)) < 15


def test_bytes_of_a_file(path):
    stream = io.StringIO(newline="")
    write_table(path, "faults", stream)
    assert stream.getvalue() == "round_idx,client_id,rank,fault\r\n0,2,1,dropout\r\n"


@pytest.mark.parametrize("table", EXPORTED_TABLES)
def test_a_table_alone_is_what_its_file_has(path, tmp_path, table):
    export_csv(path, tmp_path / "csv")
    stream = io.StringIO(newline="")
    write_table(path, table, stream)
    assert stream.getvalue() == (tmp_path / "csv" / f"{table}.csv").read_bytes().decode()


def test_no_such_table(path):
    with pytest.raises(ConfigError, match=r"expected one of messages, .*attributes, got 'model'$"):
        write_table(path, "model", io.StringIO())


def test_more_rows_than_a_chunk(path, monkeypatch, tmp_path):
    export_csv(path, tmp_path / "a")
    monkeypatch.setattr("fedmpi.ledger.export._CHUNK_ROWS", 7)
    export_csv(path, tmp_path / "b")
    for name in EXPORTED_TABLES:
        assert (tmp_path / "a" / f"{name}.csv").read_bytes() == (tmp_path / "b" / f"{name}.csv").read_bytes()


def test_a_ledger_without_a_part_has_its_header(tmp_path):
    LedgerWriter(tmp_path / "l.h5", attrs={}, config_yaml="", flush_s=1.0).finish("failed: no data", {})
    files = export_csv(tmp_path / "l.h5", tmp_path)
    heads = {file.stem: file.read_text().splitlines()[0] for file in files}
    assert (heads["partition"], heads["placement"]) == ("client_id,num_samples", "rank")
    assert [len(file.read_text().splitlines()) for file in files[:-1]] == [1] * 7
    assert heads["class_tests"] == "round_idx,class_idx,num_correct,num_tested"
    assert heads["turns"] == "round_idx,client_id,device_ops,server_ops"
    assert {"name": "accuracy", "value": ""} in rows(files[-1])


def test_existing_files_are_refused(path, tmp_path):
    (tmp_path / "rounds.csv").write_text("mine")
    with pytest.raises(OutputError, match=r"--overwrite replaces them, .*:\n  .*/rounds\.csv$"):
        export_csv(path, tmp_path)
    assert (tmp_path / "rounds.csv").read_text() == "mine"
    assert not (tmp_path / "messages.csv").exists()
    export_csv(path, tmp_path, overwrite=True)
    assert len(rows(tmp_path / "rounds.csv")) == 2
    assert (tmp_path / "messages.csv").exists()


def test_folder_that_cannot_be_written(path, tmp_path):
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(OutputError, match=f"cannot export {path} to {folder}: "):
            export_csv(path, folder)
    (tmp_path / "x" / "messages.csv").mkdir(parents=True)
    with pytest.raises(OutputError, match="Is a directory"):
        export_csv(path, tmp_path / "x", overwrite=True)


def test_unreadable_ledger_leaves_nothing(tmp_path):
    with pytest.raises(OutputError, match="no such file"):
        export_csv(tmp_path / "none.h5", tmp_path / "csv")
    assert list(tmp_path.iterdir()) == []


def test_full_disk_leaves_what_was_there(path, tmp_path):
    export_csv(path, tmp_path / "csv")
    before = {file.name: file.read_bytes() for file in (tmp_path / "csv").iterdir()}
    code = """
import resource, sys
from fedmpi.errors import OutputError
from fedmpi.ledger.export import export_csv
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
try:
    export_csv(sys.argv[1], sys.argv[2], overwrite=True)
except OutputError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(path), str(tmp_path / "csv")], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"cannot export {path} to {tmp_path / 'csv'}: File too large\n"
    assert {file.name: file.read_bytes() for file in (tmp_path / "csv").iterdir()} == before


def test_many_rows_in_seconds(tmp_path):
    make(tmp_path / "l.h5", 100_000)
    start = time.process_time()
    export_csv(tmp_path / "l.h5", tmp_path / "csv")
    assert time.process_time() - start < 5
    with open(tmp_path / "csv" / "messages.csv") as stream:
        assert sum(1 for _ in stream) == 100_001


def test_an_attribute_stays_where_the_summary_knows_nothing(tmp_path):
    writer = LedgerWriter(tmp_path / "l.h5", attrs={"seed": 5, "algorithm": "a"}, config_yaml="", flush_s=1.0)
    writer.finish("done", {})
    stream = io.StringIO(newline="")
    write_table(tmp_path / "l.h5", "attributes", stream)
    lines = stream.getvalue().splitlines()
    assert {"seed,5", "algorithm,a", "model,"} <= set(lines)

"""The writer: everything comes back, a kill or a full disk leaves a file that opens."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fedmpi.errors import OutputError
from fedmpi.ledger.reader import Ledger
from fedmpi.ledger.schema import CLASS_TEST_COLUMNS, FAULT_COLUMNS, MESSAGE_COLUMNS, ROUND_COLUMNS, MessageRow
from fedmpi.ledger.writer import LedgerWriter

INTEGERS = ("round_idx", "num_clients", "down_nbytes", "up_nbytes", "cum_down_nbytes", "cum_up_nbytes")


def message(i: int, kind: str = "model", codec: str = "dense") -> MessageRow:
    direction = ("down", "up")[i % 2]
    return MessageRow(
        i // 4, 0, i // 2, 1, direction, kind, codec, 96, 2**40 + i, 2**40 + i + 96, 1, 2, 3, 4.5, 5.5, 7, 6, 0.5, 0.25,
        i + 0.1, i + 0.2,
    )  # fmt: skip


def make(path: Path, **options) -> LedgerWriter:
    return LedgerWriter(path, **{"attrs": {"num_ranks": 3}, "config_yaml": "seed: 1\n", "flush_s": 60.0} | options)


def a_round(round_idx: int, **values) -> dict:
    return dict.fromkeys(INTEGERS, 10) | {"round_idx": round_idx} | values


def test_schema_matches_row():
    assert tuple(column.name for column in MESSAGE_COLUMNS) == MessageRow._fields
    assert len({column.name for column in ROUND_COLUMNS}) == len(ROUND_COLUMNS)


def test_round_trip(tmp_path):
    writer = make(tmp_path / "l.h5", attrs={"commit": "abc", "num_ranks": 3, "hours": 1.5})
    # Two batches that straddle a chunk's end, with a name that appears late.
    rows = [message(i) for i in range(2047)] + [message(i, kind="mask", codec="rice") for i in range(2047, 2100)]
    for i, row in enumerate(rows):
        writer.add_message(row)
        if i == 1500:
            writer.flush()
    writer.set_placement([{"rank": 0, "host": "n1", "gpu": "-"}, {"rank": 1, "host": "n2", "gpu": "H200"}])
    writer.set_partition(np.array([3, 4]), np.array([[1, 2], [0, 4]]))
    writer.set_model(np.arange(6, dtype=np.float32), np.array([2**60]), [("w", (2, 3), 0)])
    writer.finish("done", {"wall_s": 2.5, "simulation_nbytes": 77})
    writer.finish("failed: twice", {})

    with Ledger(tmp_path / "l.h5") as ledger:
        assert ledger.status == "done"
        assert ledger.config_yaml == "seed: 1\n"
        assert ledger.attrs["commit"] == "abc"
        assert (ledger.attrs["num_ranks"], ledger.attrs["hours"], ledger.attrs["wall_s"]) == (3, 1.5, 2.5)
        for column, values in zip(MESSAGE_COLUMNS, zip(*rows, strict=True), strict=True):
            got = ledger.messages[column.name]
            assert got.tolist() == list(values), column.name
            if column.name not in ("direction", "kind", "codec"):
                assert got.dtype == column.dtype
        assert ledger.placement[1] == {"rank": 1, "host": "n2", "gpu": "H200"}
        assert ledger.partition is not None
        assert ledger.partition[1].tolist() == [[1, 2], [0, 4]]
        assert ledger.model is not None
        assert ledger.model[0].tolist() == [0, 1, 2, 3, 4, 5]
        assert ledger.model[1].tolist() == [2**60]
        assert ledger.model_layout == [("w", (2, 3), 0)]


def test_faults(tmp_path):
    writer = make(tmp_path / "l.h5", flush_s=5.0)
    writer.add_fault(0, 7, 2, "dropout")
    now = writer._flushed_at
    writer.write_due(now + 5.0)  # a fault alone is due too
    assert writer._fault_table.num_rows == 1
    writer.add_fault(1, 2**31 - 1, 1, "nonfinite")
    writer.add_fault(1, 3, 1, "dropout")
    writer.add_round(a_round(0))
    writer.add_round(a_round(1, num_faults=2))
    writer.finish("done", {})
    with Ledger(tmp_path / "l.h5") as ledger:
        assert {name: values.tolist() for name, values in ledger.faults.items()} == {
            "round_idx": [0, 1, 1],
            "client_id": [7, 2**31 - 1, 3],
            "rank": [2, 1, 1],
            "fault": ["dropout", "nonfinite", "dropout"],
        }
        assert [ledger.faults[column.name].dtype for column in FAULT_COLUMNS[:3]] == ["<i4"] * 3
        assert ledger.rounds["num_faults"].tolist() == [0, 2]
        assert ledger._file["names/fault"].attrs["meaning"] == "names of the faults"


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ((0, 2**31, 1, "dropout"), "column client_id of faults"),
        ((0.5, 0, 1, "dropout"), "column round_idx of faults"),
        ((0, 0, 1, "f" * 65), "at most 64"),
    ],
)
def test_bad_fault_is_named(tmp_path, fault, words):
    writer = make(tmp_path / "l.h5")
    writer.add_message(message(0))
    writer.add_fault(*fault)
    with pytest.raises(ValueError, match=words):
        writer.finish("done", {})
    with Ledger(tmp_path / "l.h5") as ledger:
        assert ledger.status.startswith("failed: ")
        assert ledger.summary()["num_messages"] == 1
        assert ledger.summary()["num_faults"] == 0


def test_class_tests(tmp_path):
    writer = make(tmp_path / "l.h5", flush_s=5.0)
    writer.add_class_tests(4, np.array([3, 0]), np.array([2**40, 0]))
    writer.write_due(writer._flushed_at + 5.0)  # a test alone is due too
    assert writer._class_test_table.num_rows == 2
    writer.add_class_tests(9, np.array([7, 0]), np.array([2**40, 0]))
    writer.add_round(a_round(4, client_accuracy=0.25, client_accuracy_std=0.125))
    writer.add_round(a_round(5))
    writer.finish("done", {})
    with Ledger(tmp_path / "l.h5") as ledger:
        assert {name: values.tolist() for name, values in ledger.class_tests.items()} == {
            "round_idx": [4, 4, 9, 9],
            "class_idx": [0, 1, 0, 1],
            "num_correct": [3, 0, 7, 0],
            "num_tested": [2**40, 0, 2**40, 0],
        }
        for column in CLASS_TEST_COLUMNS:
            assert ledger.class_tests[column.name].dtype == column.dtype
            attrs = ledger._file[f"class_tests/{column.name}"].attrs
            assert (attrs["unit"], attrs["meaning"]) == (column.unit, column.meaning)
        np.testing.assert_array_equal(ledger.rounds["client_accuracy"], [0.25, np.nan])
        np.testing.assert_array_equal(ledger.rounds["client_accuracy_std"], [0.125, np.nan])


def test_class_tests_that_do_not_fit_together(tmp_path):
    writer = make(tmp_path / "l.h5")
    with pytest.raises(ValueError, match=r"shorter|longer"):
        writer.add_class_tests(0, np.array([3, 0]), np.array([5, 1, 2]))
    writer.finish("done", {})
    with Ledger(tmp_path / "l.h5") as ledger:
        assert len(ledger.class_tests["round_idx"]) == 0


@pytest.mark.parametrize("counts", [[1.5], [2**63]])
def test_bad_class_test_is_named(tmp_path, counts):
    writer = make(tmp_path / "l.h5")
    writer.add_class_tests(0, np.array(counts), np.array([1]))
    with pytest.raises(ValueError, match="column num_correct of class_tests"):
        writer.finish("done", {})
    with Ledger(tmp_path / "l.h5") as ledger:
        assert ledger.status.startswith("failed: ")
        assert len(ledger.class_tests["round_idx"]) == 0


def test_scalar_that_appears_late(tmp_path):
    writer = make(tmp_path / "l.h5")
    writer.add_round(a_round(0, test_accuracy=0.5))
    writer.flush()
    writer.add_round(a_round(1, rho=0.25))
    writer.add_round(a_round(2))
    writer.add_round(a_round(3, other=1))
    writer.finish("done", {})
    with Ledger(tmp_path / "l.h5") as ledger:
        rounds = ledger.rounds
    assert rounds["round_idx"].tolist() == [0, 1, 2, 3]
    np.testing.assert_array_equal(rounds["rho"], [np.nan, 0.25, np.nan, np.nan])
    np.testing.assert_array_equal(rounds["other"], [np.nan] * 3 + [1])
    np.testing.assert_array_equal(rounds["test_accuracy"], [0.5] + [np.nan] * 3)


def test_write_due(tmp_path):
    writer = make(tmp_path / "l.h5", flush_s=5.0)
    writer.add_message(message(0))
    now = writer._flushed_at
    writer.write_due(now + 4.9)
    assert writer._message_table.num_rows == 0
    writer.write_due(now + 5.0)
    assert writer._message_table.num_rows == 1
    writer.finish("stopped", {})


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (message(0)._replace(direction="sideways"), "direction must be one of"),
        (message(0)._replace(header_nbytes=2**32), "column header_nbytes"),
        (message(0)._replace(num_kept=1.5), "column num_kept"),
        (message(0, kind="k" * 65), "at most 64"),
    ],
)
def test_bad_row_is_named_and_the_file_closed(tmp_path, row, words):
    writer = make(tmp_path / "l.h5")
    writer.add_message(message(0))
    writer.flush()
    writer.add_message(row)
    with pytest.raises(ValueError, match=words):
        writer.flush()
    with pytest.raises(ValueError, match=words):
        writer.finish("done", {})
    with Ledger(tmp_path / "l.h5") as ledger:
        assert ledger.status.startswith("failed: ")
        assert len(ledger.messages["kind"]) == 1


@pytest.mark.parametrize("values", [{"round_idx": 0}, a_round(0, **{"a/b": 1.0})])
def test_bad_round(tmp_path, values):
    writer = make(tmp_path / "l.h5")
    writer.add_round(values)
    with pytest.raises(ValueError, match=r"integer|'a/b'"):
        writer.finish("done", {})


def test_refuses_to_overwrite_and_missing_folder(tmp_path):
    make(tmp_path / "l.h5").finish("done", {})
    with pytest.raises(OutputError, match=r"l\.h5 is there: another run begins"):
        make(tmp_path / "l.h5")
    with pytest.raises(OutputError, match="No such file"):
        make(tmp_path / "none" / "l.h5")


def test_an_existing_file_is_not_touched(tmp_path):
    (tmp_path / "l.h5").write_text("mine")
    with pytest.raises(OutputError, match="is there: another run begins"):
        make(tmp_path / "l.h5")
    assert (tmp_path / "l.h5").read_text() == "mine"


def no_room(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_no_stub_when_there_is_no_room_to_begin(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", no_room)
        with pytest.raises(OutputError, match=r"l\.h5: No space left on device; make room there"):
            make(tmp_path / "l.h5")
    assert list(tmp_path.iterdir()) == []
    make(tmp_path / "l.h5").finish("done", {})  # nothing of the failure is left in HDF5 either


@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.EINVAL])
def test_file_system_that_cannot_set_room_aside(tmp_path, monkeypatch, number):
    def fail(*_):
        raise OSError(number, "not here")

    monkeypatch.setattr(os, "posix_fallocate", fail)
    writer = make(tmp_path / "l.h5")
    assert (tmp_path / "l.h5").stat().st_size >= 2**20
    for i in range(5000):
        writer.add_message(message(i))
        writer.add_fault(i, i, 1, "dropout")
        writer.add_class_tests(i, np.array([i, 0]), np.array([5000, 1]))
        if i % 100 == 0:
            writer.flush()
    writer.finish("done", {})
    with Ledger(tmp_path / "l.h5") as ledger:
        assert ledger.messages["client_id"].tolist() == [i // 2 for i in range(5000)]
        assert ledger.faults["client_id"].tolist() == list(range(5000))
        assert ledger.class_tests["num_correct"].tolist() == [n for i in range(5000) for n in (i, 0)]


def test_no_stub_when_the_first_flush_fails(tmp_path, monkeypatch):
    def flush(writer):
        assert (tmp_path / "l.h5").exists()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(LedgerWriter, "flush", flush)
        with pytest.raises(KeyboardInterrupt):
            make(tmp_path / "l.h5")
    assert list(tmp_path.iterdir()) == []
    make(tmp_path / "l.h5").finish("done", {})


def test_no_room_for_rows_keeps_them_for_the_next_try(tmp_path, monkeypatch):
    writer = make(tmp_path / "l.h5")
    for client_id in range(30_000):
        writer.add_fault(0, client_id, 1, "dropout")
    writer.add_class_tests(0, np.arange(30_000), np.arange(30_000))
    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", no_room)
        with pytest.raises(OutputError, match="make room there"):
            writer.flush()
    writer.finish("done", {})
    with Ledger(tmp_path / "l.h5") as ledger:
        assert ledger.faults["client_id"].tolist() == list(range(30_000))
        assert ledger.class_tests["class_idx"].tolist() == list(range(30_000))


def test_no_stub_when_an_attribute_cannot_be_stored(tmp_path):
    with pytest.raises(TypeError):
        make(tmp_path / "l.h5", attrs={"x": object()})
    assert list(tmp_path.iterdir()) == []


def test_finished_ledger_takes_no_more(tmp_path):
    writer = make(tmp_path / "l.h5")
    writer.finish("done", {})
    writer.add_message(message(0))
    with pytest.raises(OutputError, match="finished"):
        writer.flush()


def test_finish_gives_back_the_reserve(tmp_path):
    make(tmp_path / "l.h5").finish("done", {})
    assert (tmp_path / "l.h5").stat().st_size < 200_000


HEAD = """
import resource, sys, time
sys.path.insert(0, {here!r})
from test_writer import *
writer = make(Path(sys.argv[1]))
"""


def start(code: str, path: Path) -> subprocess.Popen:
    script = HEAD.format(here=str(Path(__file__).parent)) + code
    return subprocess.Popen([sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize("num_flushed", [0, 3000])
def test_killed_writer_leaves_a_readable_file(tmp_path, num_flushed):
    code = f"""
for i in range({num_flushed}): writer.add_message(message(i))
if {num_flushed}:
    writer.add_class_tests(0, np.array([1, 2]), np.array([3, 4])); writer.add_round(a_round(0)); writer.flush()
writer.add_class_tests(1, np.array([1, 2]), np.array([3, 4]))
writer.add_message(message(9)); print("ready", flush=True); time.sleep(60)
"""
    process = start(code, tmp_path / "l.h5")
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    with Ledger(tmp_path / "l.h5") as ledger:
        summary = ledger.summary()
        assert ledger.class_tests["num_correct"].tolist() == ([1, 2] if num_flushed else [])
    assert summary["status"] == "running"
    assert summary["num_messages"] == num_flushed
    assert summary["rounds"] == bool(num_flushed)
    assert summary["wire_nbytes"] == sum(message(i).wire_nbytes for i in range(num_flushed))


def test_full_disk(tmp_path):
    """A limit on the file's size stands in for the full disk; the file keeps the last flush and says what happened."""
    limit = 4_000_000
    code = f"""
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
flushed = 0
try:
    while flushed < 10**6:
        for i in range(1000): writer.add_message(message(flushed + i))
        writer.flush()
        flushed += 1000
except OutputError as error:
    print(error)
try:
    writer.finish("done", {{"wall_s": 1.0}})
except OutputError as error:
    print("again", error)
print(flushed)
"""
    process = start(code, tmp_path / "l.h5")
    out = process.communicate(timeout=20)[0].splitlines()
    assert process.returncode == 0
    assert "cannot write the ledger" in out[0]
    assert "l.h5: File too large" in out[0]
    assert out[1].startswith("again cannot write")
    with Ledger(tmp_path / "l.h5") as ledger:
        assert ledger.status.startswith("failed: cannot write the ledger")
        assert ledger.attrs["wall_s"] == 1.0
        assert len(ledger.messages["kind"]) == int(out[2]) > 0
        assert ledger.messages["client_id"].tolist() == [i // 2 for i in range(int(out[2]))]


@pytest.mark.parametrize("reserves", [True, False])
@pytest.mark.parametrize("limit", [0, 100, 3000])
def test_full_disk_at_the_start_leaves_no_file(tmp_path, limit, reserves):
    """With a file system that can set room aside, and without."""
    code = f"""
import os, resource, signal, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_writer import *
if not {reserves}: del os.posix_fallocate
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, resource.RLIM_INFINITY))
try:
    make(Path(sys.argv[1]), config_yaml="a" * 20_000)
except OutputError as error:
    print(error)
print(os.listdir(Path(sys.argv[1]).parent))
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
make(Path(sys.argv[1])).finish("done", {{}})
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "l.h5")], capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 0, done.stderr
    *words, left = done.stdout.splitlines()
    assert words[0].startswith(f"cannot write the ledger {tmp_path / 'l.h5'}: ")
    assert left == "[]"
    with Ledger(tmp_path / "l.h5") as ledger:
        assert ledger.status == "done"

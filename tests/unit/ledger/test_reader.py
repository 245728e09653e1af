"""The reader: what it returns of whole, torn and foreign files."""

import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from fedmpi.errors import OutputError
from fedmpi.ledger.digest import model_digest
from fedmpi.ledger.reader import Ledger
from fedmpi.ledger.schema import FORMAT_VERSION, ROUND_COLUMNS, MessageRow
from fedmpi.ledger.writer import LedgerWriter


@pytest.fixture
def path(tmp_path) -> Path:
    """A finished ledger of 2 rounds, 8 messages and 2 faults; the second round is not tested."""
    writer = LedgerWriter(tmp_path / "ledger.h5", attrs={"num_ranks": 3}, config_yaml="a: 1\n", flush_s=1.0)
    for i in range(8):
        writer.add_message(
            MessageRow(
                i // 4, 0, i % 4 // 2, 1, ("down", "up")[i % 2], f"kind_{i // 4}", "dense", 10, 100 + i, 110 + i, 0, 0,
                400, 800.0, 800.0, 100, 100, 0.0, 0.0, 0.0, 0.0,
            )
        )  # fmt: skip
    fixed = {"num_clients": 2, "down_nbytes": 1, "up_nbytes": 2, "cum_down_nbytes": 3, "cum_up_nbytes": 4}
    writer.add_round({"round_idx": 0, "test_accuracy": 0.75, "test_loss": 0.5, "wall_s": 1.5, "rho": 2.0, **fixed})
    writer.add_round({"round_idx": 1, "wall_s": 1.0, **fixed})
    writer.add_fault(0, 1, 2, "dropout")
    writer.add_fault(1, 0, 1, "nonfinite")
    writer.finish("done", {"simulation_nbytes": 55})
    return tmp_path / "ledger.h5"


def test_summary(path):
    with Ledger(path) as ledger:
        summary = ledger.summary()
    assert len(summary.pop("ledger_digest")) == 64
    assert summary == {
        **dict.fromkeys(("algorithm", "data", "partition", "model", "seed", "rounds_planned")),
        "status": "done",
        "rounds": 2,
        "accuracy": 0.75,
        "loss": 0.5,
        "num_messages": 8,
        "num_faults": 2,
        "up_nbytes": 111 + 113 + 115 + 117,
        "down_nbytes": 110 + 112 + 114 + 116,
        "wire_nbytes": sum(range(110, 118)),
        "simulation_nbytes": 55,
        "wall_s": 2.5,
        "num_ranks": 3,
        "model_digest": None,
    }


def test_empty_ledger(tmp_path):
    writer = LedgerWriter(tmp_path / "l.h5", attrs={}, config_yaml="", flush_s=1.0)
    writer.set_model(np.ones(3, np.float32), np.zeros(0, np.int64), [])
    writer.finish("failed: no data", {})
    with Ledger(tmp_path / "l.h5") as ledger:
        summary = ledger.summary()
        assert ledger.placement == []
        assert ledger.partition is None
    assert summary["status"] == "failed: no data"
    assert (summary["rounds"], summary["accuracy"], summary["wall_s"], summary["num_ranks"]) == (0, None, None, None)
    assert summary["model_digest"] == model_digest(np.ones(3, np.float32), np.zeros(0, np.int64))


def test_torn_flush_is_cut_to_the_common_prefix(path):
    with h5py.File(path, "r+") as file:
        file["messages/num_kept"].resize((6,))
        file["rounds/density"].resize((1,))
        file["rounds/rho"].resize((0,))
    with Ledger(path) as ledger:
        assert {len(values) for values in ledger.messages.values()} == {6}
        assert {len(values) for values in ledger.rounds.values()} == {1}
        assert np.isnan(ledger.rounds["rho"]).all()
        assert ledger.summary()["num_messages"] == 6


def test_torn_names_cut_the_rows_that_need_them(path):
    with h5py.File(path, "r+") as file:
        file["names/kind"].resize((1,))
    with Ledger(path) as ledger:
        assert ledger.messages["kind"].tolist() == ["kind_0"] * 4


def test_torn_faults(path):
    with h5py.File(path, "r+") as file:
        file["faults/fault"].resize((1,))
    with Ledger(path) as ledger:
        assert {len(values) for values in ledger.faults.values()} == {1}
        assert ledger.summary()["num_faults"] == 1
    with h5py.File(path, "r+") as file:
        file["names/fault"].resize((0,))
    with Ledger(path) as ledger:
        assert {len(values) for values in ledger.faults.values()} == {0}
        assert len(ledger.messages["kind"]) == 8


def test_file_from_before_faults(path):
    with Ledger(path) as ledger:
        want = ledger.summary()
        assert ledger.rounds["num_faults"].tolist() == [0, 0]
    with h5py.File(path, "r+") as file:
        file["rounds/num_faults"][:] = [5, 7]
    with Ledger(path) as ledger:
        assert ledger.rounds["num_faults"].tolist() == [5, 7]
    with h5py.File(path, "r+") as file:
        del file["faults"], file["names/fault"], file["rounds/num_faults"]
    with Ledger(path) as ledger:
        assert ledger.summary() == want | {"num_faults": 0}
        assert ledger.rounds["num_faults"].tolist() == [0, 0]
        assert ledger.rounds["num_faults"].dtype == "<i4"
        assert list(ledger.faults) == ["round_idx", "client_id", "rank", "fault"]
        assert [len(values) for values in ledger.faults.values()] == [0] * 4
        assert ledger.faults["fault"].dtype.kind == "U"
        assert "num_faults" not in ledger.stored_lengths()["rounds"]


@pytest.mark.parametrize(
    "column", [f"rounds/{c.name}" for c in ROUND_COLUMNS if c.default is None] + ["messages/rank", "faults/rank"]
)
def test_other_columns_must_be_there(path, column):
    with h5py.File(path, "r+") as file:
        del file[column]
    refused(path, f"part that cannot be read \\(/{column} is missing\\)")


def test_stored_lengths(path):
    with h5py.File(path, "r+") as file:
        file["messages/step"].resize((6,))
    with Ledger(path) as ledger:
        lengths = ledger.stored_lengths()
    assert sorted(lengths) == ["faults", "messages", "rounds"]
    assert lengths["messages"]["step"] == 6
    assert {v for name, v in lengths["messages"].items() if name != "step"} == {8}
    assert lengths["rounds"]["rho"] == 2


def test_later_columns_are_no_hindrance(path):
    with h5py.File(path, "r+") as file:
        file["messages/new_column"] = np.zeros(8)
        file["rounds/new_codes"] = np.zeros(1, "<u2")  # and torn
        file["rounds/new_words"] = ["a", "b"]
        file["new_group/x"] = 1
    with Ledger(path) as ledger:
        assert ledger.summary()["num_messages"] == 8
        assert "rho" in ledger.rounds
        assert not {"new_codes", "new_words"} & set(ledger.rounds)


def test_code_tables_in_other_order(path):
    with Ledger(path) as ledger:
        want, digest = ledger.messages["kind"].tolist(), ledger.summary()["ledger_digest"]
    with h5py.File(path, "r+") as file:
        file["names/kind"][:] = file["names/kind"][:][::-1]
        file["messages/kind"][:] = 1 - file["messages/kind"][:]
    with Ledger(path) as ledger:
        assert ledger.messages["kind"].tolist() == want
        assert ledger.summary()["ledger_digest"] == digest


def refused(path: Path, words: str) -> None:
    with pytest.raises(OutputError, match=words) as caught:
        Ledger(path).summary()
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "Unable to" not in str(caught.value)
    assert "expected" in str(caught.value)
    assert caught.value.exit_status == 6


def test_newer_version(path):
    with h5py.File(path, "r+") as file:
        file.attrs["format_version"] = FORMAT_VERSION + 1
    refused(path, f"version at most {FORMAT_VERSION}, got {FORMAT_VERSION + 1}; read it")


def test_another_hdf5_file(tmp_path):
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x"] = 1
    refused(tmp_path / "other.h5", "filetype = None")


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("messages/wire_nbytes", np.zeros(8)),
        ("messages/wire_nbytes", np.zeros(8, "<i8")),
        ("messages/wire_nbytes", np.zeros((8, 2), "<u8")),
        ("messages/client_id", np.array([b"1"] * 8)),
        ("rounds/round_idx", np.zeros(2, "<i8")),
        ("names/kind", np.zeros(2)),
        ("faults/fault", np.zeros(2, "<i4")),
        ("model/state", np.zeros(3)),
        ("partition/class_counts", np.zeros(3, "<i8")),
    ],
)
def test_column_of_another_kind(path, name, values):
    """And a dataset that is a group, and one that is not there."""
    group = name.partition("/")[0]
    if group in ("model", "partition"):
        writer = LedgerWriter(path.with_name("m.h5"), attrs={}, config_yaml="", flush_s=1.0)
        writer.set_model(np.ones(3, np.float32), np.zeros(0, np.int64), [])
        writer.set_partition(np.ones(3, np.int64), np.ones((3, 1), np.int64))
        writer.finish("done", {})
        path = path.with_name("m.h5")
    for value in (values, None, "group"):
        with h5py.File(path, "r+") as file:
            if name in file:
                del file[name]
            if value is None:
                pass
            elif isinstance(value, str):
                file.create_group(name)
            else:
                file[name] = value
        with Ledger(path) as ledger:
            words = f"cannot be read \\(/{name} (has dtype|is missing)"
            part = {"names": "messages"}.get(group, group)
            with pytest.raises(OutputError, match=words):
                getattr(ledger, part)


def test_locked_by_its_writer(tmp_path):
    writer = LedgerWriter(tmp_path / "l.h5", attrs={}, config_yaml="", flush_s=1.0)
    code = f"from fedmpi.ledger.reader import Ledger; Ledger({str(tmp_path / 'l.h5')!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    (tmp_path / "copy.h5").write_bytes((tmp_path / "l.h5").read_bytes())
    with Ledger(tmp_path / "copy.h5") as copy:
        assert copy.status == "running"
    writer.finish("done", {})
    assert done.stderr.splitlines()[-1].endswith(
        "OutputError: " + str(tmp_path / "l.h5") + ": is being written by a run that goes on; wait for its end, or "
        "copy the file and read the copy"
    )
    assert "errno" not in done.stderr


def test_imports_neither_torch_nor_mpi():
    code = (
        "import sys, fedmpi.ledger.reader, fedmpi.ledger.writer\n"
        "print([m for m in ('torch', 'mpi4py', 'pydantic', 'yaml', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (
            "seed: 3\nrounds: 9\nalgorithm: {name: fedprox}\ndata: {name: mnist}\npartition: {name: iid}\n"
            "model: {name: cnn}\n",
            ["fedprox", "mnist", "iid", "cnn", 3, 9],
        ),
        ("", [None] * 6),
        ("a: [1\n", [None] * 6),
        ("model: cnn\nalgorithm: {name: [x]}\nseed: 0\n", [None, None, None, None, 0, None]),
    ],
)
def test_a_summary_says_what_was_planned(tmp_path, text, found):
    LedgerWriter(tmp_path / "l.h5", attrs={}, config_yaml=text, flush_s=1.0).finish("done", {})
    with Ledger(tmp_path / "l.h5") as ledger:
        summary = ledger.summary()
    assert [summary[k] for k in ("algorithm", "data", "partition", "model", "seed", "rounds_planned")] == found


def test_a_damaged_part_is_told_without_pythons_words(path):
    with h5py.File(path, "r+") as file:
        file["placement/host"] = h5py.SoftLink("/nowhere")
    refused(path, "a part that cannot be read \\(a group or a dataset is missing, or of another kind\\)")

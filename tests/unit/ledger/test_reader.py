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
from fedmpi.ledger.schema import FORMAT_VERSION, MessageRow
from fedmpi.ledger.writer import LedgerWriter


@pytest.fixture
def path(tmp_path) -> Path:
    """A finished ledger of 2 rounds and 8 messages; the second round is not tested."""
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
    writer.finish("done", {"simulation_nbytes": 55})
    return tmp_path / "ledger.h5"


def test_summary(path):
    with Ledger(path) as ledger:
        summary = ledger.summary()
    assert len(summary.pop("ledger_digest")) == 64
    assert summary == {
        "status": "done",
        "rounds": 2,
        "accuracy": 0.75,
        "loss": 0.5,
        "num_messages": 8,
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


def test_later_columns_are_no_hindrance(path):
    with h5py.File(path, "r+") as file:
        file["messages/new_column"] = np.zeros(8)
        file["new_group/x"] = 1
    with Ledger(path) as ledger:
        assert ledger.summary()["num_messages"] == 8


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
    assert "expected" in str(caught.value)
    assert caught.value.exit_status == 6


def test_newer_version(path):
    with h5py.File(path, "r+") as file:
        file.attrs["format_version"] = FORMAT_VERSION + 1
    refused(path, f"version at most {FORMAT_VERSION}, got {FORMAT_VERSION + 1}; read it")


def test_garbage_and_nothing(path, tmp_path):
    (tmp_path / "text").write_text("round,accuracy\n" * 1000)
    (tmp_path / "empty").touch()
    refused(tmp_path / "text", "not HDF5")
    refused(tmp_path / "empty", "got a")
    refused(tmp_path / "none", "no such file")
    refused(tmp_path, "got a")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x"] = 1
    refused(tmp_path / "other.h5", "filetype = None")


def test_truncated(path):
    path.write_bytes(path.read_bytes()[:-1000])
    refused(path, "truncated file.*copy it again")


def test_damaged(path):
    with h5py.File(path, "r+") as file:
        del file["messages/step"]
    refused(path, "cannot be read")


def test_locked_by_its_writer(tmp_path):
    writer = LedgerWriter(tmp_path / "l.h5", attrs={}, config_yaml="", flush_s=1.0)
    code = f"from fedmpi.ledger.reader import Ledger; Ledger({str(tmp_path / 'l.h5')!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    writer.finish("done", {})
    assert "got one that is being written" in done.stderr


def test_imports_neither_torch_nor_mpi():
    code = (
        "import sys, fedmpi.ledger.reader, fedmpi.ledger.writer\n"
        "print([m for m in ('torch', 'mpi4py', 'pydantic', 'yaml', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"

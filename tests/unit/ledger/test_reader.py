"""The reader: what it returns of whole, torn and foreign files."""

import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from fedmpi.errors import OutputError
from fedmpi.ledger.digest import model_digest
from fedmpi.ledger.reader import Ledger, client_accuracies, mean_and_std
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
        "client_accuracy": None,
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


@pytest.fixture
def tested(tmp_path) -> Path:
    """A finished ledger whose model was tested after rounds 0 and 2: 4 clients of 3 classes, the last untested."""
    writer = LedgerWriter(tmp_path / "tested.h5", attrs={}, config_yaml="", flush_s=1.0)
    writer.set_partition(np.array([3, 10, 7, 4]), np.array([[3, 0, 0], [1, 9, 0], [0, 2, 5], [0, 0, 4]]))
    fixed = dict.fromkeys(("num_clients", "down_nbytes", "up_nbytes", "cum_down_nbytes", "cum_up_nbytes"), 0)
    for round_idx, num_correct in ((0, [1, 1, 0]), (1, None), (2, [3, 4, 0])):
        row = {"round_idx": round_idx, "test_loss": 1.5, "wall_s": 1.0, **fixed}
        if num_correct:
            writer.add_class_tests(round_idx, np.array(num_correct), np.array([4, 6, 0]))
            row |= {"test_accuracy": sum(num_correct) / 10, "client_accuracy": 0.5, "client_accuracy_std": 0.25}
        writer.add_round(row)
    writer.finish("done", {})
    return tmp_path / "tested.h5"


def test_accuracies_by_hand():
    class_counts = np.array([[3, 0, 0], [1, 9, 0], [0, 2, 5], [0, 0, 4], [0, 0, 0]])
    accuracies = client_accuracies(class_counts, np.array([3, 4, 0]), np.array([4, 6, 0]))
    assert accuracies.dtype == np.float64
    np.testing.assert_array_equal(accuracies, [3 / 4, 7 / 10, 4 / 6, np.nan, np.nan])
    mean = (3 / 4 + 7 / 10 + 4 / 6) / 3
    squares = [(accuracy - mean) ** 2 for accuracy in (3 / 4, 7 / 10, 4 / 6)]
    assert mean_and_std(accuracies) == pytest.approx((mean, (sum(squares) / 3) ** 0.5), rel=1e-12)
    assert np.isnan(mean_and_std(accuracies[3:])).all()


def test_accuracies_of_large_counts_are_exact():
    counts = np.array([2**52 + 1, 2**52 - 1])
    assert client_accuracies(np.array([[1, 1], [0, 5]]), counts, counts + 0).tolist() == [1.0, 1.0]


def test_client_accuracies(tested):
    with Ledger(tested) as ledger:
        np.testing.assert_array_equal(ledger.client_accuracies(0), [1 / 4, 2 / 10, 1 / 6, np.nan])
        np.testing.assert_array_equal(ledger.client_accuracies(2), [3 / 4, 7 / 10, 4 / 6, np.nan])
        np.testing.assert_array_equal(ledger.rounds["client_accuracy"], [0.5, np.nan, 0.5])
        assert ledger.summary()["client_accuracy"] == 0.5


def test_rows_of_class_tests_in_any_order(tested):
    with h5py.File(tested, "r+") as file:
        for dataset in file["class_tests"].values():
            dataset[:] = dataset[:][[4, 0, 5, 2, 1, 3]]
    with Ledger(tested) as ledger:
        np.testing.assert_array_equal(ledger.client_accuracies(2), [3 / 4, 7 / 10, 4 / 6, np.nan])


@pytest.mark.parametrize(
    ("damage", "round_idx", "words"),
    [
        (lambda file: None, 1, "each of 3 classes, got round 1 with 0 rows; rounds there: 0, 2$"),
        (lambda file: file["class_tests/num_correct"].resize((5,)), 2, "got round 2 with 2 rows; rounds there: 0, 2$"),
        (lambda file: file["class_tests/class_idx"].write_direct(np.zeros(6, "<i4")), 0, "got round 0 with 3 rows"),
        (lambda file: file.__delitem__("class_tests"), 0, "got round 0 with 0 rows; rounds there: none$"),
        (lambda file: file.__delitem__("partition"), 0, "without /partition$"),
        (lambda file: file.__delitem__("class_tests/num_tested"), 0, "cannot be read .*num_tested is missing"),
    ],
)
def test_no_client_accuracies(tested, damage, round_idx, words):
    with h5py.File(tested, "r+") as file:
        damage(file)
    with Ledger(tested) as ledger, pytest.raises(OutputError, match=words) as caught:
        ledger.client_accuracies(round_idx)
    assert str(caught.value).startswith(f"{tested}: expected ")


def test_an_error_names_few_of_many_rounds(tmp_path):
    writer = LedgerWriter(tmp_path / "l.h5", attrs={}, config_yaml="", flush_s=1.0)
    writer.set_partition(np.array([3]), np.array([[3]]))
    for round_idx in range(9):
        writer.add_class_tests(round_idx, np.array([1]), np.array([2]))
    writer.finish("done", {})
    with Ledger(tmp_path / "l.h5") as ledger, pytest.raises(OutputError, match=r"there: 0, 1, 2, 3, 4, and 4 more$"):
        ledger.client_accuracies(9)


def test_torn_class_tests(tested):
    with h5py.File(tested, "r+") as file:
        file["class_tests/num_tested"].resize((4,))
    with Ledger(tested) as ledger:
        assert {len(values) for values in ledger.class_tests.values()} == {4}
        assert ledger.client_accuracies(0)[0] == 1 / 4


def test_file_from_before_class_tests(tested):
    with Ledger(tested) as ledger:
        want = ledger.summary()
    with h5py.File(tested, "r+") as file:
        del file["class_tests"], file["rounds/client_accuracy"], file["rounds/client_accuracy_std"]
    with Ledger(tested) as ledger:
        assert ledger.summary() == want | {"client_accuracy": None}
        for name in ("client_accuracy", "client_accuracy_std"):
            assert ledger.rounds[name].dtype == "<f8"
            np.testing.assert_array_equal(ledger.rounds[name], [np.nan] * 3)
        assert {name: values.dtype.str for name, values in ledger.class_tests.items()} == {
            "round_idx": "<i4", "class_idx": "<i4", "num_correct": "<i8", "num_tested": "<i8",
        }  # fmt: skip
        assert {len(values) for values in ledger.class_tests.values()} == {0}
        assert "class_tests" not in ledger.stored_lengths()


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
    assert sorted(lengths) == ["class_tests", "faults", "messages", "rounds", "turns"]
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
        ("class_tests/num_correct", np.zeros(2, "<u8")),
        ("class_tests/class_idx", np.zeros((2, 1), "<i4")),
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

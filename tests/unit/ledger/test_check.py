"""The check: a sound ledger has no problem, and each thing that can be wrong is found and named."""

import re
import time
from pathlib import Path

import h5py
import numpy as np
import pytest

from fedmpi.errors import OutputError
from fedmpi.ledger.check import Check, check
from fedmpi.ledger.digest import model_digest
from fedmpi.ledger.reader import Ledger
from fedmpi.ledger.schema import MessageRow
from fedmpi.ledger.writer import LedgerWriter

STATE, INTS = np.arange(5, dtype=np.float32), np.array([7])


def message(round_idx: int, client_id: int, direction: str, payload: int, codec: str = "raw") -> MessageRow:
    figures = (codec, 10, payload, payload + 10, 0, 0, payload, 8.0 * payload, 8.0 * payload, 1, 1)
    return MessageRow(round_idx, 0, client_id, 1, direction, "model", *figures, 0.1, 0.1, 1.0, 2.0)


def make(path: Path, status: str = "done") -> Path:
    """Write 3 rounds of 3 clients; client 2 drops out of round 1, client 0's reply of round 2 is refused.

    The model is tested after rounds 0 and 2; client 2 holds nothing, and so has no accuracy.
    """
    writer = LedgerWriter(path, attrs={}, config_yaml="a: 1\n", flush_s=1.0)
    writer.set_partition(np.array([3, 4, 0]), np.array([[1, 2], [0, 4], [0, 0]]))
    cum = {"down": 0, "up": 0}
    for r in range(3):
        sums = {"down": 0, "up": 0}
        for c in range(3):
            for direction in ("down", "up")[: 1 if (r, c) == (1, 2) else 2]:
                row = message(r, c, direction, 100 + c)
                writer.add_message(row)
                sums[direction] += row.wire_nbytes
        cum = {name: cum[name] + sums[name] for name in cum}
        nbytes = {f"{name}_nbytes": count for name, count in sums.items()}
        nbytes |= {f"cum_{name}_nbytes": count for name, count in cum.items()}
        accuracies = {}
        if r != 1:
            writer.add_class_tests(r, np.array([1, 3]), np.array([4, 4]))
            accuracies = {"test_accuracy": 4 / 8, "client_accuracy": 0.625, "client_accuracy_std": 0.125}
        for c in range(3):
            writer.add_turn(r, c, 1e9 * c, 5.0)
        row = {"round_idx": r, "num_clients": 3, "num_faults": int(r > 0), "rho": 1.0}
        row |= {"device_ops": 3e9, "server_ops": 15.0}
        writer.add_round({**row, **nbytes, **accuracies})
    writer.add_fault(1, 2, 1, "dropout")
    writer.add_fault(2, 0, 1, "nonfinite")
    writer.set_model(STATE, INTS, [("w", (5,), 0)])
    writer.finish(status, {"message_nbytes": sum(cum.values()), "model_digest": model_digest(STATE, INTS)})
    return path


@pytest.fixture
def path(tmp_path) -> Path:
    return make(tmp_path / "ledger.h5")


def test_sound(path):
    found = Check(path)
    assert found.problems == check(path) == []
    assert len(found.checked) == len(set(found.checked)) >= 25
    assert "messages: header_nbytes + payload_nbytes = wire_nbytes (17 rows)" in found.checked
    assert "attribute model_digest is that of the stored model" in found.checked


@pytest.mark.parametrize("status", ["done", "stopped", "failed: no room", "running"])
def test_empty_is_sound(tmp_path, status):
    LedgerWriter(tmp_path / "l.h5", attrs={}, config_yaml="", flush_s=1.0).finish(status, {})
    assert check(tmp_path / "l.h5") == []


def test_file_from_before_faults_is_sound(path):
    with h5py.File(path, "r+") as file:
        del file["faults"], file["names/fault"], file["rounds/num_faults"]
    assert check(path) == []


def test_file_from_before_class_tests_is_sound(path):
    with h5py.File(path, "r+") as file:
        del file["class_tests"], file["rounds/client_accuracy"], file["rounds/client_accuracy_std"]
    assert check(path) == []


def test_file_from_before_turns_is_sound(path):
    with h5py.File(path, "r+") as file:
        del file["turns"], file["rounds/device_ops"], file["rounds/server_ops"]
    assert check(path) == []
    with Ledger(path) as ledger:
        assert {name: values.dtype.str for name, values in ledger.turns.items()} == {
            "round_idx": "<i4", "client_id": "<i4", "device_ops": "<f8", "server_ops": "<f8",
        }  # fmt: skip
        np.testing.assert_array_equal(ledger.rounds["device_ops"], [np.nan] * 3)


def test_class_tests_without_a_partition(path):
    with h5py.File(path, "r+") as file:
        del file["partition"]
        file["rounds/client_accuracy"][:] = 0.9  # of what cannot be known
    assert check(path) == []
    with h5py.File(path, "r+") as file:
        file["class_tests/class_idx"][3] = 2**31 - 1
    (problem,) = check(path)
    assert problem.startswith("class_tests: one row for each of 2147483648 classes")


def test_classes_that_the_partition_does_not_have(path):
    with h5py.File(path, "r+") as file:
        del file["partition/class_counts"]
        file["partition/class_counts"] = np.array([[1, 2, 0], [0, 4, 0], [0, 0, 0]])
    (problem,) = check(path)
    assert problem == (
        "class_tests: one row for each of 3 classes after each round that has any: got 4 rows of 2 rounds"
    )


# What is changed in the file, and what must be said of it: once, and of nothing else.
CHANGES = {
    "messages/header_nbytes": (4, 11, "header_nbytes + payload_nbytes = wire_nbytes: 1 of 17 rows break it, the first "
                               "is row 4, round 0, client 2, step 0, down, header_nbytes 11, payload_nbytes 102, wire"),
    "messages/index_nbytes": (5, 103, "index_nbytes + value_nbytes <= payload_nbytes: 1 of 17 rows break it"),
    "messages/value_nbytes": (5, 2**64 - 1, "index_nbytes + value_nbytes <= payload_nbytes: 1 of 17 rows"),
    "messages/recv_t": (3, -0.5, "recv_t >= 0: 1 of 17 rows break it, the first is row 3, .*recv_t -0.5"),
    "messages/send_t": (3, np.nan, "send_t, recv_t are finite: 1 of 17"),
    "messages/decode_s": (3, np.inf, "send_t, recv_t are finite: 1 of 17"),
    "messages/bound_nbits": (3, 8 * 101 + 65, "bound_nbits <= 8 payload_nbytes.*first is row 3"),
    "rounds/down_nbytes": (1, 5, "rounds: down_nbytes is the sum.*1 of 3 rows.*round 1, 5 where the rows come to 333"),
    "rounds/cum_up_nbytes": (2, 5, "rounds: cum_up_nbytes is the sum.*the first is round 2, 5 where"),
    "rounds/num_faults": (0, 1, "rounds: num_faults is the number.*the first is round 0, 1 where the rows come to 0"),
    "rounds/test_accuracy": (2, np.nan, "rounds: test_accuracy follows from class_tests: 1 of 2 rows break it, the "
                                        "first is round 2, nan where the rows come to 0.5"),
    "rounds/client_accuracy": (0, 0.626, "rounds: client_accuracy follows.*the first is round 0, 0.626 where"),
    "rounds/client_accuracy_std": (2, 0.1, "rounds: client_accuracy_std follows.*round 2, 0.1 where .* come to 0.125"),
    "class_tests/num_correct": (3, 5, "class_tests: 0 <= num_correct <= num_tested: 1 of 4 rows break it, the first is "
                                      "round_idx 2, class_idx 1, num_correct 5, num_tested 4"),
    "class_tests/num_tested": (0, 5, "rounds: test_accuracy follows.*1 of 2 rows.*round 0, 0.5 where the rows come to"),
    "class_tests/class_idx": (1, 0, "class_tests: one row for each of 2 classes.*: got 4 rows of 2 rounds"),
    "class_tests/round_idx": (3, 1, "class_tests: one row for each of 2 classes.*: got 4 rows of 3 rounds"),
    "turns/client_id": (4, 0, "turns: key .* is unique: 1 of 9 rows break it, the first is round_idx 1, client_id 0"),
    "turns/device_ops": (4, 2e9, "rounds: device_ops is the sum of.*1 of 3 rows.*round 1, 3000000000.0 where"),
    "turns/server_ops": (8, -1.0, "turns: operations are finite and >= 0: 1 of 9 rows"),
    "rounds/round_idx": (1, 0, "rounds: round_idx ascends.*row 1, round 0"),
    "partition/sizes": (1, 5, "class_counts of a client sum to its size.*the first is client 1, size 5, sum 4"),
    "model/state": (0, 9.0, "model_digest is that of the stored model: got "),
    "faults/client_id": (0, 3, "faults: every client_id is one of the partition's 3: got 1 rows with another, \\[3\\]"),
    "faults/fault": (1, 2, "faults: every code has its name"),
    "messages/kind": (16, 1, "messages: every code has its name: got none for row 16 of 17"),
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_value_is_found(path, name):
    row, value, words = CHANGES[name]
    with h5py.File(path, "r+") as file:
        assert file[name][row] != value
        file[name][row] = value
    problems = check(path)
    assert [problem for problem in problems if re.search(words.replace("+", "\\+"), problem)], problems
    also = {"messages/kind": 4, "rounds/round_idx": 5, "faults/fault": 2}  # what follows from lost rows
    also |= {"class_tests/num_correct": 4, "class_tests/num_tested": 3, "turns/server_ops": 2}  # and from counts
    assert len(problems) <= also.get(name, 1), problems


def test_changed_byte_counts_are_found(path):
    """Both sides of a sum changed alike, so that only the totals can tell."""
    with h5py.File(path, "r+") as file:
        file["messages/payload_nbytes"][0] += np.uint64(1000)
        file["messages/wire_nbytes"][0] += np.uint64(1000)
    problems = check(path)
    assert [problem.split(" is ")[0] for problem in problems] == [
        "rounds: down_nbytes", "rounds: cum_down_nbytes", "attribute message_nbytes",
    ]  # fmt: skip
    assert problems[-1].endswith(": got 1886, the sum 2886")


def test_a_repeated_key(path):
    with h5py.File(path, "r+") as file:
        file["messages/client_id"][2] = 0  # now as row 0, down
        assert file["messages/direction"][2] == 0
    (problem,) = check(path)
    assert problem.startswith("messages: key (round_idx, client_id, step, direction) is unique: 1 of 17 rows")
    assert "row 2, round 0, client 0, step 0, down" in problem


def test_an_uplink_of_a_client_that_dropped_out(path):
    with h5py.File(path, "r+") as file:
        file["faults/client_id"][0] = 1
    (problem,) = check(path)
    assert problem.startswith("faults: no uplink of a client with dropout")
    assert problem.endswith("round 1, client 1, dropout")


@pytest.mark.parametrize(("status", "num_problems"), [("done", 4), ("stopped", 4), ("running", 0), ("failed: x", 0)])
def test_rows_of_a_round_that_was_not_recorded(path, status, num_problems):
    """A run that was cut short has them; one that came to its end must not."""
    with h5py.File(path, "r+") as file:
        for dataset in file["rounds"].values():
            dataset.resize((2,))
        file.attrs["status"] = status
    problems = check(path)
    assert len(problems) == num_problems
    if problems:
        assert "messages: each is of a recorded round: 6 of 17 rows" in problems[0]
        assert "faults: each is of a recorded round: 1 of 2 rows" in problems[1]
        assert "class_tests: each is of a recorded round: 2 of 4 rows" in problems[2]
        assert "turns: each is of a recorded round: 3 of 9 rows" in problems[3]


@pytest.mark.parametrize("status", ["running", "done"])
def test_the_total_counts_only_when_the_run_came_to_an_end(path, status):
    with h5py.File(path, "r+") as file:
        file.attrs["message_nbytes"] = 1
        file.attrs["status"] = status
    assert len(check(path)) == (status == "done")


def test_unequal_lengths(path):
    with h5py.File(path, "r+") as file:
        file["rounds/rho"].resize((1,))
    assert check(path) == ["rounds: 31 columns of equal length: got 1 rows of rho and 3 of aggregate_ops"]


def test_head(path):
    with h5py.File(path, "r+") as file:
        file.attrs["status"] = "well"
        del file["config"]
        file["config"] = "a: [1"
    problems = check(path)
    assert problems[0] == "status is running, done, stopped or failed: got 'well'"
    assert problems[1].startswith("the configuration is YAML: got while parsing")
    assert len(problems) == 2


@pytest.mark.parametrize(("factor", "change", "sound"), [(1, 0, True), (80, 0, True), (80, 1, False), (0, 0, False)])
def test_labels_by_the_sample(tmp_path, factor, change, sound):
    """A text of 80 characters counts 80 labels a sample."""
    writer = LedgerWriter(tmp_path / "l.h5", attrs={}, config_yaml="", flush_s=1.0)
    counts = factor * np.array([[1, 2], [0, 4]])
    counts[0, 0] += change
    writer.set_partition(np.array([3, 4]), counts)
    writer.finish("done", {})
    assert (check(tmp_path / "l.h5") == []) == sound


def test_partition_of_other_shapes(tmp_path):
    writer = LedgerWriter(tmp_path / "l.h5", attrs={}, config_yaml="", flush_s=1.0)
    writer.set_partition(np.array([3, 4]), np.array([[1, 2]]))
    writer.finish("done", {})
    assert check(tmp_path / "l.h5") == [
        "partition: class_counts has a row for each of sizes: got shapes (1, 2) and (2,)"
    ]


def test_only_plain_numbers_cannot_pass_the_bound(tmp_path):
    """A codec may do better than a bound that knows less of the data, a float cannot be stored in less than itself."""
    writer = LedgerWriter(tmp_path / "l.h5", attrs={}, config_yaml="", flush_s=1.0)
    writer.add_message(message(0, 0, "up", 10, codec="rice")._replace(bound_nbits=1e6))
    writer.add_message(message(0, 1, "up", 10)._replace(bound_nbits=1e6, index_nbytes=1))
    writer.add_message(message(0, 2, "up", 10, codec="numbers")._replace(bound_nbits=1e6))
    writer.add_message(message(0, 3, "up", 10, codec="rice")._replace(bound_nbits=-1.0))
    writer.finish("running", {})
    problems = check(tmp_path / "l.h5")
    assert ["client 2" in problems[1], "client 3" in problems[0], len(problems)] == [True, True, 2]


def test_unreadable(path, tmp_path):
    with pytest.raises(OutputError, match="no such file"):
        check(tmp_path / "none")
    with h5py.File(path, "r+") as file:
        del file["messages/step"]
    with pytest.raises(OutputError, match="/messages/step is missing"):
        check(path)


def test_many_rows_in_seconds(tmp_path):
    num_rows = 200_000
    writer = LedgerWriter(tmp_path / "l.h5", attrs={}, config_yaml="", flush_s=1.0)
    for i in range(num_rows):
        writer.add_message(message(i // 1000, i % 1000, "up", 100))
    for r in range(num_rows // 1000):
        up = {"up_nbytes": 110_000, "cum_up_nbytes": 110_000 * (r + 1), "down_nbytes": 0, "cum_down_nbytes": 0}
        writer.add_round({"round_idx": r, "num_clients": 1000, **up})
    writer.finish("done", {})
    start = time.process_time()
    assert check(tmp_path / "l.h5") == []
    assert time.process_time() - start < 2

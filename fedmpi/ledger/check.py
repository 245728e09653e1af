"""Whether a ledger holds together: what docs/file_format.md promises of its numbers, recomputed from them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from fedmpi.ledger.digest import model_digest
from fedmpi.ledger.reader import Ledger, client_accuracies, mean_and_std
from fedmpi.ledger.schema import DIRECTIONS
from fedmpi.ledger.stored import Array

DROPOUT = "dropout"
"""The fault of a client whose reply never came."""

# Codecs that store numbers as they are: no data lets them pass the bound, but for the rounding of a number to bytes.
_PLAIN_CODECS = ("raw", "numbers")
_BOUND_SLACK_NBITS = 64
# Between accuracies whose sums were taken in another order.
_ACCURACY_SLACK = 1e-9
# Between sums of operations that were taken in another order, as a part of them.
_SUM_SLACK = 1e-9
_TIMES = ("encode_s", "decode_s", "send_t", "recv_t")


class Check:
    """What was checked of a ledger, and what was wrong.

    Parameters
    ----------
    path : Path
        The HDF5 file.

    Attributes
    ----------
    checked : list of str
        The rules that were applied, and to how much; one line each.
    problems : list of str
        The rules that do not hold, and where first; one line each, none if the ledger is sound.

    Raises
    ------
    OutputError
        If the file or a part of it cannot be read, as `Ledger` raises it.
    """

    def __init__(self, path: Path | str) -> None:
        self.checked: list[str] = []
        self.problems: list[str] = []
        with Ledger(path) as ledger:
            self._is_finished = ledger.status in ("done", "stopped")
            self._check_head(ledger)
            self._check_lengths(ledger)
            self._check_messages(ledger.messages)
            self._check_rounds(ledger)
            self._check_faults(ledger)
            self._check_class_tests(ledger)
            self._check_turns(ledger)
            self._check_partition(ledger)
            self._check_totals(ledger)

    def _fact(self, rule: str, holds: bool, found: object) -> None:
        """Note a rule about one thing."""
        self.checked.append(rule)
        if not holds:
            self.problems.append(f"{rule}: got {found}")

    def _rows(self, rule: str, is_wrong: Array, name: Callable[[int], str]) -> None:
        """Note a rule about every row; `name` gives the words for one that breaks it."""
        self.checked.append(f"{rule} ({len(is_wrong)} rows)")
        wrong = np.flatnonzero(is_wrong)
        if len(wrong):
            rows = f"{len(wrong)} of {len(is_wrong)} rows break it"
            self.problems.append(f"{rule}: {rows}, the first is {name(int(wrong[0]))}")

    def _check_head(self, ledger: Ledger) -> None:
        import yaml

        self.checked.append(f"the file opens, with format version {ledger.attrs['format_version']}")
        status = ledger.status
        known = status in ("running", "done", "stopped") or status.startswith("failed")
        self._fact("status is running, done, stopped or failed", known, repr(status))
        try:
            yaml.safe_load(ledger.config_yaml)
            words = ""
        except yaml.YAMLError as error:
            words = " ".join(str(error).split())
        self._fact("the configuration is YAML", not words, words)

    def _check_lengths(self, ledger: Ledger) -> None:
        stored = ledger.stored_lengths()
        for group, lengths in stored.items():
            shortest, longest = min(lengths, key=lengths.__getitem__), max(lengths, key=lengths.__getitem__)
            self._fact(
                f"{group}: {len(lengths)} columns of equal length",
                lengths[shortest] == lengths[longest],
                f"{lengths[shortest]} rows of {shortest} and {lengths[longest]} of {longest}",
            )
        # The reader leaves out what stands behind the first code without a name.
        for group, table in (("messages", ledger.messages), ("faults", ledger.faults)):
            if group in stored:
                num_read, num_stored = len(table["round_idx"]), min(stored[group][name] for name in table)
                words = f"none for row {num_read} of {num_stored}"
                self._fact(f"{group}: every code has its name", num_read == num_stored, words)

    def _check_messages(self, messages: Mapping[str, Array]) -> None:
        def named(*columns: str) -> Callable[[int], str]:
            def name(row: int) -> str:
                return ", ".join(
                    [_message(messages, row), *(f"{column} {messages[column][row]}" for column in columns)]
                )

            return name

        header, payload, wire = (messages[f"{part}_nbytes"] for part in ("header", "payload", "wire"))
        self._rows(
            "messages: header_nbytes + payload_nbytes = wire_nbytes",
            header.astype(np.uint64) + payload != wire,
            named("header_nbytes", "payload_nbytes", "wire_nbytes"),
        )
        index, value = messages["index_nbytes"], messages["value_nbytes"]
        self._rows(
            "messages: index_nbytes + value_nbytes <= payload_nbytes",
            (index > payload) | (value > payload - np.minimum(index, payload)),  # no sum that could overflow
            named("index_nbytes", "value_nbytes", "payload_nbytes"),
        )
        keys = [messages["direction"] == DIRECTIONS[1], *(messages[k] for k in ("step", "client_id", "round_idx"))]
        self._rows("messages: key (round_idx, client_id, step, direction) is unique", _repeated(keys), named("rank"))
        finite = [np.isfinite(messages[name]) for name in _TIMES]
        self._rows(f"messages: {', '.join(_TIMES)} are finite", ~np.logical_and.reduce(finite), named(*_TIMES))
        self._rows("messages: recv_t >= 0", messages["recv_t"] < 0, named("recv_t"))
        bound = messages["bound_nbits"]
        self._rows(
            "messages: bound_nbits is finite and >= 0", ~(np.isfinite(bound) & (bound >= 0)), named("bound_nbits")
        )
        plain = np.isin(messages["codec"], _PLAIN_CODECS) & (index == 0) & (value == 0)
        self._rows(
            f"messages: bound_nbits <= 8 payload_nbytes + {_BOUND_SLACK_NBITS}, if all is stored plainly",
            plain & (bound > 8.0 * payload + _BOUND_SLACK_NBITS),
            named("bound_nbits", "payload_nbytes", "codec"),
        )

    def _check_rounds(self, ledger: Ledger) -> None:
        messages, rounds = ledger.messages, ledger.rounds
        indices = rounds["round_idx"]
        ascending = np.diff(indices, prepend=-1) > 0
        self._rows(
            "rounds: round_idx ascends from 0 or later", ~ascending, lambda row: f"row {row}, round {indices[row]}"
        )
        recorded = np.isin(messages["round_idx"], indices)
        if self._is_finished:
            self._rows("messages: each is of a recorded round", ~recorded, lambda row: _message(messages, row))
        if not ascending.all():
            return  # there is no telling which row a message's bytes belong to
        row_of = np.searchsorted(indices, messages["round_idx"][recorded])
        for direction in DIRECTIONS:
            chosen = messages["direction"][recorded] == direction
            sums = np.zeros(len(indices), np.uint64)
            np.add.at(sums, row_of[chosen], messages["wire_nbytes"][recorded][chosen])
            name = f"{direction}_nbytes"
            for column, want in ((name, sums), (f"cum_{name}", np.cumsum(sums, dtype=np.uint64))):
                self._rows(
                    f"rounds: {column} is the sum of the messages' wire_nbytes",
                    rounds[column] != want,
                    _comparing(indices, rounds[column], want),
                )

    def _check_faults(self, ledger: Ledger) -> None:
        faults, messages, rounds = ledger.faults, ledger.messages, ledger.rounds

        def name(row: int) -> str:
            return f"round {faults['round_idx'][row]}, client {faults['client_id'][row]}, {faults['fault'][row]}"

        if len(faults["fault"]):
            if self._is_finished:
                missing = ~np.isin(faults["round_idx"], rounds["round_idx"])
                self._rows("faults: each is of a recorded round", missing, name)
            dropped = faults["fault"] == DROPOUT
            is_up = messages["direction"] == DIRECTIONS[1]
            came = np.isin(_pairs(faults), _pairs(messages)[is_up])
            self._rows(f"faults: no uplink of a client with {DROPOUT} in its round", dropped & came, name)
        rows, counts = np.unique(np.unique(_pairs(faults)) >> 32, return_counts=True)
        at = np.isin(rounds["round_idx"], rows)
        want = np.zeros(len(at), np.int64)
        want[at] = counts[np.searchsorted(rows, rounds["round_idx"][at])]
        self._rows(
            "rounds: num_faults is the number of clients in faults",
            rounds["num_faults"] != want,
            _comparing(rounds["round_idx"], rounds["num_faults"], want),
        )

    def _check_class_tests(self, ledger: Ledger) -> None:
        tests, rounds = ledger.class_tests, ledger.rounds
        if not len(tests["round_idx"]):
            return

        def name(row: int) -> str:
            return ", ".join(f"{column} {values[row]}" for column, values in tests.items())

        correct, tested = tests["num_correct"], tests["num_tested"]
        self._rows("class_tests: 0 <= num_correct <= num_tested", (correct < 0) | (correct > tested), name)
        if self._is_finished:
            missing = ~np.isin(tests["round_idx"], rounds["round_idx"])
            self._rows("class_tests: each is of a recorded round", missing, name)
        class_counts = None if ledger.partition is None else ledger.partition[1]
        num_classes = int(tests["class_idx"].max()) + 1 if class_counts is None else class_counts.shape[1]
        of_rounds = np.unique(tests["round_idx"])
        order = np.lexsort([tests["class_idx"], tests["round_idx"]])
        whole = len(order) == len(of_rounds) * num_classes and np.array_equal(
            tests["class_idx"][order], np.tile(np.arange(num_classes), len(of_rounds))
        )
        rule = f"class_tests: one row for each of {num_classes} classes after each round that has any"
        self._fact(rule, whole, f"{len(order)} rows of {len(of_rounds)} rounds")
        if not whole or (np.diff(rounds["round_idx"]) <= 0).any():
            return  # there is no telling which row of rounds the counts belong to
        correct, tested = (column[order].reshape(len(of_rounds), num_classes) for column in (correct, tested))
        with np.errstate(invalid="ignore"):
            wanted = {"test_accuracy": correct.sum(axis=1) / tested.sum(axis=1)}
        if class_counts is not None:
            clients = [
                mean_and_std(client_accuracies(class_counts, *counts)) for counts in zip(correct, tested, strict=True)
            ]
            wanted["client_accuracy"], wanted["client_accuracy_std"] = np.array(clients).T
        at = np.isin(rounds["round_idx"], of_rounds)
        row_of = np.searchsorted(of_rounds, rounds["round_idx"][at])
        for column, accuracies in wanted.items():
            got, want = rounds[column][at], accuracies[row_of]
            self._rows(
                f"rounds: {column} follows from class_tests" + " and the partition" * (column != "test_accuracy"),
                ~np.isclose(got, want, rtol=0, atol=_ACCURACY_SLACK, equal_nan=True),
                _comparing(rounds["round_idx"][at], got, want),
            )

    def _check_turns(self, ledger: Ledger) -> None:
        turns, rounds = ledger.turns, ledger.rounds
        if not len(turns["round_idx"]):
            return

        def name(row: int) -> str:
            return ", ".join(f"{column} {values[row]}" for column, values in turns.items())

        keys = [turns["client_id"], turns["round_idx"]]
        self._rows("turns: key (round_idx, client_id) is unique", _repeated(keys), name)
        counts = [turns[f"{who}_ops"] for who in ("device", "server")]
        finite = np.logical_and.reduce([np.isfinite(ops) & (ops >= 0) for ops in counts])
        self._rows("turns: operations are finite and >= 0", ~finite, name)
        recorded = np.isin(turns["round_idx"], rounds["round_idx"])
        if self._is_finished:
            self._rows("turns: each is of a recorded round", ~recorded, name)
        if (np.diff(rounds["round_idx"]) <= 0).any():
            return  # there is no telling which row of rounds the counts belong to
        row_of = np.searchsorted(rounds["round_idx"], turns["round_idx"][recorded])
        for column, ops in zip(("device_ops", "server_ops"), counts, strict=True):
            want = np.bincount(row_of, ops[recorded], len(rounds["round_idx"]))
            self._rows(
                f"rounds: {column} is the sum of the turns'",
                ~np.isclose(rounds[column], want, rtol=_SUM_SLACK, atol=0),
                _comparing(rounds["round_idx"], rounds[column], want),
            )

    def _check_partition(self, ledger: Ledger) -> None:
        if ledger.partition is None:
            return
        sizes, class_counts = ledger.partition
        for group, table in (("messages", ledger.messages), ("faults", ledger.faults), ("turns", ledger.turns)):
            client = table["client_id"]
            wrong = np.flatnonzero((client < 0) | (client >= len(sizes)))
            self._fact(
                f"{group}: every client_id is one of the partition's {len(sizes)}",
                not len(wrong),
                f"{len(wrong)} rows with another, {client[wrong][:3].tolist()} the first",
            )
        fits = len(sizes) == len(class_counts)
        self._fact(
            "partition: class_counts has a row for each of sizes",
            fits,
            f"shapes {class_counts.shape} and {sizes.shape}",
        )
        if fits and len(sizes):
            sums = class_counts.sum(axis=1)
            # A sample has one label, or as many as it has places: a text is counted by character.
            num_labels = max(1, int(sums.sum()) // max(1, int(sizes.sum())))
            self._rows(
                f"partition: class_counts of a client sum to its size, times {num_labels} labels a sample",
                sums != num_labels * sizes,
                lambda row: f"client {row}, size {sizes[row]}, sum {sums[row]}",
            )

    def _check_totals(self, ledger: Ledger) -> None:
        attrs = ledger.attrs
        if self._is_finished and "message_nbytes" in attrs:
            total = int(ledger.messages["wire_nbytes"].sum())
            rule = "attribute message_nbytes is the sum of the messages' wire_nbytes"
            self._fact(rule, attrs["message_nbytes"] == total, f"{attrs['message_nbytes']}, the sum {total}")
        if ledger.model is not None and "model_digest" in attrs:
            digest = model_digest(*ledger.model)
            rule = "attribute model_digest is that of the stored model"
            self._fact(rule, attrs["model_digest"] == digest, f"{attrs['model_digest']}, the model's {digest}")


def check(path: Path | str) -> list[str]:
    """Return what is wrong with a ledger, one line a problem; nothing if it is sound. `Check` says what was checked."""
    return Check(path).problems


def _message(messages: Mapping[str, Array], row: int) -> str:
    key = [int(messages[name][row]) for name in ("round_idx", "client_id", "step")]
    return f"row {row}, round {key[0]}, client {key[1]}, step {key[2]}, {messages['direction'][row]}"


def _comparing(round_idx: Array, got: Array, want: Array) -> Callable[[int], str]:
    """Return what names a row of rounds by its value and the one that was worked out."""
    return lambda row: f"round {round_idx[row]}, {got[row]} where the rows come to {want[row]}"


def _pairs(table: Mapping[str, Array]) -> Array:
    """Return (round_idx, client_id) of each row as one integer."""
    return table["round_idx"].astype(np.int64) << 32 | table["client_id"].astype(np.uint32)


def _repeated(keys: list[Array]) -> Array:
    """Return whether each row has the key of another row that stands before it."""
    order = np.lexsort(keys)
    same = np.logical_and.reduce([key[order][1:] == key[order][:-1] for key in keys])
    repeated = np.zeros(len(order), bool)
    repeated[order[1:]] = same
    return repeated

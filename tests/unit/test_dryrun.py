"""The tables of a dry run: what is exact, what is a bound, and what ranks of a node take together."""

from __future__ import annotations

import dataclasses

import numpy as np

from fedmpi.algorithms.sparse_updates import UpdateUp
from fedmpi.config import WireConfig
from fedmpi.dryrun import bounded, message_table, needed_nbytes
from fedmpi.engine.memory import RankMemory
from fedmpi.wire.message import Schema
from fedmpi.wire.sizes import most_payload_nbytes

PARAMS = 100
SCHEMA = Schema({"params": PARAMS, "buffers": 0, "state": PARAMS, "int_buffers": 0}, 1)
MESSAGES = {
    "round_idx": np.array([0, 0, 0, 1]),
    "direction": np.array(["down", "up", "up", "up"]),
    "kind": np.array(["model", "update", "update", "update"]),
    "header_nbytes": np.array([20, 30, 30, 30]),
    "num_kept": np.array([100, 10, 20, 100]),
    "wire_nbytes": np.array([420, 130, 120, 110]),
}


def rows(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines()[3:]]


def test_sizes_that_depend_on_what_is_learnt_are_bounds() -> None:
    """Such a message weighs at most a bit a position and what its values do as they are, and what is around them."""
    most = [30 + most_payload_nbytes(UpdateUp, SCHEMA, kept) for kept in (10, 20, 100)]
    assert rows(message_table(MESSAGES, bounded(MESSAGES, SCHEMA), 2)) == [
        ["1", "down", "model", "1", "420", "420", "0.000"],
        ["1", "up", "update", "2", "<=", str(most[0] + most[1]), f"{(most[0] + most[1]) / 2:.0f}", "0.000"],
        ["later", "up", "update", "1", "<=", str(most[2]), str(most[2]), "0.001"],
    ]


def test_sizes_that_do_not_are_as_sent() -> None:
    fixed = dataclasses.replace(SCHEMA, wire=WireConfig(sparse="uint32", values="raw"))
    sizes = bounded(MESSAGES, fixed)
    assert sizes.is_exact.all()
    assert [row[4] for row in rows(message_table(MESSAGES, sizes, 2))] == ["420", "250", "110"]
    assert len(rows(message_table(MESSAGES, sizes, 1))) == 2


def test_ranks_of_a_node_count_their_data_once() -> None:
    server = RankMemory(0, "server", 100, 0, 10, 0, 5)
    workers = [RankMemory(rank, "worker", 100, 50, 20, 7, 3) for rank in (1, 2)]
    assert needed_nbytes([server, *workers]) == 115 + 2 * 130 + 50
    assert needed_nbytes([workers[0]]) == 180

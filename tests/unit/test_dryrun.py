"""The tables of a dry run: what is exact, what is a bound, and what ranks of a node take together."""

from __future__ import annotations

import numpy as np

from fedmpi.dryrun import message_table, needed_nbytes
from fedmpi.engine.memory import RankMemory

MESSAGES = {
    "round_idx": np.array([0, 0, 0, 1]),
    "direction": np.array(["down", "up", "up", "up"]),
    "kind": np.array(["model", "change", "change", "change"]),
    "codec": np.array(["raw", "gap-rans+planes", "gap-rans+planes", "gap-rans+planes"]),
    "header_nbytes": np.array([20, 30, 30, 30]),
    "dense_nbytes": np.array([400, 400, 400, 400]),
    "num_params": np.array([100, 100, 100, 100]),
    "num_kept": np.array([100, 10, 20, 100]),
    "wire_nbytes": np.array([420, 130, 120, 110]),
}


def rows(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines()[3:]]


def test_sizes_that_depend_on_what_is_learnt_are_bounds() -> None:
    """Such a message weighs at most a bit a position and what its values do as they are, and its header."""
    assert rows(message_table(MESSAGES, 9)) == [
        ["1", "down", "model", "1", "420", "420", "0.000"],
        ["1", "up", "change", "2", "<=", "236", "118", "0.000"],
        ["later", "up", "change", "1", "<=", "430", "430", "0.000"],
    ]


def test_sizes_that_do_not_are_as_sent() -> None:
    messages = {**MESSAGES, "codec": np.array(["raw", "uint32+raw", "uint32+raw", "uint32+raw"])}
    assert [row[4] for row in rows(message_table(messages, 9))] == ["420", "250", "110"]
    assert len(rows(message_table(messages, 1))) == 2


def test_ranks_of_a_node_count_their_data_once() -> None:
    server = RankMemory(0, "server", 100, 0, 10, 0, 5)
    workers = [RankMemory(rank, "worker", 100, 50, 20, 7, 3) for rank in (1, 2)]
    assert needed_nbytes([server, *workers]) == 115 + 2 * 130 + 50
    assert needed_nbytes([workers[0]]) == 180

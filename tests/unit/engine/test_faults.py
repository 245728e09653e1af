"""Clients that are lost and replies that cannot be used: rows, faults, state, and rounds that go on without them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import ALGORITHMS, small_config

from fedmpi.comm.local import LocalCommunicator
from fedmpi.engine.setup import prepare, resolve
from fedmpi.ledger.check import check
from fedmpi.ledger.reader import Ledger
from fedmpi.plugin import load_plugin
from fedmpi.runner import run

TALK = {"name": f"{ALGORITHMS / 'talk.py'}:TALK"}
MEMORY = {"name": f"{ALGORITHMS / 'memory.py'}:MEMORY"}

POISON = """
import torch
from fedmpi.algorithms.base import Algorithm, AlgorithmConfig
from fedmpi.algorithms.fedavg import FedAvgClient, FedAvgServer

class Client(FedAvgClient):
    def train(self, round_idx, client_id, down, shard):
        up = super().train(round_idx, client_id, down, shard)
        if round_idx == 1 and client_id % 2:
            self.ctx.model.state_S[3] = VALUE
        return up

POISON = Algorithm("poison", AlgorithmConfig, FedAvgServer, Client)
"""


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def go(folder: Path, *overrides: str, **sections: Any) -> int:
    config = small_config(folder, *overrides, **sections)
    return run(config, folder / "out", LocalCommunicator(), overwrite=True)


def poison(folder: Path, value: str) -> dict[str, str]:
    path = folder / "poison.py"
    path.write_text(POISON.replace("VALUE", value))
    return {"name": f"{path}:POISON"}


def test_a_lost_client_keeps_its_downlink_row_and_has_a_fault(tmp_path: Path) -> None:
    assert go(tmp_path, "rounds=8", "participation.dropout=0.4") == 0
    path = tmp_path / "out" / "ledger.h5"
    with Ledger(path) as ledger:
        faults, messages, rounds = ledger.faults, ledger.messages, ledger.rounds
        assert ledger.status == "done"
    assert 5 < len(faults["round_idx"]) < 30
    assert set(faults["fault"]) == {"dropout"}
    lost = set(zip(faults["round_idx"].tolist(), faults["client_id"].tolist(), strict=True))
    keys = list(zip(messages["round_idx"].tolist(), messages["client_id"].tolist(), messages["direction"], strict=True))
    downs = {(r, c) for r, c, direction in keys if direction == "down"}
    ups = {(r, c) for r, c, direction in keys if direction == "up"}
    assert len(downs) == 8 * 5
    assert downs - ups == lost
    assert rounds["num_clients"].tolist() == [5] * 8
    assert rounds["num_faults"].tolist() == [sum(r == round_idx for r, _ in lost) for round_idx in range(8)]
    assert check(path) == []


def test_without_dropout_there_is_no_fault(tmp_path: Path) -> None:
    assert go(tmp_path) == 0
    with Ledger(tmp_path / "out" / "ledger.h5") as ledger:
        assert len(ledger.faults["round_idx"]) == 0
        assert ledger.rounds["num_faults"].tolist() == [0, 0, 0]


def test_a_round_in_which_all_are_lost_leaves_the_model_as_it_is(tmp_path: Path) -> None:
    config = small_config(tmp_path, "rounds=1", "participation.dropout=0.9999")
    assert run(config, tmp_path / "out", LocalCommunicator()) == 0
    with Ledger(tmp_path / "out" / "ledger.h5") as ledger:
        assert ledger.rounds["num_faults"].tolist() == [5]
        assert np.isnan(ledger.rounds["train_loss"][0])
        assert ledger.model is not None
        model = ledger.model[0]
    assert np.array_equal(model, prepare(resolve(config)).initial.state_S.numpy())
    log = (tmp_path / "out" / "log.txt").read_text()
    assert "round 1/1  clients 0 of 5  " in log
    assert "replies that are missing: 5 dropout (of 5 clients drawn)" in log
    assert "warning: 1 rounds got no reply and left the model as it was" in log


def test_nobody_at_hand_is_a_round_without_clients(tmp_path: Path) -> None:
    assert go(tmp_path, "rounds=3", "participation.availability=1e-9") == 0
    with Ledger(tmp_path / "out" / "ledger.h5") as ledger:
        assert ledger.rounds["num_clients"].tolist() == [0, 0, 0]
        assert len(ledger.messages["round_idx"]) == 0
    assert check(tmp_path / "out" / "ledger.h5") == []


@pytest.mark.parametrize("settings", [{}, {"client_first": True}])
def test_a_long_conversation_ends_with_the_client_that_is_lost(tmp_path: Path, settings: dict[str, Any]) -> None:
    assert go(tmp_path, "participation.dropout=0.5", algorithm={**TALK, **settings}) == 0
    with Ledger(tmp_path / "out" / "ledger.h5") as ledger:
        faults, messages = ledger.faults, ledger.messages
    assert len(faults["round_idx"]) > 2
    for round_idx, client_id in zip(faults["round_idx"], faults["client_id"], strict=True):
        chosen = (messages["round_idx"] == round_idx) & (messages["client_id"] == client_id)
        assert messages["direction"][chosen].tolist() == ([] if settings else ["down"])


COUNTING = """
from fedmpi.algorithms.base import Algorithm
from fedmpi.plugin import load_plugin

MEMORY = load_plugin({name!r}, "algorithm.name")

class Client(MEMORY.client):
    turns = []

    def train(self, round_idx, client_id, down, shard):
        up = super().train(round_idx, client_id, down, shard)
        self.turns.append((client_id, int(self.client_state["turns"])))
        return up

COUNTING = Algorithm("counting", MEMORY.config, MEMORY.server, Client)
"""


def test_a_lost_clients_state_is_as_before_its_turn(tmp_path: Path) -> None:
    """The client counts its turns in its state: the lost ones must not count."""
    path = tmp_path / "counting.py"
    path.write_text(COUNTING.format(name=MEMORY["name"]))
    section = {"name": f"{path}:COUNTING"}
    everyone = "participation.clients_per_round=12"
    assert go(tmp_path, "rounds=6", everyone, "participation.dropout=0.3", algorithm=section) == 0
    with Ledger(tmp_path / "out" / "ledger.h5") as ledger:
        lost = np.bincount(ledger.faults["client_id"], minlength=12)
    turns: list[tuple[int, int]] = load_plugin(section["name"], "algorithm.name").client.turns
    assert lost.sum() > 5
    for client_id in range(12):
        assert [turn for client, turn in turns if client == client_id] == list(range(1, 7 - lost[client_id]))


@pytest.mark.parametrize(("value", "word"), [("float('nan')", "nan"), ("float('inf')", "inf")])
def test_a_reply_that_is_not_finite_stops_the_run_and_names_the_client(
    tmp_path: Path, value: str, word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert go(tmp_path, algorithm=poison(tmp_path, value)) == 5
    said = capsys.readouterr().err
    assert "fedmpi: error: client " in said
    assert "round 1: its message 'model' holds NaN or infinity in state" in said
    assert "server.nonfinite=drop" in said
    with Ledger(tmp_path / "out" / "ledger.h5") as ledger:
        assert "holds NaN or infinity" in ledger.status
        assert ledger.faults["fault"].tolist() == ["nonfinite"]
        bad = int(ledger.faults["client_id"][0])
        assert f"client {bad} on rank 0" in said
        rows = (ledger.messages["round_idx"] == 1) & (ledger.messages["client_id"] == bad)
        assert sorted(ledger.messages["direction"][rows]) == ["down", "up"]  # it was sent, so it is logged


def test_or_is_left_out_by_choice(tmp_path: Path) -> None:
    section = poison(tmp_path, "float('nan')")
    assert go(tmp_path, "server.nonfinite=drop", algorithm=section) == 0
    with Ledger(tmp_path / "out" / "ledger.h5") as ledger:
        faults, rounds, messages = ledger.faults, ledger.rounds, ledger.messages
        model = ledger.model
    assert set(faults["fault"]) == {"nonfinite"}
    assert set(faults["round_idx"].tolist()) == {1}
    assert all(client % 2 for client in faults["client_id"].tolist())
    assert rounds["num_faults"].tolist() == [0, len(faults["client_id"]), 0]
    assert len(messages["round_idx"]) == 3 * 5 * 2
    assert model is not None
    assert np.isfinite(model[0]).all()
    assert np.isfinite(rounds["test_loss"]).all()
    assert check(tmp_path / "out" / "ledger.h5") == []


TALK_POISON = """
from fedmpi.algorithms.base import Algorithm
from fedmpi.plugin import load_plugin

TALK = load_plugin({name!r}, "algorithm.name")

class Client(TALK.client):
    def run(self, round_idx, client_id, shard, channel):
        if round_idx == 1 and client_id % 2:
            self.ctx.train_config = self.ctx.train_config.model_copy(update={{"lr": 1e38}})
        try:
            super().run(round_idx, client_id, shard, channel)
        finally:
            self.ctx.train_config = self.ctx.train_config.model_copy(update={{"lr": 0.05}})

POISON = Algorithm("talk poison", TALK.config, TALK.server, Client, sizes=TALK.sizes)
"""


@pytest.mark.parametrize("policy", ["stop", "drop"])
def test_in_the_middle_of_a_conversation(tmp_path: Path, policy: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "talk_poison.py"
    path.write_text(TALK_POISON.format(name=TALK["name"]))
    status = go(tmp_path, f"server.nonfinite={policy}", algorithm={"name": f"{path}:POISON"})
    with Ledger(tmp_path / "out" / "ledger.h5") as ledger:
        faults, messages = ledger.faults, ledger.messages
    if policy == "stop":
        assert status == 5
        assert "holds NaN or infinity in part" in capsys.readouterr().err
        return
    assert status == 0
    assert set(faults["fault"]) == {"nonfinite"}
    for round_idx, client_id in zip(faults["round_idx"], faults["client_id"], strict=True):
        chosen = (messages["round_idx"] == round_idx) & (messages["client_id"] == client_id)
        assert sorted(messages["direction"][chosen].tolist()) == ["down", "up"]  # the server says no more after it


ONCE = """
from fedmpi.algorithms.base import Algorithm
from fedmpi.plugin import load_plugin

MEMORY = load_plugin({name!r}, "algorithm.name")

class Client(MEMORY.client):
    turns = []

    def train(self, round_idx, client_id, down, shard):
        up = super().train(round_idx, client_id, down, shard)
        if round_idx == 1 and client_id % 2:
            self.client_state["memory"].fill_(float("nan"))
            self.ctx.model.params_P.add_(self.client_state["memory"])
        self.turns.append((client_id, round_idx, int(self.client_state["turns"])))
        return up

ONCE = Algorithm("once", MEMORY.config, MEMORY.server, Client)
"""


def test_a_client_whose_reply_was_refused_goes_on_from_the_state_before(tmp_path: Path) -> None:
    """One bad round with NaN in the state must not lose the client for good."""
    path = tmp_path / "once.py"
    path.write_text(ONCE.format(name=MEMORY["name"]))
    section = {"name": f"{path}:ONCE"}
    everyone = "participation.clients_per_round=12"
    assert go(tmp_path, "rounds=4", everyone, "server.nonfinite=drop", algorithm=section) == 0
    with Ledger(tmp_path / "out" / "ledger.h5") as ledger:
        assert ledger.rounds["num_faults"].tolist() == [0, 6, 0, 0]
    turns = load_plugin(section["name"], "algorithm.name").client.turns
    assert [turn for client, _, turn in turns if client == 2] == [1, 2, 3, 4]
    assert [turn for client, _, turn in turns if client == 3] == [1, 2, 2, 3]


def test_what_had_arrived_is_logged_when_a_round_fails(tmp_path: Path) -> None:
    """Client after client is added in ascending order: replies of the others wait when the first turns out bad."""
    path = tmp_path / "poison.py"
    path.write_text(POISON.replace("VALUE", "float('nan')").replace("client_id % 2", "client_id == 0"))
    everyone = ["participation.clients_per_round=12", "server.host=player"]
    assert go(tmp_path, *everyone, algorithm={"name": f"{path}:POISON"}) == 5
    with Ledger(tmp_path / "out" / "ledger.h5") as ledger:
        messages = ledger.messages
        assert ledger.faults["client_id"].tolist() == [0]
    of_round = messages["round_idx"] == 1
    ups = messages["client_id"][of_round & (messages["direction"] == "up")]
    assert len(set(ups.tolist())) == len(ups) >= 1
    assert 0 in ups
    assert check(tmp_path / "out" / "ledger.h5") == []

"""The virtual time of whole runs, from what the ledger has."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import ALGORITHMS, small_config

from fedmpi.algorithms.base import ClientContext
from fedmpi.comm.local import LocalCommunicator
from fedmpi.config import TimeConfig, TrainConfig
from fedmpi.engine.clock import system_of
from fedmpi.flat import FlatModel
from fedmpi.ledger.check import check
from fedmpi.ledger.reader import Ledger
from fedmpi.models.operations import Uses
from fedmpi.netmodel import DEVICES, LINKS, Link, System
from fedmpi.runner import run

COUNTING = f"{ALGORITHMS / 'counting.py'}:COUNTING"
TIME = {"link": "lte_20m_5m", "device": "phone", "server": 1e9}
VIRTUAL = [f"virtual_{overlap}{of}_s" for overlap in ("", "overlap_") for of in ("sum", "mean", "max")]
OPS = ["device_ops", "server_ops", "aggregate_ops"]
# The multilayer perceptron of the tests: 144 pixels, 16 hidden, 10 classes. Forward each weight is multiplied once,
# backward once for its own gradient and, but for the first layer's, once for that of its inputs.
FORWARD = 2 * (144 * 16 + 16 * 10)
BACKWARD = FORWARD + 2 * 16 * 10


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    """A run sets the number of threads."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def go(folder: Path, **sections: Any) -> Ledger:
    assert run(small_config(folder, **sections), folder / "out", LocalCommunicator()) == 0
    path = folder / "out" / "ledger.h5"
    assert check(path) == []
    return Ledger(path)


def test_a_presets_numbers_and_ones_own() -> None:
    config = TimeConfig(link="nb_slow", latency_s=0, device="jetson", server=3e9, link_spread=0.5, device_spread=0.25)
    assert system_of(config) == System(LINKS["nb_slow"]._replace(latency_s=0.0), DEVICES["jetson"], 3e9, 0.5, 0.25)
    own = TimeConfig(up_bits_per_s=1, down_bits_per_s=2, latency_s=3, device=4, server=5)
    assert system_of(own) == System(Link(1, 2, 3), 4, 5)


@pytest.mark.parametrize("epochs", [1, 2])
def test_fedavg_follows_by_hand(tmp_path: Path, epochs: int) -> None:
    with go(tmp_path, time=TIME, train={"batch_size": 10, "lr": 0.05, "local_epochs": epochs}) as ledger:
        messages, rounds, turns, sizes = ledger.messages, ledger.rounds, ledger.turns, ledger.partition[0]
    assert len(turns["client_id"]) == 15
    assert turns["device_ops"].tolist() == [epochs * sizes[c] * (FORWARD + BACKWARD) for c in turns["client_id"]]
    assert not turns["server_ops"].any()
    for row in range(3):
        times, counted = [], []
        for client in turns["client_id"][turns["round_idx"] == row]:
            mine = (messages["round_idx"] == row) & (messages["client_id"] == client)
            down, up = (
                int(messages["wire_nbytes"][mine & (messages["direction"] == way)][0]) for way in ("down", "up")
            )
            ops = epochs * int(sizes[client]) * (FORWARD + BACKWARD)
            times.append(2 * 0.05 + 8 * down / 20e6 + 8 * up / 5e6 + ops / 2e10)
            counted.append(ops)
        wanted = [sum(times), sum(times) / 5, max(times)] * 2  # one message each way: nothing overlaps
        assert [rounds[name][row] for name in VIRTUAL] == pytest.approx(wanted, rel=1e-12)
        assert [rounds[name][row] for name in OPS] == [sum(counted), 0, 0]


def test_what_the_server_counts_is_the_clients_or_the_rounds(tmp_path: Path) -> None:
    with go(tmp_path, time=TIME, algorithm={"name": COUNTING}) as ledger:
        rounds, turns = ledger.rounds, ledger.turns
    assert turns["server_ops"].tolist() == [1 + 1e4 * client for client in turns["client_id"]]
    assert rounds["aggregate_ops"].tolist() == [1e6 + 5 * 100] * 3
    # In the mean a conversation's operations count with a fifth, the round's own in full.
    (tmp_path / "plain").mkdir()
    with go(tmp_path / "plain", time=TIME) as plain:
        more = rounds["virtual_mean_s"] - plain.rounds["virtual_mean_s"]
    assert more == pytest.approx((rounds["server_ops"] / 5 + rounds["aggregate_ops"]) / 1e9, rel=1e-6)


def test_a_client_that_is_lost_has_only_heard(tmp_path: Path) -> None:
    lost = {"clients_per_round": 8, "dropout": 0.4}
    with go(tmp_path, time=TIME, participation=lost, algorithm={"name": COUNTING}) as ledger:
        faults, turns, rounds = ledger.faults, ledger.turns, ledger.rounds
    pairs = list(zip(turns["round_idx"].tolist(), turns["client_id"].tolist(), strict=True))
    assert len(pairs) == 24
    gone = [pairs.index(pair) for pair in zip(faults["round_idx"].tolist(), faults["client_id"].tolist(), strict=True)]
    assert 0 < len(gone) < 24
    assert turns["device_ops"][gone].tolist() == [0] * len(gone)
    assert turns["server_ops"][gone].tolist() == [1] * len(gone)
    assert np.isfinite([rounds[name] for name in VIRTUAL]).all()


def test_spread_makes_clients_differ(tmp_path: Path) -> None:
    (tmp_path / "even").mkdir()
    with go(tmp_path, time={**TIME, "link_spread": 1.0}) as uneven, go(tmp_path / "even", time=TIME) as even:
        ratio = uneven.rounds["virtual_max_s"] / uneven.rounds["virtual_mean_s"]
        assert (ratio > 1.02 * even.rounds["virtual_max_s"] / even.rounds["virtual_mean_s"]).all()
        assert uneven.summary()["model_digest"] == even.summary()["model_digest"]


def test_without_the_section_there_is_no_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedmpi.engine.setup.weight_uses", None)  # and nothing is worked out
    with go(tmp_path) as ledger:
        for name in (*VIRTUAL, *OPS):
            assert np.isnan(ledger.rounds[name]).all()
            assert len(ledger.rounds[name]) == 3
        assert len(ledger.turns["round_idx"]) == 0


def test_passes_are_counted_only_where_somebody_wants_to_know() -> None:
    flat = FlatModel(torch.nn.Linear(4, 3))
    uses = {"weight": Uses(80, False)}
    ctx = ClientContext(0, flat, TrainConfig(), lambda seed: None, lambda: None, weight_uses=lambda: uses)  # type: ignore
    ctx.count_passes(forward=1)
    assert ctx.work.ops == 0
    ctx.counts_ops = True
    ctx.count_passes(forward=2, backward=1)
    ctx.count_ops(0.5)
    assert ctx.work.ops == 3 * 2 * 80 * 12 + 0.5

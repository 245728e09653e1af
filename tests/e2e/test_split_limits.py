"""Bounds and counts of split learning: batches in flight, operations, what a dry run promises, what cannot be cut."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from support import ALGORITHMS, run_here, small_config, write_config

from fedmpi.algorithms.split_messages import Cut
from fedmpi.comm.local import LocalCommunicator
from fedmpi.config import DataConfig
from fedmpi.engine import player
from fedmpi.engine.setup import prepare, resolve, shared_classes
from fedmpi.ledger.check import Check
from fedmpi.ledger.reader import Ledger
from fedmpi.models.pretrained import PretrainedInfo

pytestmark = pytest.mark.usefixtures("launches")
Here = Callable[..., tuple[int, str, str]]
COMMON: dict[str, Any] = {
    "data": {"name": "synthetic", "synthetic": {"num_train": 240, "num_test": 60, "height": 12, "width": 12}},
    "model": {"name": f"{ALGORITHMS / 'splitnet.py'}:Net"},
    "rounds": 4,
    "partition": {"name": "iid", "num_clients": 6},  # of 40 samples
    "participation": {"clients_per_round": 3},
    "train": {"batch_size": 5, "lr": 0.05, "momentum": 0.9},
    "evaluate": {"every": 0},
}


def go(folder: Path, **changes: Any) -> Path:
    config = small_config(folder, **{**COMMON, **changes})
    assert run_here(config, folder / "out", LocalCommunicator()) == 0
    assert Check(folder / "out" / "ledger.h5").problems == []
    return folder / "out"


@pytest.mark.parametrize("name", ["lgl", "ecofed"])
def test_no_more_messages_wait_than_may(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A device that streams without answers is held back: never more than the setting, and up to it."""
    waiting: list[int] = []
    send = player._TurnChannel.send

    def watched(self: Any, message: Any) -> None:
        send(self, message)
        waiting.append(self._turn.num_ups - self._turn.num_taken)

    monkeypatch.setattr(player._TurnChannel, "send", watched)
    most = {}
    for limit in (1, 2, 8):
        waiting.clear()
        go(tmp_path, algorithm={"name": name}, server={"max_in_flight": limit})
        most[limit] = max(waiting)
    assert most[1] == 1 and most[2] == 2 and 2 < most[8] <= 8


# The passes through each part that a sample takes in a turn; in replay rounds, and once a round beside the turns.
F, FB = (1, 0), (1, 1)
WORK: list[tuple[dict[str, Any], bool, list[tuple[int, int]], list[tuple[int, int]], list[tuple[int, int]]]] = [
    ({"name": "splitfed"}, True, [FB], [FB], []),
    ({"name": "splitfed", "version": 2}, True, [FB], [FB], []),
    ({"name": "lgl"}, False, [FB], [FB], []),
    ({"name": "fedgkt"}, False, [FB, F], [FB], []),
    ({"name": "fedgkt", "variant": "original", "server_epochs": 2}, False, [FB, F], [], [FB, FB, F]),
    ({"name": "ecofed"}, False, [F], [FB], []),
]


@pytest.mark.parametrize(("algorithm", "passes_back", "device", "server", "after"), WORK)
def test_operations_by_hand(
    tmp_path: Path, algorithm: dict[str, Any], passes_back: bool, device: Any, server: Any, after: Any
) -> None:
    time = {"link": "lan_1g", "device": "phone", "server": 1e9}
    out = go(tmp_path, algorithm=algorithm, time=time)
    setup = prepare(resolve(small_config(tmp_path, **COMMON, algorithm=algorithm, time=time)))
    cut = Cut(setup.model, 2)
    of_device, of_server = cut.operations().device, cut.operations(passes_back=passes_back).server

    def ops(part: Any, passes: list[tuple[int, int]]) -> float:
        return 40.0 * sum(forward * part.forward + backward * part.backward for forward, backward in passes)

    with Ledger(out / "ledger.h5") as ledger:
        turns, rounds = ledger.turns, ledger.rounds
    assert len(turns["client_id"]) == 12
    computes = np.isin(turns["round_idx"], [0, 2]) | (algorithm["name"] != "ecofed")  # EcoFed's others are replayed
    np.testing.assert_allclose(turns["device_ops"], np.where(computes, ops(of_device, device), 0))
    np.testing.assert_allclose(turns["server_ops"], ops(of_server, server))
    np.testing.assert_allclose(rounds["aggregate_ops"], 3 * ops(of_server, after))
    assert min(ops(of_device, device), of_server.backward) > 0


@pytest.mark.parametrize(("period", "num_rounds"), [(1, 5), (2, 7), (3, 8), (8, 6)])
def test_a_dry_run_knows_rounds_of_replay(tmp_path: Path, here: Here, period: int, num_rounds: int) -> None:
    """Every client takes part in every round, so that none is sent the device's part later than another."""
    changes: dict[str, Any] = {**COMMON, "rounds": num_rounds, "participation": {"clients_per_round": 6}}
    changes |= {"algorithm": {"name": "ecofed", "bits": None, "period": period}}
    status, said, _ = here("run", write_config(tmp_path, **changes), "--dry-run")
    assert status == 0
    assert "which they are not" not in said
    told = dict(word.split("=") for word in said.split() if word.startswith(("down_bytes=", "up_bytes=")))
    with Ledger(go(tmp_path, **changes) / "ledger.h5") as ledger:
        summary = ledger.summary()
    assert {name: int(nbytes) for name, nbytes in told.items()} == {
        "down_bytes": summary["down_nbytes"],
        "up_bytes": summary["up_nbytes"],
    }


OWN = """
from torch import nn

def NoTop(num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(144, num_classes), nn.ReLU())

def Rows(num_classes):
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.Flatten(2), nn.Linear(100, 4), nn.Flatten(), nn.Linear(12, num_classes))
"""


@pytest.mark.parametrize("algorithm", ["splitfed", "lgl", "fedgkt", "ecofed"])
@pytest.mark.parametrize(
    ("net", "words"), [("NoTop", "leaves the server nothing to train"), ("Rows", "numbers of shape (3, 100)")]
)
def test_cuts_that_cannot_be(tmp_path: Path, here: Here, algorithm: str, net: str, words: str) -> None:
    (tmp_path / "own.py").write_text(OWN)
    model = {"name": f"{tmp_path / 'own.py'}:{net}"}
    config = write_config(tmp_path, **{**COMMON, "model": model, "algorithm": {"name": algorithm, "point": 2}})
    status, _, errors = here("run", config, "-o", tmp_path / "out")
    assert status == 2 and "algorithm.point=2" in errors and words in errors


def test_version_2_has_one_virtual_time(tmp_path: Path, here: Here) -> None:
    time = {"link": "lan_1g", "device": "phone", "server": 1e9}
    changes = {**COMMON, "algorithm": {"name": "splitfed", "version": 2}}
    assert "the sum alone" in here("run", write_config(tmp_path, **changes, time=time), "--dry-run")[1]
    assert "the sum alone" not in here("run", write_config(tmp_path, **changes), "--dry-run")[1]


@pytest.mark.parametrize(
    ("theirs", "ours", "words"),
    [
        (None, None, "all classes"),
        (None, (0, 1), "classes [0, 1]"),
        ([0, 1, 2], None, "classes [0, 1, 2]"),
        ([0, 1, 2], (2, 1, 5), "classes [1, 2]"),
        ([0, 1], (2, 3), None),
    ],
)
def test_classes_that_weights_have_seen(
    theirs: list[int] | None, ours: tuple[int, ...] | None, words: str | None
) -> None:
    source = {"data": json.dumps({"name": "cifar10", "classes": theirs})}
    data: Any = SimpleNamespace(name="cifar10", classes=ours)
    assert shared_classes(PretrainedInfo("", "", metadata=source), data) == words
    assert shared_classes(PretrainedInfo("", "", metadata=source), DataConfig(name="fashion_mnist")) is None
    assert shared_classes(PretrainedInfo("", ""), data) is None

"""A client's turn starts from the same state wherever, and after whatever, it is played."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from support import small_config

from fedmpi.algorithms.registry import find
from fedmpi.comm.local import LocalCommunicator
from fedmpi.runner import run

RECORDING = """
import torch
from fedmpi.algorithms.base import Algorithm, AlgorithmConfig
from fedmpi.algorithms.fedavg import FedAvgClient, FedAvgServer

class Client(FedAvgClient):
    seen = []

    def run(self, round_idx, client_id, shard, channel):
        model = self.ctx.model
        self.seen.append(
            (round_idx, client_id, model.module.training, model.grads_P.abs().sum().item(), torch.rand(1).item())
        )
        super().run(round_idx, client_id, shard, channel)
        model.module.eval()
        model.grads_P.fill_(3.0)
        torch.manual_seed(1)

RECORDING = Algorithm("recording", AlgorithmConfig, FedAvgServer, Client)
"""


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    """A run sets the number of threads."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def turns(folder: Path, *overrides: str) -> list[Any]:
    """Run; return what its turns found at their start."""
    path = folder / "recording.py"
    path.write_text(RECORDING)
    name = f"{path}:RECORDING"
    seen: list[Any] = find(name).client.seen  # type: ignore[attr-defined]
    seen.clear()
    config = small_config(folder, *overrides, algorithm={"name": name})
    assert run(config, folder / "out", LocalCommunicator(), overwrite=True) == 0
    return list(seen)


def test_a_turn_starts_from_the_same_state(tmp_path: Path) -> None:
    some = turns(tmp_path)
    assert len(some) == 3 * 5
    everyone = turns(tmp_path, "participation.clients_per_round=12", "evaluate.every=2")
    assert len(everyone) == 3 * 12
    for _, _, training, grads, _ in some + everyone:
        assert (training, grads) == (True, 0.0)
    drawn = {(round_idx, client_id): number for round_idx, client_id, _, _, number in everyone}
    # Other clients before it, in another order: the same numbers.
    assert {(r, c): number for r, c, _, _, number in some}.items() <= drawn.items()
    assert [c for r, c, *_ in some if r == 1] != [c for r, c, *_ in everyone if r == 1][:5]
    assert len(set(drawn.values())) == len(drawn)


def test_another_seed_draws_other_numbers(tmp_path: Path) -> None:
    one, other = turns(tmp_path), turns(tmp_path, "seed=4")
    assert not {turn[4] for turn in one} & {turn[4] for turn in other}

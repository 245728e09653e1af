"""What split learning with an auxiliary head trains, against the same written out in plain torch."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import ALGORITHMS, run_here, small_config
from torch import Tensor, nn
from torch.nn import functional as F

from fedmpi.algorithms.auxiliary import auxiliary_head
from fedmpi.algorithms.split_messages import Cut
from fedmpi.comm.local import LocalCommunicator
from fedmpi.data.shard import Batches, Shard, device_data
from fedmpi.engine import server, worker
from fedmpi.engine.setup import prepare, resolve
from fedmpi.ledger.reader import Ledger
from fedmpi.rng import ANY, stream

SEED, LR, MOMENTUM, EPOCHS, ALPHA, T = 3, 0.05, 0.9, 2, 0.3, 2.0
CHANGES: dict[str, Any] = {
    "data": {"name": "synthetic", "synthetic": {"num_train": 150, "num_test": 60, "height": 12, "width": 12}},
    "model": {"name": f"{ALGORITHMS / 'splitnet.py'}:Net", "norm": "none"},
    "rounds": 3,
    "partition": {"name": "quantity", "num_clients": 3, "beta": 3},  # clients of unlike sizes
    "participation": {"clients_per_round": 2},  # of three rounds somebody's second is among them
    "train": {"batch_size": 12, "lr": LR, "momentum": MOMENTUM, "local_epochs": EPOCHS},
    "evaluate": {"every": 0},
}
GKT = {"name": "fedgkt", "alpha": ALPHA, "temperature": T}
ALGORITHM: dict[str, dict[str, Any]] = {
    "lgl": {"name": "lgl"},
    "averaged": GKT,
    "original": {**GKT, "variant": "original", "server_epochs": 2},
}


def sgd(module: nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD(module.parameters(), lr=LR, momentum=MOMENTUM)


def kl(student_BK: Tensor, teacher_BK: Tensor) -> Tensor:
    """T^2 KL(softmax(teacher / T) || softmax(student / T)), the mean over samples, from its definition."""
    p, q = torch.softmax(teacher_BK / T, 1), torch.softmax(student_BK / T, 1)
    return T * T * (p * (p / q).log()).sum(1).mean()


def step(optimizers: list[torch.optim.SGD], loss: Tensor) -> None:
    for optimizer in optimizers:
        optimizer.zero_grad()
    loss.backward()
    for optimizer in optimizers:
        optimizer.step()


class ByHand:
    """The three networks, and what clients and the server remember."""

    def __init__(self, setup: Any) -> None:
        self.setup = setup
        module = setup.model.build(setup.initial.init_seed)
        self.device, self.server = module[:2], module[2:]
        self.head = auxiliary_head(Cut(setup.model, 2), setup.initial.init_seed).module
        self.first = copy.deepcopy((self.device, self.head))
        self.own: dict[int, tuple[nn.Module, nn.Module]] = {}
        self.teachers: dict[int, Tensor] = {}
        self.data = device_data(setup.dataset, "train", torch.device("cpu"))

    def shard(self, client_id: int) -> Shard:
        return Shard(self.data, self.setup.partition.client(client_id))

    def batches(self, client_id: int, epochs: int, round_idx: int = ANY) -> Batches:
        """FedGKT's are in the client's own order, LGL's in a new one in each round."""
        rng = stream(SEED, round_idx, client_id, "batches")
        if round_idx != ANY:
            rng.integers(2**63)
        return self.shard(client_id).plan(12, epochs, rng)

    def lgl(self, round_idx: int, client_id: int) -> tuple[nn.Module, nn.Module, nn.Module]:
        device, head, top = copy.deepcopy((self.device, self.head, self.server))
        device_steps, server_steps = [sgd(device), sgd(head)], [sgd(top)]
        for x, y in self.batches(client_id, EPOCHS, round_idx):
            a = device(x)
            step(server_steps, F.cross_entropy(top(a.detach()), y))
            step(device_steps, F.cross_entropy(head(a), y))
        return device, head, top

    def train_device(self, client_id: int, device: nn.Module, head: nn.Module) -> None:
        """The labels and, from the second time on, the server's logits of last time."""
        steps, teacher = [sgd(device), sgd(head)], self.teachers.get(client_id)
        batches = self.batches(client_id, EPOCHS)
        for (x, y), at in zip(batches, batches.positions(), strict=True):
            logits = head(device(x))
            loss = F.cross_entropy(logits, y)
            if teacher is not None:
                loss = loss + ALPHA * kl(logits, teacher[at])
            step(steps, loss)

    def averaged(self, round_idx: int, client_id: int) -> tuple[nn.Module, nn.Module, nn.Module]:
        device, head, top = copy.deepcopy((self.device, self.head, self.server))
        self.train_device(client_id, device, head)
        steps, batches = [sgd(top)], self.batches(client_id, 1)
        teacher = torch.zeros(self.shard(client_id).num_samples, 10)
        for (x, y), at in zip(batches, batches.positions(), strict=True):
            a = device(x).detach()
            logits = top(a)
            teacher[at] = logits.detach()  # before the step
            step(steps, kl(logits, head(a).detach()) + ALPHA * F.cross_entropy(logits, y))
        self.teachers[client_id] = teacher
        return device, head, top

    def original(self, cohort: list[int]) -> None:
        sent: dict[int, list[tuple[Tensor, Tensor, Tensor, Tensor]]] = {}
        for client_id in cohort:
            device, head = self.own.setdefault(client_id, copy.deepcopy(self.first))
            self.train_device(client_id, device, head)
            batches = self.batches(client_id, 1)
            with torch.no_grad():
                sent[client_id] = [
                    (at, device(x).clone(), head(device(x)), y.clone())
                    for (x, y), at in zip(batches, batches.positions(), strict=True)
                ]
        steps = [sgd(self.server)]
        for _ in range(2):
            for each in sent.values():
                for _, a, z, y in each:
                    logits = self.server(a)
                    step(steps, kl(logits, z) + ALPHA * F.cross_entropy(logits, y))
        for client_id, each in sent.items():
            teacher = torch.zeros(self.shard(client_id).num_samples, 10)
            with torch.no_grad():
                for at, a, _, _ in each:
                    teacher[at] = self.server(a)
            self.teachers[client_id] = teacher
        self.take_mean([self.device], [[self.own[client_id][0]] for client_id in cohort], cohort)

    def take_mean(self, into: list[nn.Module], models: list[list[nn.Module]], cohort: list[int]) -> None:
        sizes = [self.shard(client_id).num_samples for client_id in cohort]
        assert len(set(sizes)) > 1
        for i, module in enumerate(into):
            for name, values in module.state_dict().items():
                parts = [n * each[i].state_dict()[name] for n, each in zip(sizes, models, strict=True)]
                values.copy_(torch.stack(parts).sum(0) / sum(sizes))

    def play(self, name: str, round_idx: int, cohort: list[int]) -> None:
        if name == "original":
            self.original(cohort)
            return
        models = [list(getattr(self, name)(round_idx, client_id)) for client_id in cohort]
        self.take_mean([self.device, self.head, self.server], models, cohort)


@pytest.mark.parametrize("name", ALGORITHM)
def test_rounds_by_hand(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With invariant 11: a client's first turn knows no logits of the server's."""
    halves: list[Any] = []
    started = worker.make_server_half
    monkeypatch.setattr(server, "make_server_half", lambda *args: halves.append(started(*args)) or halves[-1])
    config = small_config(tmp_path, **CHANGES, algorithm=ALGORITHM[name])
    assert run_here(config, tmp_path / "out", LocalCommunicator()) == 0
    setup = prepare(resolve(config))
    hand, seen = ByHand(setup), []
    for round_idx in range(3):
        seen += setup.cohort(round_idx)
        hand.play(name, round_idx, setup.cohort(round_idx))
    assert len(seen) > len(set(seen))

    with Ledger(tmp_path / "out" / "ledger.h5") as ledger:
        assert ledger.model is not None
        state = torch.from_numpy(ledger.model[0])
    found = setup.model.build(0)
    for entry in setup.initial.layout.entries:
        found.get_parameter(entry.name).data.copy_(entry.view(state))
    for part, wanted in ((found[:2], hand.device), (found[2:], hand.server)):
        for values, expected in zip(part.parameters(), wanted.parameters(), strict=True):
            np.testing.assert_allclose(values.detach(), expected.detach(), rtol=2e-3, atol=2e-5)
    if name != "original":  # there heads never leave their clients
        head = torch.cat([values.reshape(-1) for values in hand.head.state_dict().values()])
        np.testing.assert_allclose(halves[0].state_dict()["auxiliary"], head, rtol=2e-3, atol=2e-5)

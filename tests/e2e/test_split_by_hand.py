"""Split learning against the same written out by hand: what it trains, in plain torch; what EcoFed sends and keeps."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import ALGORITHMS, run_here, small_config, write_config
from torch import Tensor, nn
from torch.nn import functional as F

from fedmpi.algorithms.auxiliary import auxiliary_head
from fedmpi.algorithms.ecofed import EcoFedClient
from fedmpi.algorithms.ecofed_messages import DeviceInit, DeviceInitSeed, device_hash
from fedmpi.algorithms.ecofed_server import EcoFedServer
from fedmpi.algorithms.split_messages import Cut
from fedmpi.comm.local import LocalCommunicator
from fedmpi.configfile import load_config
from fedmpi.data.shard import Batches, Shard, device_data
from fedmpi.dryrun import messages_of_rounds
from fedmpi.engine import server, worker
from fedmpi.engine.setup import prepare, resolve
from fedmpi.ledger.reader import Ledger
from fedmpi.rng import ANY, stream
from fedmpi.wire.values import Dense

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
ECO: dict[str, Any] = {**CHANGES, "rounds": 5, "algorithm": {"name": "ecofed", "period": 3, "bits": 8}}
BATCH = {"model": {**CHANGES["model"], "norm": "batch"}}  # running statistics
NUMEL = 6 * 6 * 6
PAPER = Path(__file__).parents[2] / "jobs" / "configs" / "ecofed"
NO_INTS = torch.zeros(0, dtype=torch.int64)


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
        self.sent: dict[int, list[tuple[Tensor, Tensor, Tensor]]] = {}  # levels from 0 to 255, their step, labels
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

    def send(self, round_idx: int, client_id: int) -> None:
        self.sent[client_id] = []
        with torch.no_grad():
            for x, y in self.batches(client_id, EPOCHS, round_idx):
                a = self.device(x)
                step_ = a.max() / 255
                self.sent[client_id].append(((a / step_).round(), step_, y.clone()))

    def ecofed(self, round_idx: int, cohort: list[int]) -> None:
        """Every third round the cohort sends; in the others it is drawn whose upload each of them stands for."""
        sources = cohort
        if round_idx % 3:
            rng = stream(SEED, round_idx, ANY, "replay")
            sources = rng.choice(sorted(self.sent), len(cohort), replace=False).tolist()
        else:
            for client_id in cohort:
                self.send(round_idx, client_id)
        tops: list[list[nn.Module]] = []
        for client_id in sources:
            tops.append([copy.deepcopy(self.server)])
            steps = [sgd(tops[-1][0])]
            for levels, step_, y in self.sent[client_id]:
                step(steps, F.cross_entropy(tops[-1][0](levels * step_), y))
        self.take_mean([self.server], tops, sources)

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
        if name == "ecofed":
            self.ecofed(round_idx, cohort)
            return
        models = [list(getattr(self, name)(round_idx, client_id)) for client_id in cohort]
        self.take_mean([self.device, self.head, self.server], models, cohort)


@pytest.fixture
def halves(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The server's half of each run that is made."""
    made: list[Any] = []
    started = worker.make_server_half

    def kept(*args: Any) -> Any:
        made.append(started(*args))
        return made[-1]

    monkeypatch.setattr(server, "make_server_half", kept)
    return made


def check_parts(out: Path, hand: ByHand) -> None:
    with Ledger(out / "ledger.h5") as ledger:
        assert ledger.model is not None
        state = torch.from_numpy(ledger.model[0])
    found = hand.setup.model.build(0)
    for entry in hand.setup.initial.layout.entries:
        found.get_parameter(entry.name).data.copy_(entry.view(state))
    for part, wanted in ((found[:2], hand.device), (found[2:], hand.server)):
        for values, expected in zip(part.parameters(), wanted.parameters(), strict=True):
            np.testing.assert_allclose(values.detach(), expected.detach(), rtol=2e-3, atol=2e-5)


@pytest.mark.parametrize("name", ALGORITHM)
def test_rounds_by_hand(tmp_path: Path, name: str, halves: list[Any]) -> None:
    """With invariant 11: a client's first turn knows no logits of the server's."""
    config = small_config(tmp_path, **CHANGES, algorithm=ALGORITHM[name])
    assert run_here(config, tmp_path / "out", LocalCommunicator()) == 0
    hand, seen = ByHand(prepare(resolve(config))), []
    for round_idx in range(3):
        cohort = hand.setup.cohort(round_idx)
        seen += cohort
        hand.play(name, round_idx, cohort)
    assert len(seen) > len(set(seen))
    check_parts(tmp_path / "out", hand)
    if name != "original":  # there heads never leave their clients
        head = torch.cat([values.reshape(-1) for values in hand.head.state_dict().values()])
        np.testing.assert_allclose(halves[0].state_dict()["auxiliary"], head, rtol=2e-3, atol=2e-5)


def test_ecofeds_rounds_by_hand(tmp_path: Path, halves: list[Any]) -> None:
    """Updates in rounds 0 and 3, replays in the others; and, for invariant 6, every frame that is kept, to the byte."""
    config = small_config(tmp_path, **ECO, wire={"quantized": "packed"})
    assert run_here(config, tmp_path / "out", LocalCommunicator()) == 0
    hand = ByHand(prepare(resolve(config)))
    for round_idx in range(5):
        hand.play("ecofed", round_idx, hand.setup.cohort(round_idx))
    check_parts(tmp_path / "out", hand)

    with Ledger(tmp_path / "out" / "ledger.h5") as ledger:
        ups = {name: values[ledger.messages["direction"] == "up"] for name, values in ledger.messages.items()}
    assert (ups["wire_nbytes"] == ups["header_nbytes"] + ups["payload_nbytes"]).all()
    assert sorted(hand.sent) == halves[0].buffer.clients()
    for client_id, batches in hand.sent.items():
        newest = ups["round_idx"][ups["client_id"] == client_id].max()
        rows = np.flatnonzero((ups["client_id"] == client_id) & (ups["round_idx"] == newest))
        rows = rows[np.argsort(ups["step"][rows])]
        assert ups["kind"][rows].tolist() == ["labels"] + ["activation"] * len(batches)
        frames = halves[0].buffer.get(client_id).split()
        assert [frame.size for frame in frames] == ups["wire_nbytes"][rows].tolist()
        assert len({len(y) for _, _, y in batches}) > 1  # the last of an epoch is smaller
        for (levels, step_, y), row, frame in zip(batches, rows[1:], frames[1:], strict=True):
            # How many samples, the step in float32, a byte a number.
            nbytes = 1 + 4 + len(y) * NUMEL
            assert ups["payload_nbytes"][row] == nbytes
            payload = frame[-nbytes:]
            assert payload[0] == len(y)
            assert float(payload[1:5].view("<f4")[0]) == pytest.approx(float(step_), rel=1e-6)
            off = np.abs(payload[5:].astype(int) - levels.reshape(-1).numpy())
            assert off.max() <= 1 and off.mean() < 1e-3  # some lie between two levels to the last bit


@pytest.mark.parametrize("wrong", ["hash", "seed's hash", "numbers", "numbers and their hash"])
def test_a_frozen_part_that_is_not_the_ranks_own_is_refused(
    tmp_path: Path, here: Callable[..., tuple[int, str, str]], wrong: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Invariant 1: what came, what it is said to be and what this rank has are one."""
    expected: list[str] = []
    first_message = EcoFedServer.first_message

    def other(self: EcoFedServer, round_idx: int) -> DeviceInit | DeviceInitSeed:
        down = first_message(self, round_idx)
        assert isinstance(down, DeviceInit | DeviceInitSeed)
        own = came = said = down.device_hash
        if isinstance(down, DeviceInit) and "numbers" in wrong:
            state_D = down.state.tensor().clone()
            state_D[7] += 1
            down, came = dataclasses.replace(down, state=Dense.of(state_D)), device_hash(state_D, NO_INTS)
        if wrong != "numbers":
            said = came if "numbers" in wrong else own ^ 1
        expected.append(f"{own:08x} on this rank, {came:08x} as it came, {said:08x} on the server: this rank has")
        return dataclasses.replace(down, device_hash=said)

    monkeypatch.setattr(EcoFedServer, "first_message", other)
    sends = {"initial_model": "seed" if "seed" in wrong else "full"}
    status, _, errors = here("run", write_config(tmp_path, **ECO, server=sends), "-o", tmp_path / "out")
    assert status == 5 and f"the device's part has hash {expected[0]}" in errors, errors


def test_the_frozen_part_is_the_same_in_every_model(
    tmp_path: Path, halves: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Invariant 1, running statistics too: in the client's own model after every turn, and in the server's, to the bit.

    The server's is not what it averages: a mean of -0.0 would be 0.0.
    """
    frozen = prepare(resolve(small_config(tmp_path, **{**ECO, **BATCH}))).model.build(1).state_dict()
    frozen["0.0.weight"][0] = -0.0
    torch.save(frozen, tmp_path / "device.pt")
    found: list[int] = []
    run = EcoFedClient.run

    def watched(self: EcoFedClient, round_idx: int, *args: Any) -> None:
        run(self, round_idx, *args)
        if round_idx % 3 == 0:
            found.append(device_hash(self.device.state_S, self.device.ints_I))

    monkeypatch.setattr(EcoFedClient, "run", watched)
    model = {**BATCH["model"], "pretrained": str(tmp_path / "device.pt")}
    assert run_here(small_config(tmp_path, **{**ECO, "model": model}), tmp_path / "out", LocalCommunicator()) == 0
    device = halves[0].cut.device
    names = [entry.name for entry in device.layout.entries]
    state_D = torch.cat([frozen[name].permute(0, 2, 3, 1).reshape(-1) if frozen[name].ndim == 4 else
                         frozen[name].reshape(-1) for name in names if "tracked" not in name])  # fmt: skip
    ints = torch.stack([frozen[name] for name in names if "tracked" in name])
    wanted = device_hash(state_D, ints)
    assert found == [wanted] * 4
    assert device_hash(device.take(halves[0].model.state_S), halves[0].model.ints_I[device.ints]) == wanted


def test_more_to_replay_than_there_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Invariant 12, where clients were lost: their places are taken by others, some of them more than once."""
    replayed: dict[int, tuple[list[int], list[int], list[int]]] = {}
    begin_round = EcoFedServer.begin_round

    def begun(self: EcoFedServer, round_idx: int, cohort: list[int]) -> None:
        begin_round(self, round_idx, cohort)
        replayed[round_idx] = self.buffer.clients(), list(self._replayed), list(self._replayed.values())

    monkeypatch.setattr(EcoFedServer, "begin_round", begun)
    changes = {**ECO, "participation": {"clients_per_round": 3, "dropout": 0.6}}
    assert run_here(small_config(tmp_path, **changes), tmp_path / "out", LocalCommunicator()) == 0
    for round_idx in (1, 2):
        kept, cohort, sources = replayed[round_idx]
        assert 0 < len(kept) < len(cohort) == 3
        assert sources == stream(SEED, round_idx, ANY, "replay").choice(kept, 3, replace=True).tolist()


@pytest.mark.slow
def test_a_dry_run_of_the_published_settings_comes_to_the_published_ratios(tmp_path: Path) -> None:
    """Invariant 7: 134.4 and 16.28 of a client's bytes a round, by the messages; the data are others of their size."""
    data = {"name": "synthetic", "num_train": 1000, "num_test": 10, "height": 32, "width": 32, "channels": 3}
    changes = [f"data.{'' if key == 'name' else 'synthetic.'}{key}={value}" for key, value in data.items()]
    changes += ["partition.num_clients=2", "participation.clients_per_round=1", "wire.quantized=packed"]
    counted: dict[str, dict[str, float]] = {}
    for name in ("fedavg", "splitfed", "ecofed"):
        setup = prepare(resolve(load_config(PAPER / f"paper_{name}.yaml", changes)))
        (tmp_path / name).mkdir()
        messages = messages_of_rounds(dataclasses.replace(setup, dry_run=True), tmp_path / name)
        # One cycle, and not the first round, in which a seed may stand for the model; EcoFed's clients hold their part.
        chosen = (messages["round_idx"] > 0) & ~np.isin(messages["kind"], ["init", "init-seed"])
        num_rounds = messages["round_idx"].max()
        assert num_rounds == (2 if name == "ecofed" else 1)
        counted[name] = {
            "paper": messages["paper_nbits"][chosen].sum() / 8 / num_rounds,
            "payload": messages["payload_nbytes"][chosen].sum() / num_rounds,
        }
    assert {name: counts["paper"] for name, counts in counted.items()} == {
        "fedavg": 275_527_760,
        "splitfed": 33_380_256,
        "ecofed": 2_050_100,
    }
    for count in ("paper", "payload"):
        assert counted["fedavg"][count] / counted["ecofed"][count] == pytest.approx(134.4, rel=0.01)
        assert counted["splitfed"][count] / counted["ecofed"][count] == pytest.approx(16.28, rel=0.01)

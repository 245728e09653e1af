"""Runs of split learning: what equals what bit for bit, what crosses the cut, what the ledger says, what is refused."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from support import ALGORITHMS, digests, run_here, small_config, write_config
from torch import Tensor

from fedmpi.algorithms.ecofed import EcoFedClient
from fedmpi.algorithms.ecofed_messages import EcoFedConfig
from fedmpi.algorithms.ecofed_server import EcoFedServer
from fedmpi.algorithms.fedavg import FedAvgClient
from fedmpi.algorithms.replay import ReplayBuffer
from fedmpi.algorithms.split_client import SplitClient
from fedmpi.algorithms.split_messages import Cut, QuantizedActivations, decode_activations
from fedmpi.comm.local import LocalCommunicator
from fedmpi.config import NamedSection
from fedmpi.data.shapes import ImageShape
from fedmpi.data.shard import Shard, device_data
from fedmpi.engine import host, server, worker
from fedmpi.engine.setup import prepare, resolve
from fedmpi.ledger.check import Check
from fedmpi.ledger.reader import Ledger
from fedmpi.models import registry as models
from fedmpi.models.spec import ModelSpec
from fedmpi.rng import stream

pytestmark = pytest.mark.usefixtures("launches")

NET = {"name": f"{ALGORITHMS / 'splitnet.py'}:Net"}
PLAIN = {**NET, "norm": "none"}
DATA = {"name": "synthetic", "synthetic": {"num_train": 240, "num_test": 60, "height": 12, "width": 12}}
COMMON: dict[str, Any] = {
    "data": DATA,
    "model": NET,
    "rounds": 4,
    "partition": {"name": "iid", "num_clients": 6},
    "participation": {"clients_per_round": 3},
    "train": {"batch_size": 12, "lr": 0.05, "momentum": 0.9},  # the last batch of 40 has 4
    "evaluate": {"every": 0},
}
ALL: dict[str, dict[str, Any]] = {
    "v1": {"name": "splitfed"},
    "v2": {"name": "splitfed", "version": 2},
    "lgl": {"name": "lgl"},
    "fedgkt": {"name": "fedgkt"},
    "original": {"name": "fedgkt", "variant": "original", "server_epochs": 2},
    "ecofed": {"name": "ecofed"},
}
NUM_DEVICE = (9 + 1) * 4 + 2 * 4 + (36 + 1) * 6 + 2 * 6  # with PLAIN
NUMEL = 6 * 6 * 6
TEXT = {"data": {"name": "play_mini"}, "model": {"name": "char_gru"}}
Here = Callable[..., tuple[int, str, str]]


def go(folder: Path, name: str, **changes: Any) -> Path:
    """Run in one process; return the output folder, whose ledger is whole."""
    config = small_config(folder, **{**COMMON, **changes})
    assert run_here(config, folder / name, LocalCommunicator()) == 0
    assert Check(folder / name / "ledger.h5").problems == []
    return folder / name


def messages(out: Path, **wanted: object) -> dict[str, np.ndarray]:
    with Ledger(out / "ledger.h5") as ledger:
        columns = ledger.messages
        chosen = np.ones(len(columns["kind"]), np.bool_)
        for name, value in wanted.items():
            chosen &= columns[name] == value
        return {name: column[chosen] for name, column in columns.items()}


def rounds(out: Path) -> dict[str, np.ndarray]:
    with Ledger(out / "ledger.h5") as ledger:
        return dict(ledger.rounds)


def final(out: Path) -> dict[str, np.ndarray]:
    """Return the final model's tensors by name."""
    with Ledger(out / "ledger.h5") as ledger:
        assert ledger.model is not None
        state, ints = ledger.model
        found = {}
        for name, shape, offset in ledger.model_layout:
            vector = ints if name.endswith("num_batches_tracked") else state
            values = vector[offset : offset + int(np.prod(shape))]
            stored = (shape[0], *shape[2:], shape[1]) if len(shape) == 4 else shape
            values = values.reshape(stored)
            found[name] = np.ascontiguousarray(np.moveaxis(values, -1, 1)) if len(shape) == 4 else values
        return found


def by_kind(out: Path, column: str = "payload_nbytes") -> dict[str, int]:
    found = messages(out)
    return {kind: int(found[column][found["kind"] == kind].sum()) for kind in dict.fromkeys(found["kind"].tolist())}


@pytest.mark.parametrize("model", [PLAIN, {**NET, "norm": "batch"}], ids=["plain", "running statistics"])
@pytest.mark.parametrize("point", [1, 2, 3])
def test_a_split_with_one_client_is_training_in_one_piece(tmp_path: Path, model: dict[str, Any], point: int) -> None:
    """Invariant 8, bit for bit: also of the server's average, since there is one client."""
    one = {"participation": {"clients_per_round": 1}, "model": model}
    want = digests(go(tmp_path, "whole", algorithm={"name": "fedavg"}, **one))[0]
    for version in (1, 2):
        algorithm = {"name": "splitfed", "point": point, "version": version}
        assert digests(go(tmp_path, "split", algorithm=algorithm, **one))[0] == want


def test_splitfed_v1_is_fedavg_and_v2_is_not(tmp_path: Path) -> None:
    want = digests(go(tmp_path, "whole", algorithm={"name": "fedavg"}))[0]
    assert digests(go(tmp_path, "v1", algorithm=ALL["v1"]))[0] == want
    assert digests(go(tmp_path, "v2", algorithm=ALL["v2"]))[0] != want


def test_splitfed_v2_trains_one_part_on_client_after_client(tmp_path: Path) -> None:
    """By hand: each client's batches, the server's part handed on, the devices' parts averaged."""
    changes = {**COMMON, "algorithm": ALL["v2"], "rounds": 1, "model": PLAIN}
    out = go(tmp_path, "v2", **changes)
    setup = prepare(resolve(small_config(tmp_path, **changes)))
    module = setup.model.build(setup.initial.init_seed)
    start = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    data = device_data(setup.dataset, "train", torch.device("cpu"))
    kept: list[dict[str, Tensor]] = []
    for client_id in setup.cohort(0):
        module.load_state_dict({name: start[name] for name in start if name[0] in "01"}, strict=False)
        optimizers = [
            torch.optim.SGD(list(module[a:b].parameters()), lr=0.05, momentum=0.9) for a, b in ((0, 2), (2, 4))
        ]
        rng = stream(3, 0, client_id, "batches")
        rng.integers(2**63)
        for x, y in Shard(data, setup.partition.client(client_id)).batches(12, 1, rng):
            for optimizer in optimizers:
                optimizer.zero_grad()
            torch.nn.functional.cross_entropy(module(x), y).backward()
            for optimizer in optimizers:
                optimizer.step()
        kept.append({name: tensor.clone() for name, tensor in module.state_dict().items()})
    found = final(out)
    for name, values in found.items():
        want = torch.stack([each[name] for each in kept]).mean(0) if name[0] in "01" else kept[-1][name]
        np.testing.assert_allclose(values, want.numpy(), rtol=1e-4, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("name", ALL)
def test_nobody_learns_by_accident_who_holds_the_conversation(tmp_path: Path, name: str) -> None:
    """A second run is the same, and so is one whose server takes one message at a time."""
    want = digests(go(tmp_path, "one", algorithm=ALL[name], model={**NET, "dropout": 0.3}))
    changes = {"model": {**NET, "dropout": 0.3}, "server": {"max_in_flight": 1}}
    assert digests(go(tmp_path, "two", algorithm=ALL[name], **changes)) == want


def test_payloads_are_those_of_the_published_formulas(tmp_path: Path) -> None:
    """Invariant 7: bytes by method, over all rounds; n is what a client's turn has."""
    turns, n = 12, 40
    raw = {"model": PLAIN, "server": {"initial_model": "full"}, "wire": {"quantized": "packed"}}
    device, activations = 4 * NUM_DEVICE, 4 * NUMEL * n
    sfl = by_kind(go(tmp_path, "sfl", algorithm=ALL["v1"], **raw))
    assert sfl["weights"] == turns * 2 * device
    assert sfl["activation-float"] == sfl["gradient"] == turns * activations
    lgl = by_kind(go(tmp_path, "lgl", algorithm=ALL["lgl"], **raw))
    auxiliary = 4 * (NUMEL + 1) * 10
    assert lgl["weights"] == turns * 2 * (device + auxiliary)
    assert lgl["activation-float"] == turns * activations and "gradient" not in lgl
    gkt = by_kind(go(tmp_path, "gkt", algorithm=ALL["fedgkt"], **raw))
    assert {**gkt, "logits": 0} == {**lgl, "logits": 0} and gkt["logits"] == turns * 2 * n * 10 * 4
    eco = {"name": "ecofed", "bits": None, "period": 1}
    one = by_kind(go(tmp_path, "one", algorithm=eco, **raw))
    assert one["activation-float"] == sfl["activation-float"] and set(one) == {
        "init",
        "control",
        "labels",
        "activation-float",
    }
    two = by_kind(go(tmp_path, "two", algorithm={**eco, "period": 2}, **raw))
    assert 2 * two["activation-float"] == one["activation-float"] and 2 * two["labels"] == one["labels"]
    bits = by_kind(go(tmp_path, "bits", algorithm={"name": "ecofed", "period": 1}, **raw))
    # A byte a number; each of 4 batches has a scale and a byte that says which way it lies.
    assert bits["activation"] == turns * (NUMEL * n + 4 * (4 + 1))


def test_nothing_but_flags_goes_down_to_ecofeds_clients_and_its_frozen_part_stays(tmp_path: Path) -> None:
    """Invariants 1 and 2, with running statistics in the frozen part too."""
    out = go(tmp_path, "out", algorithm=ALL["ecofed"], server={"initial_model": "full"}, rounds=6)
    downs = messages(out, direction="down")
    sent_once = downs["client_id"][downs["kind"] == "init"]
    assert len(set(sent_once.tolist())) == len(sent_once)
    flags = downs["kind"] == "control"
    assert set(downs["kind"][~flags].tolist()) == {"init"}
    assert set(downs["wire_nbytes"][flags].tolist()) == {28}
    assert np.count_nonzero(flags) == 6 * 3
    setup = prepare(resolve(small_config(tmp_path, **COMMON)))
    first = setup.model.build(setup.initial.init_seed).state_dict()
    for name, values in final(out).items():
        assert np.array_equal(values, first[name].numpy()) == (name[0] in "01"), name


def test_in_a_replay_round_no_client_computes_and_nothing_goes_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Invariants 3, 4 and 12."""
    asked: list[int] = []
    replayed: dict[int, dict[int, int]] = {}
    kept: dict[int, dict[int, int]] = {}
    batches, end_round = SplitClient.batches, EcoFedServer.end_round

    def watched(self: SplitClient, round_idx: int, client_id: int, shard: Any) -> Any:
        asked.append(round_idx)
        return batches(self, round_idx, client_id, shard)

    def ended(self: EcoFedServer, round_idx: int) -> Any:
        replayed[round_idx] = dict(self._replayed)
        scalars = end_round(self, round_idx)
        kept[round_idx] = {client: self.buffer.get(client).digest for client in self.buffer.clients()}
        return scalars

    monkeypatch.setattr(SplitClient, "batches", watched)
    monkeypatch.setattr(EcoFedServer, "end_round", ended)
    out = go(tmp_path, "out", algorithm={"name": "ecofed", "period": 3}, rounds=7)
    assert sorted(set(asked)) == [0, 3, 6]
    ups = messages(out, direction="up")
    assert sorted(set(ups["round_idx"].tolist())) == [0, 3, 6]
    with Ledger(out / "ledger.h5") as ledger:
        assert ledger.rounds["is_update"].tolist() == [1, 0, 0, 1, 0, 0, 1]
        assert np.isfinite(ledger.rounds["train_loss"]).all()
    for round_idx in (1, 2, 4, 5):
        sources = list(replayed[round_idx].values())
        assert set(sources) <= set(kept[round_idx - 1]) and len(set(sources)) == len(sources) == 3
        assert kept[round_idx] == kept[round_idx - 1]
    sent = set(ups["client_id"][ups["round_idx"] == 3].tolist())
    for client in kept[2]:
        assert (kept[3][client] != kept[2][client]) == (client in sent)


def test_what_is_replayed_is_what_was_received(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Invariant 4: byte for byte, labels first, at every replay until the client sends again."""
    received: dict[tuple[int, int], list[bytes]] = {}
    replays: list[tuple[int, int, bytes]] = []
    decode, get = host.decode_up, ReplayBuffer.get

    def decoded(rank: Any, arrived: Any, expected: Any, schema: Any, key: tuple[int, int, int]) -> Any:
        received.setdefault(key[:2], []).append(arrived.body.tobytes())
        return decode(rank, arrived, expected, schema, key)

    monkeypatch.setattr(host, "decode_up", decoded)
    replay = EcoFedServer._replay

    def replayed(self: EcoFedServer, round_idx: int, client_id: int) -> Any:
        source = self._replayed[client_id]
        replays.append((round_idx, source, get(self.buffer, source).frames.tobytes()))
        return replay(self, round_idx, client_id)

    monkeypatch.setattr(EcoFedServer, "_replay", replayed)
    out = go(tmp_path, "out", algorithm={"name": "ecofed", "period": 3}, rounds=7)
    assert len(replays) == 4 * 3 and rounds(out)["replay_clients"][-1] > 3
    for round_idx, source, frames in replays:
        newest = max(at for at, client in received if client == source and at < round_idx)
        assert frames == b"".join(received[newest, source])


def test_a_round_without_clients_is_no_update(tmp_path: Path) -> None:
    participation = {"clients_per_round": 3, "availability": 0.15}
    out = go(tmp_path, "out", algorithm={"name": "ecofed", "period": 2}, participation=participation, rounds=12)
    found = rounds(out)
    empty = found["num_clients"] == 0
    assert empty.any() and not found["is_update"][empty].any() and found["is_update"].any()


def test_error_feedback_pays_its_debts() -> None:
    """What is sent of the same activations again and again is right in the mean, and never rounded to signed levels."""
    client = EcoFedClient.__new__(EcoFedClient)
    a = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(0)).clamp_(min=0)
    for bits in (2, 4, 8):
        client.eco = client.config = EcoFedConfig(name="ecofed", bits=bits, error_feedback=True)
        client.client_state = {"owed": torch.zeros(9, 75)}
        sent = []
        for _ in range(20):
            message = client._message(a, torch.tensor([2, 0, 7, 5]))
            assert isinstance(message, QuantizedActivations) and message.symbols.symbols.dtype == np.uint8
            sent.append(decode_activations(message, (3, 5, 5), torch.device("cpu")))
        first, mean = (float((one - a).abs().mean()) for one in (sent[0], torch.stack(sent).mean(0)))
        assert mean < 0.25 * first
        assert not client.client_state["owed"][[1, 3, 4, 6, 8]].any()


@pytest.mark.parametrize("name", ALL)
def test_a_half_that_is_stored_goes_on_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    halves: list[Any] = []
    started = worker.make_server_half

    def kept(*args: Any) -> Any:
        halves.append(started(*args))
        return halves[-1]

    monkeypatch.setattr(server, "make_server_half", kept)
    monkeypatch.setattr("fedmpi.algorithms.ecofed_server.EcoFedServer.close", lambda self: None)
    go(tmp_path, "out", algorithm=ALL[name])
    half = halves[0]
    state = half.state_dict()
    other = type(half)(getattr(half, "eco", getattr(half, "gkt", half.config)), half.ctx)
    other.load_state_dict(state)
    again = other.state_dict()
    assert list(again) == list(state)
    for key, value in state.items():
        assert torch.equal(again[key], value) if isinstance(value, Tensor) else again[key] == value, key
    other.load_state_dict(state)  # over what it holds
    if name == "ecofed":
        assert other.buffer.by_age() == half.buffer.by_age() and other.buffer.nbytes == half.buffer.nbytes


def test_a_late_client_of_fedgkts_original_begins_with_the_initial_part(tmp_path: Path) -> None:
    """Whether that is sent or its seed, the models are the same."""
    runs = [
        go(tmp_path, how, algorithm=ALL["original"], server={"initial_model": how}, rounds=5)
        for how in ("seed", "full")
    ]
    assert digests(runs[0])[0] == digests(runs[1])[0]


def test_what_diverges_on_the_server_is_found(tmp_path: Path, here: Here) -> None:
    train = {"lr": 1e18, "batch_size": 12, "momentum": 0}
    config = write_config(tmp_path, **{**COMMON, "train": train, "algorithm": {"name": "ecofed"}, "model": PLAIN})
    status, _, errors = here("run", config, "-o", tmp_path / "out")
    assert status == 5 and "what the server trained for it holds NaN or infinity in state" in errors
    status, _, errors = here("run", config, "server.nonfinite=drop", "-o", tmp_path / "out", "--overwrite")
    assert status == 0, errors
    with Ledger(tmp_path / "out" / "ledger.h5") as ledger:
        assert set(ledger.faults["fault"].tolist()) == {"nonfinite"} and len(ledger.faults["fault"]) > 8


def test_the_published_ratios_follow_from_the_whole_network() -> None:
    """Invariant 7: 134.4 and 16.28, the payload of a client and round of 500 samples, with 64 bits a label."""
    spec = ModelSpec(models.resolve(NamedSection(name="vgg11")), ImageShape(32, 32, 3), 10)
    cut, n = Cut(spec, 2), 500
    whole, device = cut.layout.num_params, cut.device.layout.num_params
    ecofed = (n * (cut.numel + 8) + 4 * n / 10) / 2
    assert 8 * whole / ecofed == pytest.approx(134.4, rel=1e-3)
    assert (8 * device + n * (8 * cut.numel + 8)) / ecofed == pytest.approx(16.28, rel=1e-3)


def test_settings_that_do_nothing_are_pointed_out(tmp_path: Path, here: Here) -> None:
    for algorithm, words in (
        ({"name": "splitfed", "quantizer": "released"}, "algorithm.quantizer does nothing"),
        ({"name": "fedgkt", "server_epochs": 3}, "algorithm.server_epochs does nothing"),
        ({"name": "ecofed", "bits": None, "error_feedback": True}, "algorithm.error_feedback does nothing"),
    ):
        config = write_config(tmp_path, **{**COMMON, "algorithm": algorithm, "rounds": 1})
        status, output, _ = here("run", config, "-o", tmp_path / "out", "--overwrite")
        assert status == 0 and words in output
    for algorithm, words in (
        ({"name": "ecofed", "period": "adaptive"}, "evaluate.every must be 1 or more, got 0"),
        ({"name": "ecofed", "quantizer": "released", "bits": 1}, "bits must be 2 or more with quantizer=released"),
        ({"name": "ecofed", "replay_dir": __file__}, "algorithm.replay_dir must be a folder"),
    ):
        config = write_config(tmp_path, **{**COMMON, "algorithm": algorithm, "rounds": 1})
        status, _, errors = here("run", config, "-o", tmp_path / "out", "--overwrite")
        assert status == 2 and words in errors


def test_ecofed_in_float_every_round_is_fedavg_with_a_frozen_device_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Invariant 9, bit for bit."""
    eco = go(tmp_path, "eco", algorithm={"name": "ecofed", "bits": None, "period": 1}, model=PLAIN)

    def fit(self: FedAvgClient, round_idx: int, client_id: int, shard: Any) -> None:
        start_P = self.ctx.model.params_P[:NUM_DEVICE].clone()

        def freeze(model: Any) -> None:
            model.params_P[:NUM_DEVICE] = start_P

        self.train_local(round_idx, client_id, shard, after_step=freeze)

    monkeypatch.setattr(FedAvgClient, "fit", fit)
    assert digests(go(tmp_path, "avg", algorithm={"name": "fedavg"}, model=PLAIN))[0] == digests(eco)[0]


def test_lgl_teaches_the_device_without_the_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Invariant 11: whatever the server learns, the device's part and the head are the same."""
    first = go(tmp_path, "one", algorithm=ALL["lgl"])
    monkeypatch.setattr("fedmpi.algorithms.split_server.Bench.train", lambda *args, **kwargs: None)
    second = go(tmp_path, "two", algorithm=ALL["lgl"])
    one, two = final(first), final(second)
    assert all(one[name].tobytes() == two[name].tobytes() for name in one if name[0] in "01")
    assert any((one[name] != two[name]).any() for name in one if name[0] in "23")


def test_replay_buffers_in_files_hold_the_same_bytes(tmp_path: Path) -> None:
    want = digests(go(tmp_path, "memory", algorithm={"name": "ecofed"}))
    files = {"name": "ecofed", "replay_memory_nbytes": 0, "replay_dir": str(tmp_path)}
    assert digests(go(tmp_path, "files", algorithm=files)) == want
    assert not list(tmp_path.glob("fedmpi-replay-*"))


@pytest.mark.parametrize(
    ("quantizer", "bits"), [("exact", 1), *((q, b) for q in ("exact", "released") for b in (2, 4, 8))]
)
def test_fewer_bits_are_fewer_bytes(tmp_path: Path, quantizer: str, bits: int) -> None:
    algorithm = {"name": "ecofed", "bits": bits, "quantizer": quantizer, "error_feedback": bits == 2}
    ups = messages(go(tmp_path, "out", algorithm=algorithm, rounds=1), kind="activation")
    assert (8 * ups["payload_nbytes"] <= ups["num_params"] * bits + 8 * 16).all()
    assert ups["paper_nbits"].sum() == ups["num_params"].sum() * bits + 32 * len(ups["step"])


def test_splitfed_takes_the_gradient_of_what_it_was_sent(tmp_path: Path) -> None:
    """With rounded activations training goes on: the loss falls."""
    algorithm = {"name": "splitfed", "bits": 4}
    out = go(tmp_path, "out", algorithm=algorithm, rounds=8, model={**NET, "norm": "none"})
    losses = rounds(out)["train_loss"]
    assert losses[-1] < losses[0] - 0.05


def test_adaptive_periods_follow_the_accuracy(tmp_path: Path) -> None:
    algorithm = {"name": "ecofed", "period": "adaptive", "adaptive_periods": [4, 3, 2, 1]}
    out = go(tmp_path, "out", algorithm=algorithm, rounds=9, evaluate={"every": 1, "batch_size": 30})
    assert rounds(out)["is_update"].tolist() == [1, 0, 0, 0, 1, 0, 0, 0, 1]
    half = EcoFedServer.__new__(EcoFedServer)
    half.eco, half._tests, half._period = EcoFedConfig(name="ecofed", period="adaptive"), [], 8
    found = []
    for round_idx, accuracy in ((0, 0.1), (39, 0.2), (40, 0.5), (80, 0.51), (120, 0.512), (160, 0.512)):
        half.evaluated(round_idx, 1.0, accuracy)
        found.append(half._period)
    assert found == [8, 8, 8, 4, 2, 1]


def test_lost_clients_and_their_state(tmp_path: Path) -> None:
    """Drop-out: a client that was lost has not got the device's part, and is sent it again."""
    participation = {"clients_per_round": 3, "dropout": 0.4}
    for name, algorithm in ALL.items():
        out = go(tmp_path, name, algorithm=algorithm, participation=participation, rounds=6)
        with Ledger(out / "ledger.h5") as ledger:
            assert len(ledger.faults["fault"])
            assert np.isfinite(ledger.rounds["train_loss"]).any()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"algorithm": {"name": "splitfed", "point": 4}}, "whole number from 1 to 3, got 4"),
        ({"algorithm": {"name": "splitfed", "point": 0}}, "algorithm.point must be"),
        ({"algorithm": {"name": "splitfed", "point": 1.5}}, "algorithm.point must be"),
        ({"model": {"name": "resnet18", "width": 8}}, "only a sequence of layers can be split"),
        ({"algorithm": {"name": "ecofed", "bits": 9}}, "algorithm.bits must be"),
        ({"algorithm": {"name": "ecofed", "period": 0}}, "algorithm.period"),
        ({"algorithm": {"name": "ecofed", "adaptive_periods": [8, 4, 2, 0]}}, "algorithm.adaptive_periods"),
        ({"algorithm": {"name": "splitfed", "version": 3}}, "algorithm.version must be"),
        (
            {"data": {"name": "play_mini"}, "model": {"name": "char_gru"}, "partition": {"name": "natural"}},
            "takes images",
        ),
    ],
)
def test_what_cannot_be_split_is_refused(tmp_path: Path, here: Here, changes: dict[str, Any], words: str) -> None:
    config = write_config(tmp_path, **{**COMMON, "algorithm": {"name": "splitfed"}, **changes})
    status, _, errors = here("run", config, "-o", tmp_path / "out")
    assert status == 2 and words in errors


def test_a_buffer_that_cannot_hold_one_client(tmp_path: Path, here: Here) -> None:
    config = write_config(tmp_path, **{**COMMON, "algorithm": {"name": "ecofed", "replay_nbytes": 100}})
    status, _, errors = here("run", config, "-o", tmp_path / "out")
    assert status == 2 and "algorithm.replay_nbytes must hold one client's upload at least" in errors


@pytest.mark.parametrize("bits", [None, 8])
def test_activations_that_are_not_finite(tmp_path: Path, here: Here, bits: int | None) -> None:
    """A client that diverges in its turn stops the run in words, or is left out."""
    train = {"lr": 1e30, "batch_size": 12, "momentum": 0}
    changes = {"train": train, "algorithm": {"name": "splitfed", "bits": bits}, "model": PLAIN}
    config = write_config(tmp_path, **{**COMMON, **changes})
    status, _, errors = here("run", config, "-o", tmp_path / "out")
    assert status == 5 and "its message 'activation-float' holds NaN or infinity in numbers" in errors
    drop = ["server.nonfinite=drop", "rounds=2"]
    status, _, errors = here("run", config, *drop, "-o", tmp_path / "out", "--overwrite")
    assert status == 0, errors
    with Ledger(tmp_path / "out" / "ledger.h5") as ledger:
        assert set(ledger.faults["fault"].tolist()) == {"nonfinite"} and len(ledger.faults["fault"]) == 6


def pretrain(folder: Path, here: Here, data: dict[str, Any]) -> Path:
    """Pre-train the network in two epochs; return the file."""
    sections = {"seed": 5, "data": data, "model": NET, "pretrain": {"epochs": 2, "batch_size": 30}}
    (folder / "pre.yaml").write_text(yaml.safe_dump(sections))
    status, _, errors = here("pretrain", folder / "pre.yaml", "-o", folder / "pre.safetensors", "--overwrite")
    assert status == 0, errors
    return folder / "pre.safetensors"


OTHER = {"name": "synthetic", "synthetic": {**DATA["synthetic"], "num_classes": 7, "noise": 30.0}}


def test_ecofed_with_a_pretrained_device_part(tmp_path: Path, here: Here) -> None:
    """Invariant 1 with a file: it is sent once to each client, and nothing of it ever changes."""
    file = pretrain(tmp_path, here, OTHER)
    out = go(tmp_path, "out", algorithm=ALL["ecofed"], model={**NET, "pretrained": str(file)}, rounds=6)
    tensors, found = load_file(file), final(out)
    for name in (name for name in found if name[0] in "01"):
        assert np.array_equal(found[name], tensors[name].numpy()), name
    assert found["3.1.weight"].shape == (10, 16)  # the file's classifier has seven classes
    init = messages(out, kind="init")
    assert set(init["payload_nbytes"].tolist()) == {init["payload_nbytes"][0]}
    assert init["payload_nbytes"][0] >= 4 * NUM_DEVICE + 4 * 2 * (4 + 6) + 2 * 8
    with Ledger(out / "ledger.h5") as ledger:
        assert ledger.attrs["pretrained_source"].startswith("synthetic")
        assert len(ledger.attrs["pretrained_hash"]) == 64
    # The others start from it, too.
    one = {"model": {**NET, "pretrained": str(file)}, "participation": {"clients_per_round": 1}}
    whole = digests(go(tmp_path, "whole", algorithm={"name": "fedavg"}, **one))[0]
    assert digests(go(tmp_path, "split", algorithm=ALL["v1"], **one))[0] == whole


def test_a_file_from_the_very_same_data_is_pointed_out(tmp_path: Path, here: Here) -> None:
    file = pretrain(tmp_path, here, DATA)
    model = {**NET, "pretrained": str(file)}
    config = write_config(tmp_path, **{**COMMON, "seed": 5, "algorithm": ALL["ecofed"], "model": model})
    status, output, _ = here("run", config, "-o", tmp_path / "out")
    assert status == 0 and "was trained on the very samples of this run, not on others" in output
    assert "first 2 units of the network from" in output


def test_files_that_do_not_fit(tmp_path: Path, here: Here) -> None:
    (tmp_path / "text.safetensors").write_text("no weights")
    torch.save({"0.0.weight": torch.zeros(4, 1, 3, 3)}, tmp_path / "few.pt")
    shapes = {name: torch.zeros(2) for name in ("0.0.weight", "0.0.bias")}
    torch.save(shapes, tmp_path / "shapes.pt")
    for file, changes, status, words in (
        ("none.pt", {}, 3, "none.pt"),
        ("text.safetensors", {}, 3, "text.safetensors"),
        ("few.pt", {"pretrained_units": 1}, 2, "0.0.bias"),
        ("shapes.pt", {"pretrained_units": 1}, 2, "0.0.weight"),
        ("few.pt", {"pretrained_units": 9}, 2, "model.pretrained_units must be from 1 to 4"),
    ):
        model = {**NET, "pretrained": str(tmp_path / file), **changes}
        config = write_config(tmp_path, **{**COMMON, "algorithm": ALL["ecofed"], "model": model})
        found, _, errors = here("run", config, "-o", tmp_path / "out")
        assert (found, words in errors) == (status, True), errors
    mean = {"name": "resnet18", "width": 8, "pretrained": str(tmp_path / "few.pt")}
    config = write_config(tmp_path, **{**COMMON, "algorithm": {"name": "fedavg"}, "model": mean})
    status, _, errors = here("run", config, "-o", tmp_path / "out")
    assert status == 2 and "only a sequence of layers can be split" in errors


@pytest.mark.parametrize("name", ALL)
def test_a_dry_run_trains_nothing_and_tells_the_bytes(tmp_path: Path, here: Here, name: str) -> None:
    config = write_config(tmp_path, **{**COMMON, "algorithm": ALL[name], "rounds": 2})
    status, output, _ = here("run", config, "--dry-run")
    assert status == 0
    out = go(tmp_path, "out", algorithm=ALL[name], rounds=2)
    told = dict(word.split("=") for word in output.split() if word.startswith(("down_bytes=", "up_bytes=")))
    with Ledger(out / "ledger.h5") as ledger:
        done = ledger.summary()
    assert int(told["down_bytes"]) == done["down_nbytes"]
    assert int(told["up_bytes"]) >= done["up_nbytes"]


def test_a_device_part_without_parameters(tmp_path: Path) -> None:
    """It has nothing to train: gradients come, and the run ends in FedAvg's model all the same."""
    (tmp_path / "flat.py").write_text(
        "from torch import nn\n\n\ndef Net(num_classes, shape):\n"
        "    size = shape.height * shape.width * shape.channels\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(size, 8), nn.ReLU(), nn.Linear(8, num_classes))\n"
    )
    model = {"name": f"{tmp_path / 'flat.py'}:Net"}
    split = go(tmp_path, "split", model=model, algorithm={"name": "splitfed", "point": 1})
    whole = go(tmp_path, "whole", model=model, algorithm={"name": "fedavg"})
    assert digests(split)[0] == digests(whole)[0]


def test_warnings_of_ecofed(tmp_path: Path, here: Here) -> None:
    ecofed = {"name": "ecofed", "adaptive_periods": [4, 3, 2, 1]}
    config = write_config(tmp_path, **{**COMMON, "algorithm": ecofed})
    said = here("run", config, "--dry-run", "-o", tmp_path / "out")[1]
    assert "warning: without model.pretrained the device's part is frozen as drawn from the seed" in said
    assert "warning: algorithm.adaptive_periods does nothing without algorithm.period=adaptive" in said
    (line,) = [line for line in here("run", config, "algorithm.adaptive_periods=[8,4,2,1]", "--dry-run")[1].splitlines()
               if "warning: " in line]  # fmt: skip
    assert "frozen as drawn" in line  # and nothing of what nobody has set
    said = here("run", config, "algorithm.period=adaptive", "evaluate.every=1", "--dry-run", "-o", tmp_path / "out")[1]
    assert "adaptive_periods" not in said.split("warning: ", 1)[1].splitlines()[0] and "does nothing" not in said


def test_a_curve_says_how_large_the_whole_network_is(tmp_path: Path) -> None:
    """Messages of split learning are about its device part, or about activations."""
    out = go(tmp_path, "lgl", algorithm={"name": "lgl"}, evaluate={"every": 2})
    script = Path(__file__).parents[2] / "analysis" / "accuracy_at_cap.py"
    command = [sys.executable, str(script), str(out), "--save-curves", str(tmp_path / "curves")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    with Ledger(out / "ledger.h5") as ledger:
        assert ledger.model is not None
        num_params = sum(vector.size for vector in ledger.model)
        assert num_params not in ledger.messages["num_params"]
    (curve,) = (tmp_path / "curves").glob("*.csv")
    assert f"# num_params: {num_params}\n" in curve.read_text()

"""Runs of masked models: what equals what bit for bit, what the ledger says, and what is refused."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import digests, run_here, small_config, write_config
from torch import Tensor

from fedmpi.algorithms.feddst import FedDSTClient
from fedmpi.algorithms.sparse_server import SparseServer
from fedmpi.comm.local import LocalCommunicator
from fedmpi.engine import player
from fedmpi.ledger.check import Check
from fedmpi.ledger.reader import Ledger

pytestmark = pytest.mark.usefixtures("launches")
N_W, N_B = 144 * 16 + 16 * 10, 16 + 10  # of SMALL's model
FEDDST = {"name": "feddst", "density": 0.2, "alpha": 0.3, "interval": 1, "end_round": 100}
TWO_EPOCHS = {"batch_size": 10, "lr": 0.05, "local_epochs": 2}
NET = """
import torch
from torch import nn

def Net(num_classes, shape):
    size = shape.height * shape.width * shape.channels
    return nn.Sequential(nn.Flatten(), nn.Linear(size, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3),
                         nn.Linear(8, num_classes))

class Bare(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.scale = nn.Parameter(torch.randn(num_classes))

    def forward(self, x):
        return x.mean((1, 2, 3))[:, None] * self.scale
"""

FAST = {"rounds": 3, "evaluate": {"every": 0}}
Here = Callable[..., tuple[int, str, str]]


def go(folder: Path, name: str, **changes: Any) -> Path:
    """Run in one process; return the output folder, whose ledger is whole."""
    config = small_config(folder, **{"algorithm": FEDDST, "train": TWO_EPOCHS, "rounds": 4, **changes})
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


def net(folder: Path, name: str = "Net") -> dict[str, str]:
    (folder / "net.py").write_text(NET)
    return {"name": f"{folder / 'net.py'}:{name}"}


def test_without_readjustment_feddst_is_randommask(tmp_path: Path) -> None:
    """Invariant 7: models and ledgers."""
    want = digests(
        go(tmp_path, "random", algorithm={"name": "randommask", "density": 0.2}, model=net(tmp_path), **FAST)
    )
    for name, changes in (("none", {"alpha": 0}), ("early", {"end_round": 1})):
        assert digests(go(tmp_path, name, algorithm={**FEDDST, **changes}, model=net(tmp_path), **FAST)) == want
    assert digests(go(tmp_path, "moved", model=net(tmp_path), **FAST)) != want


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_dense_mask_is_fedavg(tmp_path: Path, optimizer: str) -> None:
    """Invariant 7, with momentum, weight decay, buffers and random numbers: also in rounds of readjustment."""
    train = {**TWO_EPOCHS, "weight_decay": 0.01, "momentum": 0.9, "optimizer": optimizer, "lr": 0.01}
    shared: dict[str, Any] = {"model": net(tmp_path), "train": train, **FAST}
    want = digests(go(tmp_path, "fedavg", algorithm={"name": "fedavg"}, **shared))[0]
    assert digests(go(tmp_path, "feddst", algorithm={**FEDDST, "density": 1}, **shared))[0] == want
    if optimizer == "sgd":
        static = {"name": "randommask", "density": 1}
        assert digests(go(tmp_path, "random", algorithm=static, **shared))[0] == want
        prox = digests(go(tmp_path, "fedprox", algorithm={"name": "fedprox", "mu": 0.5}, **shared))[0]
        assert digests(go(tmp_path, "mu", algorithm={**FEDDST, "density": 1, "mu": 0.5}, **shared))[0] == prox != want


def test_what_is_tested_is_zero_outside_the_mask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Invariant 6."""
    masks: list[Tensor] = []
    num_tests = 0
    end_round, test = SparseServer.end_round, player.evaluate_batch

    def watched(half: SparseServer, round_idx: int) -> Any:
        scalars = end_round(half, round_idx)
        masks.append(torch.from_numpy(half.mask.array.copy()))
        return scalars

    def tested(model: Any, *rest: Any) -> Any:
        nonlocal num_tests
        num_tests += 1
        assert any(not bool(model.params_P[~mask_P].any()) for mask_P in masks[-2:])
        assert bool(model.params_P.any())
        return test(model, *rest)

    monkeypatch.setattr(SparseServer, "end_round", watched)
    monkeypatch.setattr(player, "evaluate_batch", tested)
    go(tmp_path, "out")
    assert num_tests >= 4 * 5
    assert len({mask_P.numpy().tobytes() for mask_P in masks}) == len(masks) == 4


def test_the_ledgers_columns(tmp_path: Path) -> None:
    """Invariants 9 and 10, with plain codecs: what a row says adds up."""
    out = go(tmp_path, "out", wire={"values": "raw", "mask": "bits"}, rounds=5)
    kept = round(0.2 * N_W)
    up = messages(out, direction="up")
    moves = up["round_idx"] >= 1
    assert set(up["kind"]) == {"sparse-model"}
    assert set(up["num_params"]) == {N_W + N_B} and set(up["num_kept"]) == {kept + N_B}
    assert set(up["dense_nbytes"]) == {4 * (N_W + N_B)}
    assert set(up["value_nbytes"]) == {4 * (kept + N_B)}
    assert set(up["index_nbytes"][moves]) == {-(-(N_W + N_B) // 8) + 5} and set(up["index_nbytes"][~moves]) == {5}
    assert set(up["paper_nbits"][moves]) == {32.0 * (kept + N_B) + kept}
    assert set(up["paper_nbits"][~moves]) == {32.0 * (kept + N_B)}
    assert set(up["payload_nbytes"] - up["index_nbytes"] - up["value_nbytes"]) <= {2, 3}  # weight and version
    seeds = messages(out, direction="down", kind="sparse-seed")
    assert set(seeds["paper_nbits"]) == {0.0} and set(seeds["num_kept"]) == {0}
    assert len(seeds["client_id"]) == len(set(seeds["client_id"])) == len(set(up["client_id"]))
    down = messages(out, direction="down", kind="sparse-model")
    assert set(down["round_idx"]) == {1, 2, 3, 4}
    assert set(down["num_kept"]) == {kept + N_B} and set(down["paper_nbits"]) == {32.0 * (kept + N_B)}
    held: dict[int, int] = {}
    version = rounds(out)["mask_version"].astype(int)
    assert version.tolist() == [0, 1, 2, 3, 4]
    for round_idx in range(5):
        newest = int(version[round_idx - 1]) if round_idx else 0
        of_round = down["round_idx"] == round_idx
        for client_id, nbytes in zip(down["client_id"][of_round], down["index_nbytes"][of_round], strict=True):
            assert (nbytes > 5) == (held.get(int(client_id), 0) != newest)
        held |= dict.fromkeys(up["client_id"][up["round_idx"] == round_idx].tolist(), newest)


def test_the_rounds_columns(tmp_path: Path) -> None:
    table = rounds(go(tmp_path, "out", rounds=6, algorithm={**FEDDST, "interval": 2, "end_round": 5}))
    kept = round(0.2 * N_W)
    assert set(table["weight_density"]) == {kept / N_W}
    assert set(table["density"]) == {(kept + N_B) / (N_W + N_B)}
    assert table["mask_version"].tolist() == [0, 1, 1, 2, 2, 2]
    assert (table["mask_num_grown"] > 0).tolist() == [False, True, False, True, False, False]
    checksums = table["mask_checksum"].tolist()
    assert len(set(checksums)) == 3 and checksums[1] == checksums[2] and checksums[3] == checksums[5]
    assert np.isfinite(table["test_loss"]).all()


def test_the_density_of_the_end(tmp_path: Path) -> None:
    for final, order in ((0.05, -1), (0.5, 1)):
        algorithm = {**FEDDST, "final_density": final, "end_round": 4}
        table = rounds(go(tmp_path, f"{final}", algorithm=algorithm, rounds=5))
        steps = np.diff(table["weight_density"])
        assert (np.sign(steps) == [order, order, order, 0]).all()
        assert table["weight_density"][-1] == round(final * N_W) / N_W


def test_a_seed_or_the_whole_model_and_any_codec_end_alike(tmp_path: Path) -> None:
    """Invariant 9: no seed, a whole mask the first time, the same model."""
    want = digests(go(tmp_path, "seed", model=net(tmp_path), **FAST))[0]
    full = go(tmp_path, "full", server={"initial_model": "full"}, model=net(tmp_path), **FAST)
    assert digests(full)[0] == want
    first = messages(full, round_idx=0, direction="down")
    assert set(first["kind"]) == {"sparse-model"}
    assert (first["index_nbytes"] > 5).all()
    for number, mask in enumerate(("bits", "change")):
        wire = {"mask": mask, "values": "raw" if number % 2 else "planes"}
        assert digests(go(tmp_path, mask, wire=wire, model=net(tmp_path), **FAST))[0] == want


def test_convolutions_and_adam(tmp_path: Path) -> None:
    """A density a layer of each kind: nothing is empty, and the run learns."""
    algorithm = {**FEDDST, "density": 0.1, "growth": "pruned_stay"}
    train = {"batch_size": 20, "lr": 0.01, "local_epochs": 2, "optimizer": "adam"}
    data = {"name": "synthetic", "synthetic": {"num_train": 300, "num_test": 50}}
    out = go(tmp_path, "out", data=data, model={"name": "cnn"}, algorithm=algorithm, train=train, rounds=2)
    table = rounds(out)
    assert table["mask_version"].tolist() == [0, 1]
    assert table["weight_density"][-1] == pytest.approx(0.1, abs=1e-4)
    assert table["train_loss"][-1] < table["train_loss"][0]


def test_a_text_model(tmp_path: Path) -> None:
    """Its labels are characters, so an epoch's end is a matter of sequences."""
    out = go(
        tmp_path,
        "out",
        data={"name": "play_mini"},
        model={"name": "char_gru", "hidden": 16, "layers": 1, "embedding": 4},
        partition={"name": "natural"},
        participation={"clients_per_round": 2},
        train={"batch_size": 10, "local_epochs": 2, "lr": 0.1},
        evaluate={"every": 0},
        rounds=3,
    )
    assert rounds(out)["mask_version"].tolist() == [0, 1, 2]


@pytest.mark.parametrize("host", ["rank0", "player"])
def test_lost_and_refused_clients_go_on_with_the_mask_they_have(
    tmp_path: Path, host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client whose training came to NaN in a round of readjustment is left out; its later turns work."""
    uplink = FedDSTClient.uplink
    num_bad = 0

    def bad(half: FedDSTClient, weight: int, used: Any, new_P: Tensor | None = None) -> Any:
        nonlocal num_bad
        if new_P is not None and used.known.version in (1, 2) and weight % 3 == 0:
            half.ctx.model.params_P[used.indices_K[:3]] = float("nan")
            num_bad += 1
        return uplink(half, weight, used, new_P)

    monkeypatch.setattr(FedDSTClient, "uplink", bad)
    out = go(
        tmp_path,
        "out",
        rounds=8,
        participation={"clients_per_round": 8, "dropout": 0.3},
        server={"nonfinite": "drop", "host": host},
    )
    with Ledger(out / "ledger.h5") as ledger:
        faults = ledger.faults
    kinds = faults["fault"].tolist()
    assert num_bad > 0 and kinds.count("nonfinite") == num_bad and kinds.count("dropout") > 5
    up = messages(out, direction="up")
    lost = {(int(r), int(c)) for r, c in zip(faults["round_idx"], faults["client_id"], strict=True)}
    down = messages(out, direction="down", kind="sparse-model")
    held: dict[int, int] = {}
    version = rounds(out)["mask_version"].astype(int)
    for round_idx in range(8):
        newest = int(version[round_idx - 1]) if round_idx else 0
        of_round = down["round_idx"] == round_idx
        for client_id, nbytes in zip(down["client_id"][of_round], down["index_nbytes"][of_round], strict=True):
            assert (nbytes > 5) == (held.get(int(client_id), 0) != newest)
        replied = up["client_id"][up["round_idx"] == round_idx].tolist()
        held |= {c: newest for c in replied if (round_idx, c) not in lost}
    turns = zip(up["round_idx"].tolist(), up["client_id"].tolist(), strict=True)
    assert sum(any(r < round_idx and c == client_id for r, c in lost) for round_idx, client_id in turns) > 5


def test_a_real_divergence_is_dropped_too(tmp_path: Path) -> None:
    """Every client's training comes to NaN: nothing is averaged, and the mask stays."""
    train = {**TWO_EPOCHS, "lr": 1e30}
    out = go(tmp_path, "out", train=train, server={"nonfinite": "drop"}, rounds=3)
    table = rounds(out)
    assert set(table["num_faults"]) == {5}
    assert set(table["mask_version"]) == {0.0}
    assert len(set(table["test_loss"])) == 1


def promised_total(output: str) -> tuple[str, list[int]]:
    found = re.search(r"rounds would send (about|at most) down_bytes=(\d+) up_bytes=(\d+)", output)
    assert found is not None
    return found[1], [int(found[2]), int(found[3])]


@pytest.mark.parametrize("wire", [[], ["wire.mask=bits"]])
def test_a_dry_run_promises_at_least_what_is_sent(tmp_path: Path, here: Here, wire: list[str]) -> None:
    path = write_config(tmp_path, algorithm=FEDDST, train=TWO_EPOCHS, rounds=8)
    command = ["run", path, *wire, "-o", tmp_path / "out"]
    status, said, _ = here(*command, "--dry-run")
    assert status == 0
    assert not (tmp_path / "out").exists()
    words, totals = promised_total(said)
    assert words == "about" and "which they are not" in said
    assert here(*command)[0] == 0
    with Ledger(tmp_path / "out" / "ledger.h5") as ledger:
        summary = ledger.summary()
    assert rounds(tmp_path / "out")["mask_version"].max() == 7
    for total, name in zip(totals, ("down_nbytes", "up_nbytes"), strict=True):
        assert summary[name] <= total


def test_a_dry_run_of_a_mask_that_never_moves_is_exact_with_plain_numbers(tmp_path: Path, here: Here) -> None:
    path = write_config(tmp_path, algorithm={"name": "randommask", "density": 0.2}, rounds=2)
    command = ["run", path, "wire.values=raw", "wire.mask=bits", "-o", tmp_path / "out"]
    words, totals = promised_total(here(*command, "--dry-run")[1])
    assert here(*command)[0] == 0
    with Ledger(tmp_path / "out" / "ledger.h5") as ledger:
        summary = ledger.summary()
    assert (words, totals) == ("about", [summary["down_nbytes"], summary["up_nbytes"]])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["algorithm.density=0"], "algorithm.density must be above 0"),
        (["algorithm.density=1.5"], "algorithm.density must be at most 1"),
        (["algorithm.density=-1"], "algorithm.density must be above 0"),
        (["algorithm.alpha=-0.1"], "algorithm.alpha must be at least 0"),
        (["algorithm.alpha=1.5"], "algorithm.alpha must be at most 1"),
        (["algorithm.interval=0"], "algorithm.interval must be at least 1"),
        (["algorithm.readjust_epoch=10"], "algorithm.readjust_epoch must be below train.local_epochs=2"),
        (["algorithm.readjust_epoch=-1"], "readjust_epoch must be at least 0, got -1"),
        (["algorithm.alpha=0", "algorithm.final_density=0.5"], "final_density needs alpha > 0"),
        (["algorithm.density=1e-6"], "must keep at least one of the 2464 weights"),
        (["algorithm.layer_distribution=erk_released", "algorithm.density=0.001"], "take erk"),
    ],
)
def test_bad_input(tmp_path: Path, here: Here, settings: list[str], words: str) -> None:
    path = write_config(tmp_path, algorithm=FEDDST, train=TWO_EPOCHS)
    for more in ([], ["--dry-run"]):
        status, said, errors = here("run", path, *settings, "-o", tmp_path / "out", *more)
        assert (status, words in errors) == (2, True), errors
        assert said == ""
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["feddst", "randommask"])
def test_a_model_without_a_weight_to_mask(tmp_path: Path, here: Here, name: str) -> None:
    path = write_config(tmp_path, algorithm={"name": name}, model=net(tmp_path, "Bare"))
    status, _, errors = here("run", path, "-o", tmp_path / "out")
    assert (status, "no weight of a convolution or fully connected layer to mask" in errors) == (2, True), errors


def test_a_layer_that_keeps_nothing_is_named(tmp_path: Path, here: Here) -> None:
    algorithm = {"name": "randommask", "density": 0.003, "layer_distribution": "uniform"}
    path = write_config(tmp_path, algorithm=algorithm, rounds=1)
    warning = "warning: algorithm.density=0.003 leaves no weight of 3.weight: only its bias remains"
    for more in (["--dry-run"], []):
        status, said, _ = here("run", path, "-o", tmp_path / "out", *more)
        assert status == 0
        assert warning in said, said


def test_the_released_profile_loses_density_and_what_has_grown(tmp_path: Path) -> None:
    """B1, B2 in runs of a few rounds."""
    shared = {"density": 0.3, "interval": 1, "end_round": 100}
    tables = {}
    for name, changes in (
        ("feddst", {"alpha": 0.5}),
        ("feddst_released", {"alpha": 0.5}),
        ("last", {"alpha": 0.05, "name": "feddst_released", "growth": "inactive"}),
        ("middle", {"alpha": 0.05, "name": "feddst_released", "growth": "inactive", "readjust_epoch": "middle"}),
    ):
        out = go(
            tmp_path,
            name,
            algorithm={"name": name, **shared, **changes},
            train={**TWO_EPOCHS, "local_epochs": 4},
            **FAST,
        )
        tables[name] = rounds(out)
    assert set(tables["feddst"]["weight_density"]) == {round(0.3 * N_W) / N_W}
    released = tables["feddst_released"]["weight_density"]
    assert released[0] == pytest.approx(0.3, abs=0.01)
    assert released[-1] < 0.95 * released[0]
    grown = {name: tables[name]["mask_num_grown"][1:] for name in ("last", "middle")}
    assert (grown["middle"] > 5).all()
    assert grown["last"].sum() < 0.1 * grown["middle"].sum()

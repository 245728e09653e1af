"""The rounds of a run in one process, with algorithms that are files of the test's own."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from support import small_config

from fedmpi.comm.local import LocalCommunicator
from fedmpi.engine.setup import prepare
from fedmpi.ledger.reader import Ledger
from fedmpi.ledger.schema import ROUND_COLUMNS
from fedmpi.runner import run

HEAD = """
import os, signal
from fedmpi.algorithms.base import Algorithm, AlgorithmConfig
from fedmpi.algorithms.fedavg import FedAvgClient, FedAvgServer

class Server(FedAvgServer):
    pass

class Client(FedAvgClient):
    pass
"""
TAIL = """
MINE = Algorithm("mine", AlgorithmConfig, Server, Client)
"""


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    """A run sets the number of threads."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def own(folder: Path, code: str) -> dict[str, str]:
    """Write an algorithm; return its section."""
    path = folder / "own.py"
    path.write_text(HEAD + code + TAIL)
    return {"name": f"{path}:MINE"}


def go(folder: Path, *overrides: str, overwrite: bool = False, **sections: object) -> int:
    config = small_config(folder, *overrides, **sections)
    return run(config, folder / "out", LocalCommunicator(), overwrite=overwrite)


def rounds(folder: Path) -> dict[str, np.ndarray]:
    with Ledger(folder / "out" / "ledger.h5") as ledger:
        return dict(ledger.rounds)


END_ROUND = """
class Server(FedAvgServer):
    def end_round(self, round_idx):
        return {**super().end_round(round_idx), **SCALARS}
"""


@pytest.mark.parametrize("name", [column.name for column in ROUND_COLUMNS if column.name != "density"])
def test_a_scalar_named_as_a_column_of_the_ledgers_own(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    section = own(tmp_path, END_ROUND.replace("SCALARS", f"{{'free': 1.0, '{name}': 0.0}}"))
    assert go(tmp_path, "rounds=1", algorithm=section) == 1
    said = capsys.readouterr().err
    assert f"ValueError: end_round returned {name}: columns of the ledger's own" in said


def test_an_end_of_round_without_scalars(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    section = own(tmp_path, "class Server(FedAvgServer):\n    def end_round(self, round_idx):\n        pass\n")
    assert go(tmp_path, "rounds=1", algorithm=section) == 1
    assert "TypeError: end_round must return a dict of numbers for the ledger, got NoneType" in capsys.readouterr().err


def test_scalars_with_names_of_their_own_and_the_density(tmp_path: Path) -> None:
    assert go(tmp_path, algorithm=own(tmp_path, END_ROUND.replace("SCALARS", "{'free': 2.5, 'density': 0.25}"))) == 0
    table = rounds(tmp_path)
    assert table["free"].tolist() == [2.5] * 3
    assert table["density"].tolist() == [0.25] * 3


def test_an_earlier_run_stays_until_all_checks_have_passed(tmp_path: Path) -> None:
    assert go(tmp_path, "rounds=1") == 0
    names = ("ledger.h5", "config.yaml", "log.txt")
    before = [(tmp_path / "out" / name).read_bytes() for name in names]
    missing = {"name": "mnist", "root": str(tmp_path / "absent")}
    assert go(tmp_path, data=missing, overwrite=True) == 3
    assert [(tmp_path / "out" / name).read_bytes() for name in names] == before
    assert go(tmp_path) == 6  # without a wish to overwrite
    assert [(tmp_path / "out" / name).read_bytes() for name in names] == before
    assert go(tmp_path, "rounds=2", overwrite=True) == 0
    assert rounds(tmp_path)["round_idx"].tolist() == [0, 1]


def test_a_run_that_fails_its_checks_makes_nothing_and_says_one_thing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert go(tmp_path, data={"name": "mnist", "root": str(tmp_path / "absent")}) == 3
    assert not (tmp_path / "out").exists()
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("fedmpi: error: data set mnist not found")


STOP = """
class Server(FedAvgServer):
    def end_round(self, round_idx):
        if round_idx == 1:
            os.kill(os.getpid(), signal.SIGUSR1)
        return super().end_round(round_idx)
"""


@pytest.mark.parametrize("every", [0, 2, 3, 100])
def test_after_a_stop_the_last_round_done_is_tested(tmp_path: Path, every: int) -> None:
    evaluate = {"every": every, "batch_size": 50}
    assert go(tmp_path, "rounds=50", algorithm=own(tmp_path, STOP), evaluate=evaluate) == 75
    table = rounds(tmp_path)
    assert table["round_idx"].tolist() == [0, 1]
    assert np.isnan(table["test_accuracy"]).tolist() == [True, every == 0]
    assert np.isnan(table["test_loss"]).tolist() == [True, every == 0]


@pytest.mark.parametrize(
    "code",
    [
        """
class Client(FedAvgClient):
    def run(self, round_idx, client_id, shard, channel):
        super().run(round_idx, client_id, shard, channel)
        channel.recv(*self.down_types)
""",
        """
class Client(FedAvgClient):
    def run(self, round_idx, client_id, shard, channel):
        channel.recv(*self.down_types)
        channel.recv(*self.down_types)
""",
    ],
)
def test_a_wait_for_what_nobody_sends_fails_at_once(
    tmp_path: Path, code: str, capsys: pytest.CaptureFixture[str]
) -> None:
    start = time.monotonic()
    assert go(tmp_path, "comm.timeout_s=300", algorithm=own(tmp_path, code)) == 5
    assert time.monotonic() - start < 60
    said = capsys.readouterr().err
    assert "would wait for ever for" in said
    assert "nothing is under way" in said
    with Ledger(tmp_path / "out" / "ledger.h5") as ledger:
        assert "would wait for ever" in ledger.status


CHOOSE = """
class Server(FedAvgServer):
    def choose(self, round_idx, cohort):
        return CHOSEN
"""


@pytest.mark.parametrize(
    "chosen", ["cohort", "cohort[:2]", "[cohort[3], cohort[0]]", "cohort[round_idx:round_idx + 1]"]
)
def test_the_algorithm_chooses_among_the_clients_drawn(tmp_path: Path, chosen: str) -> None:
    drawn = load_cohorts(tmp_path)
    assert go(tmp_path, algorithm=own(tmp_path, CHOOSE.replace("CHOSEN", chosen))) == 0
    with Ledger(tmp_path / "out" / "ledger.h5") as ledger:
        messages = ledger.messages
        table = dict(ledger.rounds)
    for round_idx, cohort in enumerate(drawn):
        want = sorted(eval(chosen, {"cohort": cohort, "round_idx": round_idx}))
        for direction in ("down", "up"):
            rows = (messages["round_idx"] == round_idx) & (messages["direction"] == direction)
            assert messages["client_id"][rows].tolist() == want
        assert table["num_clients"][round_idx] == len(want)


def load_cohorts(folder: Path) -> list[list[int]]:
    """Return the clients drawn for each round of a small run."""
    setup = prepare(small_config(folder))
    return [setup.cohort(round_idx) for round_idx in range(3)]


@pytest.mark.parametrize("chosen", ["[*cohort, 12]", "[cohort[0], cohort[0]]", "[-1]"])
def test_a_choice_of_others_than_those_drawn(tmp_path: Path, chosen: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert go(tmp_path, "rounds=1", algorithm=own(tmp_path, CHOOSE.replace("CHOSEN", chosen))) == 1
    said = capsys.readouterr().err
    assert "ValueError: choose must return some of the clients drawn, each once, got [" in said


def test_a_round_for_which_nobody_is_chosen(tmp_path: Path) -> None:
    """The model stays as it is."""
    chosen = "cohort if round_idx != 1 else []"
    assert go(tmp_path, "rounds=3", algorithm=own(tmp_path, CHOOSE.replace("CHOSEN", chosen))) == 0
    table = rounds(tmp_path)
    assert table["num_clients"].tolist() == [5, 0, 5]
    loss = table["test_loss"].tolist()
    assert loss[0] == loss[1] != loss[2]
    assert np.isnan(table["train_loss"]).tolist() == [False, True, False]

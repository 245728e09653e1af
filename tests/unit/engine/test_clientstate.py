"""The store of client state: immutable versions that a kill never tears."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from fedmpi.engine.clientstate import ClientStateStore, state_folder
from fedmpi.engine.statefile import pack_state
from fedmpi.errors import OutputError
from fedmpi.wire.buffers import BufferPool


def store(folder: Path) -> ClientStateStore:
    return ClientStateStore(folder / "state", BufferPool())


def versions(folder: Path) -> set[str]:
    return {path.name for path in (folder / "state").rglob("*.r*") if path.is_file()}


def residual(value: float) -> dict[str, torch.Tensor]:
    return {"residual": torch.full((10,), value), "mask": torch.tensor([True, False])}


def test_round_trip(tmp_path: Path) -> None:
    here = store(tmp_path)
    assert not here.has(3, 0)
    here.save(3, 0, residual(1.5), started_from=-1)
    assert here.has(3, 0)
    assert not here.has(3, 1)
    for state in (here.load(3, 0), store(tmp_path).load(3, 0)):
        assert list(state) == ["residual", "mask"]
        assert torch.equal(state["residual"], torch.full((10,), 1.5))
        assert torch.equal(state["mask"], torch.tensor([True, False]))
        assert state["mask"].dtype == torch.bool


def test_what_is_written_to_a_loaded_state_stays_in_the_process(tmp_path: Path) -> None:
    here = store(tmp_path)
    here.save(3, 0, residual(1), started_from=-1)
    tensor = here.load(3, 0)["residual"]
    assert isinstance(tensor, torch.Tensor)
    tensor.fill_(99)
    assert torch.equal(here.load(3, 0)["residual"], torch.ones(10))


def test_versions_older_than_the_one_started_from_are_dropped(tmp_path: Path) -> None:
    here = store(tmp_path)
    here.save(3, 0, residual(0), started_from=-1)
    here.save(3, 4, residual(4), started_from=0)
    assert versions(tmp_path) == {"3.r0", "3.r4"}
    here.save(3, 10, residual(10), started_from=4)
    assert versions(tmp_path) == {"3.r4", "3.r10"}
    here.save(3, 11, residual(11), started_from=10)  # 10 > 4 as a number, not as a text
    assert versions(tmp_path) == {"3.r10", "3.r11"}
    assert torch.equal(here.load(3, 10)["residual"], torch.full((10,), 10.0))


def test_a_turn_that_is_played_again_starts_from_the_same_version(tmp_path: Path) -> None:
    here = store(tmp_path)
    here.save(3, 0, residual(0), started_from=-1)
    here.save(3, 1, residual(1), started_from=0)
    here.save(3, 1, residual(1), started_from=0)
    assert versions(tmp_path) == {"3.r0", "3.r1"}


def test_clients_do_not_touch_each_other(tmp_path: Path) -> None:
    here = store(tmp_path)
    clients = (1, 11, 111, 1001, 1011, 123_456_789)
    for client in clients:
        here.save(client, 0, residual(client), started_from=-1)
    for round_idx in (1, 2, 3):
        here.save(1, round_idx, residual(0), started_from=round_idx - 1)
    assert versions(tmp_path) == {f"{client}.r0" for client in clients[1:]} | {"1.r2", "1.r3"}
    assert len(list((tmp_path / "state").iterdir())) == 3  # a folder a thousand clients
    for client in clients[1:]:
        assert torch.equal(here.load(client, 0)["residual"], torch.full((10,), float(client)))


def test_bytes_move_from_store_to_store(tmp_path: Path) -> None:
    first = store(tmp_path / "a")
    first.save(5, 2, residual(7), started_from=-1)
    second = store(tmp_path / "b")
    second.write(5, 2, first.read(5, 2))
    assert torch.equal(second.load(5, 2)["residual"], torch.full((10,), 7.0))
    assert second.read(5, 2).tobytes() == pack_state(residual(7), BufferPool()).tobytes()


def test_a_version_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"state of client 3 after round 7: cannot read .*3\.r7") as caught:
        store(tmp_path).load(3, 7)
    assert caught.value.exit_status == 6


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "other"])
def test_a_damaged_file(tmp_path: Path, damage: str) -> None:
    here = store(tmp_path)
    here.save(3, 0, residual(1), started_from=-1)
    (path,) = (tmp_path / "state").rglob("3.r0")
    raw = bytearray(path.read_bytes())
    if damage == "flip":
        raw[-70] ^= 1
    path.write_bytes({"flip": bytes(raw), "cut": bytes(raw[:100]), "empty": b"", "other": b"#!/bin/sh\n" * 9}[damage])
    with pytest.raises(OutputError, match=r"3\.r0"):
        here.load(3, 0)


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    here = ClientStateStore(tmp_path / "file" / "x", BufferPool())
    with pytest.raises(OutputError, match=r"state of client 3: cannot write .*file/x/.*3\.r0") as caught:
        here.save(3, 0, residual(1), started_from=-1)
    assert caught.value.exit_status == 6


def test_the_folder_is_made_on_the_first_write(tmp_path: Path) -> None:
    here = store(tmp_path)
    assert not (tmp_path / "state").exists()
    assert not here.has(3, 0)
    here.close()  # nothing to remove
    here.save(3, 0, residual(1), started_from=-1)
    assert here.has(3, 0)


def test_a_version_that_cannot_be_written(tmp_path: Path) -> None:
    here = store(tmp_path)
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "000000").write_text("in the way")
    with pytest.raises(OutputError, match=r"state of client 3: cannot write .*3\.r0"):
        here.save(3, 0, residual(1), started_from=-1)


def test_close_removes_the_folder(tmp_path: Path) -> None:
    here = store(tmp_path)
    here.save(3, 0, residual(1), started_from=-1)
    here.close()
    assert not (tmp_path / "state").exists()
    here.close()


def test_the_folder_of_a_rank(tmp_path: Path) -> None:
    assert state_folder(tmp_path / "s{rank}" / "x", 7, "abc") == tmp_path / "s7" / "x" / "fedmpi-abc"
    assert state_folder(None, 7, "abc").name == "fedmpi-abc"
    assert state_folder(Path("relative"), 0, "t").is_absolute()


# The parent forks a writer and kills it at a random time or, every other one, as soon as it sees a file being written,
# which on busy cores no random time may meet; and says which were. It forks, because importing torch takes a second.
WRITER = """
import os, random, signal, sys, time
from pathlib import Path
import torch
from fedmpi.engine.clientstate import ClientStateStore
from fedmpi.wire.buffers import BufferPool

folder, seed = Path(sys.argv[1]), int(sys.argv[2])
rng, torn = random.Random(seed), []
for trial in range(200):
    ready, tell = os.pipe()
    child = os.fork()
    if child == 0:
        store = ClientStateStore(folder / str(trial) / "state", BufferPool())
        tensor = torch.zeros(500_000)
        for round_idx in range(10**6):
            state = {"residual": tensor.fill_(round_idx), "round": round_idx}
            store.save(7, round_idx, state, started_from=round_idx - 1)
            if round_idx == 1:
                os.write(tell, b"x")
    os.read(ready, 1)
    end = time.monotonic() + rng.uniform(0, 0.03)
    if trial % 2:
        end += 1
    while time.monotonic() < end and not (trial % 2 and any((folder / str(trial)).rglob(".7.r*"))):
        time.sleep(0 if trial % 2 else 1e-3)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(ready), os.close(tell)
    torn += [any((folder / str(trial)).rglob(".7.r*"))]
    if trial >= 9 and sum(torn) >= 2:  # at least two came in the middle of a write
        break
print(*map(int, torn))
"""


def test_a_kill_never_tears_a_version(tmp_path: Path) -> None:
    seed = random.SystemRandom().randrange(2**32)
    args = [sys.executable, "-c", WRITER, str(tmp_path), str(seed)]
    done = subprocess.run(args, capture_output=True, text=True, timeout=120, check=True)
    torn = done.stdout.split()
    assert len(torn) >= 10
    assert torn.count("1") >= 2  # kills did come in the middle of a write
    for trial in range(len(torn)):
        folder = tmp_path / str(trial)
        here = store(folder)
        rounds = sorted(int(name.removeprefix("7.r")) for name in versions(folder) if name.startswith("7.r"))
        newest = rounds[-1]
        assert newest >= 1
        assert {newest - 1, newest} <= set(rounds)  # the newest, and the one that it started from
        assert len(rounds) <= 3
        for round_idx in rounds:
            state = here.load(7, round_idx)
            assert state["round"] == round_idx
            tensor = state["residual"]
            assert isinstance(tensor, torch.Tensor)
            assert np.all(tensor.numpy() == np.float32(round_idx))
        here.save(7, newest + 1, residual(1), started_from=newest)  # and the next turn goes on from there
        assert here.has(7, newest)
        assert not here.has(7, newest - 1)

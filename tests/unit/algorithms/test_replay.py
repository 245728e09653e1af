"""The replay buffer: the bytes that came, in memory and in files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fedmpi.algorithms.replay import ReplayBuffer, Upload, check_folder
from fedmpi.errors import ConfigError, OutputError, ProtocolError


def upload(seed: int, *lengths: int) -> Upload:
    rng = np.random.default_rng(seed)
    return Upload.of([rng.integers(0, 256, length, np.uint8) for length in lengths or (10, 0, 30)])


def test_frames_come_back_apart() -> None:
    frames = [np.arange(5, dtype=np.uint8), np.zeros(0, np.uint8), np.full(3, 7, np.uint8)]
    found = Upload.of(frames).split()
    assert [frame.tolist() for frame in found] == [frame.tolist() for frame in frames]


@pytest.mark.parametrize("memory_nbytes", [0, 50, 10_000])
def test_an_upload_comes_back_and_takes_the_place_of_the_last(tmp_path: Path, memory_nbytes: int) -> None:
    buffer = ReplayBuffer(memory_nbytes, folder=tmp_path)
    for client in (5, 2, 9):
        buffer.put(client, upload(client))
    assert buffer.clients() == [2, 5, 9] and len(buffer) == 3 and buffer.nbytes == 120
    assert buffer.in_memory_nbytes == min(120, memory_nbytes // 40 * 40)
    for client in (5, 2, 9):
        assert buffer.get(client).frames.tobytes() == upload(client).frames.tobytes()
        assert buffer.get(client).lengths.tolist() == [10, 0, 30]
    buffer.put(5, upload(50, 7))
    assert buffer.get(5).digest == upload(50, 7).digest and buffer.nbytes == 87
    buffer.close()
    assert list(tmp_path.iterdir()) == []


def test_what_has_changed_since_is_refused(tmp_path: Path) -> None:
    buffer = ReplayBuffer(0, folder=tmp_path)
    buffer.put(1, upload(1))
    (file,) = tmp_path.glob("*/1.frames")
    raw = bytearray(file.read_bytes())
    raw[3] ^= 1
    file.write_bytes(raw)
    with pytest.raises(ProtocolError, match=r"client 1 have hash [0-9a-f]{16}, [0-9a-f]{16} were kept"):
        buffer.get(1)


def test_a_limit_drops_the_oldest_upload_and_must_hold_one() -> None:
    buffer = ReplayBuffer(1000, 100)
    for client in (5, 2, 9):
        buffer.put(client, upload(client))
    assert buffer.clients() == [2, 9] and buffer.nbytes == 80
    with pytest.raises(ConfigError, match="which is 101 bytes, got 100"):
        buffer.put(1, upload(1, 101))
    assert buffer.clients() == [2, 9]


def test_files_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    buffer = ReplayBuffer(0, folder=tmp_path / "file")
    with pytest.raises(OutputError, match=r"the replay buffer cannot be written to .*file"):
        buffer.put(1, upload(1))
    assert (tmp_path / "file").read_text() == "mine"


def test_a_folder_is_known_to_be_of_use_before_anything_is_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    check_folder(tmp_path)
    check_folder(tmp_path / "new" / "folder")
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]
    impossible = [tmp_path / "file" / "in" / "it", Path("/proc/fedmpi"), tmp_path / ("long" * 100)]
    for folder in impossible:
        words = rf"the replay buffer cannot be written to {folder}: [A-Z][a-z ]+; name another algorithm\.replay_dir$"
        with pytest.raises(OutputError, match=words):
            check_folder(folder)
        with pytest.raises(OutputError, match=words):
            ReplayBuffer(0, folder=folder).put(1, upload(1))


def test_the_folder_for_files_is_made_when_there_is_one_to_write(tmp_path: Path) -> None:
    buffer = ReplayBuffer(0, folder=tmp_path / "new" / "folder")
    assert not (tmp_path / "new").exists()
    buffer.put(1, upload(1))
    assert list((tmp_path / "new" / "folder").glob("fedmpi-replay-*/1.frames"))
    buffer.close()
    assert not list((tmp_path / "new" / "folder").iterdir())

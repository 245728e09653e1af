"""The replay buffer: what clients have sent, byte for byte as it came, to be trained on again."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xxhash

from fedmpi.errors import ConfigError, OutputError, ProtocolError


@dataclass(frozen=True)
class Upload:
    """The frames of one client's turn.

    Parameters
    ----------
    frames : numpy.ndarray, shape (nbytes,), uint8
        One after the other, as they were received.
    lengths : numpy.ndarray, shape (num_frames,), int64
        Bytes of each.
    """

    frames: np.ndarray
    lengths: np.ndarray

    @classmethod
    def of(cls, frames: list[np.ndarray]) -> Upload:
        """Copy frames one after the other."""
        return cls(np.concatenate(frames), np.array([frame.size for frame in frames], np.int64))

    def split(self) -> list[np.ndarray]:
        """Return the frames, as views."""
        return np.split(self.frames, np.cumsum(self.lengths)[:-1])

    @property
    def digest(self) -> int:
        """A 64-bit hash of all bytes."""
        return xxhash.xxh3_64_intdigest(self.frames.data)


@dataclass(frozen=True)
class _Kept:
    lengths: np.ndarray
    digest: int
    frames: np.ndarray | None
    """In memory; None if they are in the client's file."""


class ReplayBuffer:
    """The newest upload of each client, in memory up to a limit and beyond it in files.

    Parameters
    ----------
    memory_nbytes : int
        Bytes of frames to keep in memory.
    limit_nbytes : int, optional
        Bytes of frames to keep at all.
    folder : Path, optional
        Where a folder for the files is made, once there is one to write, and which is made too if it is not there; the
        system's temporary folder by default.
    """

    def __init__(self, memory_nbytes: int, limit_nbytes: int | None = None, folder: Path | None = None) -> None:
        self._memory_nbytes = memory_nbytes
        self._limit_nbytes = limit_nbytes
        self._parent = folder
        self._folder: Path | None = None
        self._kept: dict[int, _Kept] = {}
        self.nbytes = 0
        """Bytes of all frames."""
        self.in_memory_nbytes = 0
        """Bytes of those in memory."""

    def __len__(self) -> int:
        return len(self._kept)

    def clients(self) -> list[int]:
        """Return whose uploads are here, in ascending order."""
        return sorted(self._kept)

    def by_age(self) -> list[int]:
        """Return whose uploads are here, the oldest first."""
        return list(self._kept)

    def put(self, client_id: int, upload: Upload) -> None:
        """Keep an upload in place of the client's last.

        Raises
        ------
        ConfigError
            If it alone is more than the buffer may hold.
        OutputError
            If it cannot be written to its file.
        """
        nbytes = upload.frames.size
        limit = self._limit_nbytes
        if limit is not None and nbytes > limit:
            raise ConfigError(
                f"algorithm.replay_nbytes must hold one client's upload at least, which is {nbytes} bytes, got {limit}"
            )
        self.drop(client_id)
        while limit is not None and self.nbytes + nbytes > limit:
            self.drop(next(iter(self._kept)))  # the oldest upload
        frames: np.ndarray | None = upload.frames
        if self.in_memory_nbytes + nbytes > self._memory_nbytes:
            self._write(client_id, upload.frames)
            frames = None
        else:
            self.in_memory_nbytes += nbytes
        self._kept[client_id] = _Kept(upload.lengths, upload.digest, frames)
        self.nbytes += nbytes

    def get(self, client_id: int) -> Upload:
        """Return the client's newest upload, from a file as a memory map.

        Raises
        ------
        ProtocolError
            If its bytes are not those that were kept.
        """
        kept = self._kept[client_id]
        frames = kept.frames if kept.frames is not None else np.memmap(self._path(client_id), np.uint8, mode="c")
        upload = Upload(np.asarray(frames), kept.lengths)
        if upload.digest != kept.digest:
            raise ProtocolError(
                f"the replay buffer's bytes of client {client_id} have hash {upload.digest:016x}, {kept.digest:016x} "
                "were kept: memory or disk has changed them"
            )
        return upload

    def drop(self, client_id: int) -> None:
        """Forget a client's upload, if there is one."""
        kept = self._kept.pop(client_id, None)
        if kept is None:
            return
        nbytes = int(kept.lengths.sum())
        self.nbytes -= nbytes
        if kept.frames is not None:
            self.in_memory_nbytes -= nbytes
        else:
            self._path(client_id).unlink(missing_ok=True)

    def close(self) -> None:
        """Remove the files, and forget what was in them."""
        for client_id in [client for client, kept in self._kept.items() if kept.frames is None]:
            self.drop(client_id)
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def _path(self, client_id: int) -> Path:
        assert self._folder is not None
        return self._folder / f"{client_id}.frames"

    def _write(self, client_id: int, frames: np.ndarray) -> None:
        try:
            if self._folder is None:
                if self._parent is not None:
                    self._parent.mkdir(parents=True, exist_ok=True)
                self._folder = Path(tempfile.mkdtemp(prefix="fedmpi-replay-", dir=self._parent))
            frames.tofile(self._path(client_id))
        except OSError as error:
            raise _unwritable(self._folder or self._parent, error) from error


def check_folder(folder: Path) -> None:
    """Raise `OutputError` if a folder for the files of a buffer cannot be made or written; nothing is made."""
    there = folder.absolute()
    try:
        while not there.exists():
            there = there.parent
        # Asking the file system beats asking about permissions, which root always has.
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise _unwritable(folder, error) from error


def _unwritable(folder: Path | None, error: OSError) -> OutputError:
    return OutputError(
        f"the replay buffer cannot be written to {folder or tempfile.gettempdir()}: {error.strerror}; name another "
        "algorithm.replay_dir"
    )

"""What clients keep from round to round: files of a node-local folder, each version written once and never changed."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from torch import Tensor

from fedmpi.engine.statefile import pack_state, unpack_state
from fedmpi.errors import OutputError
from fedmpi.wire.buffers import BufferPool


class ClientStateStore:
    """Versions of client state in one folder; any rank that sees the folder can play the client.

    A version ``CLIENT.rROUND`` is written beside its place and renamed into it, so that a kill leaves the old version
    or the new, never a torn one. The version that a client's turn started from stays until the next turn has one
    newer than it to start from.

    Parameters
    ----------
    folder : Path
    pool : BufferPool
        For packing.
    """

    def __init__(self, folder: Path, pool: BufferPool) -> None:
        self.folder = folder
        self._pool = pool

    def _path(self, client_id: int, round_idx: int) -> Path:
        # A folder holds a thousand clients: some file systems slow down beyond.
        return self.folder / f"{client_id // 1000:06d}" / f"{client_id}.r{round_idx}"

    def has(self, client_id: int, round_idx: int) -> bool:
        """Return whether this version is here."""
        return self._path(client_id, round_idx).exists()

    def read(self, client_id: int, round_idx: int) -> np.ndarray:
        """Return a version's bytes, memory-mapped.

        Raises
        ------
        OutputError
            If it is not there.
        """
        path = self._path(client_id, round_idx)
        try:
            return np.memmap(path, np.uint8, mode="c").view(np.ndarray)
        except (OSError, ValueError) as error:
            raise OutputError(
                f"state of client {client_id} after round {round_idx}: cannot read {path}: {error}"
            ) from error

    def load(self, client_id: int, round_idx: int) -> dict[str, Tensor | int | float | str]:
        """Return a version; its tensors are memory-mapped, and what is written to them stays in this process."""
        return unpack_state(self.read(client_id, round_idx), str(self._path(client_id, round_idx)))

    def save(self, client_id: int, round_idx: int, state: Mapping[str, Tensor], *, started_from: int) -> None:
        """Write a version, then drop those older than the one it `started_from` (-1: it was the first)."""
        self.write(client_id, round_idx, pack_state(state, self._pool))
        prefix = f"{client_id}.r"
        for path in self._path(client_id, round_idx).parent.glob(f"{prefix}*"):
            version = path.name.removeprefix(prefix)
            if version.isdigit() and int(version) < started_from:
                path.unlink(missing_ok=True)

    def write(self, client_id: int, round_idx: int, body: np.ndarray) -> None:
        """Write a version from its packed bytes.

        Raises
        ------
        OutputError
            If the folder does not take it.
        """
        path = self._path(client_id, round_idx)
        beside = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(beside, "wb") as file:
                file.write(body.data)
            os.replace(beside, path)
        except OSError as error:
            with contextlib.suppress(OSError):
                beside.unlink(missing_ok=True)
            raise OutputError(f"state of client {client_id}: cannot write {path}: {error}") from error

    def close(self) -> None:
        """Remove the folder; the ranks that share it all have come to the end of the run."""
        shutil.rmtree(self.folder, ignore_errors=True)


def state_folder(template: Path | None, rank: int, token: str) -> Path:
    """Return the folder that a rank keeps this run's client state in.

    Parameters
    ----------
    template : Path or None
        ``placement.state_dir``; ``{rank}`` in it is replaced. None is the system's temporary folder.
    rank : int
    token : str
        The run's own name.
    """
    parent = tempfile.gettempdir() if template is None else str(template).replace("{rank}", str(rank))
    return Path(parent).absolute() / f"fedmpi-{token}"

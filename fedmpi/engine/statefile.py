"""Tensors and plain numbers as one checked block of bytes: a half's state on its way, a client's state on disk.

Layout: magic, 64-bit length of a JSON table, XXH3-64 of these two and of all that follows it, the table, then each
tensor's bytes at a multiple of 64. No pickle: a table of names, dtypes, shapes and offsets says it all.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping

import numpy as np
import torch
import xxhash
from torch import Tensor

from fedmpi.errors import OutputError
from fedmpi.wire.buffers import BufferPool

_HEAD = struct.Struct("<8sQQ")
_CHECKED_HEAD_NBYTES = 16
_MAGIC = b"fedmpiS1"
_ALIGN = 64


def pack_state(state: Mapping[str, Tensor | int | float | str], pool: BufferPool) -> np.ndarray:
    """Return a state as (nbytes,) uint8."""
    table: dict[str, object] = {}
    arrays: list[tuple[int, np.ndarray]] = []
    size = 0
    for name, value in state.items():
        if isinstance(value, Tensor):
            array = value.detach().cpu().contiguous().numpy()
            table[name] = [str(array.dtype), list(array.shape), size]
            arrays.append((size, array.reshape(-1).view(np.uint8)))
            size += array.nbytes + -array.nbytes % _ALIGN
        else:
            table[name] = value
    text = json.dumps(table).encode()
    start = _HEAD.size + len(text)
    start += -start % _ALIGN
    body = pool.lease(start + size)
    body[:] = 0
    body[_HEAD.size : _HEAD.size + len(text)] = np.frombuffer(text, np.uint8)
    for offset, array in arrays:
        body[start + offset : start + offset + array.size] = array
    body[: _HEAD.size] = np.frombuffer(_HEAD.pack(_MAGIC, len(text), 0), np.uint8)
    body[_CHECKED_HEAD_NBYTES : _HEAD.size] = np.frombuffer(struct.pack("<Q", _checksum(body)), np.uint8)
    return body


def _checksum(body: np.ndarray) -> int:
    digest = xxhash.xxh3_64(body[:_CHECKED_HEAD_NBYTES].data)
    digest.update(body[_HEAD.size :].data)
    return digest.intdigest()


def unpack_state(body: np.ndarray, source: str) -> dict[str, Tensor | int | float | str]:
    """Read a packed state; tensors are views of `body`.

    Raises
    ------
    OutputError
        Naming `source`, if the bytes are not a whole, unchanged state.
    """
    if body.size < _HEAD.size:
        raise OutputError(f"{source}: a state has at least {_HEAD.size} bytes, got {body.size}")
    magic, text_nbytes, checksum = _HEAD.unpack(body[: _HEAD.size].tobytes())
    if magic != _MAGIC:
        raise OutputError(f"{source}: not a state of this version, it begins with {magic!r}")
    found = _checksum(body)
    if found != checksum:
        raise OutputError(f"{source}: its checksum is {checksum:016x}, its content has {found:016x}: it is damaged")
    table = json.loads(body[_HEAD.size : _HEAD.size + text_nbytes].tobytes())
    start = _HEAD.size + text_nbytes
    start += -start % _ALIGN
    state: dict[str, Tensor | int | float | str] = {}
    for name, entry in table.items():
        if isinstance(entry, list):
            dtype, shape, offset = entry
            array = body[start + offset : start + offset + int(np.prod(shape)) * np.dtype(dtype).itemsize]
            state[name] = torch.from_numpy(array.view(dtype).reshape(shape))
        else:
            state[name] = entry
    return state

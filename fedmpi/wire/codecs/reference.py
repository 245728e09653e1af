"""How a section names what it was coded against: the version as a varint, then the checksum in 4 bytes."""

from __future__ import annotations

import numpy as np

from fedmpi.errors import WireError
from fedmpi.wire.codecs.numbers import put_varint, take_varint
from fedmpi.wire.known import MAX_VERSION, Known, R, Reference

_CHECKSUM_NBYTES = 4


def put_reference(reference: Reference) -> np.ndarray:
    """Return the bytes that name a version of what both ends hold, (5 to 9,) uint8."""
    out = bytearray()
    put_varint(reference.version, out)
    out += reference.checksum.to_bytes(_CHECKSUM_NBYTES, "little")
    return np.frombuffer(bytes(out), np.uint8)


def take_reference(
    wanted: type[R], name: str, payload: np.ndarray, known: Known, numel: int, where: str, offset: int
) -> tuple[R, int]:
    """Return what the start of a payload names, and where it ends.

    Raises
    ------
    WireError
        If the bytes are cut off, or it is not held.
    """
    head = payload[: 10 + _CHECKSUM_NBYTES].tobytes()
    version, position = take_varint(head, 0, offset)
    if version > MAX_VERSION:
        raise WireError(f"{where}: {name} version", offset=offset, expected=f"at most {MAX_VERSION}", got=version)
    end = position + _CHECKSUM_NBYTES
    if end > payload.size:
        raise WireError(
            f"{where}: {name} checksum", offset=offset + position, expected="4 bytes", got=payload.size - position
        )
    stated = int.from_bytes(head[position:end], "little")
    return known.find(wanted, name, version, stated, numel=numel, where=where, offset=offset), end

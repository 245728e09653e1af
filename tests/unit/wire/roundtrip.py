"""The one round trip that every codec of every class of values takes, through whole frames."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from fedmpi.wire.buffers import BufferPool
from fedmpi.wire.frame import HEADER_NBYTES, Frame, decode, encode
from fedmpi.wire.known import Reference
from fedmpi.wire.message import Message, Schema
from fedmpi.wire.values import Dense, Value


def assert_same(sent: Any, received: Any, where: str = "message") -> None:
    """Fail unless two values are equal bit for bit: NaN payloads, signs of zeros, dtypes and shapes included."""
    if isinstance(sent, np.ndarray):
        assert isinstance(received, np.ndarray), where
        assert (received.dtype, received.shape) == (sent.dtype, sent.shape), where
        assert received.tobytes() == sent.tobytes(), where
        assert received.flags.writeable, where
    elif isinstance(sent, Reference):
        assert type(received) is type(sent), where
        assert (received.version, received.checksum) == (sent.version, sent.checksum), where
    elif isinstance(sent, Value):
        assert type(received) is type(sent), where
        for field in dataclasses.fields(sent):  # type: ignore[arg-type]
            if field.name in _NOT_SENT.get(type(sent).__name__, ()):
                continue
            if isinstance(getattr(sent, field.name), Reference) and getattr(received, field.name) is None:
                continue  # what a value may be coded against, and was not
            assert_same(getattr(sent, field.name), getattr(received, field.name), f"{where}.{field.name}")
    else:
        assert received == sent, where


_NOT_SENT = {"Dense": ("room", "base")}


def round_trip(message: Message, schema: Schema) -> tuple[Any, Frame]:
    """Send a message through a frame and check all that holds for every codec; return what came and its frame."""
    sent = encode(message, schema, BufferPool())
    received, found = decode(sent.buffer.copy(), (type(message),), schema)
    for field in message.value_fields:
        assert_same(getattr(message, field.name), getattr(received, field.name), field.name)
    for number in message.number_fields:
        assert_same(getattr(message, number.name), getattr(received, number.name), number.name)
    for figure in ("codec", "index_nbytes", "value_nbytes", "payload_nbytes", "header_nbytes", "wire_nbytes"):
        assert getattr(found, figure) == getattr(sent, figure), figure
    assert sent.wire_nbytes == sent.header_nbytes + sent.payload_nbytes
    assert sent.header_nbytes >= HEADER_NBYTES
    assert sent.index_nbytes + sent.value_nbytes <= sent.payload_nbytes
    assert len(sent.codec) <= 32 and sent.codec.isascii()
    assert encode(message, schema, BufferPool()).buffer.tobytes() == sent.buffer.tobytes()
    return received, sent


def awkward(value: Any) -> list[Any]:
    """Return the same value in read-only memory, and in memory with gaps between the numbers."""
    return [_with_arrays(value, change) for change in (_read_only, _strided)]


def _with_arrays(value: Any, change: Any) -> Any:
    replaced: dict[str, Any] = {}
    for field in dataclasses.fields(value):
        item = getattr(value, field.name)
        if isinstance(item, np.ndarray):
            replaced[field.name] = change(item)
        elif isinstance(item, Value):
            replaced[field.name] = _with_arrays(item, change)
    if isinstance(value, Dense):
        replaced["room"] = None
    return dataclasses.replace(value, **replaced)


def _read_only(array: np.ndarray) -> np.ndarray:
    copy = array.copy()
    copy.flags.writeable = False
    return copy


def _strided(array: np.ndarray) -> np.ndarray:
    return np.repeat(array, 2, axis=-1)[..., ::2]


def encodes_alike_or_refuses(message: Message, schema: Schema) -> None:
    """Fail unless awkward memory gives the same bytes, or is refused in words that name the field."""
    (field,) = message.value_fields
    sent = _bytes_or_words(message, schema)
    assert isinstance(sent, bytes)
    for value in awkward(getattr(message, field.name)):
        found = _bytes_or_words(dataclasses.replace(message, **{field.name: value}), schema)  # type: ignore[type-var]
        assert found == sent or f"{type(message).__name__}.{field.name}" in found


def _bytes_or_words(message: Message, schema: Schema) -> Any:
    try:
        return encode(message, schema, BufferPool()).buffer.tobytes()
    except ValueError as error:
        return str(error)

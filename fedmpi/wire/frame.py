"""One message, one frame, one buffer: header, section table, payloads. docs/wire_format.md is the contract."""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np
import xxhash

from fedmpi.errors import WireError
from fedmpi.wire.buffers import BufferPool, lease_in_place
from fedmpi.wire.codecs.base import ABSENT, NAMES, NUMBERS, RAW, format_of
from fedmpi.wire.codecs.numbers import decode_numbers, encode_numbers, put_varint, take_varint
from fedmpi.wire.message import KINDS, Message, Schema
from fedmpi.wire.values import HEADROOM, Dense, Mask, Value

MAGIC = b"FM"
VERSION = 1

# magic, version, flags, kind, sections, body length, layout; the checksum follows.
_HEAD = struct.Struct("<2sBBHHQI")
_CHECKSUM = struct.Struct("<I")
HEADER_NBYTES = _HEAD.size + _CHECKSUM.size


@dataclass(frozen=True)
class Frame:
    """An encoded message.

    Parameters
    ----------
    buffer : numpy.ndarray, shape (wire_nbytes,), uint8
        What is handed to the communicator.
    payload_nbytes : int
        Bytes of the sections' payloads; the rest is header.
    index_nbytes, value_nbytes : int
        Payload bytes that say where and what, for codecs that split so.
    codec : str
        Name of the codec of the largest section.
    """

    buffer: np.ndarray
    payload_nbytes: int
    index_nbytes: int
    value_nbytes: int
    codec: str

    @property
    def wire_nbytes(self) -> int:
        """Length of the buffer."""
        return int(self.buffer.size)

    @property
    def header_nbytes(self) -> int:
        """Header, section table and padding."""
        return self.wire_nbytes - self.payload_nbytes


def _checksum(head: bytes, body: np.ndarray) -> int:
    # XXH3 runs at memory speed; zlib's CRC-32 at 4 GB/s would take longer than sending the bytes.
    digest = xxhash.xxh3_64(head)
    digest.update(body.data)
    return digest.intdigest() & 0xFFFFFFFF


def encode(message: Message, schema: Schema, pool: BufferPool, *, in_place: bool = False) -> Frame:
    """Encode a message.

    The frame is written into a buffer leased from `pool`. With `in_place`, a dense vector with room before it is framed
    where it lies, if it is the last section and no other frame around it is still in use; it must then not change until
    the frame has been sent.

    Raises
    ------
    ValueError
        If a value is not what the message class and the schema declare.
    """
    specs = schema.specs(type(message))
    table = bytearray()
    parts: list[tuple[int, np.ndarray]] = []  # alignment, payload
    index_nbytes = value_nbytes = 0
    codec_name, largest = "numbers", -1
    if message.number_fields:
        fields = message.number_fields
        raw = encode_numbers([getattr(message, f.name) for f in fields], [f.dtype for f in fields])
        table += bytes((NUMBERS, 0))
        put_varint(len(raw), table)
        parts.append((1, np.frombuffer(raw, np.uint8)))
    last: Value | None = None
    last_codec = ABSENT
    for field, spec in zip(message.value_fields, specs, strict=True):
        value = getattr(message, field.name)
        if value is None:
            if not field.optional:
                raise ValueError(f"{spec.where} must be given")
            table += bytes((ABSENT, 0, 0))
            continue
        value_class = field.declared.value_class
        if not isinstance(value, value_class):
            raise ValueError(f"{spec.where} must be a {value_class.__name__}, got {type(value).__name__}")
        form = format_of(value_class)
        section = form.encode(value, spec, schema.wire)
        table += bytes((section.codec_id, section.param))
        put_varint(section.payload.size, table)
        parts.append((form.alignment(section.codec_id, spec), section.payload))
        index_nbytes += section.index_nbytes
        value_nbytes += section.value_nbytes
        if section.payload.size > largest:
            codec_name, largest = section.codec, section.payload.size
        last, last_codec = value, section.codec_id

    position = HEADER_NBYTES + len(table)
    starts = []
    for alignment, payload in parts:
        position += -position % alignment
        starts.append(position)
        position += payload.size
    payload_nbytes = sum(payload.size for _, payload in parts)

    room = last.room if isinstance(last, Dense) and last_codec == RAW else None
    buffer = None
    if in_place and room is not None and starts[-1] <= HEADROOM and parts[-1][1].size == room.size - HEADROOM:
        buffer = lease_in_place(room, HEADROOM - starts[-1])
    framed = buffer is not None
    if buffer is None:
        buffer = pool.lease(position)
    previous = HEADER_NBYTES + len(table)
    buffer[HEADER_NBYTES:previous] = np.frombuffer(table, np.uint8)
    for number, (start, (_, payload)) in enumerate(zip(starts, parts, strict=True)):
        buffer[previous:start] = 0
        previous = start + payload.size
        if not (framed and number == len(parts) - 1):
            buffer[start:previous] = payload
    num_sections = len(message.value_fields) + bool(message.number_fields)
    head = _HEAD.pack(MAGIC, VERSION, 0, message.kind_id, num_sections, position - HEADER_NBYTES, schema.layout_id)
    checksum = _checksum(head, buffer[HEADER_NBYTES:])
    buffer[:HEADER_NBYTES] = np.frombuffer(head + _CHECKSUM.pack(checksum), np.uint8)
    return Frame(buffer, payload_nbytes, index_nbytes, value_nbytes, codec_name)


def decode(buffer: np.ndarray, expected: tuple[type[Message], ...], schema: Schema) -> tuple[Message, Frame]:
    """Decode a frame; return the message, whose dense vectors are views of `buffer`, and the frame's figures.

    Parameters
    ----------
    buffer : numpy.ndarray, shape (wire_nbytes,), uint8
    expected : tuple of message classes
        What may come now. Anything else is an error of the protocol.
    schema : Schema
        The receiver's sizes; the frame may only confirm them.

    Raises
    ------
    WireError
        With the offset, what was expected and what came. Nothing is allocated before sizes and checksum agree.
    """
    if buffer.size < HEADER_NBYTES:
        raise WireError("frame", offset=0, expected=f"at least {HEADER_NBYTES} bytes", got=buffer.size)
    head = buffer[: _HEAD.size].tobytes()
    magic, version, flags, kind_id, num_sections, body_nbytes, layout_id = _HEAD.unpack(head)
    if magic != MAGIC:
        raise WireError("frame magic", offset=0, expected=MAGIC, got=magic)
    if version != VERSION:
        raise WireError("frame version", offset=2, expected=VERSION, got=version)
    if flags:
        raise WireError("frame flags", offset=3, expected=0, got=flags)
    if body_nbytes != buffer.size - HEADER_NBYTES:
        raise WireError("frame body length", offset=8, expected=buffer.size - HEADER_NBYTES, got=body_nbytes)
    (stated,) = _CHECKSUM.unpack(buffer[_HEAD.size : HEADER_NBYTES].tobytes())
    found = _checksum(head, buffer[HEADER_NBYTES:])
    if stated != found:
        raise WireError("frame checksum", offset=_HEAD.size, expected=f"{found:08x}", got=f"{stated:08x}")
    message_class = next((cls for cls in expected if cls.kind_id == kind_id), None)
    if message_class is None:
        other = KINDS.get(kind_id)
        got = f"{other.direction} {other.kind!r}" if other else f"kind number {kind_id}"
        wanted = " or ".join(f"{cls.direction} {cls.kind!r}" for cls in expected)
        raise WireError("message kind", offset=4, expected=wanted, got=got)
    if layout_id != schema.layout_id:
        raise WireError("model layout", offset=16, expected=f"{schema.layout_id:08x}", got=f"{layout_id:08x}")
    return _decode_body(buffer, message_class, num_sections, schema)


def _decode_body(
    buffer: np.ndarray, message_class: type[Message], num_sections: int, schema: Schema
) -> tuple[Message, Frame]:
    name = message_class.__name__
    number_fields, value_fields = message_class.number_fields, message_class.value_fields
    declared = len(value_fields) + bool(number_fields)
    if num_sections != declared:
        raise WireError(f"{name} sections", offset=6, expected=declared, got=num_sections)
    data = buffer.data
    position = HEADER_NBYTES
    rows = []
    for _ in range(num_sections):
        if position + 3 > len(data):
            raise WireError(f"{name} section table", offset=position, expected="3 bytes", got=len(data) - position)
        codec_id, param = data[position], data[position + 1]
        nbytes, end = take_varint(data, position + 2, 0)
        rows.append((position, codec_id, param, nbytes))
        position = end

    fields: dict[str, object] = {}
    known = schema.known
    index_nbytes = value_nbytes = 0
    codec_name, largest = "numbers", -1
    payload_nbytes = sum(nbytes for _, _, _, nbytes in rows)
    if number_fields:
        at, codec_id, param, nbytes = rows.pop(0)
        if codec_id != NUMBERS or param:
            raise WireError(f"{name} numbers", offset=at, expected=f"codec {NUMBERS}, 0", got=f"{codec_id}, {param}")
        if nbytes > len(data) - position:
            raise WireError(f"{name} numbers", offset=at, expected=f"at most {len(data) - position} bytes", got=nbytes)
        dtypes = [f.dtype for f in number_fields]
        numbers = decode_numbers(data[position : position + nbytes], dtypes, position)
        fields.update(zip((f.name for f in number_fields), numbers, strict=True))
        position += nbytes
    for field, spec, (at, codec_id, param, nbytes) in zip(value_fields, schema.specs(message_class), rows, strict=True):
        if codec_id == ABSENT:
            if not field.optional or param or nbytes:
                raise WireError(spec.where, offset=at, expected="a value", got=f"absent, {param}, {nbytes}")
            fields[field.name] = None
            continue
        if codec_id not in NAMES:
            raise WireError(f"{spec.where} codec", offset=at, expected="a known codec", got=codec_id)
        form = format_of(field.declared.value_class)
        start = position + -position % form.alignment(codec_id, spec)
        if nbytes > len(data) - start:
            raise WireError(spec.where, offset=at, expected=f"at most {len(data) - start} bytes", got=nbytes)
        if buffer[position:start].any():
            raise WireError(f"{spec.where} padding", offset=position, expected="zeros", got=bytes(data[position:start]))
        position = start + nbytes
        section = form.decode(codec_id, param, buffer[start:position], spec, known, start)
        fields[field.name] = section.value
        if isinstance(section.value, Mask):
            known = known.with_mask(field.name, section.value.bits)
        index_nbytes += section.index_nbytes
        value_nbytes += section.value_nbytes
        if nbytes > largest:
            codec_name, largest = section.codec, nbytes
    if position != len(data):
        raise WireError(f"{name} body", offset=position, expected="the end", got=f"{len(data) - position} bytes more")
    message = message_class(**fields)
    object.__setattr__(message, "received", buffer)  # messages are frozen
    return message, Frame(buffer, payload_nbytes, index_nbytes, value_nbytes, codec_name)


def message_class_of(buffer: np.ndarray) -> type[Message] | None:
    """Return the message class that a frame's header names, None where no class has that number."""
    if buffer.size < HEADER_NBYTES:
        return None
    return KINDS.get(_HEAD.unpack(buffer[: _HEAD.size].tobytes())[3])

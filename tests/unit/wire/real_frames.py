"""Real frames of every message, taken apart into their sections and put together again."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import xxhash
from messages import GOLDEN, Golden

from fedmpi.wire.buffers import BufferPool
from fedmpi.wire.codecs.base import ABSENT, CHANGE, DELTA, PRIOR, RANKS, FieldSpec, format_of
from fedmpi.wire.codecs.numbers import put_varint, take_varint
from fedmpi.wire.frame import HEADER_NBYTES, encode
from fedmpi.wire.message import Message, Schema
from fedmpi.wire.values import MaskedValues, Sparse, Value

CHECKSUM = slice(20, 24)
REFERENCED = (DELTA, PRIOR, CHANGE, RANKS)
"""Codecs whose payload has a reference, as that of every `MaskedValues`."""


class Section(NamedTuple):
    """A row of the section table and its payload."""

    codec: int
    param: int
    payload: bytes


@dataclass(frozen=True)
class Target:
    """A real frame."""

    name: str
    raw: bytes
    message_class: type[Message]
    schema: Schema
    sections: tuple[Section, ...]

    @property
    def specs(self) -> tuple[FieldSpec | None, ...]:
        """Specs of the sections, None for the one with the numbers."""
        numbers = (None,) * bool(self.message_class.number_fields)
        return (*numbers, *self.schema.specs(self.message_class))

    @property
    def value_classes(self) -> tuple[type[Value] | None, ...]:
        numbers = (None,) * bool(self.message_class.number_fields)
        return (*numbers, *(each.declared.value_class for each in self.message_class.value_fields))

    def reference_at(self, number: int) -> int | None:
        """Return where in a section's payload it names what it was coded against; None if it does not."""
        section, spec, value_class = self.sections[number], self.specs[number], self.value_classes[number]
        if section.codec == ABSENT or not (section.codec in REFERENCED or value_class is MaskedValues):
            return None
        at = 0
        if value_class is Sparse and spec is not None:  # behind n, where it travels, and the length of the positions
            for _ in range(1 + spec.at_most):
                _, at = take_varint(section.payload, at, 0)
        return at


def frame_of(golden: Golden) -> bytes:
    return encode(golden.message, golden.schema, BufferPool()).buffer.tobytes()


def take_apart(raw: bytes, message_class: type[Message], schema: Schema) -> tuple[Section, ...]:
    """Return the sections of a whole frame."""
    position, rows = HEADER_NBYTES, []
    for _ in range(struct.unpack_from("<H", raw, 6)[0]):
        codec, param = raw[position], raw[position + 1]
        nbytes, position = take_varint(raw, position + 2, 0)
        rows.append((codec, param, nbytes))
    specs = (None,) * bool(message_class.number_fields) + schema.specs(message_class)
    fields = (None,) * bool(message_class.number_fields) + message_class.value_fields
    sections = []
    for (codec, param, nbytes), spec, value_field in zip(rows, specs, fields, strict=True):
        if codec != ABSENT and value_field is not None and spec is not None:
            position += -position % format_of(value_field.declared.value_class).alignment(codec, spec)
        sections.append(Section(codec, param, raw[position : position + nbytes]))
        position += nbytes
    return tuple(sections)


def put_together(target: Target, sections: list[Section], lengths: dict[int, bytes] | None = None) -> bytes:
    """Return a frame of these sections, with the header of the target's; `lengths` replaces lengths in the table."""
    out = bytearray(target.raw[:HEADER_NBYTES])
    out[6:8] = struct.pack("<H", len(sections))
    for number, section in enumerate(sections):
        out += bytes((section.codec, section.param))
        if lengths and number in lengths:
            out += lengths[number]
        else:
            put_varint(len(section.payload), out)
    for section, spec, value_class in zip(sections, target.specs, target.value_classes, strict=False):
        if section.codec != ABSENT and value_class is not None and spec is not None:
            out += bytes(-len(out) % format_of(value_class).alignment(section.codec, spec))
        out += section.payload
    return bytes(out)


def sealed(raw: bytes, *, length: bool = True) -> bytes:
    """Return bytes with the right checksum, and the right body length."""
    head = bytearray(raw[: CHECKSUM.start])
    if length:
        head[8:16] = struct.pack("<Q", len(raw) - HEADER_NBYTES)
    checksum = xxhash.xxh3_64_intdigest(bytes(head) + raw[HEADER_NBYTES:]) & 0xFFFFFFFF
    return bytes(head) + struct.pack("<I", checksum) + raw[HEADER_NBYTES:]


@lru_cache(maxsize=1)
def targets() -> tuple[Target, ...]:
    """Return the frames of all messages, those of equal bytes once."""
    found: dict[bytes, Target] = {}
    for name, golden in GOLDEN.items():
        cls, raw = type(golden.message), frame_of(golden)
        found.setdefault(raw, Target(name, raw, cls, golden.schema, take_apart(raw, cls, golden.schema)))
    for target in found.values():
        assert sealed(put_together(target, list(target.sections))) == target.raw, target.name
    return tuple(found.values())

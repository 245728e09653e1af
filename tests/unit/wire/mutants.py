"""Ways to break frames: a mutant follows from a source of randomness alone.

Each mutation takes that source and a real frame, and returns bytes whose length and checksum are not set yet.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import zstandard
from real_frames import Section, Target, put_together, sealed, targets

from fedmpi.errors import WireError
from fedmpi.wire.codecs.base import (
    ABSENT,
    BYTE_RANS,
    CHANGE,
    CODECS,
    GAP_RANS,
    NUMBERS,
    PLANES,
    RAW,
    ZSTD,
)
from fedmpi.wire.codecs.bitpack import pack
from fedmpi.wire.codecs.change import _p12_of_bits
from fedmpi.wire.codecs.numbers import put_varint, take_varint
from fedmpi.wire.codecs.rans import encode_bits, encode_symbols
from fedmpi.wire.codecs.reference import put_reference
from fedmpi.wire.codecs.set_tables import GAP_SYMBOLS, SET_SCALE_BITS, byte_table, gap_shift, gap_table
from fedmpi.wire.frame import HEADER_NBYTES
from fedmpi.wire.known import KnownMask
from fedmpi.wire.values import Dense, Mask, MaskedValues, Sparse, storage

Mutation = Callable[[random.Random, Target], bytes]

BYTES = (0, 1, 2, 0x0F, 0x10, 0x7F, 0x80, 0xFE, 0xFF)
NUMBERS_TO_TRY = (0, 1, 2, 255, 256, 2**16, 2**31, 2**32 - 1, 2**32, 2**53, 2**62, 2**63 - 1, 2**63, 2**64 - 1)
NOT_VARINTS = (b"\x80\x00", b"\xff" * 9 + b"\x02", b"\xff" * 10, b"\xff" * 11 + b"\x01", b"\x80", b"")


def varint(number: int) -> bytes:
    out = bytearray()
    put_varint(number, out)
    return bytes(out)


def some_number(rng: random.Random, around: int) -> int:
    return max(0, rng.choice([*NUMBERS_TO_TRY, around - 1, around, around + 1, 2 * around, 2 * around + 1]))


def some_varint(rng: random.Random, around: int) -> bytes:
    if rng.random() < 0.2:
        return rng.choice(NOT_VARINTS)
    return varint(min(some_number(rng, around), 2**64 - 1))


def some_position(rng: random.Random, raw: bytes | bytearray) -> int:
    """Return a position, most often in the header, the table or near the beginning of the payloads."""
    if rng.random() < 0.5:
        return rng.randrange(len(raw))
    return rng.randrange(min(len(raw), HEADER_NBYTES + 64))


def flip_bits(rng: random.Random, target: Target) -> bytes:
    out = bytearray(target.raw)
    for _ in range(rng.choice((1, 1, 2, 8))):
        out[some_position(rng, out)] ^= 1 << rng.randrange(8)
    return bytes(out)


def set_bytes(rng: random.Random, target: Target) -> bytes:
    out = bytearray(target.raw)
    for _ in range(rng.choice((1, 1, 2, 8))):
        out[some_position(rng, out)] = rng.choice((*BYTES, rng.randrange(256)))
    return bytes(out)


def insert_or_delete(rng: random.Random, target: Target) -> bytes:
    out = bytearray(target.raw)
    at = HEADER_NBYTES + rng.randrange(max(1, len(out) - HEADER_NBYTES))
    if rng.random() < 0.5:
        out[at:at] = rng.randbytes(rng.randrange(1, 9))
    else:
        del out[at : at + rng.randrange(1, 9)]
    return bytes(out)


def truncate(rng: random.Random, target: Target) -> bytes:
    return target.raw[: rng.randrange(len(target.raw))]


def extend(rng: random.Random, target: Target) -> bytes:
    tail = rng.choice((b"\0", b"\xff", bytes(8), target.raw, rng.randbytes(rng.randrange(1, 64))))
    return target.raw + tail


def header(rng: random.Random, target: Target) -> bytes:
    """Change one field of the header; the length stays as it is set here."""
    out = bytearray(target.raw)
    at, nbytes = rng.choice(((0, 2), (2, 1), (3, 1), (4, 2), (6, 2), (8, 8), (16, 4)))
    number = int.from_bytes(out[at : at + nbytes], "little")
    wrong = rng.choice((number ^ 1 << rng.randrange(8 * nbytes), some_number(rng, number), rng.randrange(256)))
    out[at : at + nbytes] = (wrong % 256**nbytes).to_bytes(nbytes, "little")
    return bytes(out)


def _some_section(rng: random.Random, target: Target) -> tuple[list[Section], int]:
    """Return the sections and the number of one, seldom that of the numbers."""
    sections = list(target.sections)
    if not sections:
        return sections, -1
    number = rng.randrange(len(sections))
    if sections[number].codec == NUMBERS and len(sections) > 1 and rng.random() < 0.8:
        number = rng.randrange(1, len(sections))
    return sections, number


def table_length(rng: random.Random, target: Target) -> bytes:
    sections, number = _some_section(rng, target)
    if number < 0:
        return target.raw
    return put_together(target, sections, {number: some_varint(rng, len(sections[number].payload))})


def swap_rows(rng: random.Random, target: Target) -> bytes:
    """Exchange two sections, or only what the table says of them."""
    sections, a = _some_section(rng, target)
    if len(sections) < 2:
        return target.raw
    b = rng.randrange(len(sections))
    one, other = sections[a], sections[b]
    if rng.random() < 0.5:
        sections[a], sections[b] = other, one
    else:
        sections[a] = one._replace(codec=other.codec, param=other.param)
        sections[b] = other._replace(codec=one.codec, param=one.param)
    return put_together(target, sections)


def add_or_drop_row(rng: random.Random, target: Target) -> bytes:
    sections, number = _some_section(rng, target)
    if sections and rng.random() < 0.5:
        del sections[number]
    else:
        sections.insert(rng.randrange(len(sections) + 1), Section(rng.choice((0, 1, 2)), 0, b""))
    return put_together(target, sections)


ALL_IDS = [info.codec_id for info in CODECS]


def codec_byte(rng: random.Random, target: Target) -> bytes:
    sections, number = _some_section(rng, target)
    if number < 0:
        return target.raw
    codec = rng.choice([*ALL_IDS, *ALL_IDS, ABSENT, rng.randrange(256)])
    sections[number] = sections[number]._replace(codec=codec)
    return put_together(target, sections)


def param_byte(rng: random.Random, target: Target) -> bytes:
    sections, number = _some_section(rng, target)
    if number < 0:
        return target.raw
    param = rng.choice(
        [*ALL_IDS, rng.randrange(256), rng.randrange(256), sections[number].param ^ 1 << rng.randrange(8)]
    )
    sections[number] = sections[number]._replace(param=param)
    return put_together(target, sections)


def section_cut(rng: random.Random, target: Target) -> bytes:
    """Shorten or lengthen a payload, and say so in the table."""
    sections, number = _some_section(rng, target)
    if number < 0:
        return target.raw
    payload = sections[number].payload
    if rng.random() < 0.5:
        payload = payload[: rng.randrange(len(payload) + 1)]
    else:
        payload += rng.choice((b"\0", b"\xff", bytes(2), bytes(16), rng.randbytes(rng.randrange(1, 20)), payload))
    sections[number] = sections[number]._replace(payload=payload)
    return put_together(target, sections)


def section_bytes(rng: random.Random, target: Target) -> bytes:
    """Change bytes in one payload, most often in its first ones, where counts, references and tables stand."""
    sections, number = _some_section(rng, target)
    if number < 0 or not sections[number].payload:
        return target.raw
    payload = bytearray(sections[number].payload)
    for _ in range(rng.choice((1, 1, 2, 4))):
        at = rng.randrange(min(len(payload), 40) if rng.random() < 0.7 else len(payload))
        action = rng.randrange(4)
        if action == 0:
            payload[at] ^= 1 << rng.randrange(8)
        elif action == 1:
            payload[at] = rng.choice((*BYTES, rng.randrange(256)))
        elif action == 2:
            payload.insert(at, rng.choice(BYTES))
        elif len(payload) > 1:
            del payload[at]
    sections[number] = sections[number]._replace(payload=bytes(payload))
    return put_together(target, sections)


def leading_count(rng: random.Random, target: Target) -> bytes:
    """Change one of the varints that a payload may begin with."""
    sections, number = _some_section(rng, target)
    if number < 0 or not sections[number].payload:
        return target.raw
    payload, at = sections[number].payload, 0
    try:
        for _ in range(rng.randrange(3)):
            _, at = take_varint(payload, at, 0)
        old, end = take_varint(payload, at, 0)
    except WireError:
        old, at, end = 0, 0, 1
    spec = target.specs[number]
    around = rng.choice((old, spec.numel if spec else old))
    payload = payload[:at] + some_varint(rng, around) + payload[end:]
    sections[number] = sections[number]._replace(payload=payload)
    return put_together(target, sections)


def another_base(rng: random.Random, target: Target) -> bytes:
    """Name another version or checksum of what both ends hold, or another thing that they do hold."""
    sections = list(target.sections)
    having = [number for number in range(len(sections)) if target.reference_at(number) is not None]
    if not having:
        return codec_byte(rng, target)
    number = rng.choice(having)
    payload, start = sections[number].payload, target.reference_at(number)
    assert start is not None
    version, end = take_varint(payload, start, 0)
    checksum = payload[end : end + 4]
    kind = rng.randrange(4)
    if kind == 0:
        named = some_varint(rng, version) + checksum
    elif kind == 1:
        named = varint(version) + (int.from_bytes(checksum, "little") ^ 1 << rng.randrange(32)).to_bytes(4, "little")
    elif kind == 2:
        held = rng.choice(sorted(target.schema.known._held.items(), key=lambda item: item[0]))[1]
        named = varint(held.version) + held.checksum.to_bytes(4, "little")
    else:
        named = payload[start : start + rng.randrange(5)]
    rest = payload[end + 4 :] if kind < 3 else b""
    sections[number] = sections[number]._replace(payload=payload[:start] + named + rest)
    return put_together(target, sections)


def _zeros(nbytes: int, parameters: zstandard.ZstdCompressionParameters) -> bytes:
    """Return so many zeros compressed, which are never in memory at once: this process's own peak is watched."""
    compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj(size=nbytes)
    chunk = bytes(min(nbytes, 1 << 18))
    parts = [compressor.compress(chunk) for _ in range(nbytes // len(chunk))]
    return b"".join([*parts, compressor.compress(chunk[: nbytes % len(chunk)]), compressor.flush()])


@lru_cache(maxsize=1)
def bombs() -> tuple[bytes, ...]:
    """Return zstd frames without magic number that inflate to much, or say that they do."""
    found = []
    for nbytes in (1 << 10, 2500, 1 << 16, 512 << 20):
        for level in (1, 19):
            for stated in (False, True):
                for window_log in (10, 21, 27):
                    parameters = zstandard.ZstdCompressionParameters.from_level(
                        level,
                        format=zstandard.FORMAT_ZSTD1_MAGICLESS,
                        write_content_size=stated,
                        window_log=window_log,
                    )
                    if nbytes > 1 << 20 and (level == 19 or window_log == 10):
                        continue
                    found.append(_zeros(nbytes, parameters))
    # Headers by hand: a frame of 2^62 bytes, a window of 2^41, one block that repeats a byte 2^21 - 1 times.
    found.append(bytes((0b11100000,)) + (2**62).to_bytes(8, "little") + b"\x01\x00\x00")
    found.append(b"\x00\xf8" + b"\x01\x00\x00")
    found.append(b"\x00\x58" + (((1 << 21) - 1) << 3 | 1 << 1 | 1).to_bytes(3, "little") + b"\x00")
    found.append(b"\x20\x00" + b"\x01\x00\x00")
    with_magic = zstandard.ZstdCompressor(level=1).compress(bytes(2500))
    return (*found, with_magic, with_magic[4:], b"\x50\x2a\x4d\x18" + b"\xff\xff\xff\x7f")


def _planes_of(rng: random.Random, width: int) -> bytes:
    """Return byte planes that are bombs, all of them or some."""
    methods, out = 0, b""
    for plane in range(width):
        method = rng.choice((3, 3, 1))
        methods |= method << (2 * plane)
        bomb = rng.choice(bombs())
        out += b"\0" if method == 1 else varint(len(bomb)) + bomb
    return methods.to_bytes(-(-2 * width // 8), "little") + out


def zip_bomb(rng: random.Random, target: Target) -> bytes:
    """Put a bomb where zstd frames can stand: masks, positions, and planes of numbers."""
    sections, number = _some_section(rng, target)
    value_class = target.value_classes[number] if number >= 0 else None
    spec = target.specs[number] if number >= 0 else None
    if value_class is None or spec is None:
        return target.raw
    section, bomb = sections[number], rng.choice(bombs())
    if value_class is Dense:
        count = varint(rng.choice((spec.numel, 1))) if spec.at_most else b""
        section = Section(PLANES, section.param, count + _planes_of(rng, storage(spec.dtype).itemsize))
    elif value_class is Mask:
        section = Section(ZSTD, 0, bomb)
    elif value_class is Sparse:
        head = varint(spec.numel) if spec.at_most else b""
        if rng.random() < 0.5 or not spec.dtype or section.codec == ABSENT:
            section = Section(ZSTD, section.param, head + varint(len(bomb)) + bomb + rng.randbytes(rng.randrange(9)))
        else:
            _, at = take_varint(section.payload, 0, 0) if spec.at_most else (0, 0)
            nbytes, end = take_varint(section.payload, at, 0)
            where = section.payload[: end + nbytes]
            section = Section(section.codec, PLANES, where + _planes_of(rng, storage(spec.dtype).itemsize))
    elif value_class is MaskedValues and spec.dtype and len(section.payload) > 5:
        _, end = take_varint(section.payload, 0, 0)
        payload = section.payload[: end + 4] + _planes_of(rng, storage(spec.dtype).itemsize)
        section = Section(PLANES, 0, payload)
    else:
        section = section._replace(payload=bomb)
    sections[number] = section
    return put_together(target, sections)


def _lying_bytes(rng: random.Random, numel: int) -> tuple[int, bytes]:
    fewer, flipped = rng.randrange(1, numel // 2 + 1), rng.randrange(2)
    freqs = byte_table(numel - fewer if flipped else fewer, numel)
    packed = np.frombuffer(rng.randbytes((numel + 7) // 8), np.uint8)
    return BYTE_RANS, varint(2 * fewer + flipped) + encode_symbols(packed, freqs, SET_SCALE_BITS).tobytes()


def _lying_gaps(rng: random.Random, numel: int) -> tuple[int, bytes]:
    fewer, flipped, extra = rng.randrange(1, min(numel // 2, 2000) + 1), rng.randrange(2), rng.randrange(3)
    shift = gap_shift(fewer, numel)
    symbols = np.frombuffer(rng.randbytes(fewer + extra), np.uint8) % rng.choice((1, 2, 4, GAP_SYMBOLS - 1))
    symbols[rng.randrange(symbols.size) :][:extra] = GAP_SYMBOLS - 1
    low = pack(np.frombuffer(rng.randbytes(fewer * shift), np.uint8) & np.uint8(1), 1).tobytes()
    coded = encode_symbols(symbols, gap_table(fewer, numel, shift), SET_SCALE_BITS).tobytes()
    return GAP_RANS, varint(2 * fewer + flipped) + varint(extra) + low + coded


def _lying_change(rng: random.Random, base: KnownMask) -> tuple[int, bytes]:
    num_kept = int(base.indices.size)
    dropped, grown = rng.randrange(num_kept + 1), rng.randrange(base.array.size - num_kept + 1)
    bits = np.frombuffer(rng.randbytes(base.array.size), np.uint8) & np.uint8(1)
    coded = encode_bits(bits, _p12_of_bits(base, dropped, grown)).tobytes()
    return CHANGE, put_reference(base).tobytes() + varint(dropped) + varint(grown) + coded


def lying_set(rng: random.Random, target: Target) -> bytes:
    """Put a set in place whose rANS payload is in order, while its counts and its content do not agree."""
    sections, number = _some_section(rng, target)
    value_class = target.value_classes[number] if number >= 0 else None
    spec = target.specs[number] if number >= 0 else None
    if value_class not in (Mask, Sparse) or spec is None or spec.numel < 2:
        return section_bytes(rng, target)
    bases = [target.schema.known.get(spec.base, version) for version in target.schema.known.versions(spec.base)]
    base = rng.choice(bases) if bases else None
    if value_class is Mask and isinstance(base, KnownMask) and rng.random() < 0.4:
        codec, payload = _lying_change(rng, base)
    else:
        codec, payload = rng.choice((_lying_bytes, _lying_gaps))(rng, spec.numel)
    if value_class is Sparse:
        head = varint(spec.numel) if spec.at_most else b""
        numbers = rng.randbytes(4 * rng.randrange(9))
        payload = head + varint(len(payload)) + payload + numbers
    sections[number] = Section(codec, RAW if value_class is Sparse else 0, payload)
    return put_together(target, sections)


def splice(rng: random.Random, target: Target) -> bytes:
    """Put another frame's section, or a part of its payload, in place of one, with its codec or the old one."""
    sections, number = _some_section(rng, target)
    other = rng.choice(targets())
    if number < 0 or not other.sections:
        return target.raw
    donor, old = rng.choice(other.sections), sections[number]
    payload = donor.payload
    if rng.random() < 0.4:
        cut, at = rng.randrange(len(payload) + 1), rng.randrange(len(old.payload) + 1)
        payload = old.payload[:at] + payload[cut:]
    sections[number] = rng.choice((donor._replace(payload=payload), old._replace(payload=payload)))
    return put_together(target, sections)


def random_payload(rng: random.Random, target: Target) -> bytes:
    sections, number = _some_section(rng, target)
    if number < 0:
        return target.raw
    old = sections[number]
    length = rng.choice((rng.randrange(64), len(old.payload)))
    payload = rng.choice((rng.randbytes(length), bytes(length), b"\xff" * length))
    kept = rng.randrange(min(len(old.payload), 24) + 1)
    payload = old.payload[:kept] + payload[kept:]
    codec = rng.choice((old.codec, old.codec, rng.choice(ALL_IDS)))
    sections[number] = Section(codec, rng.choice((old.param, old.param, rng.randrange(256))), payload)
    return put_together(target, sections)


def long_payload(rng: random.Random, target: Target) -> bytes:
    """Make one payload far longer than any value needs: what it takes to refuse it must not grow with it."""
    sections, number = _some_section(rng, target)
    if number < 0:
        return target.raw
    old = sections[number]
    length = rng.choice((1 << 16, 1 << 20))
    payload = (
        old.payload[: rng.randrange(len(old.payload) + 1)] + rng.choice((b"\0", b"\x01", b"\x80", b"\xff")) * length
    )
    sections[number] = old._replace(codec=rng.choice((old.codec, old.codec, rng.choice(ALL_IDS))), payload=payload)
    return put_together(target, sections)


def random_body(rng: random.Random, target: Target) -> bytes:
    return target.raw[:HEADER_NBYTES] + rng.randbytes(rng.randrange(200))


def random_bytes(rng: random.Random, target: Target) -> bytes:
    return rng.randbytes(rng.randrange(200))


MUTATIONS: dict[str, tuple[Mutation, int]] = {
    "bit flips": (flip_bits, 8),
    "byte sets": (set_bytes, 8),
    "insertions": (insert_or_delete, 6),
    "truncation": (truncate, 4),
    "extension": (extend, 3),
    "header": (header, 4),
    "table length": (table_length, 6),
    "rows swapped": (swap_rows, 4),
    "rows added": (add_or_drop_row, 2),
    "codec byte": (codec_byte, 8),
    "param byte": (param_byte, 6),
    "section cut": (section_cut, 8),
    "section bytes": (section_bytes, 20),
    "counts": (leading_count, 12),
    "another base": (another_base, 8),
    "zip bomb": (zip_bomb, 6),
    "lying set": (lying_set, 5),
    "splice": (splice, 10),
    "random payload": (random_payload, 10),
    "long payload": (long_payload, 1),
    "random body": (random_body, 1),
    "random bytes": (random_bytes, 1),
}
"""By name: the mutation and how often it is drawn."""

_NAMES = [name for name, (_, weight) in MUTATIONS.items() for _ in range(weight)]
_KEEPS_LENGTH = {"header"}


class Mutant(NamedTuple):
    """Bytes to decode."""

    kind: str
    target: Target
    raw: bytes
    is_sealed: bool

    @property
    def is_unchanged(self) -> bool:
        return self.raw == self.target.raw


def mutate(rng: random.Random) -> Mutant:
    """Draw a mutant."""
    target = rng.choice(targets())
    kind = rng.choice(_NAMES)
    raw = MUTATIONS[kind][0](rng, target)
    seal = rng.random() < 0.5
    if seal and len(raw) >= HEADER_NBYTES:
        raw = sealed(raw, length=kind not in _KEEPS_LENGTH)
    elif raw[:HEADER_NBYTES] == target.raw[:HEADER_NBYTES] and rng.random() < 0.5:
        raw = raw[:8] + struct.pack("<Q", len(raw) - HEADER_NBYTES) + raw[16:]
    return Mutant(kind, target, raw, seal)

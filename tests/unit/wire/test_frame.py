"""Frames: every message comes back, nothing is copied that need not be, and no bytes do harm."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pytest
import torch
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmpi.algorithms.averaging import ModelDown, ModelUp, SeedDown
from fedmpi.errors import ProtocolError, WireError
from fedmpi.wire.buffers import BufferPool
from fedmpi.wire.frame import HEADER_NBYTES, Frame, decode, encode, message_class_of
from fedmpi.wire.message import Message, Schema, dense, message
from fedmpi.wire.values import HEADROOM, Dense

SIZES = (0, 1, 7, 8, 9, 1000)
DTYPES = ("float32", "float64", "float16", "int64", "int32", "uint8")


@message("test-numbers", "up")
class Numbers(Message):
    a: int
    b: float
    c: int


@message("test-optional", "down")
class Optional(Message):
    count: int
    ints: Dense | None = dense("most", dtype="int64", at_most=True)
    bytes_: Dense | None = dense("most", dtype="uint8", at_most=True)
    wide: Dense | None = dense("most", dtype="float64", at_most=True)


@message("test-nothing", "up")
class Nothing(Message):
    pass


@message("test-exact", "up")
class Exact(Message):
    vector: Dense = dense("three")


def vector_class(of_dtype: str) -> type[Message]:
    class Vector(Message):
        count: int
        vector: Dense = dense("most", dtype=of_dtype, at_most=True)

    return message(f"test-{of_dtype}", "up")(Vector)


VECTORS: dict[str, Any] = {dtype: vector_class(dtype) for dtype in DTYPES}
SCHEMA = Schema({"three": 3, "most": 1000, "state": 5, "int_buffers": 2, "params": 4}, 0xDEADBEEF)


def numbers_of(dtype: str, numel: int, seed: int = 0) -> np.ndarray:
    raw = np.random.default_rng(seed).integers(0, 256, numel * np.dtype(dtype).itemsize, np.uint8)
    return raw.view(dtype)  # with NaNs, infinities and subnormals


def framed(array: np.ndarray) -> Dense:
    value = Dense.framed(array.size, str(array.dtype))
    value.array.view(np.uint8)[:] = array.view(np.uint8)
    return value


def sent(msg: Message, schema: Schema = SCHEMA) -> Frame:
    return encode(msg, schema, BufferPool())


def received(buffer: np.ndarray, *expected: type[Message], schema: Schema = SCHEMA) -> Any:
    return decode(buffer, expected, schema)[0]


def same(a: Message, b: Message) -> bool:
    """Return whether two messages of one class hold the same bits."""
    for field in a.number_fields:
        x, y = getattr(a, field.name), getattr(b, field.name)
        if type(x) is not type(y) or (struct.pack("<d", x) != struct.pack("<d", y) if isinstance(x, float) else x != y):
            return False
    pairs = [(getattr(a, field.name), getattr(b, field.name)) for field in a.value_fields]
    return type(a) is type(b) and all(
        (x is None and y is None)
        or (
            x is not None
            and y is not None
            and x.array.dtype == y.array.dtype
            and x.array.tobytes() == y.array.tobytes()
        )
        for x, y in pairs
    )


def check_figures(made: Frame, read: Frame, payload_nbytes: int) -> None:
    assert (made.wire_nbytes, made.payload_nbytes, made.codec) == (read.wire_nbytes, read.payload_nbytes, read.codec)
    assert (made.index_nbytes, made.value_nbytes) == (read.index_nbytes, read.value_nbytes)
    assert made.payload_nbytes == payload_nbytes
    assert made.wire_nbytes == made.buffer.size == made.header_nbytes + made.payload_nbytes
    assert made.header_nbytes >= HEADER_NBYTES


int64s = st.integers(-(2**63), 2**63 - 1)


@given(a=int64s, b=st.floats(width=64), c=int64s)
def test_numbers_round_trip(a: int, b: float, c: int) -> None:
    msg = Numbers(a=a, b=b, c=c)
    frame = sent(msg)
    back, read = decode(frame.buffer, (Numbers,), SCHEMA)
    assert same(msg, back)
    assert frame.codec == "numbers"
    assert frame.header_nbytes == HEADER_NBYTES + 3  # codec, param, a one-byte length; no padding
    check_figures(frame, read, frame.wire_nbytes - HEADER_NBYTES - 3)


def test_a_message_without_fields() -> None:
    frame = sent(Nothing())
    assert frame.wire_nbytes == HEADER_NBYTES
    assert frame.payload_nbytes == 0
    assert isinstance(received(frame.buffer, Nothing), Nothing)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_and_size_both_ways(dtype: str, size: int) -> None:
    array = numbers_of(dtype, size)
    cls, pool = VECTORS[dtype], BufferPool()
    copied = encode(cls(count=3, vector=Dense(array)), SCHEMA, pool)
    assert pool.allocated_nbytes > 0
    assert not np.shares_memory(copied.buffer, array)

    value, pool = framed(array), BufferPool()
    in_place = encode(cls(count=3, vector=value), SCHEMA, pool, in_place=True)
    assert pool.allocated_nbytes == 0
    assert value.room is not None
    assert np.shares_memory(in_place.buffer, value.room)
    assert size == 0 or np.shares_memory(in_place.buffer, value.array)
    assert in_place.buffer.tobytes() == copied.buffer.tobytes()
    assert value.array.tobytes() == array.tobytes()

    back, read = decode(in_place.buffer, (cls,), SCHEMA)
    assert same(cls(count=3, vector=Dense(array)), back)
    assert size == 0 or np.shares_memory(back.vector.array, in_place.buffer)
    for frame in (copied, in_place):
        check_figures(frame, read, array.nbytes + 1)
        assert (frame.index_nbytes, frame.value_nbytes, frame.codec) == (0, array.nbytes, "raw")


arrays = {dtype: st.none() | st.tuples(st.sampled_from(SIZES), st.integers(0, 99), st.booleans()) for dtype in DTYPES}


@given(count=int64s, ints=arrays["int64"], bytes_=arrays["uint8"], wide=arrays["float64"])
@settings(deadline=None)
def test_optional_fields_round_trip(count: int, ints: Any, bytes_: Any, wide: Any) -> None:
    def value(drawn: Any, dtype: str) -> Dense | None:
        if drawn is None:
            return None
        array = numbers_of(dtype, drawn[0], drawn[1])
        return framed(array) if drawn[2] else Dense(array)

    values = {"ints": value(ints, "int64"), "bytes_": value(bytes_, "uint8"), "wide": value(wide, "float64")}
    msg = Optional(count=count, **values)
    pool = BufferPool()
    frame = encode(msg, SCHEMA, pool, in_place=True)
    back, read = decode(frame.buffer, (Optional,), SCHEMA)
    assert same(msg, back)
    present = [v for v in values.values() if v is not None]
    nbytes = sum(v.array.nbytes for v in present)
    check_figures(frame, read, nbytes + frame.payload_nbytes - frame.value_nbytes)
    assert frame.value_nbytes == nbytes
    # Without room, as messages made of copies, the bytes are the same.
    plain = Optional(count=count, **{k: v and Dense(v.array.copy()) for k, v in values.items()})
    assert sent(plain).buffer.tobytes() == frame.buffer.tobytes()
    last = present[-1] if present else None
    if last is not None and last.room is not None and sum(v.array.nbytes for v in present[:-1]) < 100:
        assert pool.allocated_nbytes == 0
        assert np.shares_memory(frame.buffer, last.room)


def test_vectors_start_at_a_multiple_of_their_width() -> None:
    ints, octets, wide = numbers_of("int64", 7), numbers_of("uint8", 9), numbers_of("float64", 8)
    frame = sent(Optional(count=0, ints=Dense(ints), bytes_=Dense(octets), wide=Dense(wide)))
    back = received(frame.buffer, Optional)
    base = frame.buffer.ctypes.data
    for value, width in ((back.ints, 8), (back.wide, 8)):
        assert (value.array.ctypes.data - base) % width == 0
    # Header 24, table 4 * 3, the number 1, padding 3, 56 bytes, 9 bytes, padding 7, 64 bytes.
    assert frame.wire_nbytes == 24 + 12 + 1 + 3 + 56 + 9 + 7 + 64
    assert frame.header_nbytes == 24 + 12 + 3 + 7
    assert not frame.buffer[37:40].any()
    assert not frame.buffer[105:112].any()


def test_a_reused_buffer_leaves_nothing_in_the_padding() -> None:
    pool = BufferPool()
    pool.lease(4000)[:] = 0xFF
    msg = Optional(count=1, ints=Dense(numbers_of("int64", 1)), bytes_=Dense(numbers_of("uint8", 9)),
                   wide=Dense(numbers_of("float64", 1)))  # fmt: skip
    dirty = encode(msg, SCHEMA, pool)
    assert pool.allocated_nbytes == 4096
    assert dirty.buffer.tobytes() == sent(msg).buffer.tobytes()


def test_a_vector_is_framed_in_place_again_and_again() -> None:
    value = framed(numbers_of("float32", 1000))
    pool = BufferPool()
    first = encode(VECTORS["float32"](count=1, vector=value), SCHEMA, pool, in_place=True).buffer.tobytes()
    value.array[:] = 0
    encode(VECTORS["float32"](count=2**40, vector=value), SCHEMA, pool, in_place=True)  # a longer header
    value.array.view(np.uint8)[:] = numbers_of("float32", 1000).view(np.uint8)
    again = encode(VECTORS["float32"](count=1, vector=value), SCHEMA, pool, in_place=True)
    assert again.buffer.tobytes() == first
    assert pool.allocated_nbytes == 0


def test_two_frames_around_one_vector_keep_their_own_numbers() -> None:
    value, pool, cls = framed(numbers_of("float32", 1000)), BufferPool(), VECTORS["float32"]
    first = encode(cls(count=1, vector=value), SCHEMA, pool, in_place=True)
    assert np.shares_memory(first.buffer, value.room)
    second = encode(cls(count=2**40, vector=value), SCHEMA, pool, in_place=True)  # a longer header
    third = encode(cls(count=3, vector=Dense(value.array, value.room)), SCHEMA, pool, in_place=True)
    for frame, count in ((first, 1), (second, 2**40), (third, 3)):
        assert same(cls(count=count, vector=value), received(frame.buffer, cls))
    assert not np.shares_memory(second.buffer, value.room)
    assert not np.shares_memory(third.buffer, value.room)


@pytest.mark.parametrize("kept", ["frame", "view", "tensor"])
def test_a_frame_in_place_is_in_use_as_long_as_a_view_of_it(kept: str) -> None:
    value, pool, cls = framed(numbers_of("float32", 1000)), BufferPool(), VECTORS["float32"]
    frame: Frame | None = encode(cls(count=1, vector=value), SCHEMA, pool, in_place=True)
    assert frame is not None
    holds: Any = {
        "frame": lambda: frame,
        "view": lambda: frame.buffer[5:9].view(np.int32),
        "tensor": lambda: received(frame.buffer, cls).vector.tensor()[3:],
    }[kept]()
    frame = None
    second = encode(cls(count=2, vector=value), SCHEMA, pool, in_place=True)
    assert not np.shares_memory(second.buffer, value.room)
    del holds
    third = encode(cls(count=3, vector=value), SCHEMA, pool, in_place=True)
    assert np.shares_memory(third.buffer, value.room)
    assert received(second.buffer, cls).count == 2
    assert received(third.buffer, cls).count == 3


def test_unless_it_is_framed_in_place_a_vector_may_change_at_once() -> None:
    value, pool, cls = framed(numbers_of("float32", 1000)), BufferPool(), VECTORS["float32"]
    frame = encode(cls(count=1, vector=value), SCHEMA, pool)
    assert not np.shares_memory(frame.buffer, value.room)
    before = frame.buffer.tobytes()
    value.array[:] = 7
    assert frame.buffer.tobytes() == before
    assert received(frame.buffer, cls).vector.array.tobytes() == numbers_of("float32", 1000).tobytes()


def test_a_header_that_does_not_fit_the_room_is_copied() -> None:
    names = {f"n{number:02d}": 2**62 for number in range(40)}
    body = {
        "__annotations__": {**dict.fromkeys(names, int), "vector": Dense},
        "vector": dense(3),
        "__module__": __name__,
    }
    cls: Any = message("test-many", "up")(type("Many", (Message,), body))
    value, pool = framed(numbers_of("float32", 3)), BufferPool()
    msg = cls(**names, vector=value)
    frame = encode(msg, SCHEMA, pool, in_place=True)
    assert frame.wire_nbytes > HEADROOM
    assert not np.shares_memory(frame.buffer, value.room)
    assert same(msg, received(frame.buffer, cls))


def test_a_part_of_a_framed_vector_is_copied() -> None:
    value = framed(numbers_of("float32", 9))
    part = Dense(value.array[:4], value.room)
    pool = BufferPool()
    frame = encode(VECTORS["float32"](count=0, vector=part), SCHEMA, pool, in_place=True)
    assert not np.shares_memory(frame.buffer, value.room)
    assert received(frame.buffer, VECTORS["float32"]).vector.array.tobytes() == value.array[:4].tobytes()


def test_decoded_tensors_are_views_that_keep_the_buffer() -> None:
    pool = BufferPool()
    frame = encode(VECTORS["float32"](count=0, vector=Dense(np.ones(900, np.float32))), SCHEMA, pool)
    address = frame.buffer.ctypes.data
    tensor = received(frame.buffer, VECTORS["float32"]).vector.tensor()
    del frame
    pool.lease(3000)[:] = 0
    assert torch.equal(tensor, torch.ones(900))
    del tensor
    leases = [pool.lease(3000), pool.lease(3000)]
    assert address in [lease.ctypes.data for lease in leases]
    assert pool.allocated_nbytes == 2 * 4096


@pytest.mark.parametrize(
    ("vector", "words"),
    [
        (np.zeros(3, np.float64), "contiguous vector of float32, got float64"),
        (np.zeros(3, ">f4"), "contiguous vector of float32, got >f4"),
        (np.zeros((3, 1), np.float32), r"got float32 \(3, 1\)"),
        (np.zeros(6, np.float32)[::2], "contiguous"),
        (np.zeros(2, np.float32), "expected 3 numbers, got 2"),
        (np.zeros(4, np.float32), "expected 3 numbers, got 4"),
    ],
)
def test_values_that_are_not_what_was_declared(vector: np.ndarray, words: str) -> None:
    with pytest.raises(ValueError, match=r"Exact\.vector.*" + words):
        sent(Exact(vector=Dense(vector)))


def test_a_vector_longer_than_at_most() -> None:
    with pytest.raises(ValueError, match="expected at most 1000 numbers, got 1001"):
        sent(VECTORS["uint8"](count=0, vector=Dense(np.zeros(1001, np.uint8))))


def test_a_value_that_must_be_given() -> None:
    with pytest.raises(ValueError, match=r"Exact\.vector must be given"):
        sent(Exact(vector=None))  # type: ignore[arg-type]


# ---------------------------------------------------------------------------------------------------------------------
# Bytes that are not a frame


def small_frames() -> dict[str, tuple[bytes, type[Message]]]:
    messages = {
        "numbers": Numbers(a=300, b=1.5, c=-7),
        "seed": SeedDown(init_seed=2**31 - 1, state_hash=77),
        "optional": Optional(
            count=5, ints=Dense(numbers_of("int64", 2)), bytes_=None, wide=Dense(numbers_of("float64", 1))
        ),
        "optional, octets": Optional(count=-5, ints=None, bytes_=Dense(numbers_of("uint8", 9)), wide=None),
        "up": ModelUp(
            num_samples=600, int_buffers=Dense(numbers_of("int64", 2)), state=Dense(numbers_of("float32", 5))
        ),
        "down": ModelDown(int_buffers=None, state=Dense(numbers_of("float32", 5))),
        "nothing": Nothing(),
        "half": VECTORS["float16"](count=0, vector=Dense(numbers_of("float16", 3))),
    }
    return {name: (sent(msg).buffer.tobytes(), type(msg)) for name, msg in messages.items()}


FRAMES = small_frames()


def as_buffer(raw: bytes) -> np.ndarray:
    return np.frombuffer(bytearray(raw), np.uint8)


def reseal(raw: bytes, *, length: bool = True) -> bytes:
    """Return bytes with a valid checksum, so that what lies behind it is reached."""
    head = bytearray(raw[:20])
    if length:
        head[8:16] = struct.pack("<Q", len(raw) - 24)
    checksum = xxhash.xxh3_64_intdigest(bytes(head) + raw[24:]) & 0xFFFFFFFF
    return bytes(head) + struct.pack("<I", checksum) + raw[24:]


@pytest.mark.parametrize("name", FRAMES)
def test_the_checksum_is_what_the_contract_says(name: str) -> None:
    raw, _ = FRAMES[name]
    assert reseal(raw) == raw


@pytest.mark.parametrize("name", FRAMES)
def test_every_corrupt_byte_is_noticed(name: str) -> None:
    raw, cls = FRAMES[name]
    assert received(as_buffer(raw), cls) is not None
    for position in range(len(raw)):
        for flip in (1, 2, 4, 8, 16, 32, 64, 128, 255):
            broken = as_buffer(raw)
            broken[position] ^= flip
            with pytest.raises(WireError):
                received(broken, cls)


@pytest.mark.parametrize("name", FRAMES)
def test_every_truncation_and_extension_is_noticed(name: str) -> None:
    raw, cls = FRAMES[name]
    for length in range(len(raw)):
        with pytest.raises(WireError):
            received(as_buffer(raw[:length]), cls)
    for extra in (b"\0", b"\xff", b"\0" * 8, raw):
        with pytest.raises(WireError):
            received(as_buffer(raw + extra), cls)
        with pytest.raises(WireError):
            received(as_buffer(reseal(raw + extra)), cls)
    for length in range(24, len(raw)):
        with pytest.raises(WireError):
            received(as_buffer(reseal(raw[:length])), cls)


def test_another_kind_is_named() -> None:
    raw, _ = FRAMES["seed"]
    with pytest.raises(WireError, match=r"expected up 'model' or down 'model', got down 'seed'") as caught:
        received(as_buffer(raw), ModelUp, ModelDown)
    assert caught.value.offset == 4
    assert caught.value.exit_status == 5
    assert isinstance(caught.value, ProtocolError)
    assert isinstance(received(as_buffer(raw), ModelDown, SeedDown), SeedDown)


def test_a_kind_that_nobody_has() -> None:
    raw = bytearray(FRAMES["seed"][0])
    raw[4:6] = (12345).to_bytes(2, "little")
    with pytest.raises(WireError, match="expected down 'seed', got kind number 12345"):
        received(as_buffer(reseal(bytes(raw))), SeedDown)


def test_another_layout_is_named() -> None:
    with pytest.raises(WireError, match="model layout: at byte 16 expected 00000001, got deadbeef"):
        received(as_buffer(FRAMES["up"][0]), ModelUp, schema=Schema(SCHEMA.sizes, 1))


@pytest.mark.parametrize(
    ("position", "value", "words"),
    [
        (0, 0x58, "frame magic: at byte 0 expected b'FM', got b'XM'"),
        (2, 2, "frame version: at byte 2 expected 1, got 2"),
        (3, 1, "frame flags: at byte 3 expected 0, got 1"),
        (6, 9, "ModelUp sections: at byte 6 expected 3, got 9"),
        (24, 2, "ModelUp numbers: at byte 24 expected codec 1, 0, got 2, 0"),
        (25, 1, "ModelUp numbers: at byte 24 expected codec 1, 0, got 1, 1"),
        (26, 0, "varint: at byte 33 expected another byte, got the end"),
        (26, 127, "ModelUp numbers: at byte 24 expected at most"),
        (27, 250, r"ModelUp.int_buffers codec: at byte 27 expected a known codec, got 250"),
        (27, 1, r"ModelUp.int_buffers codec: at byte 27 expected a known codec, got 1"),
        (27, 0, r"ModelUp.int_buffers: at byte 27 expected a value, got absent, 3, 16"),
        (28, 0, r"ModelUp.int_buffers dtype code: at byte 40 expected 3, got 0"),
        (29, 8, r"ModelUp.int_buffers: at byte 40 expected 2 numbers of int64, got 8 bytes"),
        (29, 15, r"ModelUp.int_buffers: at byte 40 expected 2 numbers of int64, got 15 bytes"),
        (29, 127, r"ModelUp.int_buffers: at byte 27 expected at most"),
        (30, 0, r"ModelUp.state: at byte 30 expected a value, got absent, 0, 20"),
        (32, 24, r"ModelUp.state: at byte 30 expected at most 20 bytes, got 24"),
        (36, 1, r"ModelUp.int_buffers padding: at byte 35 expected zeros, got b'\\x00\\x01"),
    ],
)
def test_refusals_behind_the_checksum(position: int, value: int, words: str) -> None:
    raw = bytearray(FRAMES["up"][0])
    assert raw[position] != value
    raw[position] = value
    with pytest.raises(WireError, match=words):
        received(as_buffer(reseal(bytes(raw))), ModelUp)


def test_a_section_of_nearly_all_the_memory_there_is() -> None:
    """The length is checked against the buffer, so nothing is allocated for it."""
    raw = FRAMES["half"][0]
    length = bytes.fromhex("ffffffffffffffffff01")
    with pytest.raises(WireError, match="expected at most"):
        received(as_buffer(reseal(raw[:29] + length + raw[30:])), VECTORS["float16"])


def test_an_over_long_section_length() -> None:
    raw = FRAMES["half"][0]
    assert raw[29] == 6
    with pytest.raises(WireError, match="the shortest form"):
        received(as_buffer(reseal(raw[:29] + b"\x86\x00" + raw[30:])), VECTORS["float16"])


def harmless(raw: bytes, cls: type[Message]) -> bool:
    """Decode bytes; return whether they were taken. What is taken encodes to the same bytes: it has no second form."""
    try:
        back = received(as_buffer(raw), cls)
    except WireError:
        return False
    assert sent(back).buffer.tobytes() == raw
    return True


names = st.sampled_from(sorted(FRAMES))


@given(name=names, raw=st.binary(max_size=200))
def test_random_bytes(name: str, raw: bytes) -> None:
    assert not harmless(raw, FRAMES[name][1])


@given(name=names, body=st.binary(max_size=60))
@settings(max_examples=300, deadline=None)
def test_random_bodies_under_a_valid_header(name: str, body: bytes) -> None:
    raw, cls = FRAMES[name]
    harmless(reseal(raw[:24] + body), cls)


edits = st.lists(
    st.one_of(
        st.tuples(st.just("set"), st.integers(0, 99), st.integers(0, 255)),
        st.tuples(st.just("insert"), st.integers(0, 99), st.integers(0, 255)),
        st.tuples(st.just("delete"), st.integers(0, 99), st.integers(1, 8)),
        st.tuples(st.just("swap"), st.integers(0, 99), st.integers(0, 99)),
    ),
    min_size=1,
    max_size=4,
)


@given(name=names, reader=st.none() | names, start=st.sampled_from([0, 6, 24]), changes=edits, length=st.booleans())
@settings(max_examples=1000, deadline=None)
def test_mutated_frames_with_a_valid_checksum(
    name: str, reader: str | None, start: int, changes: list[tuple[str, int, int]], length: bool
) -> None:
    """Most mutations fall behind the header, where the sections' own checks must hold."""
    raw, cls = FRAMES[name]
    mutated = bytearray(raw)
    for action, where, what in changes:
        position = min(start + where % max(1, len(mutated) - start), len(mutated) - 1)
        if action == "set":
            mutated[position] = what
        elif action == "insert":
            mutated.insert(position, what)
        elif action == "delete" and len(mutated) - what >= 24:
            del mutated[position : position + what]
        elif action == "swap":
            other = min(start + what % max(1, len(mutated) - start), len(mutated) - 1)
            mutated[position], mutated[other] = mutated[other], mutated[position]
    if len(mutated) >= 24:
        harmless(reseal(bytes(mutated), length=length), FRAMES[reader][1] if reader else cls)
    harmless(bytes(mutated), cls)


@pytest.mark.parametrize("name", FRAMES)
def test_every_byte_set_to_everything_under_a_valid_checksum(name: str) -> None:
    """Every single byte of header and table, exhaustively; some changes of values are taken, none does harm."""
    raw, cls = FRAMES[name]
    taken = 0
    for position in [*range(20), *range(24, min(len(raw), 48))]:
        for value in range(256):
            mutated = bytearray(raw)
            mutated[position] = value
            taken += harmless(reseal(bytes(mutated), length=False), cls)
    assert taken >= min(len(raw), 48) - 4  # the byte's own value, each time; 4 are the checksum


def test_the_class_of_a_frame() -> None:
    for raw, cls in FRAMES.values():
        assert message_class_of(as_buffer(raw)) is cls
    assert message_class_of(as_buffer(b"FM")) is None
    raw = bytearray(FRAMES["seed"][0])
    raw[4:6] = (12345).to_bytes(2, "little")
    assert message_class_of(as_buffer(bytes(raw))) is None

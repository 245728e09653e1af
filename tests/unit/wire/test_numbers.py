"""Varints and the number section: every edge, and one form only for every number."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmpi.errors import WireError
from fedmpi.wire.codecs.numbers import decode_numbers, encode_numbers, put_varint, take_varint


def varint(number: int) -> bytes:
    out = bytearray()
    put_varint(number, out)
    return bytes(out)


@pytest.mark.parametrize(
    ("number", "data"),
    [
        (0, "00"), (1, "01"), (127, "7f"), (128, "8001"), (300, "ac02"), (16383, "ff7f"), (16384, "808001"),
        (2**32, "8080808010"), (2**63 - 1, "ffffffffffffffff7f"), (2**63, "80808080808080808001"),
        (2**64 - 1, "ffffffffffffffffff01"),
    ],
)  # fmt: skip
def test_varints_by_hand(number: int, data: str) -> None:
    assert varint(number).hex() == data
    assert take_varint(bytes.fromhex(data), 0, 0) == (number, len(data) // 2)


@given(number=st.integers(0, 2**64 - 1), before=st.binary(max_size=3), after=st.binary(max_size=3))
def test_varints_round_trip(number: int, before: bytes, after: bytes) -> None:
    data = varint(number)
    assert len(data) == max(1, -(-number.bit_length() // 7))
    assert take_varint(before + data + after, len(before), 99) == (number, len(before) + len(data))


@pytest.mark.parametrize("number", [-1, 2**64])
def test_numbers_that_no_varint_holds(number: int) -> None:
    with pytest.raises(ValueError, match=f"a varint holds 0 to 2\\^64 - 1, got {number}"):
        put_varint(number, bytearray())


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("", "another byte, got the end"),
        ("80", "another byte, got the end"),
        ("ffffffffffffffffff", "another byte, got the end"),
        ("8000", "the shortest form"),
        ("ff00", "the shortest form"),
        ("80808000", "the shortest form"),
        ("80808080808080808000", "the shortest form"),
        ("ffffffffffffffffff02", "the shortest form"),  # 2^64 and more
        ("8080808080808080807f", "the shortest form"),
        ("8080808080808080808001", "at most 10 bytes"),
        ("ffffffffffffffffffff", "at most 10 bytes"),
    ],
)
def test_varints_that_are_refused(data: str, words: str) -> None:
    with pytest.raises(WireError, match=words) as caught:
        take_varint(b"\x07" + bytes.fromhex(data), 1, 30)
    assert caught.value.offset == 31


@given(data=st.binary(max_size=12))
def test_a_varint_has_one_form(data: bytes) -> None:
    try:
        number, end = take_varint(data, 0, 0)
    except WireError:
        return
    assert varint(number) == data[:end]


@pytest.mark.parametrize(
    ("number", "data"),
    [(0, "00"), (-1, "01"), (1, "02"), (-2, "03"), (63, "7e"), (-64, "7f"), (64, "8001"),
     (2**63 - 1, "feffffffffffffffff01"), (-(2**63), "ffffffffffffffffff01")],
)  # fmt: skip
def test_zigzag_by_hand(number: int, data: str) -> None:
    assert encode_numbers([number], ["int"]).hex() == data
    assert decode_numbers(memoryview(bytes.fromhex(data)), ["int"], 0) == [number]


@pytest.mark.parametrize("number", [2**63, -(2**63) - 1, 10**30])
def test_ints_beyond_64_bits(number: int) -> None:
    with pytest.raises(ValueError, match="varint"):
        encode_numbers([number], ["int"])


def test_an_int_field_takes_no_fraction() -> None:
    """Codecs are lossless: 2.5 must be refused, not sent as 2."""
    with pytest.raises((ValueError, TypeError)):
        encode_numbers([2.5], ["int"])


typed = st.lists(
    st.one_of(
        st.tuples(st.just("int"), st.integers(-(2**63), 2**63 - 1)),
        st.tuples(st.just("float64"), st.floats(width=64)),
        st.tuples(st.just("float32"), st.floats(width=32)),
    ),
    max_size=8,
)


@given(fields=typed)
def test_numbers_round_trip(fields: list[tuple[str, float]]) -> None:
    dtypes, numbers = [dtype for dtype, _ in fields], [number for _, number in fields]
    raw = encode_numbers(numbers, dtypes)
    back = decode_numbers(memoryview(raw), dtypes, 0)
    assert [type(number) for number in back] == [int if dtype == "int" else float for dtype in dtypes]
    for number, want, dtype in zip(back, numbers, dtypes, strict=True):
        # Bit for bit: a NaN and a negative zero come back as they were.
        form = {"int": "<q", "float64": "<d", "float32": "<f"}[dtype]
        assert struct.pack(form, number) == struct.pack(form, want)


@pytest.mark.parametrize("number", [0.1, 1e39, -1e300, 2**24 + 1])
def test_a_single_takes_only_what_float32_has(number: float) -> None:
    with pytest.raises(ValueError, match="which float32 does not have: round it first"):
        encode_numbers([number], ["float32"])
    assert len(encode_numbers([0.5, float("inf"), float("nan")], ["float32"] * 3)) == 12


@given(fields=typed, data=st.data())
def test_a_payload_that_is_cut_or_too_long(fields: list[tuple[str, float]], data: st.DataObject) -> None:
    dtypes = [dtype for dtype, _ in fields]
    raw = encode_numbers([number for _, number in fields], dtypes)
    if raw:
        with pytest.raises(WireError):
            decode_numbers(memoryview(raw)[: data.draw(st.integers(0, len(raw) - 1))], dtypes, 0)
    with pytest.raises(WireError) as caught:
        decode_numbers(memoryview(raw + b"\0"), dtypes, 40)
    assert caught.value.offset == 40 + len(raw)


@pytest.mark.parametrize("number", [np.int64(-(2**63)), np.int32(-5), np.uint8(200), np.uint64(2**63 - 1), True])
def test_what_is_an_int_by_another_name(number: object) -> None:
    payload = encode_numbers([number], ["int"])  # type: ignore[list-item]
    assert payload == encode_numbers([int(number)], ["int"])  # type: ignore[call-overload]
    (back,) = decode_numbers(memoryview(payload), ["int"], 0)
    assert (type(back), back) == (int, int(number))  # type: ignore[call-overload]


@pytest.mark.parametrize("number", [1.0, 0.5, np.float32(2), "3", None, float("nan")])
def test_what_is_no_int_is_refused(number: object) -> None:
    with pytest.raises(ValueError, match="a field of ints got "):
        encode_numbers([number], ["int"])  # type: ignore[list-item]

"""Packed symbols: every width, the bit order, lengths and padding."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmpi.errors import WireError
from fedmpi.wire.codecs.bitpack import pack, packed_nbytes, unpack


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 8), st.integers(0, 300), st.integers(0, 2**32))
def test_symbols_come_back(bits: int, count: int, seed: int) -> None:
    symbols = np.random.default_rng(seed).integers(0, 1 << bits, count).astype(np.uint8)
    packed = pack(symbols, bits)
    assert packed.size == packed_nbytes(count, bits) == -(-count * bits // 8)
    assert np.array_equal(unpack(packed, count, bits, "x", 0), symbols)


@pytest.mark.parametrize("bits", range(1, 9))
def test_the_lowest_bit_comes_first(bits: int) -> None:
    symbols = np.random.default_rng(bits).integers(0, 1 << bits, 1001).astype(np.uint8)
    wanted = np.packbits((symbols[:, None] >> np.arange(bits)) & 1, bitorder="little")
    assert np.array_equal(pack(symbols, bits), wanted)


@pytest.mark.parametrize("bits", range(1, 9))
def test_strided_and_read_only_arrays_are_taken(bits: int) -> None:
    symbols = np.ones(100, np.uint8)[::2]
    symbols.flags.writeable = False
    packed = pack(symbols, bits)
    packed.flags.writeable = False
    assert np.array_equal(unpack(packed, 50, bits, "x", 0), symbols)


@pytest.mark.parametrize("bits", range(1, 8))
def test_a_symbol_of_more_bits_is_refused(bits: int) -> None:
    with pytest.raises(ValueError, match=f"in {bits} bits is {1 << bits}"):
        pack(np.array([0, 1 << bits, 1], np.uint8), bits)


@pytest.mark.parametrize("bits", [0, 9])
def test_a_symbol_has_1_to_8_bits(bits: int) -> None:
    with pytest.raises(ValueError, match=f"1 to 8 bits, got {bits}"):
        pack(np.zeros(1, np.uint8), bits)


@pytest.mark.parametrize("bits", range(1, 9))
def test_another_length_is_refused(bits: int) -> None:
    packed = pack(np.zeros(99, np.uint8), bits)
    for bad in (packed[:-1], np.append(packed, np.uint8(0)), packed[:0]):
        with pytest.raises(WireError, match="x packed symbols: at byte 5"):
            unpack(bad, 99, bits, "x", 5)


@pytest.mark.parametrize("bits", range(1, 8))
def test_a_bit_after_the_last_symbol_is_refused(bits: int) -> None:
    packed = pack(np.zeros(1, np.uint8), bits)
    packed[-1] |= 1 << bits
    with pytest.raises(WireError, match="zeros at the end"):
        unpack(packed, 1, bits, "x", 0)

"""Symbols and bits through the four lanes: round trips, sizes, fixed bytes, broken payloads."""

from __future__ import annotations

from collections.abc import Iterator

import constriction
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmpi.errors import WireError
from fedmpi.wire.codecs.rans import (
    MAX_SCALE_BITS,
    STATES_NBYTES,
    decode_bits,
    decode_symbols,
    encode_bits,
    encode_symbols,
    least_nbytes,
)

GOLDEN_SYMBOLS = "002c100000100800004c100000981000"
GOLDEN_BITS = "8b7114008d830000000b0100d0aa0000"


def _freqs(alphabet: int, scale_bits: int, generator: np.random.Generator, power: int = 3) -> np.ndarray:
    weights = generator.exponential(size=alphabet) ** power
    freqs = np.maximum(1, np.floor(weights / weights.sum() * ((1 << scale_bits) - alphabet))).astype(np.int64)
    freqs[freqs.argmax()] += (1 << scale_bits) - freqs.sum()
    return freqs.astype(np.uint32)


def _draw(freqs: np.ndarray, count: int, generator: np.random.Generator) -> np.ndarray:
    return generator.choice(freqs.size, size=count, p=freqs / freqs.sum()).astype(np.uint8)


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 5, 7, 8, 1000, 65537])
@pytest.mark.parametrize(("alphabet", "scale_bits"), [(1, 1), (2, 12), (48, 14), (256, 8), (256, 13), (200, 15)])
def test_symbols_come_back(count: int, alphabet: int, scale_bits: int) -> None:
    generator = np.random.default_rng(count + alphabet)
    freqs = _freqs(alphabet, scale_bits, generator)
    symbols = _draw(freqs, count, generator)
    payload = encode_symbols(symbols, freqs, scale_bits)
    assert payload.dtype == np.uint8 and payload.size <= STATES_NBYTES + 2 * count
    assert payload.size == 0 if count == 0 else payload.size >= STATES_NBYTES
    assert np.array_equal(decode_symbols(payload, count, freqs, scale_bits, "x", 0), symbols)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 256), st.integers(9, MAX_SCALE_BITS), st.integers(1, 400), st.integers(0, 2**32))
def test_any_symbols_of_the_table_come_back(alphabet: int, scale_bits: int, count: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    freqs = _freqs(alphabet, scale_bits, generator, power=6)
    symbols = generator.integers(0, alphabet, count).astype(np.uint8)  # rare symbols as often as others
    payload = encode_symbols(symbols, freqs, scale_bits)
    assert payload.size <= STATES_NBYTES + 2 * count
    assert np.array_equal(decode_symbols(payload, count, freqs, scale_bits, "x", 0), symbols)
    assert least_nbytes(np.bincount(symbols, minlength=alphabet), freqs, scale_bits) <= payload.size


def test_symbols_take_what_another_coder_takes() -> None:
    generator = np.random.default_rng(0)
    freqs = _freqs(256, 13, generator)
    symbols = _draw(freqs, 100_000, generator)
    coder = constriction.stream.stack.AnsCoder()
    model = constriction.stream.model.Categorical(freqs / freqs.sum(), perfect=True)
    coder.encode_reverse(symbols.astype(np.int32), model)
    other = coder.get_compressed().nbytes
    assert encode_symbols(symbols, freqs, 13).size <= 1.01 * other


def test_the_lower_bound_is_close() -> None:
    generator = np.random.default_rng(0)
    freqs = _freqs(256, 13, generator)
    symbols = _draw(freqs, 100_000, generator)
    nbytes = encode_symbols(symbols, freqs, 13).size
    assert 0.99 * nbytes < least_nbytes(np.bincount(symbols, minlength=256), freqs, 13) <= nbytes


def test_the_bytes_of_a_small_payload_never_change() -> None:
    freqs = np.array([4096, 2048, 1024, 1024], np.uint32)
    payload = encode_symbols(np.array([0, 1, 0, 2, 3, 0, 0, 1, 0, 0, 3], np.uint8), freqs, 13)
    assert payload.tobytes().hex() == GOLDEN_SYMBOLS
    bits = np.array([1, 0, 0, 1, 1, 0, 1], np.uint8)
    p12 = np.array([4095, 1, 2048, 3000, 100, 100, 4000], np.uint16)
    assert encode_bits(bits, p12).tobytes().hex() == GOLDEN_BITS


def test_read_only_and_strided_arrays_are_taken() -> None:
    freqs = np.array([3000, 1096], np.uint32)
    symbols = np.zeros(200, np.uint8)[::2]
    freqs.flags.writeable = False
    payload = encode_symbols(symbols, freqs, 12)
    payload.flags.writeable = False
    assert np.array_equal(decode_symbols(payload, 100, freqs, 12, "x", 0), symbols)


def test_a_symbol_without_a_frequency_is_refused() -> None:
    for freqs in (np.array([4096, 0, 0], np.uint32), np.array([4096], np.uint32)):
        for count in (1, 2, 3, 4, 5, 9):
            symbols = np.zeros(count, np.uint8)
            symbols[count // 2] = 1
            with pytest.raises(ValueError, match="frequency 0"):
                encode_symbols(symbols, freqs, 12)


@pytest.mark.parametrize("scale_bits", [0, 11, 13, 16])
def test_a_table_that_does_not_add_up_is_refused(scale_bits: int) -> None:
    with pytest.raises(ValueError, match=r"scale_bits|add up"):
        encode_symbols(np.zeros(1, np.uint8), np.array([4096], np.uint32), scale_bits)


def _beta_bits(count: int, shape: float) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    p12 = np.clip(np.floor(generator.beta(shape, shape, count) * 4096 + 0.5), 1, 4095).astype(np.uint16)
    return (generator.random(count) < p12 / 4096).astype(np.uint8), p12


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 5, 9, 65537])
def test_bits_come_back(count: int) -> None:
    bits, p12 = _beta_bits(count, 0.3)
    assert np.array_equal(decode_bits(encode_bits(bits, p12), p12, "x", 0), bits)
    assert np.array_equal(decode_bits(encode_bits(1 - bits, p12), p12, "x", 0), 1 - bits)


@pytest.mark.parametrize("shape", [1, 0.3, 0.1])
def test_bits_take_their_cross_entropy(shape: float) -> None:
    bits, p12 = _beta_bits(200_000, shape)
    cross_entropy = -np.log2(np.where(bits == 1, p12, 4096 - p12) / 4096).sum() / 8
    assert cross_entropy <= encode_bits(bits, p12).size <= 1.004 * cross_entropy


def test_bits_and_probabilities_out_of_range_are_refused() -> None:
    good = np.ones(5, np.uint8)
    half = np.full(5, 2048, np.uint16)
    for bits, p12 in ((good * 2, half), (good, half * 2), (good, half * 0), (good, half[:4])):
        with pytest.raises(ValueError, match="bit"):
            encode_bits(bits, p12)
    with pytest.raises(ValueError, match="probability"):
        decode_bits(np.zeros(16, np.uint8), half * 0, "x", 0)


def _mutations(payload: np.ndarray, generator: np.random.Generator, rounds: int) -> Iterator[np.ndarray]:
    for turn in range(rounds):
        bad = payload.copy()
        kind = turn % 4
        if kind == 0:
            bad[generator.integers(bad.size)] ^= 1 << generator.integers(8)
        elif kind == 1:
            bad = bad[: generator.integers(bad.size)]
        elif kind == 2:
            bad = np.concatenate([bad, generator.integers(0, 256, generator.integers(1, 9)).astype(np.uint8)])
        else:
            bad = generator.integers(0, 256, generator.integers(0, 2 * payload.size)).astype(np.uint8)
        yield bad


def test_broken_symbols_raise() -> None:
    generator = np.random.default_rng(5)
    freqs = _freqs(48, 14, generator)
    payload = encode_symbols(_draw(freqs, 501, generator), freqs, 14)
    for bad in _mutations(payload, generator, 400):
        with pytest.raises(WireError, match="x rANS payload: at byte 7"):
            decode_symbols(bad, 501, freqs, 14, "x", 7)


def test_broken_bits_raise() -> None:
    generator = np.random.default_rng(5)
    bits, p12 = _beta_bits(503, 1)
    for bad in _mutations(encode_bits(bits, p12), generator, 400):
        with pytest.raises(WireError, match="x rANS payload: at byte 7"):
            decode_bits(bad, p12, "x", 7)


def test_a_payload_for_no_symbols_is_refused() -> None:
    with pytest.raises(WireError, match="no bytes"):
        decode_symbols(np.zeros(16, np.uint8), 0, np.array([2], np.uint32), 1, "x", 0)
    with pytest.raises(WireError, match="no bytes"):
        decode_bits(np.zeros(16, np.uint8), np.zeros(0, np.uint16), "x", 0)


def test_a_long_payload_for_few_symbols_is_refused_unread() -> None:
    with pytest.raises(WireError, match="16 to 18"):
        decode_symbols(np.zeros(1 << 20, np.uint8), 1, np.array([2], np.uint32), 1, "x", 0)

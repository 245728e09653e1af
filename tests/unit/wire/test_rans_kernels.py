"""Steps of a lane: exact division without dividing, a step and its way back, and the bound of what steps take."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmpi.errors import WireError
from fedmpi.wire.codecs.rans import MAX_SCALE_BITS, encode_symbols
from fedmpi.wire.codecs.rans_kernels import LOW, STATES_NBYTES, divider, least_nbits, push, refill, words_of

HIGHEST = (1 << 31) - 1


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 1 << MAX_SCALE_BITS), st.integers(0, HIGHEST))
def test_a_product_and_a_shift_divide_any_state(freq: int, state: int) -> None:
    reciprocal, shift = (int(number) for number in divider(np.uint64(freq)))
    for x in (state, state - state % freq, max(state - state % freq - 1, 0), HIGHEST):
        assert x * reciprocal < 1 << 64
        assert x * reciprocal >> shift == x // freq


@settings(max_examples=200, deadline=None)
@given(st.integers(1, MAX_SCALE_BITS), st.integers(int(LOW), HIGHEST), st.data())
def test_a_step_stays_in_the_range_and_comes_back(scale_bits: int, state: int, data: st.DataObject) -> None:
    total = 1 << scale_bits
    freq = data.draw(st.integers(1, total))
    start = data.draw(st.integers(0, total - freq))
    words = np.zeros(4, np.uint16)
    arguments = (start, freq << (31 - scale_bits), *divider(np.uint64(freq)), total - freq)
    pushed, w = push(np.uint64(state), *map(np.uint64, arguments), words, np.uint64(2))
    pushed = int(pushed)
    assert LOW <= pushed <= HIGHEST and w in (1, 2)
    slot = pushed % total
    assert start <= slot < start + freq
    back, end = refill(np.uint64(freq * (pushed >> scale_bits) + slot - start), words, np.uint64(w))
    assert (back, end) == (state, 2)


@pytest.mark.parametrize("count", [1, 100, 10_000, 1_000_000])
@pytest.mark.parametrize(("alphabet", "power"), [(256, 0), (256, 2), (48, 6)])
def test_the_least_bits_are_a_bound_and_close_to_what_independent_symbols_take(
    count: int, alphabet: int, power: int
) -> None:
    generator = np.random.default_rng(count)
    weights = generator.exponential(size=alphabet) ** power
    freqs = np.maximum(1, np.floor(weights / weights.sum() * ((1 << 14) - alphabet))).astype(np.uint32)
    freqs[freqs.argmax()] += (1 << 14) - freqs.sum()
    symbols = generator.choice(alphabet, size=count, p=freqs / (1 << 14)).astype(np.uint8)
    counts = np.bincount(symbols, minlength=alphabet)
    size = encode_symbols(symbols, freqs, 14).size
    least = STATES_NBYTES + least_nbits(counts, freqs, 14) / 8
    assert least - 1 <= size <= least + 12 + 0.04 * count**0.5 + 0.0005 * size


def test_no_symbols_take_no_bits() -> None:
    assert least_nbits(np.zeros(256, np.int64), np.full(256, 64, np.uint32), 14) == 0


@pytest.mark.parametrize("nbytes", [0, 14, 17, 38])
def test_a_length_that_no_encoder_makes_is_refused(nbytes: int) -> None:
    with pytest.raises(WireError, match="x rANS payload: at byte 5 expected an even number of bytes, 16 to 36"):
        words_of(np.zeros(nbytes, np.uint8), 10, "x", 5)

"""The context coder's payloads: sizes against the entropy and another coder, and every wrong payload refused."""

from __future__ import annotations

import math

import constriction
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmpi.errors import WireError
from fedmpi.wire.codecs.context import decode_in_context, encode_in_context
from fedmpi.wire.codecs.neighbours import NUM_CLASSES, classify, group

ALL_APART = np.ones(NUM_CLASSES, np.uint8)


def encode(symbols: np.ndarray, bits: int, level: int, starts: np.ndarray | None = None) -> np.ndarray:
    flat = symbols.reshape(-1)
    classified = classify(flat, symbols.shape, bits, level)
    return encode_in_context(
        flat, symbols.shape, classified, group(classified.counts).starts if starts is None else starts
    )


def smooth_maps(shape: tuple[int, ...], bits: int, seed: int = 0) -> np.ndarray:
    """Return maps whose symbols are near to their neighbours', as a layer's outputs are, with many zeros."""
    noise = np.random.default_rng(seed).standard_normal(shape)
    for axis in (-1, -2):
        noise = noise + 0.9 * np.roll(noise, 1, axis)
    return np.clip(noise * (1 << bits) / 6, 0, (1 << bits) - 1).astype(np.uint8)


@settings(max_examples=60)
@given(
    shape=st.lists(st.integers(0, 6), min_size=1, max_size=4).map(tuple),
    bits=st.integers(1, 8),
    seed=st.integers(0, 2**32 - 1),
    data=st.data(),
)
def test_symbols_of_any_shape_come_back(shape: tuple[int, ...], bits: int, seed: int, data: st.DataObject) -> None:
    level = data.draw(st.integers(0, (1 << bits) - 1))
    high = data.draw(st.integers(1, 1 << bits))
    symbols = np.random.default_rng(seed).integers(0, high, shape, np.uint8)
    payload = encode(symbols, bits, level)
    back = decode_in_context(payload, shape, bits, level, "it", 0)
    assert back.tolist() == symbols.reshape(-1).tolist() and back.flags.writeable


def test_each_class_may_have_a_table_of_its_own() -> None:
    symbols = smooth_maps((7, 16, 16), 8)
    classified = classify(symbols.reshape(-1), symbols.shape, 8, 0)
    assert classified.counts.any(axis=1).all()
    payload = encode(symbols, 8, 0, ALL_APART)
    assert payload[:2].tolist() == [0xFF, 0x07]
    assert (decode_in_context(payload, symbols.shape, 8, 0, "it", 0) == symbols.reshape(-1)).all()


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_the_size_is_that_of_another_coder_with_the_same_classes(bits: int) -> None:
    symbols = smooth_maps((128, 16, 16), bits)
    classified = classify(symbols.reshape(-1), symbols.shape, bits, 0)
    nbytes = 0
    for number, counts in enumerate(classified.counts):
        some = symbols.reshape(-1)[classified.classes == number].astype(np.int32)
        if np.count_nonzero(counts) > 1:
            model = constriction.stream.model.Categorical(counts / counts.sum(), perfect=False)
            coder = constriction.stream.stack.AnsCoder()
            coder.encode_reverse(some, model)
            nbytes += 4 * len(coder.get_compressed())
    rows = [row[row > 0] for row in classified.counts]
    entropy = sum(-(row * np.log2(row / row.sum())).sum() for row in rows) / 8
    assert entropy <= nbytes <= 1.01 * entropy + 50
    # The tables travel too: half a byte for each symbol of each class, or less where classes share one.
    tables = sum(row.size for row in rows) / 2
    assert 0.99 * nbytes <= encode(symbols, bits, 0).size <= 1.01 * nbytes + tables + 50


def test_one_symbol_alone_takes_no_words() -> None:
    assert encode(np.full((64, 8, 8), 3, np.uint8), 4, 0).size <= 24


payloads = st.tuples(st.sampled_from([(1,), (40,), (6, 7), (5, 3, 4), (4, 8, 8)]), st.sampled_from([1, 3, 8]))


@settings(max_examples=150)
@given(made=payloads, data=st.data())
def test_a_payload_that_was_changed_is_refused_or_decodes_to_symbols(
    made: tuple[tuple[int, ...], int], data: st.DataObject
) -> None:
    shape, bits = made
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    symbols = rng.integers(0, 1 << bits, shape, np.uint8)
    payload = encode(symbols, bits, 0, data.draw(st.sampled_from([None, "apart"])) and _every_other(symbols, bits))
    kind = data.draw(st.sampled_from(["flip", "cut", "more", "random"]))
    if kind == "flip":
        payload[rng.integers(payload.size)] ^= np.uint8(1 << rng.integers(8))
    elif kind == "cut":
        payload = payload[: rng.integers(payload.size)].copy()
    elif kind == "more":
        payload = np.concatenate([payload, rng.integers(0, 256, rng.integers(1, 5), np.uint8)])
    else:
        payload = rng.integers(0, 256, rng.integers(0, 200), np.uint8)
    refused, back = None, symbols.reshape(-1)
    try:
        back = decode_in_context(payload, shape, bits, 0, "it", 100)
    except WireError as error:
        refused = error
    if refused is None:
        assert kind not in ("cut", "more")
        assert back.size == math.prod(shape) and int(back.max()) < 1 << bits
    else:
        assert 100 <= refused.offset <= 100 + payload.size
        assert str(refused).startswith("it ")


def _every_other(symbols: np.ndarray, bits: int) -> np.ndarray:
    """Return starts that give every class that occurs a table."""
    starts = classify(symbols.reshape(-1), symbols.shape, bits, 0).counts.any(axis=1).astype(np.uint8)
    starts[np.flatnonzero(starts)[0]] = 0
    starts[0] = 1
    return starts


def changed(payload: np.ndarray, position: int, byte: int) -> np.ndarray:
    other = payload.copy()
    other[position] = byte
    return other


def test_wrong_payloads_are_refused_in_words() -> None:
    symbols = smooth_maps((4, 8, 8), 4)
    payload = encode(symbols, 4, 0)
    for wrong, words in (
        (payload[:1], "it classes: at byte 9 expected 2 bytes, got 1"),
        (changed(payload, 1, payload[1] | 8), "it classes: at byte 9 expected 11 bits"),
        (changed(payload, 2, 0), "it tables: at byte 11 expected symbols in every table"),
        (payload[:-1], "it rANS payload"),
        (payload[:-2], "it rANS payload"),
        (changed(payload, -1, payload[-1] ^ 1), "it rANS payload"),
    ):
        with pytest.raises(WireError, match=words):
            decode_in_context(wrong, symbols.shape, 4, 0, "it", 9)
    with pytest.raises(WireError, match="expected no bytes"):
        decode_in_context(payload, (4, 0, 8), 4, 0, "it", 9)

"""Bytes that no coder wrote: an error that names the place, or a set within the receiver's sizes."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator

import numpy as np
import pytest
import zstandard

from fedmpi.errors import WireError
from fedmpi.wire.codecs.positions import Positions, decode_set, encode_set, set_codec_names

NAMES = set_codec_names()
IDS = range(16, 24)


def broken(payload: np.ndarray, generator: np.random.Generator, rounds: int) -> Iterator[np.ndarray]:
    for turn in range(rounds):
        bad = payload.copy()
        kind = turn % 5
        if kind == 0 and bad.size:
            bad[generator.integers(bad.size)] ^= 1 << generator.integers(8)
        elif kind == 1:
            bad = bad[: generator.integers(bad.size + 1)]
        elif kind == 2:
            bad = np.concatenate([bad, generator.integers(0, 256, generator.integers(1, 5)).astype(np.uint8)])
        elif kind == 3:
            bad[: min(4, bad.size)] = generator.integers(0, 256, min(4, bad.size))
        else:
            bad = generator.integers(0, 256, generator.integers(0, 2 * bad.size + 2)).astype(np.uint8)
        yield bad


def check(codec_id: int, payload: np.ndarray, numel: int) -> bool:
    """Return whether the payload is taken; then it is a set, and encodes again."""
    most = int(numel * 0.9)
    try:
        positions = decode_set(codec_id, payload, numel, "x", 1000, max_count=most)
        indices = positions.indices
    except WireError as error:
        if error.offset < 1000:
            raise AssertionError("an offset before the payload") from error
        return False
    assert positions.count == indices.size <= most
    assert indices.size == 0 or (indices[0] >= 0 and indices[-1] < numel and (np.diff(indices) > 0).all())
    assert np.array_equal(np.flatnonzero(positions.bits), indices) and positions.bits.size == numel
    name = NAMES[codec_id - 16]
    assert np.array_equal(decode_set(codec_id, encode_set(positions, name).payload, numel, "x", 0).indices, indices)
    return True


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("numel", "density"), [(9, 0.3), (2000, 0.5), (3001, 0.03), (3000, 0.8), (100_000, 1e-3)])
def test_broken_bytes_raise_or_are_a_set(name: str, numel: int, density: float) -> None:
    generator = np.random.default_rng(numel)
    encoded = encode_set(Positions.from_mask(generator.random(numel) < density), name)
    taken = sum(check(encoded.codec_id, bad, numel) for bad in broken(encoded.payload, generator, 150))
    if name in ("byte-rans", "gap-rans") and numel > 1000:
        assert taken <= 5 + 30 * (name == "gap-rans")  # a flipped low bit is another set


@pytest.mark.parametrize("codec_id", IDS)
def test_bytes_for_another_number_of_positions_raise_or_are_a_set(codec_id: int) -> None:
    generator = np.random.default_rng(0)
    payload = encode_set(Positions.from_mask(generator.random(5000) < 0.2), NAMES[codec_id - 16]).payload
    for numel in (0, 1, 8, 1000, 4999, 5001, 8000, 10**6):
        check(codec_id, payload, numel)


@pytest.mark.parametrize("codec_id", IDS)
def test_no_payload_makes_the_decoder_take_more_memory_than_the_set(codec_id: int) -> None:
    generator = np.random.default_rng(0)
    numel = 10_000
    huge = generator.integers(0, 256, 3_000_000).astype(np.uint8)
    heads = [b"", b"\x88\x27", b"\x90\x4e", b"\x02", b"\xff\xff\xff\xff\xff\x01"]
    for head in heads:
        payload = np.concatenate([np.frombuffer(head, np.uint8), huge])
        tracemalloc.start()
        try:
            with pytest.raises(WireError):
                decode_set(codec_id, payload, numel, "x", 0)
            assert tracemalloc.get_traced_memory()[1] < 40 * numel
        finally:
            tracemalloc.stop()


def test_a_count_above_n_is_refused_before_anything_else() -> None:
    for codec_id in (17, 18, 19):
        with pytest.raises(WireError, match="x count: at byte 3 expected at most half of 100, got 51"):
            decode_set(codec_id, np.array([102, 0, 0, 0], np.uint8), 100, "x", 3)


@pytest.mark.parametrize("codec_id", [17, 18, 19])
def test_bytes_behind_the_empty_set_are_refused(codec_id: int) -> None:
    for head in (0, 1):
        with pytest.raises(WireError, match="at byte 8 expected the end, got 2 bytes more"):
            decode_set(codec_id, np.array([head, 0, 0], np.uint8), 100, "x", 7)


def test_a_bit_after_the_last_position_is_refused() -> None:
    with pytest.raises(WireError, match="zeros after bit 8"):
        decode_set(16, np.array([1, 2], np.uint8), 9, "x", 0)


@pytest.mark.parametrize(("codec_id", "dtype"), [(21, "<u4"), (22, "<i8")])
def test_indices_that_do_not_increase_below_n_are_refused(codec_id: int, dtype: str) -> None:
    for indices in ([5, 5], [6, 5], [99, 100], [2**31]):
        with pytest.raises(WireError, match="increasing below 100"):
            decode_set(codec_id, np.array(indices, dtype).view(np.uint8), 100, "x", 0)
    with pytest.raises(WireError, match="increasing below 100"):
        decode_set(22, np.array([-1, 3], "<i8").view(np.uint8), 100, "x", 0)


@pytest.mark.parametrize(
    ("payload", "offset"),
    [
        ([100], 0),
        ([50, 49], 1),
        ([0x80, 0x00], 1),
        ([5, 0x80], 1),
        ([0xFF] * 9 + [0x01], 9),
        ([0xFF] * 8 + [0x7F], 8),
        ([0] * 101, 0),
    ],
)
def test_varints_that_are_no_gaps_are_refused(payload: list[int], offset: int) -> None:
    with pytest.raises(WireError, match=f"x gaps: at byte {offset} "):
        decode_set(23, np.array(payload, np.uint8), 100, "x", 0)


def zstd_frame(data: bytes, **how: int) -> np.ndarray:
    parameters = zstandard.ZstdCompressionParameters.from_level(3, format=zstandard.FORMAT_ZSTD1_MAGICLESS, **how)
    return np.frombuffer(zstandard.ZstdCompressor(compression_params=parameters).compress(data), np.uint8)


def test_a_zstd_frame_that_declares_its_size_is_refused() -> None:
    bomb = zstd_frame(bytes(200_000_000), write_content_size=1)
    tracemalloc.start()
    try:
        with pytest.raises(WireError, match="expected no content size, got 200000000"):
            decode_set(20, bomb, 80_000, "x", 0)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("nbytes", [0, 9_999, 10_001, 50_000_000])
def test_a_zstd_frame_of_another_length_is_refused(nbytes: int) -> None:
    with pytest.raises(WireError, match="x zstd frame: at byte 6 expected 10000 "):
        decode_set(20, zstd_frame(bytes(nbytes), write_content_size=0), 80_000, "x", 6)


def test_two_zstd_frames_are_refused() -> None:
    frame = zstd_frame(bytes(1000), write_content_size=0)
    with pytest.raises(WireError, match="x zstd"):
        decode_set(20, np.concatenate([frame, frame]), 8000, "x", 0)

"""Zstandard frames: every size comes back, and a frame gets no more memory than the receiver's own size."""

from __future__ import annotations

import resource
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import zstandard

from fedmpi.errors import WireError
from fedmpi.wire.codecs.zstd import compress, decompress

FORMAT = zstandard.FORMAT_ZSTD1_MAGICLESS


def frame(data: bytes, **parameters: int) -> np.ndarray:
    settings = zstandard.ZstdCompressionParameters.from_level(1, format=FORMAT, **parameters)
    return np.frombuffer(zstandard.ZstdCompressor(compression_params=settings).compress(data), np.uint8)


@pytest.mark.parametrize("level", [1, 3])
@pytest.mark.parametrize("numel", [1, 2, 1023, 1024, 1025, 65536, 300_000, 5_000_000])
def test_round_trip(numel: int, level: int) -> None:
    data = (np.arange(numel) // 3 % 251).astype(np.uint8)
    back = decompress(compress(data, level), numel, "field", 0)
    assert back.flags.writeable
    assert np.array_equal(back, data)


@pytest.mark.parametrize("level", [1, 3])
@pytest.mark.parametrize("sized", [False, True])
def test_frames_do_not_depend_on_what_was_compressed_before(level: int, sized: bool) -> None:
    generator = np.random.default_rng(0)
    for numel in generator.integers(1, 300_000, 40).tolist():
        data = np.packbits(np.repeat(generator.random(3 * numel) < 0.1, 3))[:numel]
        parameters = zstandard.ZstdCompressionParameters.from_level(
            level, source_size=numel if sized else 0, format=FORMAT, write_content_size=False
        )
        fresh = zstandard.ZstdCompressor(compression_params=parameters).compress(data.tobytes())
        assert compress(data, level, sized=sized).tobytes() == fresh


def test_nothing_is_a_frame() -> None:
    for sized in (False, True):
        assert decompress(compress(np.empty(0, np.uint8), 3, sized=sized), 0, "field", 0).size == 0


def test_threads_compress_at_once() -> None:
    data = [np.packbits(np.random.default_rng(seed).random(400_000) < 0.1) for seed in range(8)]
    with ThreadPoolExecutor(4) as pool:
        for frame_made, one in zip(pool.map(lambda one: compress(one, 3), data), data, strict=True):
            assert np.array_equal(decompress(frame_made, one.size, "field", 0), one)


@pytest.mark.parametrize("numel", [2999, 3001, 1, 10**6])
def test_another_size_is_refused(numel: int) -> None:
    with pytest.raises(WireError, match=f"field zstd frame: at byte 7 expected {numel} bytes"):
        decompress(compress(np.zeros(3000, np.uint8), 1), numel, "field", 7)


@pytest.mark.parametrize("size_stated", [False, True])
def test_a_bomb_gets_no_memory(size_stated: bool) -> None:
    bomb = frame(bytes(400_000_000), write_content_size=size_stated)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(WireError, match="expected no content size" if size_stated else "did not decompress full frame"):
        decompress(bomb, 1_000_000, "field", 0)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # KiB


@pytest.mark.parametrize("exponent", [7, 12, 17, 21])
def test_a_window_far_above_the_size_is_refused(exponent: int) -> None:
    data = bytes(range(256)) * 100
    payload = frame(data, write_content_size=False).copy()
    assert payload[0] == 0  # a window, no content size, no checksum, no dictionary
    payload[1] = exponent << 3
    with pytest.raises(WireError, match="too much memory"):
        decompress(payload, len(data), "field", 0)


def test_what_comes_before_or_after_a_frame_is_refused() -> None:
    data = np.arange(200, dtype=np.uint8)
    whole = compress(data, 1)
    for end in range(whole.size):
        with pytest.raises(WireError):
            decompress(whole[:end], data.size, "field", 0)
    for rest in (whole[:1], whole):
        with pytest.raises(WireError, match=r"unused data|at most 328 bytes"):
            decompress(np.concatenate([whole, rest]), data.size, "field", 0)
    with pytest.raises(WireError):
        decompress(frame(data.tobytes(), write_content_size=False, write_checksum=True)[:-1], data.size, "field", 0)

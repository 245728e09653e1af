"""Every coder of a set: what goes in comes out, at the size it should have."""

from __future__ import annotations

import constriction
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmpi.errors import WireError
from fedmpi.wire.codecs.positions import Positions, decode_set, encode_set, set_codec_names
from fedmpi.wire.codecs.sets.bits import Bits
from fedmpi.wire.codecs.sets.byte_rans import ByteRans
from fedmpi.wire.codecs.sets.gap_rans import GapRans
from fedmpi.wire.codecs.sets.gaps import Gaps
from fedmpi.wire.codecs.sets.golomb import Golomb
from fedmpi.wire.codecs.sets.int64 import Int64
from fedmpi.wire.codecs.sets.uint32 import Uint32
from fedmpi.wire.codecs.sets.zstd import Zstd

NAMES = set_codec_names()


def check(mask: np.ndarray, name: str) -> np.ndarray:
    encoded = encode_set(Positions.from_mask(mask), name)
    assert encoded.payload.dtype == np.uint8 and encoded.payload.ndim == 1
    positions = decode_set(encoded.codec_id, encoded.payload, mask.size, "x", 0, max_count=np.count_nonzero(mask))
    assert positions.numel == mask.size
    assert np.array_equal(positions.indices, np.flatnonzero(mask))
    assert np.array_equal(positions.bits, mask)
    again = encode_set(positions, name)
    assert np.array_equal(again.payload, encoded.payload)
    return encoded.payload


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("numel", [0, 1, 7, 8, 9, 65535, 65536, 65537, 10**6])
def test_edges_come_back(name: str, numel: int) -> None:
    for num_kept in {0, 1, numel // 2, numel - 1, numel} & set(range(numel + 1)):
        mask = np.zeros(numel, bool)
        mask[:num_kept] = True
        check(mask, name)
        if num_kept in (1, numel - 1):
            check(mask[::-1], name)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("density", [0.9999, 0.9, 0.5, 0.3, 0.05, 0.003, 1e-4])
def test_random_sets_come_back(name: str, density: float) -> None:
    generator = np.random.default_rng(1)
    for numel in (10, 1000, 50_003):
        check(generator.random(numel) < density, name)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(1, 200)), max_size=30))
def test_runs_come_back(runs: list[tuple[bool, int]]) -> None:
    mask = np.repeat(np.array([kept for kept, _ in runs], bool), np.array([length for _, length in runs], int))
    for name in NAMES:
        check(mask, name)


@pytest.mark.parametrize("name", NAMES)
def test_two_far_positions_come_back(name: str) -> None:
    mask = np.zeros(3_000_000, bool)
    mask[[0, 2_999_999]] = True
    check(mask, name)
    check(~mask, name)


@pytest.mark.parametrize("name", NAMES)
def test_more_positions_than_allowed_are_refused(name: str) -> None:
    mask = np.random.default_rng(0).random(3000) < 0.1
    count = int(mask.sum())
    for kept, most in ((mask, count - 1), (~mask, 3000 - count - 1), (np.ones(3000, bool), 2999)):
        encoded = encode_set(Positions.from_mask(kept), name)
        with pytest.raises(WireError, match=f"x count: .*at most {most} positions, got {most + 1}"):
            decode_set(encoded.codec_id, encoded.payload, 3000, "x", 0, max_count=most)


@pytest.mark.parametrize("coder", [ByteRans(), GapRans(), Golomb(), Zstd()])
def test_nothing_and_everything_are_one_byte(coder: Zstd) -> None:
    for mask in (np.zeros(10**6, bool), np.ones(10**6, bool)):
        assert coder.encode(Positions.from_mask(mask)).size == 1


def bernoulli_nbytes(mask: np.ndarray) -> int:
    coder = constriction.stream.stack.AnsCoder()
    model = constriction.stream.model.Bernoulli(np.count_nonzero(mask) / mask.size, perfect=True)
    coder.encode_reverse(mask.astype(np.int32), model)
    return int(coder.get_compressed().nbytes)


@pytest.mark.parametrize(
    ("density", "coder"),
    [(0.3, ByteRans()), (0.2, ByteRans()), (0.1, GapRans()), (0.05, GapRans()), (0.01, GapRans()), (0.9, GapRans())],
)
def test_random_sets_take_what_another_coder_takes(density: float, coder: GapRans) -> None:
    mask = np.random.default_rng(2).random(1_000_000) < density
    other = bernoulli_nbytes(mask)
    assert coder.encode(Positions.from_mask(mask)).size <= 1.01 * other


@pytest.mark.parametrize(
    ("density", "most"),
    [(0.5, 1.002), (0.3, 1.002), (0.1, 1.002), (0.05, 1.002), (0.01, 1.003), (1e-3, 1.01), (1e-4, 1.03)],
)
def test_a_million_positions_are_near_the_bound(density: float, most: float) -> None:
    numel = 1_000_000
    num_kept = int(density * numel)
    mask = np.zeros(numel, bool)
    mask[np.random.default_rng(3).choice(numel, num_kept, replace=False)] = True
    logs = np.concatenate([[0], np.cumsum(np.log2(np.arange(1, numel + 1)))])
    bound = (logs[numel] - logs[num_kept] - logs[numel - num_kept]) / 8
    assert encode_set(Positions.from_mask(mask)).payload.size <= most * bound


def test_sizes_that_follow_from_the_numbers() -> None:
    mask = np.random.default_rng(4).random(10_001) < 0.2
    positions = Positions.from_mask(mask)
    assert Bits().encode(positions).size == 1251
    assert Uint32().encode(positions).size == 4 * positions.count
    assert Int64().encode(positions).size == 8 * positions.count
    assert Gaps().encode(positions).size == positions.count


def test_golomb_predicts_its_own_length() -> None:
    generator = np.random.default_rng(5)
    for density in (0.5, 0.3, 0.1, 0.01, 0.001):
        positions = Positions.from_mask(generator.random(30_000) < density)  # no gap of 47 if dense
        assert Golomb().least_nbytes(positions) == Golomb().encode(positions).size


def test_uint32_indices_have_an_end() -> None:
    positions = Positions.from_indices(np.array([1 << 33]), 1 << 34)
    with pytest.raises(ValueError, match="reach to 2\\^32"):
        encode_set(positions, "uint32")
    assert encode_set(positions.from_indices(np.array([5]), 1 << 20), "uint32").payload.tolist() == [5, 0, 0, 0]


GOLDEN = {
    "byte-rans": "1001bded7ada94730e5bfa6b011a539101162a",
    "gap-rans": "1000036c2010408410006f425001408410001c10ea00",
    "golomb": "104710d90470091006",
    "gaps": "03000c1600820200d101",
}


def test_the_bytes_of_a_small_set_never_change() -> None:
    positions = Positions.from_indices(np.array([3, 4, 17, 40, 41, 300, 301, 511]), 700)
    for name, golden in GOLDEN.items():
        encoded = encode_set(positions, name)
        assert encoded.payload.tobytes().hex() == golden
        payload = np.frombuffer(bytes.fromhex(golden), np.uint8)
        assert np.array_equal(decode_set(encoded.codec_id, payload, 700, "x", 0).indices, positions.indices)

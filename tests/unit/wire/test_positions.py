"""Positions in their three forms, the choice of the smallest coder, and the coders' names."""

from __future__ import annotations

import subprocess
import sys

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

SET_CODERS = (Bits(), ByteRans(), GapRans(), Golomb(), Zstd(), Uint32(), Int64(), Gaps())


def random_mask(numel: int, density: float, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random(numel) < density


def shaped_masks(numel: int) -> dict[str, np.ndarray]:
    """Masks of about `numel` positions, from independent ones to those that cluster as top-k of a layer does."""
    generator = np.random.default_rng(numel)
    side = int(numel**0.5)
    rows, columns = generator.random(side)[:, None], generator.random(side)[None, :]
    noise = generator.random((side, side))
    return {
        **{f"independent {density}": random_mask(numel, density) for density in (0.5, 0.3, 0.1, 0.01, 1e-3, 1e-4)},
        "rows": np.broadcast_to(rows < 0.1, (side, side)).ravel(),
        "rows and columns": ((rows < 0.3) & (columns < 0.35) & (noise < 0.9)).ravel(),
        "rows and noise": ((rows < 0.05) | (noise < 0.02)).ravel(),
        "columns by density": (noise < columns**8).ravel(),
        "runs": np.repeat(generator.random(numel // 50 + 1) < 0.1, 50)[:numel],
        "long gaps at one half": np.repeat(np.arange(numel // 25) % 2 == 0, generator.integers(14, 46, numel // 25)),
        "blocks": np.concatenate([random_mask(numel // 4, density) for density in (0.4, 1e-3, 0.05, 0)]),
        "more than half": ~random_mask(numel, 0.04),
        "alternating": np.arange(numel) % 2 == 0,
        "every 100th": np.arange(numel) % 100 == 7,
        "falling density": generator.random(numel) < 0.3 * np.linspace(1, 0, numel) ** 4,
        "growing gaps": np.isin(np.arange(numel), np.cumsum(np.arange(numel // 40))),
    }


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 300), st.floats(0, 1), st.integers(0, 1000))
def test_every_form_gives_every_other(numel: int, density: float, seed: int) -> None:
    mask = random_mask(numel, density, seed)
    indices = np.flatnonzero(mask)
    packed = np.packbits(mask, bitorder="little")
    for positions in (
        Positions.from_mask(mask),
        Positions.from_mask(mask.view(np.uint8)),
        Positions.from_indices(indices.astype(np.int32), numel),
        Positions(numel, packed=packed),
    ):
        assert positions.count == indices.size and positions.numel == numel
        assert np.array_equal(positions.indices, indices) and positions.indices.dtype == np.int64
        assert np.array_equal(positions.packed, packed)
        assert np.array_equal(positions.bits, mask) and positions.bits.dtype == np.uint8
        assert np.array_equal(positions.complement.indices, np.flatnonzero(~mask))
        assert positions.complement.count == numel - indices.size
        assert 2 * positions.minority.count <= numel


def test_read_only_and_strided_inputs_are_taken() -> None:
    mask = random_mask(2000, 0.1)[::2]
    indices = np.repeat(np.flatnonzero(mask), 2)[::2]
    mask.flags.writeable = indices.flags.writeable = False
    for name in set_codec_names():
        for positions in (Positions.from_mask(mask), Positions.from_indices(indices, mask.size)):
            encoded = encode_set(positions, name)
            payload = encoded.payload.copy()
            payload.flags.writeable = False
            assert np.array_equal(decode_set(encoded.codec_id, payload, mask.size, "x", 0).bits, mask)


@pytest.mark.parametrize("indices", [[1, 1], [2, 1], [-1, 3], [3, 10], [0, 2**62]])
def test_indices_that_are_not_a_set_are_refused(indices: list[int]) -> None:
    with pytest.raises(ValueError, match="must increase"):
        Positions.from_indices(np.array(indices), 10)


def test_arrays_of_another_kind_are_refused() -> None:
    with pytest.raises(ValueError, match="bool or uint8, got float64"):
        Positions.from_mask(np.zeros(3))
    with pytest.raises(ValueError, match=r"bool or uint8, got bool \(3, 1\)"):
        Positions.from_mask(np.zeros((3, 1), bool))
    with pytest.raises(ValueError, match="integers, got float64"):
        Positions.from_indices(np.zeros(3), 5)


@pytest.mark.parametrize("numel", [60, 4_000, 160_000])
def test_auto_is_the_smallest_of_all(numel: int) -> None:
    for name, mask in shaped_masks(numel).items():
        positions = Positions.from_mask(mask)
        encoded = encode_set(positions)
        sizes = {coder: encode_set(positions, coder).payload.size for coder in set_codec_names()}
        assert encoded.payload.size <= min(sizes.values()) + 2, (name, encoded.name, sizes)
        assert encoded.payload.size == sizes[encoded.name]
        assert np.array_equal(decode_set(encoded.codec_id, encoded.payload, mask.size, "x", 0).bits, mask)


@pytest.mark.parametrize("density", [0.5, 0.49, 0.4, 0.3, 0.2, 0.1, 0.05, 0.01])
def test_auto_is_the_smallest_of_a_million_independent_positions(density: float) -> None:
    positions = Positions.from_mask(random_mask(10**6, density))
    sizes = {coder: encode_set(positions, coder).payload.size for coder in set_codec_names()}
    encoded = encode_set(positions)
    assert encoded.payload.size <= min(sizes.values()) + 2, (encoded.name, sizes)


@pytest.mark.parametrize("period", [8, 37, 64, 1000, 320_000])
def test_auto_finds_a_period(period: int) -> None:
    for density in (0.05, 0.3, 0.5):
        positions = Positions.from_mask(np.resize(random_mask(period, density, period), 10**6))
        smallest = min(encode_set(positions, coder).payload.size for coder in set_codec_names())
        assert encode_set(positions).payload.size <= smallest + 2


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 60), max_size=200), st.integers(0, 60))
def test_auto_is_the_smallest_of_any_set(gaps: list[int], rest: int) -> None:
    indices = np.cumsum(np.array(gaps, np.int64) + 1) - 1
    numel = int(indices[-1] if gaps else 0) + 1 + rest
    for positions in (Positions.from_indices(indices, numel), Positions.from_indices(indices, numel).complement):
        smallest = min(encode_set(positions, coder).payload.size for coder in set_codec_names())
        assert encode_set(positions).payload.size <= smallest + 2


@pytest.mark.parametrize("numel", [0, 1, 8, 1000, 10**6])
def test_nothing_and_everything_cost_a_byte_at_most(numel: int) -> None:
    for mask in (np.zeros(numel, bool), np.ones(numel, bool)):
        assert encode_set(Positions.from_mask(mask)).payload.size <= 1


@pytest.mark.parametrize("numel", [60, 40_000, 400_000])
def test_lower_bounds_are_none_but_lower_bounds(numel: int) -> None:
    for name, mask in shaped_masks(numel).items():
        positions = Positions.from_mask(mask)
        for coder in SET_CODERS:
            assert coder.least_nbytes(positions) <= coder.encode(positions).size, (name, coder.name)


def test_names() -> None:
    names = ("bits", "byte-rans", "gap-rans", "golomb", "zstd", "uint32", "int64", "gaps")
    assert set_codec_names() == names
    assert [encode_set(Positions.from_mask(np.ones(9, bool)), name).codec_id for name in names] == list(range(16, 24))


def test_an_unknown_codec_is_refused() -> None:
    with pytest.raises(ValueError, match=r"auto or one of bits, byte-rans.*got 'zip'"):
        encode_set(Positions.from_mask(np.zeros(3, bool)), "zip")
    with pytest.raises(WireError, match=r"x codec: at byte 4 expected one of .*got 99"):
        decode_set(99, np.zeros(1, np.uint8), 3, "x", 4)


def test_after_the_warm_up_nothing_is_compiled() -> None:
    script = """
import numpy as np
from fedmpi.wire.codecs import bitpack, positions, rans, rans_kernels, set_tables, tables
from fedmpi.wire.codecs.sets import base, byte_rans, gap_rans, golomb, histograms, gaps

def signatures():
    modules = (bitpack, rans_kernels, set_tables, tables, base, byte_rans, gap_rans, golomb, histograms, gaps)
    kernels = {f"{m.__name__}.{name}": k for m in modules for name, k in vars(m).items() if hasattr(k, "signatures")}
    return {name: list(kernel.signatures) for name, kernel in kernels.items()}

positions.warm_up()
before = signatures()
for density in (0, 0.001, 0.3, 0.9):
    mask = np.random.default_rng(0).random(5000) < density
    for name in ("auto", *positions.set_codec_names()):
        for made in (positions.Positions.from_mask(mask), positions.Positions.from_indices(np.flatnonzero(mask), 5000)):
            encoded = positions.encode_set(made, name)
            payload = np.frombuffer(encoded.payload.tobytes(), np.uint8)
            decoded = positions.decode_set(encoded.codec_id, payload, 5000, "x", 0)
            assert (decoded.bits == mask).all() and decoded.indices.size == mask.sum()
bits = np.ones(50, np.uint8)
p12 = np.full(50, 9, np.uint16)
rans.decode_bits(rans.encode_bits(bits, p12), p12, "x", 0)
freqs = tables.quantize_counts(np.arange(256, dtype=np.uint64), 14)
tables.take_table(tables.put_table(freqs), 256, 14, "x", 0)
for width in range(1, 9):
    bitpack.unpack(bitpack.pack(bits, width), 50, width, "x", 0)
assert signatures() == before
"""
    subprocess.run([sys.executable, "-c", script], check=True)

"""Byte planes: every bit pattern of every dtype comes back, in fewer bytes where there is something to gain."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmpi.errors import WireError
from fedmpi.wire.codecs import rans_kernels, tables, zstd
from fedmpi.wire.codecs.numbers import put_varint
from fedmpi.wire.codecs.plane_kernels import histogram, join, split
from fedmpi.wire.codecs.planes import decode_delta, decode_planes, encode_delta, encode_planes, warm_up
from fedmpi.wire.codecs.tables import put_table
from fedmpi.wire.values import DENSE_DTYPES, as_array, storage

SIZES = (0, 1, 7, 8, 9, 65535, 65536, 65537)
FLOATS = ("float32", "float64", "float16", "bfloat16")
CONTENTS = ("bytes", "zero", "constant", "small", "sparse", "rows", "special")


def vector(content: str, numel: int, dtype: str, seed: int = 0) -> np.ndarray:
    """Return a vector of a kind of numbers, held as `storage`."""
    rng = np.random.default_rng([seed, numel])
    kind = storage(dtype)
    if content == "bytes":
        return rng.integers(0, 256, numel * kind.itemsize, np.uint8).view(kind)
    if content == "rows":
        return np.resize(vector("bytes", 100, dtype), numel)
    if content == "special" and dtype in FLOATS:
        # Both zeros, both infinities, the smallest number, the largest, and NaNs that differ in sign and payload.
        bits = 8 * kind.itemsize
        infinity = int(as_array(torch.tensor([torch.inf], dtype=getattr(torch, dtype))).view(f"u{kind.itemsize}")[0])
        sign = 1 << (bits - 1)
        patterns = [0, 1, infinity - 1, infinity, infinity + 1, infinity + 5, sign - 1]
        patterns += [pattern | sign for pattern in patterns]
        return np.array(patterns, f"u{kind.itemsize}").view(kind)[rng.integers(0, len(patterns), numel)]
    numbers = {
        "zero": np.zeros(numel),
        "constant": np.full(numel, 3),
        "small": rng.standard_normal(numel) * (0.05 if dtype in FLOATS else 20),
        "sparse": rng.standard_normal(numel) * (rng.random(numel) < 0.05) * 100,
        "special": rng.integers(0, 2, numel) - 1,
    }[content]
    if dtype == "bfloat16":
        return as_array(torch.from_numpy(np.asarray(numbers, np.float32)).to(torch.bfloat16))
    return numbers.astype(np.int64).astype(kind) if kind.kind in "iu" else numbers.astype(kind)


def assert_same(got: np.ndarray, wanted: np.ndarray) -> None:
    assert got.dtype == wanted.dtype
    assert got.shape == wanted.shape
    assert got.flags.writeable and got.flags.aligned
    assert got.tobytes() == wanted.tobytes()


def frozen(array: np.ndarray) -> np.ndarray:
    array = array.copy()
    array.flags.writeable = False
    return array


def test_after_the_warm_up_nothing_is_left_to_compile() -> None:
    # The first test of the file: later ones would have compiled what the warm-up leaves out.
    warm_up()
    coding = (rans_kernels.encode_symbols_into, rans_kernels.decode_symbols_into, tables._put_table)
    kernels = (split, join, histogram, *coding)
    before = [len(kernel.signatures) for kernel in kernels]
    assert min(before) > 0
    for dtype in DENSE_DTYPES:
        array = frozen(vector("small", 3000, dtype))
        assert_same(decode_planes(frozen(encode_planes(array, dtype)), dtype, 3000, "field", 0), array)
        assert_same(decode_delta(encode_delta(array, array, dtype), array, dtype, "field", 0), array)
    assert [len(kernel.signatures) for kernel in kernels] == before


@pytest.mark.parametrize("content", CONTENTS)
@pytest.mark.parametrize("dtype", DENSE_DTYPES)
def test_every_bit_pattern_comes_back(dtype: str, content: str) -> None:
    for numel in SIZES:
        array = vector(content, numel, dtype)
        payload = encode_planes(array, dtype)
        assert payload.size <= array.nbytes + (2 if array.itemsize == 8 else 1)
        assert_same(decode_planes(payload, dtype, numel, "field", 0), array)

        with_count = encode_planes(array, dtype, at_most=True)
        assert with_count.size <= payload.size + max(1, -(-numel.bit_length() // 7))
        assert_same(decode_planes(with_count, dtype, 100_000, "field", 0, at_most=True), array)

        for base in (vector("small", numel, dtype, 1), vector("special", numel, dtype, 1), array):
            steps = encode_delta(array, base, dtype)
            assert steps.size <= array.nbytes + 2
            assert_same(decode_delta(steps, base, dtype, "field", 0), array)


@pytest.mark.parametrize("dtype", DENSE_DTYPES)
def test_a_million_numbers_come_back(dtype: str) -> None:
    array = vector("small", 10**6, dtype)
    payload = encode_planes(array, dtype)
    assert payload.size < 0.9 * array.nbytes
    assert_same(decode_planes(payload, dtype, array.size, "field", 0), array)


@given(
    dtype=st.sampled_from(DENSE_DTYPES),
    patterns=st.lists(st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1)), max_size=60),
    repeat=st.sampled_from([1, 40]),
)
@settings(max_examples=60)
def test_any_two_vectors(dtype: str, patterns: list[tuple[int, int]], repeat: int) -> None:
    width = storage(dtype).itemsize
    mask = (1 << (8 * width)) - 1
    array, base = (
        np.array([pair[side] & mask for pair in patterns] * repeat, f"u{width}").view(storage(dtype)) for side in (0, 1)
    )
    assert_same(decode_planes(encode_planes(array, dtype), dtype, array.size, "field", 0), array)
    assert_same(decode_delta(encode_delta(array, base, dtype), base, dtype, "field", 0), array)


@pytest.mark.parametrize("dtype", ["float32", "uint8"])
def test_readonly_and_strided_vectors(dtype: str) -> None:
    for content in ("small", "bytes"):
        array = vector(content, 3000, dtype)
        base = vector("small", 3000, dtype, 1)
        payload, steps = encode_planes(array, dtype), encode_delta(array, base, dtype)
        strided, strided_base = np.repeat(array, 2)[::2], np.repeat(base, 2)[::2]
        for a, b in ((strided, strided_base), (frozen(array), frozen(base))):
            assert encode_planes(a, dtype).tobytes() == payload.tobytes()
            assert encode_delta(a, b, dtype).tobytes() == steps.tobytes()
            assert_same(decode_planes(frozen(payload), dtype, a.size, "field", 0), array)
            assert_same(decode_delta(frozen(steps), b, dtype, "field", 0), array)
        # At any address.
        shifted = np.concatenate([np.zeros(1, np.uint8), payload])[1:]
        assert_same(decode_planes(shifted, dtype, array.size, "field", 0), array)


def test_what_is_decoded_stays_when_more_is_coded() -> None:
    first, second = vector("small", 5000, "float32"), vector("small", 5000, "float32", 1)
    payload = encode_planes(first, "float32")
    kept = payload.copy()
    other = encode_planes(second, "float32")
    assert np.array_equal(payload, kept)
    decoded = decode_planes(payload, "float32", 5000, "field", 0)
    del payload
    assert_same(decode_planes(other, "float32", 5000, "field", 0), second)
    assert_same(decoded, first)


def test_payloads_by_hand() -> None:
    # 1.0 = 3f800000, sign rotated to the bottom: 7f000000.
    ones = np.ones(1000, np.float32)
    assert encode_planes(ones, "float32").tobytes().hex() == "55" + "0000007f"
    assert encode_planes(ones, "float32", at_most=True).tobytes().hex() == "e807" + "55" + "0000007f"
    # -2.0 = c0000000 -> 80000001, 1.5 = 3fc00000 -> 7f800000.
    two = encode_planes(np.array([-2, 1.5], np.float32), "float32")
    assert two.tobytes().hex() == "04" + "0100" + "00" + "0080" + "807f"
    # Zigzag: -1 -> 1, 2 -> 4.
    assert encode_planes(np.array([-1, 2], np.int64), "int64").tobytes().hex() == "5455" + "0104" + "00" * 7
    assert encode_planes(np.array([9, 9], np.uint8), "uint8").tobytes().hex() == "01" + "12"
    # 1.0 is one step above its predecessor, and +0 is one above -0.
    below = np.nextafter(ones, np.float32(0))
    assert encode_delta(ones, below, "float32").tobytes().hex() == "55" + "02000000"
    assert encode_delta(below, ones, "float32").tobytes().hex() == "55" + "01000000"
    assert encode_delta(0 * ones, -0.0 * ones, "float32").tobytes().hex() == "55" + "02000000"
    assert encode_planes(ones[:0], "float32").size == 0
    assert encode_planes(ones[:0], "float32", at_most=True).tobytes() == b"\0"


@pytest.fixture(scope="module")
def weights() -> tuple[torch.Tensor, torch.Tensor]:
    """Return the weights of a small network (about 100 000), briefly trained, and those a few steps later."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(784, 128), torch.nn.ReLU(), torch.nn.Linear(128, 10))
    optimizer = torch.optim.SGD(net.parameters(), 0.05)
    snapshots = []
    for step in range(40):
        if step == 36:
            snapshots.append(torch.nn.utils.parameters_to_vector(net.parameters()).detach().clone())
        x_BP = torch.randn(64, 784)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(net(x_BP), x_BP[:, :10].argmax(1)).backward()
        optimizer.step()
    return snapshots[0], torch.nn.utils.parameters_to_vector(net.parameters()).detach()


@pytest.mark.parametrize(
    ("dtype", "planes_ratio", "delta_ratio"),
    [("float32", 0.84, 0.72), ("bfloat16", 0.67, 0.35), ("float16", 0.85, 0.6)],
)
def test_trained_weights_take_a_sixth_to_two_thirds_less(
    weights: tuple[torch.Tensor, torch.Tensor], dtype: str, planes_ratio: float, delta_ratio: float
) -> None:
    old, new = (as_array(w.to(getattr(torch, dtype))) for w in weights)
    assert 0.5 < encode_planes(new, dtype).size / new.nbytes <= planes_ratio
    assert 0.1 < encode_delta(new, old, dtype).size / new.nbytes <= delta_ratio


def test_each_plane_is_coded_as_suits_it() -> None:
    def methods(array: np.ndarray) -> list[int]:
        return [int(encode_planes(array, "float32")[0]) >> (2 * p) & 3 for p in range(4)]

    raw, constant, rans, by_zstd = range(4)
    assert methods(vector("bytes", 200_000, "float32")) == [raw] * 4
    assert methods(vector("zero", 200_000, "float32")) == [constant] * 4
    assert methods(vector("small", 200_000, "float32"))[3] == rans
    assert methods(vector("rows", 200_000, "float32")) == [by_zstd] * 4
    # Constant in every sample, but not all of it.
    array = vector("zero", 200_000, "float32")
    array[30_000] = 1.5
    assert methods(array)[:2] == [constant] * 2
    assert constant not in methods(array)[2:]
    assert_same(decode_planes(encode_planes(array, "float32"), "float32", array.size, "field", 0), array)


@pytest.mark.parametrize("numel", [0, 1, 2, 3, 4, 5, 100_003])
def test_histogram(numel: int) -> None:
    symbols = np.random.default_rng(0).integers(0, 256, numel, np.uint8)
    assert np.array_equal(histogram(symbols), np.bincount(symbols, minlength=256))


def coded_plane(method: int, coded: np.ndarray) -> np.ndarray:
    head = bytearray([method])
    put_varint(coded.size, head)
    return np.concatenate([np.frombuffer(head, np.uint8), coded])


RAW, CONSTANT, RANS, ZSTD = (np.uint8(method) for method in range(4))
BYTES = np.arange(10, dtype=np.uint8)


@pytest.mark.parametrize(
    ("payload", "words"),
    [
        ([], "at byte 5 expected 1 bytes, got 0"),
        ([4, *range(10)], "expected two bits for 1 planes, got 4"),
        ([RAW, *range(9)], "at byte 6 expected 10 bytes, got 9"),
        ([RAW, *range(11)], "at byte 16 expected the end, got 1 bytes more"),
        ([CONSTANT], "at byte 6 expected 1 bytes, got 0"),
        ([CONSTANT, 7, 7], "at byte 7 expected the end, got 1 bytes more"),
        ([RANS], "varint: at byte 6"),
        ([RANS, 5, 1, 1, 1], "at byte 6 expected at most 3 bytes, got 5"),
        ([ZSTD, 0x80, 0], "varint: at byte 6 expected the shortest form"),
        ([RANS, 0], "table 0: at byte 7"),
        (coded_plane(RANS, put_table(np.zeros(256, np.uint32))), "at byte 7 expected a frequency table, got one of"),
        ([ZSTD, 0], "zstd frame: at byte 7"),
        (coded_plane(ZSTD, zstd.compress(BYTES[:9], 1)), "at byte 7 expected 10 bytes, got 9"),
        (coded_plane(ZSTD, zstd.compress(np.zeros(10**6, np.uint8), 1)), "at byte 7 expected 10 bytes"),
    ],
)
def test_payloads_that_are_refused(payload: list[int] | np.ndarray, words: str) -> None:
    with pytest.raises(WireError, match=words):
        decode_planes(np.array(payload, np.uint8), "uint8", 10, "field", 5)


def test_counts_that_are_refused() -> None:
    payload = encode_planes(np.zeros(11, np.float32), "float32", at_most=True)
    with pytest.raises(WireError, match="at byte 5 expected at most 10 numbers, got 11"):
        decode_planes(payload, "float32", 10, "field", 5, at_most=True)
    with pytest.raises(WireError, match="at byte 6 expected the end, got 1 bytes more"):
        decode_planes(np.zeros(2, np.uint8), "float32", 10, "field", 5, at_most=True)
    with pytest.raises(WireError, match="expected the end, got 1 bytes more"):
        decode_planes(np.zeros(1, np.uint8), "float32", 0, "field", 5)
    with pytest.raises(WireError, match="varint"):
        decode_planes(np.zeros(0, np.uint8), "float32", 10, "field", 5, at_most=True)


@pytest.mark.parametrize("dtype", DENSE_DTYPES)
@pytest.mark.parametrize("content", ["small", "sparse", "rows"])
def test_broken_payloads_do_no_harm(dtype: str, content: str) -> None:
    rng = np.random.default_rng(0)
    numel = 2000
    array, base = vector(content, numel, dtype), vector("small", numel, dtype, 1)
    whole = [encode_planes(array, dtype), encode_planes(array, dtype, at_most=True), encode_delta(array, base, dtype)]
    for trial in range(60):
        which = trial % 3
        payload = whole[which].copy()
        if trial % 4 == 0:
            payload = payload[: rng.integers(0, payload.size)]
        elif trial % 4 == 1:
            payload = rng.integers(0, 256, rng.integers(0, 200), np.uint8)
        else:
            # Mostly where the lengths and tables are.
            positions = rng.integers(0, payload.size if trial % 8 < 4 else 40, rng.integers(1, 4))
            payload[positions % payload.size] = rng.integers(0, 256, positions.size)
        try:
            if which == 2:
                got = decode_delta(payload, base, dtype, "field", 0)
            else:
                got = decode_planes(payload, dtype, numel, "field", 0, at_most=which == 1)
        except WireError:
            continue
        assert got.dtype == storage(dtype)
        assert got.size == numel or (which == 1 and got.size < numel)

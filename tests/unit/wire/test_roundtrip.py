"""Every codec of every class of values, over the sizes and sets at which coders go wrong."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from roundtrip import encodes_alike_or_refuses, round_trip

from fedmpi.config import WireConfig
from fedmpi.wire.codecs.base import CODECS
from fedmpi.wire.known import Known, KnownMask, KnownProbabilities, KnownVector
from fedmpi.wire.message import (
    Message,
    Schema,
    counts,
    dense,
    labels,
    mask,
    masked_values,
    message,
    quantized,
    sparse,
)
from fedmpi.wire.values import DENSE_DTYPES, Counts, Dense, Labels, Mask, MaskedValues, Quantized, Sparse, storage

SIZES = (0, 1, 7, 8, 9, 65535, 65536, 65537)
SMALL_SIZES = (0, 1, 7, 8, 9, 300)
MILLION = 1_000_000
LAYOUT = 0xF00D


def choices(field: str) -> tuple[str, ...]:
    return get_args(WireConfig.model_fields[field].annotation)


@message("roundtrip-mask", "up")
class OneMask(Message):
    kept: Mask = mask("n", prior="theta", base="before")


def sparse_class(of_dtype: str, shorter: bool) -> type[Message]:
    class OneSparse(Message):
        update: Sparse = sparse("n", dtype=of_dtype, at_most=shorter, base="before")

    return message(f"roundtrip-sparse-{of_dtype}-{shorter:d}", "up")(OneSparse)


def masked_class(of_dtype: str) -> type[Message]:
    class OneMasked(Message):
        update: MaskedValues = masked_values("n", mask="before", dtype=of_dtype)

    return message(f"roundtrip-masked-{of_dtype}", "up")(OneMasked)


def dense_class(of_dtype: str) -> type[Message]:
    class OneDense(Message):
        vector: Dense = dense("n", dtype=of_dtype, base="vector")

    return message(f"roundtrip-dense-{of_dtype}", "up")(OneDense)


SPARSE: dict[str, Any] = {dtype: sparse_class(dtype, False) for dtype in (*DENSE_DTYPES, "")}
SHORTER: dict[str, Any] = {dtype: sparse_class(dtype, True) for dtype in ("float32", "")}
MASKED: dict[str, Any] = {dtype: masked_class(dtype) for dtype in (*DENSE_DTYPES, "")}
DENSE: dict[str, Any] = {dtype: dense_class(dtype) for dtype in DENSE_DTYPES}


@message("roundtrip-quantized", "up")
class OneQuantized(Message):
    activations: Quantized = quantized(("batch", 3, "width"), at_most=True)


@message("roundtrip-labels", "up")
class OneLabels(Message):
    targets: Labels = labels("n", num_classes="classes")


@message("roundtrip-counts", "up")
class OneCounts(Message):
    samples: Counts = counts("n", at_most=True)


@cache
def sets_of(numel: int) -> dict[str, np.ndarray]:
    """Return sets of `numel` positions, bool: none, one, all, regular and random ones."""
    rng = np.random.default_rng(numel)
    every = np.arange(numel)
    found = {
        "none": every < 0,
        "first": every == 0,
        "last": every == numel - 1,
        "all": every >= 0,
        "all but one": every != numel // 2,
        "runs": every // 50 % 7 == 0,
        "alternating": every % 2 == 1,
        "half": rng.random(numel) < 0.5,
        "tenth": rng.random(numel) < 0.1,
        "few": rng.random(numel) < 0.002,
    }
    for bits in found.values():
        bits.flags.writeable = False
    return found


def moved(bits: np.ndarray, share: float) -> np.ndarray:
    return bits ^ (np.random.default_rng(3).random(bits.size) < share)


def numbers(dtype: str, count: int, seed: int = 0) -> np.ndarray:
    """Return numbers of any bits: NaNs with payloads, infinities, both zeros and subnormals among them."""
    kind = storage(dtype)
    raw = np.random.default_rng(seed).integers(0, 256, count * kind.itemsize, np.uint8).view(kind)
    raw[::3] = np.zeros(1, kind)
    if kind.kind == "f":
        raw[1::3] = -np.zeros(1, kind)
    return raw


def schema_of(numel: int, known: Known | None = None, **wire: Any) -> Schema:
    cuts = np.unique(np.array([0, numel // 100, numel // 90, numel // 3, numel // 2, numel]))
    segments = np.concatenate([cuts, cuts[-1:]]).astype(np.int64)  # the last tensor is empty
    sizes = {"n": numel, "batch": 5, "width": max(numel // 15, 1), "classes": 10}
    return Schema(sizes, LAYOUT, {"n": segments}, WireConfig(**wire), known or Known())


@pytest.mark.parametrize("codec", choices("mask"))
@pytest.mark.parametrize("numel", SIZES)
def test_masks_come_back(codec: str, numel: int) -> None:
    prior = KnownProbabilities.of(np.random.default_rng(1).random(numel), 4)
    for bits in sets_of(numel).values():
        bases = [KnownMask(moved(bits, 0.02), 300), KnownMask(np.zeros(numel, np.bool_), 0)]
        for base in bases:
            known = Known()
            known.hold("theta", prior)
            known.hold("before", base)
            sent = OneMask(kept=Mask(bits, prior, base))
            _, frame = round_trip(sent, schema_of(numel, known, mask=codec))
            assert codec in ("auto", frame.codec)
            assert frame.index_nbytes == frame.payload_nbytes


@pytest.mark.parametrize("codec", choices("sparse"))
@pytest.mark.parametrize("numel", SIZES)
def test_sparse_values_come_back(codec: str, numel: int) -> None:
    for bits in sets_of(numel).values():
        base = KnownMask(moved(bits, 0.02), 1)
        known = Known()
        known.hold("before", base)
        indices = np.flatnonzero(bits)
        sent = SPARSE["float32"](update=Sparse(numel, indices, numbers("float32", indices.size), base=base))
        _, frame = round_trip(sent, schema_of(numel, known, sparse=codec, values="raw"))
        assert codec in ("auto", frame.codec.split("+")[0])
        assert frame.index_nbytes + frame.value_nbytes == frame.payload_nbytes
        assert frame.value_nbytes == 4 * indices.size


@pytest.mark.parametrize("codec", choices("values"))
@pytest.mark.parametrize("dtype", DENSE_DTYPES)
def test_values_of_every_dtype_come_back(dtype: str, codec: str) -> None:
    for numel in (*SMALL_SIZES, 65537):
        for bits in sets_of(numel).values():
            known = Known()
            known.hold("before", KnownMask(bits, 2))
            schema = schema_of(numel, known, values=codec)
            indices = np.flatnonzero(bits)
            values = numbers(dtype, indices.size)
            if numel <= 300:
                round_trip(SPARSE[dtype](update=Sparse(numel, indices, values, dtype)), schema)
            round_trip(MASKED[dtype](update=MaskedValues(values, KnownMask(bits, 2), dtype)), schema)


@pytest.mark.parametrize("codec", choices("quantized"))
def test_quantized_values_at_positions_come_back(codec: str) -> None:
    for numel in SMALL_SIZES:
        for bits in sets_of(numel).values():
            known = Known()
            known.hold("before", KnownMask(bits, 2))
            schema = schema_of(numel, known, quantized=codec)
            indices = np.flatnonzero(bits)
            symbols = np.random.default_rng(5).integers(-2, 2, indices.size).astype(np.int8)
            few = Quantized(symbols, 2, np.float32([0.125]))
            round_trip(SPARSE[""](update=Sparse(numel, indices, few)), schema)
            round_trip(MASKED[""](update=MaskedValues(few, KnownMask(bits, 2))), schema)


@pytest.mark.parametrize("codec", choices("sparse"))
def test_sparse_values_of_fewer_positions_come_back(codec: str) -> None:
    schema = schema_of(300, sparse=codec)
    for numel in (0, 1, 9, 299, 300):
        for bits in sets_of(numel).values():
            indices = np.flatnonzero(bits)
            round_trip(SHORTER["float32"](update=Sparse(numel, indices, numbers("float32", indices.size))), schema)


@pytest.mark.parametrize("codec", choices("dense"))
@pytest.mark.parametrize("dtype", DENSE_DTYPES)
def test_vectors_come_back(dtype: str, codec: str) -> None:
    for numel in (*SMALL_SIZES, 65537):
        array = numbers(dtype, numel)
        before = array.copy()
        before[::5] = numbers(dtype, before[::5].size, seed=1)
        base = KnownVector(before, 12)
        known = Known()
        known.hold("vector", base)
        _, frame = round_trip(
            DENSE[dtype](vector=Dense(array, dtype=dtype, base=base)), schema_of(numel, known, dense=codec)
        )
        assert codec in ("auto", frame.codec)


@pytest.mark.parametrize("codec", choices("quantized"))
@pytest.mark.parametrize("bits", range(1, 9))
def test_quantized_numbers_come_back(bits: int, codec: str) -> None:
    rng = np.random.default_rng(bits)
    for width in (1, 7, 300):
        schema = schema_of(15 * width, quantized=codec)
        for rows in (0, 1, 5):
            shape = (rows, 3, schema.sizes["width"])
            least = -(1 << (bits - 1))
            signed = rng.integers(least, -least, shape).astype(np.int8)
            if bits == 1:
                signed = 2 * signed + 1  # -1 and 1, not -1 and 0
            smooth = (np.arange(signed.size).reshape(shape) // 40 % (1 << bits)).astype(np.uint8)
            for symbols, axis in ((signed, None), (smooth, 0), (smooth, 1)):
                num_scales = 1 if axis is None else shape[axis]
                scales = rng.random(num_scales).astype(np.float32)
                low = 0 if symbols.dtype == np.uint8 else least
                zeros = rng.integers(low, low + (1 << bits), num_scales).astype(np.int32)
                has_zeros = bits > 1 or symbols.dtype == np.uint8
                for zero_points in (None, zeros) if has_zeros else (None,):
                    value = Quantized(symbols, bits, scales, zero_points, axis)
                    _, frame = round_trip(OneQuantized(activations=value), schema)
                    assert rows == 0 or codec in ("auto", frame.codec)


@pytest.mark.parametrize("numel", SIZES)
def test_labels_and_counts_come_back(numel: int) -> None:
    rng = np.random.default_rng(numel)
    schema = schema_of(numel)
    for targets in (rng.integers(0, 10, numel), np.zeros(numel, np.int64), np.full(numel, 9)):
        round_trip(OneLabels(targets=Labels(targets, 10)), schema)
    for samples in (rng.poisson(3, numel), np.zeros(numel, np.int64), rng.integers(0, 2**62, numel)):
        round_trip(OneCounts(samples=Counts(samples)), schema)
        round_trip(OneCounts(samples=Counts(samples[: numel // 2])), schema)


def test_a_million_positions_come_back() -> None:
    rng = np.random.default_rng(0)
    base = KnownMask(rng.random(MILLION) < 0.1, 8)
    prior = KnownProbabilities.of(rng.beta(0.3, 0.3, MILLION), 9)
    known = Known()
    known.hold("before", base)
    known.hold("theta", prior)
    likely = rng.random(MILLION) < prior.array / 4096
    expected = {"bits": rng.random(MILLION) < 0.5, "prior": likely, "ranks": moved(base.array, 0.001)}
    for codec, bits in expected.items():
        _, frame = round_trip(OneMask(kept=Mask(bits, prior, base)), schema_of(MILLION, known))
        assert frame.codec == codec
    indices = np.flatnonzero(base.array)
    round_trip(SPARSE["float32"](update=Sparse(MILLION, indices, numbers("float32", indices.size))), schema_of(MILLION))


def one_of_each() -> list[tuple[Any, Schema]]:
    """Return a message for every codec that a user can fix, with its schema."""
    rng = np.random.default_rng(11)
    numel = 3000
    base = KnownMask(rng.random(numel) < 0.2, 8)
    prior = KnownProbabilities.of(rng.random(numel), 9)
    vector = KnownVector(rng.standard_normal(numel).astype(np.float32), 9)
    known = Known()
    for name, held in (("before", base), ("theta", prior), ("vector", vector)):
        known.hold(name, held)
    bits = moved(base.array, 0.05)
    indices = np.flatnonzero(bits)
    values = rng.standard_normal(indices.size).astype(np.float32)
    symbols = rng.integers(0, 4, (5, 3, numel // 15)).astype(np.uint8)
    found: list[tuple[Any, Schema]] = []
    for codec in choices("mask"):
        found.append((OneMask(kept=Mask(bits, prior, base)), schema_of(numel, known, mask=codec)))
    for codec in choices("sparse"):
        found.append(
            (SPARSE["float32"](update=Sparse(numel, indices, values, base=base)), schema_of(numel, known, sparse=codec))
        )
    for codec in choices("values"):
        kept = rng.standard_normal(base.indices.size).astype(np.float32)
        found.append((MASKED["float32"](update=MaskedValues(kept, base)), schema_of(numel, known, values=codec)))
    for codec in choices("dense"):
        near = (vector.array * np.float32(1.001)).astype(np.float32)
        found.append((DENSE["float32"](vector=Dense(near, base=vector)), schema_of(numel, known, dense=codec)))
    for codec in choices("quantized"):
        value = Quantized(symbols, 2, np.float32([0.5]))
        found.append((OneQuantized(activations=value), schema_of(numel, known, quantized=codec)))
    found.append((OneLabels(targets=Labels(rng.integers(0, 10, numel), 10)), schema_of(numel)))
    found.append((OneCounts(samples=Counts(rng.poisson(2, numel))), schema_of(numel)))
    return found


def test_every_codec_is_met() -> None:
    met = {name for msg, schema in one_of_each() for name in round_trip(msg, schema)[1].codec.split("+")}
    assert met == {info.name for info in CODECS} - {"numbers"}


def test_memory_that_is_read_only_or_has_gaps_is_accepted_or_refused_in_words() -> None:
    for msg, schema in one_of_each():
        encodes_alike_or_refuses(msg, schema)


def digest_of_each() -> str:
    digest = hashlib.sha256()
    for msg, schema in one_of_each():
        digest.update(round_trip(msg, schema)[1].buffer.tobytes())
    return digest.hexdigest()


def test_bytes_do_not_depend_on_the_number_of_threads() -> None:
    code = "import test_roundtrip; print(test_roundtrip.digest_of_each())"
    made = []
    for threads in ("1", "2"):
        more = {"OMP_NUM_THREADS": threads, "NUMBA_NUM_THREADS": threads, "PYTHONPATH": str(Path(__file__).parent)}
        made.append(subprocess.Popen([sys.executable, "-c", code], env={**os.environ, **more}, stdout=subprocess.PIPE))
    assert {child.communicate(timeout=120)[0].decode().strip() for child in made} == {digest_of_each()}

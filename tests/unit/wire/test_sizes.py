"""What is said of a message's size before its values are known, held against real frames."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmpi.algorithms.averaging import ModelUp
from fedmpi.algorithms.sparse_updates import UpdateUp
from fedmpi.config import WireConfig
from fedmpi.wire.buffers import BufferPool
from fedmpi.wire.frame import encode
from fedmpi.wire.known import KnownMask
from fedmpi.wire.message import Message, Schema, counts, labels, mask, masked_values, message, quantized, sparse
from fedmpi.wire.sizes import has_exact_size, most_payload_nbytes
from fedmpi.wire.values import Counts, Dense, Labels, Mask, MaskedValues, Quantized, Sparse

SIZES = {"params": 3000, "buffers": 40, "state": 3040, "int_buffers": 2}
SEGMENTS = {"params": np.array([0, 32, 1000, 3000])}


@message("sizes-lone", "up")
class LoneMask(Message):
    """A mask that is always there."""

    bits: Mask = mask("params")


@message("sizes-maybe", "up")
class MaybeMask(Message):
    """A mask that may be left out."""

    bits: Mask | None = mask("params")


@message("sizes-test", "up")
class Mixed(Message):
    bits: Mask = mask("params")
    largest: Sparse = sparse("params")
    levels: Sparse = sparse("params", dtype="")
    kept: MaskedValues = masked_values("params", mask="bits")
    outputs: Quantized = quantized((4, 3, 5, 5), at_most=True)
    targets: Labels = labels(50, num_classes=7, at_most=True)
    classes: Counts = counts(7)


def schema(**wire: Any) -> Schema:
    return Schema(SIZES, 1, SEGMENTS, WireConfig(**wire))


@pytest.mark.parametrize(
    ("cls", "wire", "exact"),
    [
        (ModelUp, {}, True),
        (ModelUp, {"dense": "delta"}, True),  # it declares no base
        (ModelUp, {"dense": "auto"}, False),
        (UpdateUp, {}, False),
        (UpdateUp, {"sparse": "uint32", "values": "raw"}, True),
        (UpdateUp, {"sparse": "golomb", "values": "raw"}, False),
        (UpdateUp, {"sparse": "int64"}, False),
        (Mixed, {"mask": "bits", "sparse": "int64", "values": "raw", "quantized": "packed"}, False),  # its counts
    ],
)
def test_which_sizes_are_exact(cls: type[Message], wire: dict[str, str], exact: bool) -> None:
    assert has_exact_size(cls, WireConfig.model_validate(wire)) is exact


CODECS = st.fixed_dictionaries(
    {
        "mask": st.sampled_from(["auto", "bits", "byte-rans", "gap-rans", "golomb", "zstd", "layers"]),
        "sparse": st.sampled_from(["auto", "bits", "gap-rans", "golomb", "uint32", "int64", "gaps", "layers"]),
        "values": st.sampled_from(["auto", "raw", "planes"]),
        "quantized": st.sampled_from(["auto", "packed", "order0", "context"]),
        "dense": st.sampled_from(["raw", "planes", "auto"]),
    }
)


@settings(max_examples=60, deadline=None)
@given(wire=CODECS, density=st.sampled_from([0.0, 0.001, 0.1, 0.5, 0.97, 1.0]), seed=st.integers(0, 99))
def test_no_payload_is_larger_than_was_said(wire: dict[str, str], density: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    bits = rng.random(3000) < density
    indices = np.flatnonzero(bits)
    noise = rng.integers(0, 2**32, indices.size, np.uint32).view(np.float32)
    symbols = rng.integers(0, 256, (3, 3, 5, 5), np.uint8)
    one = np.ones(1, np.float32)
    made = Mixed(
        bits=Mask(bits),
        largest=Sparse(3000, indices, noise),
        levels=Sparse(3000, indices, Quantized(rng.integers(0, 256, indices.size, np.uint8), 8, one)),
        kept=MaskedValues(noise, KnownMask(bits, 0)),
        outputs=Quantized(symbols, 8, np.ones(3, np.float32), axis=0),
        targets=Labels(rng.integers(0, 7, 50), 7),
        classes=Counts(rng.integers(0, 2**62, 7)),
    )
    update = UpdateUp(
        num_samples=2**40,
        int_buffers=Dense(rng.integers(-(2**63), 2**63 - 1, 2)),
        buffers=Dense(rng.standard_normal(40).astype(np.float32)),
        update=Sparse(3000, indices, noise),
    )
    known = schema(**wire)
    for sent in (made, update):
        frame = encode(sent, known, BufferPool())
        assert frame.payload_nbytes <= most_payload_nbytes(type(sent), known, sent.num_kept(known))


@pytest.mark.parametrize("codec", ["auto", "bits", "byte-rans", "gap-rans", "golomb", "zstd", "layers"])
@pytest.mark.parametrize("density", [0.0, 0.01, 0.5, 0.9, 1.0])
def test_a_mask_alone_is_not_larger_than_was_said(codec: str, density: float) -> None:
    bits = np.random.default_rng(0).random(3000) < density
    for sent in (LoneMask(bits=Mask(bits)), MaybeMask(bits=Mask(bits))):
        frame = encode(sent, schema(mask=codec), BufferPool())
        assert frame.payload_nbytes <= most_payload_nbytes(type(sent), schema(mask=codec), sent.num_kept(schema()))
        if codec == "bits":
            assert most_payload_nbytes(type(sent), schema(mask=codec), 0) < frame.payload_nbytes + 100


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 99), positions=st.sampled_from(["bits", "uint32", "int64"]))
def test_exact_sizes_do_not_depend_on_the_values(seed: int, positions: str) -> None:
    known = dataclasses.replace(schema(sparse=positions, values="raw"))
    rng = np.random.default_rng(seed)
    sizes = set()
    for indices in (np.arange(100), np.sort(rng.choice(3000, 100, replace=False))):
        numbers = rng.standard_normal(100).astype(np.float32)
        update = UpdateUp(num_samples=5, int_buffers=None, buffers=None, update=Sparse(3000, indices, numbers))
        sizes.add(encode(update, known, BufferPool()).wire_nbytes)
    assert len(sizes) == 1

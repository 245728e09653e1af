"""Masks: the smallest codec is chosen, bad values are refused in words, and no bytes do harm."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmpi.config import WireConfig
from fedmpi.errors import WireError
from fedmpi.wire.codecs.base import BITS, CHANGE, LAYERS, PRIOR, RANKS, Decoded, Encoded, FieldSpec, format_of
from fedmpi.wire.known import Known, KnownMask, KnownProbabilities, KnownVector
from fedmpi.wire.values import Mask

FORMAT = format_of(Mask)
NUMEL = 3001
SPEC = FieldSpec("Test.kept", "", (NUMEL,), segments=np.array([0, 30, 1000, NUMEL]), base="before", prior="theta")
CODECS = ("bits", "byte-rans", "gap-rans", "golomb", "zstd", "prior", "change", "ranks", "layers")


def some_bits(density: float, numel: int = NUMEL, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random(numel) < density


BASE = KnownMask(some_bits(0.1), 5)
PRIOR_OF = KnownProbabilities.of(np.random.default_rng(1).random(NUMEL), 6)
KNOWN = Known()
KNOWN.hold("before", BASE)
KNOWN.hold("theta", PRIOR_OF)


def encode(value: Mask, codec: str = "auto", spec: FieldSpec = SPEC) -> Encoded:
    return FORMAT.encode(value, spec, WireConfig.model_validate({"mask": codec}))


def decode(codec_id: int, payload: np.ndarray, spec: FieldSpec = SPEC, known: Known = KNOWN, param: int = 0) -> Decoded:
    return FORMAT.decode(codec_id, param, payload, spec, known, 40)


def moved(bits: np.ndarray, share: float) -> np.ndarray:
    """Return a mask with a share of the kept positions moved elsewhere."""
    rng = np.random.default_rng(2)
    after = bits.copy()
    count = int(bits.sum() * share)
    after[rng.choice(np.flatnonzero(bits), count, replace=False)] = False
    after[rng.choice(np.flatnonzero(~bits), count, replace=False)] = True
    return after


@pytest.mark.parametrize("codec", CODECS)
def test_a_decoded_mask_is_a_writable_vector_of_bool_and_knows_what_it_was_coded_against(codec: str) -> None:
    section = encode(Mask(moved(BASE.array, 0.1), PRIOR_OF, BASE), codec)
    assert (section.codec, section.param) == (codec, 0)
    assert (section.index_nbytes, section.value_nbytes) == (section.payload.size, 0)
    found = decode(section.codec_id, section.payload)
    assert (found.codec, found.index_nbytes, found.value_nbytes) == (codec, section.payload.size, 0)
    mask = found.value
    assert isinstance(mask, Mask)
    assert mask.bits.dtype == np.bool_ and mask.bits.flags.writeable
    assert mask.bits.view(np.uint8).max() == 1
    assert mask.base is (BASE if codec in ("change", "ranks") else None)
    assert mask.prior is (PRIOR_OF if codec == "prior" else None)


def test_a_decoded_mask_does_not_share_memory_with_what_is_held_or_what_came() -> None:
    for codec in CODECS:
        section = encode(Mask(BASE.array, PRIOR_OF, BASE), codec)
        payload = section.payload.copy()
        mask = decode(section.codec_id, payload).value
        assert isinstance(mask, Mask)
        mask.bits[:] = False
        assert np.array_equal(BASE.array, some_bits(0.1))
        assert np.array_equal(payload, section.payload)


def test_a_tensor_of_bool_or_of_zeros_and_ones_is_a_mask() -> None:
    bits = torch.from_numpy(some_bits(0.3))
    assert np.array_equal(encode(Mask.of(bits)).payload, encode(Mask.of(bits.to(torch.uint8))).payload)


@pytest.mark.parametrize("beta", [1.0, 0.3, 0.1])
def test_prior_is_within_three_per_mille_of_the_cross_entropy_and_is_chosen(beta: float) -> None:
    numel = 400_000
    theta = np.random.default_rng(3).beta(beta, beta, numel).astype(np.float32)
    bits = np.random.default_rng(4).random(numel) < theta
    prior = KnownProbabilities.of(theta, 7)
    inside = np.clip(theta.astype(np.float64), 1e-12, 1 - 1e-12)
    cross_entropy = -np.log2(np.where(bits, inside, 1 - inside)).sum() / 8
    section = encode(Mask(bits, prior), spec=FieldSpec("Test.kept", "", (numel,), prior="theta"))
    assert section.codec == "prior"
    assert section.payload.size <= 1.003 * cross_entropy + 24


@pytest.mark.parametrize(("density", "share"), [(0.5, 0.01), (0.5, 0.5), (0.1, 0.05), (0.1, 0.001), (0.01, 0.3)])
def test_auto_is_hardly_larger_than_any_fixed_codec(density: float, share: float) -> None:
    numel = 60_000
    spec = FieldSpec("Test.kept", "", (numel,), segments=np.array([0, 50, 9000, numel]), base="before", prior="theta")
    base = KnownMask(some_bits(density, numel), 5)
    theta = np.where(base.array, 0.9, 0.05) * np.random.default_rng(5).random(numel)
    for bits in (moved(base.array, share), some_bits(density, numel, 9), np.arange(numel) % 700 < 700 * density):
        value = Mask(bits, KnownProbabilities.of(theta, 6), base)
        smallest = min(encode(value, codec, spec).payload.size for codec in CODECS)
        assert encode(value, spec=spec).payload.size <= smallest + 2


def test_auto_finds_what_clusters_though_a_prior_or_a_base_promises_more_than_chance() -> None:
    numel = 80_000
    rows = np.repeat(some_bits(0.3, numel // 400), 400)
    spec = FieldSpec("Test.kept", "", (numel,), base="before", prior="theta")
    value = Mask(rows, KnownProbabilities.of(np.where(rows, 0.7, 0.2), 6), KnownMask(rows ^ some_bits(0.1, numel), 5))
    assert encode(value, spec=spec).codec == "zstd"


@pytest.mark.parametrize("codec", ["prior", "change", "ranks", "layers"])
def test_a_fixed_codec_that_a_mask_cannot_have_falls_back_to_auto(codec: str) -> None:
    bits = some_bits(0.2)
    spec = FieldSpec("Test.kept", "", (NUMEL,))
    fixed, auto = encode(Mask(bits), codec, spec), encode(Mask(bits), spec=spec)
    assert (fixed.codec, fixed.payload.tobytes()) == (auto.codec, auto.payload.tobytes())


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (Mask(np.zeros(NUMEL, np.uint8)), "expected a vector of bool, got uint8"),
        (Mask(np.zeros((1, NUMEL), np.bool_)), "expected a vector of bool, got bool (1, 3001)"),
        (Mask(np.zeros(NUMEL - 1, np.bool_)), "expected 3001 positions, got 3000"),
        (Mask(np.full(NUMEL, 2, np.uint8).view(np.bool_)), "a bool's byte is 0 or 1, got 2"),
        (Mask(BASE.array, base=KnownMask(BASE.array[1:], 1)), "expected a base of 3001 positions, got 3000"),
        (
            Mask(BASE.array, prior=KnownProbabilities(PRIOR_OF.array[1:], 1)),
            "expected a prior of 3001 positions, got 3000",
        ),
    ],
)
def test_a_value_that_is_not_what_the_field_declares_is_refused_in_words(value: Mask, words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)) as error:
        encode(value)
    assert "Test.kept" in str(error.value)


@pytest.mark.parametrize("word", ["base", "prior"])
def test_a_reference_that_the_field_does_not_declare_is_refused_in_words(word: str) -> None:
    value = Mask(BASE.array, base=BASE) if word == "base" else Mask(BASE.array, PRIOR_OF)
    with pytest.raises(ValueError, match=f"Test.kept declares no {word}, got one"):
        encode(value, spec=FieldSpec("Test.kept", "", (NUMEL,)))


@pytest.mark.parametrize("codec_id", [0, 1, 2, 15, 28, 255])
def test_a_codec_of_another_class_is_refused(codec_id: int) -> None:
    with pytest.raises(WireError, match=r"Test\.kept codec"):
        decode(codec_id, np.zeros(10, np.uint8))


@pytest.mark.parametrize("codec_id", [PRIOR, CHANGE, RANKS, LAYERS])
def test_a_codec_that_the_field_cannot_have_is_refused(codec_id: int) -> None:
    with pytest.raises(WireError, match=r"Test\.kept codec"):
        decode(codec_id, np.zeros(10, np.uint8), FieldSpec("Test.kept", "", (NUMEL,)))


def test_a_param_byte_is_refused() -> None:
    with pytest.raises(WireError, match="parameter"):
        decode(BITS, encode(Mask(BASE.array), "bits").payload, param=1)


@pytest.mark.parametrize("codec", ["prior", "change", "ranks"])
def test_another_version_or_content_is_refused(codec: str) -> None:
    section = encode(Mask(moved(BASE.array, 0.1), PRIOR_OF, BASE), codec)
    with pytest.raises(WireError, match="version"):
        decode(section.codec_id, section.payload, known=Known())
    other = Known()
    other.hold("before", KnownMask(~BASE.array, BASE.version))
    other.hold("theta", KnownProbabilities(PRIOR_OF.array[::-1].copy(), PRIOR_OF.version))
    with pytest.raises(WireError, match="checksum"):
        decode(section.codec_id, section.payload, known=other)
    wrong = Known()
    wrong.hold("before", KnownVector(np.zeros(NUMEL), BASE.version))
    wrong.hold("theta", KnownVector(np.zeros(NUMEL), PRIOR_OF.version))
    with pytest.raises(WireError, match="one of those held"):
        decode(section.codec_id, section.payload, known=wrong)


def assert_safe(codec_id: int, payload: np.ndarray) -> None:
    """Fail unless the payload is a mask of the receiver's length or a `WireError`."""
    try:
        mask = decode(codec_id, payload).value
    except WireError:
        return
    assert isinstance(mask, Mask)
    assert mask.bits.shape == (NUMEL,)
    assert mask.bits.dtype == np.bool_
    assert mask.bits.view(np.uint8).max() <= 1


@pytest.mark.parametrize("codec", CODECS)
def test_damaged_payloads_are_refused_or_are_masks(codec: str) -> None:
    rng = np.random.default_rng(6)
    section = encode(Mask(moved(BASE.array, 0.2), PRIOR_OF, BASE), codec)
    for cut in {0, 1, 5, 6, 7, 8, 20, section.payload.size // 2, section.payload.size - 1}:
        assert_safe(section.codec_id, section.payload[:cut].copy())
    for _ in range(60):
        damaged = section.payload.copy()
        # Mostly at the start, where headers are; a reference is left alone half of the time.
        start = int(rng.integers(0, 2)) * 5
        at = start + int(rng.integers(0, rng.choice([12, damaged.size - start])))
        damaged[at % damaged.size] ^= rng.integers(1, 256)
        assert_safe(section.codec_id, damaged)
    with pytest.raises(WireError):
        decode(section.codec_id, np.append(section.payload, section.payload[:3]))


@settings(max_examples=150)
@given(codec_id=st.sampled_from([*range(16, 28)]), payload=st.binary(max_size=80))
def test_random_payloads_are_refused_or_are_masks(codec_id: int, payload: bytes) -> None:
    assert_safe(codec_id, np.frombuffer(bytearray(payload), np.uint8))


@settings(max_examples=60)
@given(st.lists(st.booleans(), max_size=200), st.integers(0, 2**32 - 1), st.sampled_from([*CODECS, "auto"]))
def test_any_mask_comes_back(kept: list[bool], seed: int, codec: str) -> None:
    bits = np.array(kept, np.bool_)
    rng = np.random.default_rng(seed)
    base = KnownMask(bits ^ (rng.random(bits.size) < 0.2), 2**32 - 1)
    prior = KnownProbabilities.of(rng.random(bits.size), 0)
    known = Known()
    known.hold("before", base)
    known.hold("theta", prior)
    cuts = np.sort(rng.integers(0, bits.size + 1, 4))
    segments = np.concatenate([[0], cuts, [bits.size]])
    spec = FieldSpec("Test.kept", "", (bits.size,), segments=segments, base="before", prior="theta")
    section = encode(Mask(bits, prior, base), codec, spec)
    assert codec in ("auto", section.codec)
    found = decode(section.codec_id, section.payload, spec, known).value
    assert isinstance(found, Mask)
    assert np.array_equal(found.bits, bits)


def test_a_mask_of_half_costs_a_bit_a_position() -> None:
    section = encode(Mask(some_bits(0.5)))
    assert (section.codec, section.payload.size) == ("bits", math.ceil(NUMEL / 8))

"""Broken frames do no harm; and the fuzzer that says so would notice harm."""

from __future__ import annotations

import dataclasses
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import fuzz
import numpy as np
import pytest
from allowed import check_message
from hypothesis import given, settings
from hypothesis import strategies as st
from messages import GOLDEN
from mutants import MUTATIONS, Mutant, bombs, mutate, varint
from real_frames import Target, put_together, sealed, targets

from fedmpi.errors import WireError
from fedmpi.wire.buffers import BufferPool
from fedmpi.wire.codecs.base import CODECS, NAMES
from fedmpi.wire.codecs.numbers import take_varint
from fedmpi.wire.frame import encode
from fedmpi.wire.known import KnownMask
from fedmpi.wire.message import Message
from fedmpi.wire.values import Dense, Mask, MaskedValues, Quantized, Sparse

FUZZER = Path(fuzz.__file__)
COUNT = 10_000
"""Mutants that take some seconds."""


def target(name: str) -> Target:
    return next(each for each in targets() if each.name == name)


def run_fuzzer(count: int, seed: int, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(FUZZER), "--count", str(count), "--seed", str(seed)]
    environ = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(command, capture_output=True, text=True, env=environ, check=False)


def test_broken_frames_are_refused_or_harmless() -> None:
    done = run_fuzzer(COUNT, seed=1)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 findings" in done.stdout


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_no_index_of_a_kernel_leaves_its_array(tmp_path: Path) -> None:
    """Under NUMBA_BOUNDSCHECK, for which every kernel is compiled anew: minutes."""
    done = run_fuzzer(COUNT, seed=2, NUMBA_BOUNDSCHECK="1", NUMBA_CACHE_DIR=str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def warm() -> None:
    fuzz.warm_up()


@given(rng=st.randoms(use_true_random=False))
@settings(max_examples=400, deadline=None)
@pytest.mark.usefixtures("warm")
def test_mutants_that_can_be_shrunk(rng: random.Random) -> None:
    fuzz.check(mutate(rng))


@pytest.mark.parametrize("name", GOLDEN)
@pytest.mark.usefixtures("warm")
def test_every_codec_in_place_of_every_other(name: str) -> None:
    """Each codec byte, and each codec of numbers, on the payloads of another."""
    each = target(name)
    for number, section in enumerate(each.sections):
        for codec in range(32):
            for changed in (section._replace(codec=codec), section._replace(param=codec)):
                sections = list(each.sections)
                sections[number] = changed
                fuzz.check(Mutant("codec byte", each, sealed(put_together(each, sections)), True))


@pytest.mark.usefixtures("warm")
def test_bombs_do_not_go_off() -> None:
    each = target("mask_zstd")
    (section,) = each.sections
    before = fuzz.peak_nbytes()
    for bomb in bombs():
        mutant = Mutant("bomb", each, sealed(put_together(each, [section._replace(payload=bomb)])), True)
        fuzz.check(mutant)
        fuzz.check_allocations(mutant)
    assert fuzz.peak_nbytes() - before < 32 << 20
    assert max(map(len, bombs())) < 20_000


@pytest.mark.parametrize("name", [each.name for each in targets()])
@pytest.mark.usefixtures("warm")
def test_payloads_far_too_long_are_refused_before_they_are_taken_apart(name: str) -> None:
    each = target(name)
    for number, section in enumerate(each.sections):
        for fill in (b"\0", b"\x81"):
            sections = list(each.sections)
            sections[number] = section._replace(payload=section.payload[:3] + fill * (1 << 20))
            mutant = Mutant("long", each, sealed(put_together(each, sections)), True)
            assert fuzz.check(mutant) == "refused"
            fuzz.check_allocations(mutant)


def resized(value: Any, numel: int) -> Any:
    """Return a value like this one, of another length."""
    if isinstance(value, Dense):
        return Dense(np.resize(value.array, numel), dtype=value.dtype)
    if isinstance(value, Mask):
        return Mask(np.resize(value.bits, numel))
    if isinstance(value, Sparse):
        few = value.indices[value.indices < numel]
        return Sparse(numel, few, at_first(value.values, few.size), value.dtype)
    if isinstance(value, MaskedValues):
        mask = KnownMask(np.resize(value.mask.array, numel), value.mask.version)
        return MaskedValues(at_first(value.values, mask.indices.size), mask, value.dtype)
    if isinstance(value, Quantized):
        symbols = np.resize(value.symbols, (numel, *value.symbols.shape[1:]))
        by_sample = value.axis == 0
        scales = np.resize(value.scales, numel) if by_sample else value.scales
        zero_points = np.resize(value.zero_points, scales.size) if value.zero_points is not None else None
        return Quantized(symbols, value.bits, scales, zero_points, value.axis)
    return dataclasses.replace(value, array=np.resize(value.array, numel))


def at_first(numbers: Any, count: int) -> Any:
    if isinstance(numbers, Quantized):
        return dataclasses.replace(numbers, symbols=np.resize(numbers.symbols, count))
    return np.resize(numbers, count)


@pytest.mark.parametrize("name", GOLDEN)
@pytest.mark.usefixtures("warm")
def test_a_sender_of_other_sizes(name: str) -> None:
    """All that its frame says fits together, and not to the receiver."""
    each, golden = target(name), GOLDEN[name]
    specs = golden.schema.specs(each.message_class)
    for number, (field, spec) in enumerate(zip(each.message_class.value_fields, specs, strict=True)):
        value = getattr(golden.message, field.name)
        for numel in (spec.shape[0] - 1, spec.shape[0] + 1, 3 * spec.shape[0] + 1000):
            if value is None or numel < 0:
                continue
            larger = dataclasses.replace(spec, shape=(numel, *spec.shape[1:]))
            theirs = dataclasses.replace(golden.schema)
            theirs._specs[each.message_class] = (*specs[:number], larger, *specs[number + 1 :])
            message = dataclasses.replace(golden.message, **{field.name: resized(value, numel)})  # type: ignore[type-var]
            raw = encode(message, theirs, BufferPool()).buffer.tobytes()
            outcome = fuzz.check(Mutant("sizes", each, raw, True))
            # Of a set the number of positions does not travel unless it may vary.
            assert outcome == "refused" or not spec.at_most or numel < spec.shape[0]


@pytest.mark.parametrize("name", [each.name for each in targets()])
def test_what_both_ends_hold_must_be_what_was_used(name: str) -> None:
    """Every other version, and every checksum that differs in a bit, is refused in words that name both."""
    each = target(name)
    names = [field.name for field in each.message_class.value_fields]
    for number, section in enumerate(each.sections):
        start, spec = each.reference_at(number), each.specs[number]
        if start is None or spec is None:
            continue
        version, end = take_varint(section.payload, start, 0)
        before, behind = section.payload[:start], section.payload[end + 4 :]
        stated = section.payload[end : end + 4]
        for bit in range(32):
            wrong = (int.from_bytes(stated, "little") ^ 1 << bit).to_bytes(4, "little")
            words = f"checksum {stated[::-1].hex()}, got {wrong[::-1].hex()}"
            with pytest.raises(WireError, match=words):
                received(each, number, before + varint(version) + wrong + behind)
        if spec.base in names and each.value_classes[number] is MaskedValues:
            continue  # a mask in the same message is found by its name, and has the version that its sender says
        for other in (version + 2, version + 12_345):
            with pytest.raises(WireError, match=f"version: .* expected one of those held: .*{version}.*, got {other}"):
                received(each, number, before + varint(other) + stated + behind)


def received(each: Target, number: int, payload: bytes) -> Message:
    sections = list(each.sections)
    sections[number] = sections[number]._replace(payload=payload)
    raw = sealed(put_together(each, sections))
    return fuzz.decode(np.frombuffer(bytearray(raw), np.uint8), (each.message_class,), each.schema)[0]


def test_mutants_follow_from_seed_and_number() -> None:
    drawn = [mutate(fuzz.numbered(7, number)) for number in range(300)]
    again = [mutate(fuzz.numbered(7, number)) for number in reversed(range(300))]
    assert [mutant.raw for mutant in drawn] == [mutant.raw for mutant in reversed(again)]
    assert {mutant.kind for mutant in drawn} == set(MUTATIONS)
    assert 0.4 < np.mean([mutant.is_sealed for mutant in drawn]) < 0.6
    assert mutate(fuzz.numbered(8, 0)).raw != drawn[0].raw


def test_every_codec_is_broken() -> None:
    ids = {section.codec for each in targets() for section in each.sections}
    assert {NAMES.get(codec_id, "numbers") for codec_id in ids if codec_id} == {info.name for info in CODECS}


# ---------------------------------------------------------------------------------------------------------------------
# What the fuzzer would notice


def accepts(received: Message, name: str) -> bool:
    try:
        check_message(received, GOLDEN[name].schema)
    except AssertionError:
        return False
    return True


def wrong_values() -> list[tuple[str, str, Any]]:
    kept = np.zeros(20_000, np.uint8)
    kept[3] = 2
    symbols = np.zeros((6, 4, 16, 16), np.uint8)
    one = np.ones(6, np.float32)
    numbers = np.ones(2, np.float32)
    return [
        ("mask_bits", "kept", Mask(kept.view(np.bool_))),
        ("mask_bits", "kept", Mask(np.zeros(19_999, np.bool_))),
        ("sparse_gaps", "update", Sparse(20_000, np.array([5, 5]), numbers)),
        ("sparse_gaps", "update", Sparse(20_000, np.array([5, 20_000]), numbers)),
        ("sparse_gaps", "update", Sparse(20_000, np.array([-1, 5]), numbers)),
        ("sparse_gaps", "update", Sparse(20_000, np.array([1, 2, 5]), numbers)),
        ("sparse_gaps", "update", Sparse(20_000, np.array([1, 2]), numbers.astype(np.float64))),
        ("maps_packed", "activations", Quantized(symbols + np.uint8(16), 4, one, axis=0)),
        ("maps_packed", "activations", Quantized(symbols, 4, one[:5], axis=0)),
        ("maps_packed", "activations", Quantized(symbols, 4, one * np.float32(np.inf), axis=0)),
        ("maps_packed", "activations", Quantized(symbols[:, :3], 4, one, axis=0)),
        ("maps_packed", "activations", Quantized(symbols, 4, one, np.full(6, 16, np.int32), 0)),
    ]


@pytest.mark.parametrize(("name", "field", "value"), wrong_values())
def test_a_value_outside_the_schema_would_be_noticed(name: str, field: str, value: Any) -> None:
    real = GOLDEN[name].message
    assert accepts(real, name)
    assert not accepts(dataclasses.replace(real, **{field: value}), name)  # type: ignore[type-var]


def test_other_exceptions_would_be_noticed(monkeypatch: pytest.MonkeyPatch, warm: None) -> None:
    def broken(buffer: np.ndarray, *rest: Any) -> Any:
        if buffer.size % 7 == 3:
            raise IndexError("beyond the end")
        return decode(buffer, *rest)

    decode = fuzz.decode
    monkeypatch.setattr(fuzz, "decode", broken)
    report = fuzz.run(0, 100, seed=3)
    assert 0 < len(report.findings) < 100
    assert "IndexError" in report.findings[0]
    assert "beyond the end" in report.findings[0]
    number = int(report.findings[0].split("--only ")[1].split(":")[0])
    assert mutate(fuzz.numbered(3, number)).raw.hex()[:512] in report.findings[0]


def test_allocations_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def greedy(*_: Any) -> Any:
        np.zeros(100 << 20, np.uint8)
        raise WireError("nothing", offset=0, expected="less", got="more")

    each = target("mask_bits")
    mutant = Mutant("none", each, each.raw, True)
    fuzz.check_allocations(mutant)
    monkeypatch.setattr(fuzz, "decode", greedy)
    with pytest.raises(AssertionError, match="bytes are allocated"):
        fuzz.check_allocations(mutant)


@pytest.mark.parametrize("how", ["dies", "hangs"])
def test_a_process_that_dies_or_hangs_would_be_noticed(monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    def stops(start: int, count: int, seed: int, *, progress: Any) -> fuzz.Report:
        progress(41)
        if how == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(100)
        raise AssertionError

    monkeypatch.setattr(fuzz, "warm_up", lambda: None)
    monkeypatch.setattr(fuzz, "run", stops)
    monkeypatch.setattr(fuzz, "HANG_S", 0.5)
    report = fuzz.run_guarded(0, 100, seed=3)
    assert len(report.findings) == 1
    assert "--seed 3 --only 41" in report.findings[0]

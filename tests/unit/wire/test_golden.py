"""Golden frames: today's build writes yesterday's bytes and reads them.

The files are made once, and are part of the format: ``python tests/unit/wire/test_golden.py --write`` creates those
that do not exist and never touches one that does. The messages are in `messages`.

Frames with zstd inside are read as all others are, but not compared with what is written today: the bytes that a
compressor makes are its library's own affair, and differ between its versions.
"""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from messages import GOLDEN
from real_frames import Section, frame_of, take_apart
from roundtrip import assert_same, round_trip

from fedmpi.algorithms.registry import BUILT_IN
from fedmpi.config import WireConfig
from fedmpi.wire.codecs.base import ABSENT, CODECS, NAMES
from fedmpi.wire.frame import decode
from fedmpi.wire.message import KINDS
from fedmpi.wire.values import Dense, Mask, MaskedValues, Quantized, Sparse, Value

FOLDER = Path(__file__).parents[2] / "fixtures" / "frames"
ALWAYS_THE_SAME = [name for name, golden in GOLDEN.items() if not golden.zstd]
EXPLAINED = ["model_up", "sparse_up"]
"""Frames that the contract shows byte by byte."""


def write_missing(folder: Path) -> list[str]:
    """Create the files that do not exist; return their names."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, golden in GOLDEN.items():
        path = folder / f"{name}.bin"
        if not path.exists():
            path.write_bytes(frame_of(golden))
            written.append(name)
    return written


def yesterdays(name: str) -> bytes:
    return (FOLDER / f"{name}.bin").read_bytes()


def test_what_changes_with_zstd_is_what_zstd_made() -> None:
    assert {name for name in GOLDEN if GOLDEN[name].zstd} == {
        "dense_repeated",
        "held_repeated",
        "mask_zstd",
        "small_masks_zstd",
        "sparse_zstd",
    }


@pytest.mark.parametrize("name", ALWAYS_THE_SAME)
def test_today_writes_yesterdays_bytes(name: str) -> None:
    assert frame_of(GOLDEN[name]).hex(" ") == yesterdays(name).hex(" ")


@pytest.mark.parametrize("name", GOLDEN)
def test_today_reads_yesterdays_bytes(name: str) -> None:
    want, schema, _ = GOLDEN[name]
    raw = yesterdays(name)
    back, frame = decode(np.frombuffer(bytearray(raw), np.uint8), (type(want),), schema)
    for field in (*want.number_fields, *want.value_fields):
        assert_same(getattr(want, field.name), getattr(back, field.name), field.name)
    assert frame.wire_nbytes == len(raw)


@pytest.mark.parametrize("name", GOLDEN)
def test_today_reads_todays_bytes(name: str) -> None:
    round_trip(GOLDEN[name].message, GOLDEN[name].schema)


# ---------------------------------------------------------------------------------------------------------------------
# What is covered


@pytest.fixture(autouse=True)
def all_messages() -> None:
    """Import every file that may define a message."""
    for name in BUILT_IN:
        importlib.import_module(f"fedmpi.algorithms.{name}")


def test_every_fixture_and_every_message_of_the_package_is_covered() -> None:
    assert {path.stem for path in FOLDER.glob("*.bin")} == set(GOLDEN)
    ours = {cls for cls in KINDS.values() if cls.__module__.startswith("fedmpi.")}
    assert ours == {type(golden.message) for golden in GOLDEN.values()} & ours


def sections_of_values() -> list[tuple[type[Value], Section]]:
    """Return the class of values and the section of every value in every file."""
    found = []
    for name, golden in GOLDEN.items():
        cls = type(golden.message)
        sections = take_apart(yesterdays(name), cls, golden.schema)[bool(cls.number_fields) :]
        for field, section in zip(cls.value_fields, sections, strict=True):
            if section.codec != ABSENT:
                found.append((field.declared.value_class, section))
    return found


def test_every_codec_is_in_some_file() -> None:
    found = sections_of_values()
    names = {"numbers"} | {NAMES[section.codec] for _, section in found}
    names |= {NAMES[section.param] for value_class, section in found if value_class is Sparse}
    assert names == {info.name for info in CODECS}


def test_every_codec_that_can_be_asked_for_is_in_some_file() -> None:
    codecs: dict[str, set[str]] = {key: set() for key in WireConfig.model_fields}
    at_masks: set[str] = set()
    at_positions: set[str] = set()
    for value_class, section in sections_of_values():
        codec = NAMES[section.codec]
        if value_class is Dense:
            codecs["dense"].add(codec)
        elif value_class is Mask:
            codecs["mask"].add(codec)
        elif value_class is Quantized:
            codecs["quantized"].add(codec)
        elif value_class is MaskedValues:
            at_masks.add(codec)
        elif value_class is Sparse:
            codecs["sparse"].add(codec)
            at_positions.add(NAMES[section.param])
    for key, field in WireConfig.model_fields.items():
        wanted = set(get_args(field.annotation)) - {"auto"}
        assert wanted == (at_positions - codecs["quantized"] if key == "values" else codecs[key]), key
    assert at_positions == at_masks == {"raw", "planes"} | codecs["quantized"]


def test_every_variant_of_quantized_numbers_is_in_some_file() -> None:
    """The param byte says how many bits, whether signed, whether there are zero points, and which axis has scales."""
    params = {section.param for value_class, section in sections_of_values() if value_class is Quantized}
    assert {param & 7 for param in params} == set(range(8))
    assert {param >> 3 for param in params} >= {signed | zero << 1 | axis << 2 for signed in (0, 1)
                                                for zero in (0, 1) for axis in (0, 1, 2)}  # fmt: skip


# ---------------------------------------------------------------------------------------------------------------------
# The contract in words


def test_the_contract_shows_these_frames_and_these_kinds() -> None:
    text = (Path(__file__).parents[3] / "docs" / "wire_format.md").read_text()
    _, *shown = re.split(r"`tests/fixtures/frames/(\w+)\.bin`", text)
    assert shown[::2] == EXPLAINED
    for name, words in zip(shown[::2], shown[1::2], strict=True):
        dump = re.findall(r"^    [0-9a-f]{8}: ((?:[0-9a-f]{2,4} )+) ", words, re.MULTILINE)
        assert bytes.fromhex("".join(dump)) == yesterdays(name), name
        rows = re.findall(r"^\| (\d+) \| `([0-9a-f ]+)` \|", words, re.MULTILINE)
        assert bytes.fromhex("".join(row for _, row in rows)) == yesterdays(name), name
        lengths = [len(bytes.fromhex(row)) for _, row in rows]
        assert [int(offset) for offset, _ in rows] == [sum(lengths[:i]) for i in range(len(rows))], name
    kinds = re.findall(r"^\| `(\w+)` \| (up|down) \| `([\w-]+)` \| (\d+) \|", text, re.MULTILINE)
    ours = [cls for cls in KINDS.values() if cls.__module__.startswith("fedmpi.")]
    assert sorted(kinds) == sorted((cls.__name__, cls.direction, cls.kind, str(cls.kind_id)) for cls in ours)


def test_files_that_exist_are_never_written(tmp_path: Path) -> None:
    (tmp_path / "seed_down.bin").write_bytes(b"old")
    assert write_missing(tmp_path) == [name for name in GOLDEN if name != "seed_down"]
    assert write_missing(tmp_path) == []
    assert (tmp_path / "seed_down.bin").read_bytes() == b"old"


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit("usage: python tests/unit/wire/test_golden.py --write")
    print("written:", *(write_missing(FOLDER) or ["nothing, all exist"]))

"""Golden frames: today's build writes yesterday's bytes and reads them.

The files are made once, and are part of the format: ``python tests/unit/wire/test_golden.py --write`` creates those
that do not exist and never touches one that does.
"""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from fedmpi.algorithms.averaging import ModelDown, ModelUp, SeedDown
from fedmpi.algorithms.registry import BUILT_IN
from fedmpi.wire.buffers import BufferPool
from fedmpi.wire.frame import decode, encode
from fedmpi.wire.message import KINDS, Message, Schema, dense, message
from fedmpi.wire.values import Dense

FOLDER = Path(__file__).parents[2] / "fixtures" / "frames"
SCHEMA = Schema({"params": 3, "state": 4, "int_buffers": 2}, 0x1234ABCD)


@message("golden-dtypes", "up")
class AllDtypes(Message):
    """Every dtype, every kind of number, a field that is absent."""

    small: int
    real: float
    large: int
    octets: Dense = dense(9, dtype="uint8", at_most=True)
    f32: Dense = dense("params")
    f64: Dense = dense("params", dtype="float64")
    absent: Dense | None = dense("params")
    f16: Dense = dense("params", dtype="float16")
    i64: Dense = dense("int_buffers", dtype="int64")
    i32: Dense = dense("int_buffers", dtype="int32")


def vector(dtype: str, *numbers: float) -> Dense:
    return Dense(np.array(numbers, dtype))


STATE = vector("float32", 1.0, -0.5, 3.25e-5, 65504.0)
INTS = vector("int64", 7, -(2**62))
MESSAGES: dict[str, Message] = {
    "seed_down": SeedDown(init_seed=1234567890, state_hash=0x7FEDCBA9),
    "model_down": ModelDown(int_buffers=None, state=STATE),
    "model_down_ints": ModelDown(int_buffers=INTS, state=STATE),
    "model_up": ModelUp(num_samples=600, int_buffers=None, state=STATE),
    "model_up_ints": ModelUp(num_samples=600, int_buffers=INTS, state=STATE),
    "all_dtypes": AllDtypes(
        small=-3,
        real=0.1,
        large=-(2**63),
        octets=vector("uint8", 0, 1, 128, 254, 255),
        f32=vector("float32", np.inf, -0.0, 1e-45),
        f64=vector("float64", np.pi, -np.inf, 5e-324),
        absent=None,
        f16=vector("float16", 0.1, -2, 6e-8),
        i64=vector("int64", -1, 2**63 - 1),
        i32=vector("int32", -(2**31), 2**31 - 1),
    ),
}


def frame_bytes(name: str) -> bytes:
    return encode(MESSAGES[name], SCHEMA, BufferPool()).buffer.tobytes()


def write_missing(folder: Path) -> list[str]:
    """Create the files that do not exist; return their names."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name in MESSAGES:
        path = folder / f"{name}.bin"
        if not path.exists():
            path.write_bytes(frame_bytes(name))
            written.append(name)
    return written


@pytest.mark.parametrize("name", MESSAGES)
def test_today_writes_yesterdays_bytes(name: str) -> None:
    assert frame_bytes(name).hex(" ") == (FOLDER / f"{name}.bin").read_bytes().hex(" ")


@pytest.mark.parametrize("name", MESSAGES)
def test_today_reads_yesterdays_bytes(name: str) -> None:
    want = MESSAGES[name]
    raw = (FOLDER / f"{name}.bin").read_bytes()
    back, frame = decode(np.frombuffer(bytearray(raw), np.uint8), (type(want),), SCHEMA)
    assert type(back) is type(want)
    for number in want.number_fields:
        assert getattr(back, number.name) == getattr(want, number.name)
    for field in want.value_fields:
        ours, theirs = getattr(back, field.name), getattr(want, field.name)
        assert (ours is None) == (theirs is None)
        if ours is not None:
            assert ours.array.dtype == theirs.array.dtype
            assert ours.array.tobytes() == theirs.array.tobytes()
    assert frame.wire_nbytes == len(raw)


@pytest.fixture(autouse=True)
def all_messages() -> None:
    """Import every file that may define a message."""
    for name in BUILT_IN:
        importlib.import_module(f"fedmpi.algorithms.{name}")


def test_every_fixture_and_every_message_of_the_package_is_covered() -> None:
    assert {path.stem for path in FOLDER.glob("*.bin")} == set(MESSAGES)
    ours = {cls for cls in KINDS.values() if cls.__module__.startswith("fedmpi.")}
    assert ours == {type(msg) for msg in MESSAGES.values()} - {AllDtypes}


def test_the_contract_shows_this_frame_and_these_kinds() -> None:
    text = (Path(__file__).parents[3] / "docs" / "wire_format.md").read_text()
    dump = re.findall(r"^    [0-9a-f]{8}: ((?:[0-9a-f]{2,4} )+) ", text, re.MULTILINE)
    assert bytes.fromhex("".join(dump)) == (FOLDER / "model_up.bin").read_bytes()
    explained = re.findall(r"^\| \d+ \| `([0-9a-f ]+)` \|", text, re.MULTILINE)
    assert bytes.fromhex("".join(explained)) == (FOLDER / "model_up.bin").read_bytes()
    kinds = re.findall(r"^\| `(\w+)` \| (up|down) \| `(\w+)` \| (\d+) \|", text, re.MULTILINE)
    ours = [cls for cls in KINDS.values() if cls.__module__.startswith("fedmpi.")]
    assert sorted(kinds) == sorted((cls.__name__, cls.direction, cls.kind, str(cls.kind_id)) for cls in ours)


def test_files_that_exist_are_never_written(tmp_path: Path) -> None:
    (tmp_path / "seed_down.bin").write_bytes(b"old")
    assert write_missing(tmp_path) == [name for name in MESSAGES if name != "seed_down"]
    assert write_missing(tmp_path) == []
    assert (tmp_path / "seed_down.bin").read_bytes() == b"old"


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit("usage: python tests/unit/wire/test_golden.py --write")
    print("written:", *(write_missing(FOLDER) or ["nothing, all exist"]))

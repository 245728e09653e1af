"""`fedmpi wire`: what a user's own array weighs, as the command line has it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

RNG = np.random.default_rng(2)
MASK = RNG.random(3000) < 0.1
NORMAL = RNG.standard_normal((10, 30)).astype(np.float32)
NAMES = [
    "codec", "wire_nbytes", "header_nbytes", "payload_nbytes", "index_nbytes", "value_nbytes", "bound_nbits",
    "wire_over_bound", "dense_nbytes", "paper_nbits", "encode_s", "decode_s",
]  # fmt: skip


@pytest.fixture
def files(tmp_path: Path) -> Path:
    arrays = {
        "mask": MASK,
        "old": MASK ^ (RNG.random(3000) < 0.01),
        "theta": np.where(MASK, 0.8, 0.1),
        "sparse": np.where(NORMAL > 1, NORMAL, 0),
        "quantized": RNG.integers(-3, 4, (2, 3, 4, 4)),
        "dense": NORMAL,
        "patterns": (NORMAL.view(np.uint32) >> 16).astype(np.uint16),
    }
    for name, array in arrays.items():
        np.save(tmp_path / f"{name}.npy", array)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "options", "kind"),
    [
        ("mask", [], "mask"),
        ("mask", ["--prior", "theta"], "mask"),
        ("mask", ["--base", "old", "--codec", "ranks"], "mask"),
        ("sparse", ["--codec", "int64+raw"], "sparse"),
        ("quantized", ["--bits", "4"], "quantized"),
        ("dense", ["--base", "dense"], "dense"),
        ("sparse", ["--base", "dense"], "dense"),
        ("patterns", ["--dtype", "bfloat16"], "dense"),
        ("dense", ["--kind", "quantized", "--bits", "3"], "quantized"),
        ("sparse", ["--bits", "3"], "quantized"),
    ],
)
def test_text_and_json_of_each_kind(here, files, name, options, kind):
    words = [files / f"{word}.npy" if word in ("theta", "old", "dense") else word for word in options]
    status, text, errors = here("wire", files / f"{name}.npy", *words)
    assert (status, errors) == (0, "")
    status, printed, errors = here("wire", files / f"{name}.npy", *words, "--json")
    assert (status, errors) == (0, "")
    figures = json.loads(printed)
    assert set(NAMES) <= set(figures)
    assert figures["kind"] == kind
    assert figures["wire_nbytes"] == figures["header_nbytes"] + figures["payload_nbytes"]
    lines = text.splitlines()
    assert lines[0].startswith(f"{files / name}.npy: ")
    shown = {line.split()[0]: line.split()[1] for line in lines[1:] if "_n" in line.split()[0]}
    assert shown["wire_nbytes"] == str(figures["wire_nbytes"])
    ratio = f"wire / bound {figures['wire_over_bound']:.4f}"
    assert ("no model: plain width" if kind == "dense" else ratio) in text
    assert ("lost something" in text) == (figures["rounding_error"] is not None)
    assert lines[-1] == "  decoded bit for bit to what was encoded"


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["missing.npy"], 3, "missing.npy: No such file or directory"),
        (["notes.npy"], 3, "notes.npy is not a whole .npy file of numbers"),
        (["cut.npy"], 3, "cut.npy is not a whole .npy file of numbers"),
        (["objects.npy"], 3, "objects.npy is not a whole .npy file of numbers"),
        (["dense.npy", "--kind", "mask"], 2, "float32 can be sent as sparse or quantized or dense, not as mask"),
        (["mask.npy", "--prior", "old.npy"], 2, "old.npy: the probabilities must be floats, got bool"),
        (["mask.npy", "--prior", "dense.npy"], 2, "dense.npy: the probabilities must have the array's shape"),
        (["nan.npy", "--kind", "quantized", "--bits", "3"], 2, "cannot be rounded to 3 bits"),
        (["quantized.npy", "--bits", "2"], 2, "need 3 bits, more than --bits 2"),
        (["dense.npy", "--kind", "quantized", "--bits", "9"], 2, "--bits must be from 1 to 8, got 9"),
        (["missing.npy", "--bits", "0"], 2, "--bits must be from 1 to 8, got 0"),
        (["dense.npy", "--base", "missing.npy"], 3, "missing.npy: No such file or directory"),
        (["patterns.npy"], 2, "need 16 bits, more than 8: convert to int32, which --kind dense takes"),
        (["dense.npy", "--dtype", "bfloat16"], 2, "--dtype bfloat16 goes with a file of its bit patterns as uint16"),
        (["dense.npy", "--kind", "quantized"], 2, "say to how many --bits"),
        (["dense.npy", "--kind", "densse"], 2, "did you mean dense?"),
        (["mask.npy", "--codec", "gap-rnas"], 2, "did you mean gap-rans?"),
    ],
)
def test_what_is_wrong_is_said(here, files, monkeypatch, words, status, said):
    monkeypatch.chdir(files)
    Path("notes.npy").write_text("shopping list")
    Path("cut.npy").write_bytes(Path("dense.npy").read_bytes()[:-1])
    np.save("objects.npy", np.array([{}, 1], object))
    np.save("nan.npy", np.array([1, np.nan]))
    done, output, errors = here("wire", *words)
    assert (done, output) == (status, "")
    assert errors.startswith("fedmpi: error: ")
    assert said in errors
    assert len(errors.splitlines()) == 1


@pytest.mark.parametrize(
    "words", [[], ["a.npy", "--bits", "two"], ["a.npy", "b.npy"], ["a.npy", "--prior", "p.npy", "--base", "b.npy"]]
)
def test_usage(here, words, capfd):
    with pytest.raises(SystemExit) as ended:
        here("wire", *words)
    assert ended.value.code == 2
    assert capfd.readouterr().err.startswith("usage: fedmpi wire ")


def test_help_says_what_each_word_is(here, capfd):
    with pytest.raises(SystemExit) as ended:
        here("wire", "--help")
    assert ended.value.code == 0
    words = " ".join(capfd.readouterr().out.split())
    assert "ARRAY.npy what to send: bool, whole numbers or floats" in words
    assert "which round them to 1/4096" in words


def test_as_a_command(files):
    command = [sys.executable, "-m", "fedmpi", "wire", str(files / "mask.npy"), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["num_params"] == MASK.size

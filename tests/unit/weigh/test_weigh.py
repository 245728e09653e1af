"""What `weigh` makes of arrays: kinds, figures, and refusals that name file and rule."""

from __future__ import annotations

import ast
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedmpi.errors import ConfigError, DataError
from fedmpi.weigh.arrays import Options, load_array
from fedmpi.weigh.report import weigh, weigh_text
from fedmpi.wire.message import KINDS

RNG = np.random.default_rng(5)
NORMAL = RNG.standard_normal((4, 5, 6, 7)).astype(np.float32)
RELU = np.maximum(NORMAL - np.float32(0.5), 0)
SYMBOLS = RNG.integers(0, 5, (3, 8, 8))
MASK = RNG.random(2000) < 0.2
MOVED = MASK ^ (RNG.random(2000) < 0.01)
THETA = RNG.random(2000)
DRAWN = RNG.random(2000) < THETA
PATTERNS = NORMAL.view(np.uint32).reshape(-1) >> 16  # of bfloat16, towards 0
PATTERNS = PATTERNS.astype(np.uint16).reshape(NORMAL.shape)
BFLOAT16 = Options(dtype="bfloat16")


def save(folder: Path, array: Any, name: str = "array.npy") -> Path:
    np.save(folder / name, array)
    return folder / name


@pytest.mark.parametrize(
    ("array", "kind"),
    [
        (MASK, "mask"), (SYMBOLS, "quantized"), (RELU, "sparse"), (NORMAL, "dense"),
        (NORMAL.astype(np.float16), "dense"), (RELU.astype(np.float64), "sparse"), (np.array([-0.0]), "dense"),
        (np.array([7], np.uint64), "quantized"), (np.array(True), "mask"), (np.float32(3), "dense"),
    ],
)  # fmt: skip
def test_the_dtype_suggests_the_kind(tmp_path: Path, array: Any, kind: str) -> None:
    assert weigh(save(tmp_path, array))["kind"] == kind


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "bfloat16"])
@pytest.mark.parametrize(("num_zeros", "kind"), [(0, "dense"), (1, "dense"), (49, "dense"), (50, "sparse")])
def test_floats_are_sparse_where_at_least_half_are_zero(tmp_path: Path, dtype: str, num_zeros: int, kind: str) -> None:
    options = BFLOAT16 if dtype == "bfloat16" else Options()
    array = np.arange(1, 101).astype("uint16" if dtype == "bfloat16" else dtype)
    array[:num_zeros] = 0
    figures = weigh(save(tmp_path, array), options=options)
    assert (figures["kind"], figures["dtype"]) == (kind, dtype)


def test_a_base_says_what_floats_are_sent_as(tmp_path: Path) -> None:
    of_numbers = Options(base=save(tmp_path, RELU, "numbers.npy"))
    of_bits = Options(base=save(tmp_path, RELU != 0, "bits.npy"))
    for array in (RELU, NORMAL):
        assert weigh(save(tmp_path, array), options=of_numbers)["kind"] == "dense"
        assert weigh(save(tmp_path, array), options=of_bits)["kind"] == "sparse"


@pytest.mark.parametrize("array", [RELU, NORMAL, RELU.astype(np.float64)])
def test_bits_say_that_floats_are_rounded(tmp_path: Path, array: np.ndarray) -> None:
    path, bits = save(tmp_path, array), Options(bits=4)
    given, asked = weigh(path, options=bits), weigh(path, "quantized", options=bits)
    assert given["kind"] == "quantized"
    assert (given["wire_nbytes"], given["rounding_error"]) == (asked["wire_nbytes"], asked["rounding_error"])


@pytest.mark.parametrize("kind", [None, "dense", "sparse"])
def test_bit_patterns_of_bfloat16(tmp_path: Path, kind: str | None) -> None:
    figures = weigh(save(tmp_path, PATTERNS), kind, options=BFLOAT16)
    assert (figures["dtype"], figures["kind"]) == ("bfloat16", kind or "dense")
    assert figures["num_params"] == figures["num_kept"] == PATTERNS.size
    assert ": bfloat16, 4 x 5 x 6 x 7; sent as" in weigh_text(figures)
    if kind != "sparse":
        assert figures["bound_nbits"] == 16 * PATTERNS.size
        # The exponents are coded, and nothing else of theirs has less than its bits.
        assert 0.5 * figures["bound_nbits"] < 8 * figures["wire_nbytes"] < figures["bound_nbits"]


def test_bfloat16_against_a_base(tmp_path: Path) -> None:
    old = save(tmp_path, PATTERNS, "old.npy")
    given = weigh(save(tmp_path, PATTERNS ^ 1), None, "delta", Options(base=old, dtype="bfloat16"))
    assert (given["kind"], given["codec"]) == ("dense", "delta")


@pytest.mark.parametrize("kind", ["mask", "sparse", "quantized", "dense"])
@pytest.mark.parametrize("shape", [(0,), (3, 0, 2), (), (1,), (2, 3, 4, 5)])
def test_any_shape_comes_back(tmp_path: Path, kind: str, shape: tuple[int, ...]) -> None:
    dtype = {"mask": "bool", "quantized": "int32"}.get(kind, "float64")
    array = RNG.integers(0, 2, shape).astype(dtype)
    figures = weigh(save(tmp_path, array), kind)
    assert figures["shape"] == list(shape)
    assert figures["num_params"] == array.size
    assert figures["wire_nbytes"] == figures["header_nbytes"] + figures["payload_nbytes"]
    assert "decoded bit for bit" in weigh_text(figures)


def test_figures_of_a_mask(tmp_path: Path) -> None:
    figures = weigh(save(tmp_path, MASK), codec="bits")
    assert (figures["codec"], figures["payload_nbytes"], figures["paper_nbits"]) == ("bits", 250, 2000.0)
    assert figures["dense_nbytes"] == 8000
    assert figures["wire_over_bound"] == 8 * figures["wire_nbytes"] / figures["bound_nbits"]
    assert figures["rounding_error"] is None
    assert weigh(save(tmp_path, MASK))["payload_nbytes"] < 250


def test_the_text_says_how_many_bits_of_a_mask_are_set(tmp_path: Path) -> None:
    figures = weigh(save(tmp_path, np.arange(2000) < 100))
    assert (figures["num_set"], figures["num_kept"]) == (100, 2000)
    assert "bool, 2000, 100 set (density 0.05); sent as mask" in weigh_text(figures)
    assert "bool, 0, 0 set; sent as mask" in weigh_text(weigh(save(tmp_path, np.zeros(0, np.bool_))))
    figures = weigh(save(tmp_path, RELU))
    assert figures["num_set"] is None
    assert f"{np.count_nonzero(RELU)} kept; sent as sparse" in weigh_text(figures)


def test_dense_numbers_have_no_model_to_be_measured_by(tmp_path: Path) -> None:
    figures = weigh(save(tmp_path, np.linspace(1, 2, 10_000)))
    assert 0 < figures["wire_over_bound"] < 1
    assert f"{figures['bound_nbits']:.0f}  no model: plain width" in weigh_text(figures)
    assert "wire / bound" not in weigh_text(figures)


def test_a_set_without_choice_has_no_ratio_to_its_bound(tmp_path: Path) -> None:
    figures = weigh(save(tmp_path, np.zeros(50, np.bool_)))
    assert (figures["bound_nbits"], figures["wire_over_bound"]) == (0, None)
    assert "wire / bound" not in weigh_text(figures)


@pytest.mark.parametrize("codec", ["prior", "auto"])
def test_probabilities_that_both_ends_hold_shorten_a_mask(tmp_path: Path, codec: str) -> None:
    prior = save(tmp_path, THETA, "p.npy")
    alone, given = weigh(save(tmp_path, DRAWN)), weigh(save(tmp_path, DRAWN), None, codec, Options(prior=prior))
    assert given["codec"] == "prior"
    assert given["wire_nbytes"] < 0.9 * alone["wire_nbytes"]
    assert given["bound_nbits"] < alone["bound_nbits"]


@pytest.mark.parametrize("codec", ["change", "ranks", "auto"])
def test_a_mask_that_both_ends_hold_shortens_masks_and_positions(tmp_path: Path, codec: str) -> None:
    base = Options(base=save(tmp_path, MASK, "old.npy"))
    for array in (MOVED, np.where(MOVED, THETA, 0)):
        if array.dtype != np.bool_ and codec == "change":
            continue
        path = save(tmp_path, array)
        alone, given = weigh(path), weigh(path, None, codec, base)
        assert given["index_nbytes"] < 0.5 * alone["index_nbytes"]
        assert codec == "auto" or given["codec"].startswith(codec)


def test_numbers_that_both_ends_hold_shorten_a_dense_array(tmp_path: Path) -> None:
    old = save(tmp_path, NORMAL, "old.npy")
    new = save(tmp_path, NORMAL * np.float32(1 + 1e-6))
    given = weigh(new, None, "delta", Options(base=old))
    assert given["codec"] == "delta"
    assert given["wire_nbytes"] < 0.6 * weigh(new)["wire_nbytes"]
    assert weigh(new, None, "auto", Options(base=old))["wire_nbytes"] == given["wire_nbytes"]


def test_codecs_of_sparse_arrays_name_positions_or_both(tmp_path: Path) -> None:
    path, kept = save(tmp_path, RELU), np.count_nonzero(RELU)
    plain = weigh(path, codec="uint32+raw")
    assert plain["codec"] == "uint32+raw"
    assert plain["value_nbytes"] == 4 * kept
    assert plain["num_kept"] == kept
    assert weigh(path, codec="int64")["codec"].startswith("int64+")
    assert weigh(path, codec="auto+raw")["codec"].endswith("+raw")
    assert weigh(path)["wire_nbytes"] < plain["wire_nbytes"]


def test_a_negative_zero_is_sent(tmp_path: Path) -> None:
    assert weigh(save(tmp_path, np.array([0.0, -0.0, np.nan, 1.0], np.float16)), "sparse")["num_kept"] == 3


@pytest.mark.parametrize(
    ("numbers", "bits"),
    [
        ([0, 0], 1),
        ([0, 1], 1),
        ([0, 2], 2),
        ([255], 8),
        ([-1, 1], 1),
        ([-1, 0], 2),
        ([-2, 1], 2),
        ([-128, 127], 8),
        ([-4, 3], 3),
    ],
)
def test_whole_numbers_take_the_fewest_bits(tmp_path: Path, numbers: list[int], bits: int) -> None:
    path = save(tmp_path, np.array(numbers * 100, np.int64))
    assert weigh(path, codec="packed")["payload_nbytes"] == 4 + (bits * 100 * len(numbers) + 7) // 8
    assert weigh(path, "quantized", "packed", Options(bits=8))["payload_nbytes"] == 4 + 100 * len(numbers)
    if bits > 1:
        with pytest.raises(ConfigError, match=f"need {bits} bits, more than --bits {bits - 1}$"):
            weigh(path, options=Options(bits=bits - 1))


def test_the_last_two_dimensions_are_the_neighbours(tmp_path: Path) -> None:
    columns = np.broadcast_to(RNG.integers(0, 2, 64), (8, 64, 64))
    in_shape, flat = weigh(save(tmp_path, columns)), weigh(save(tmp_path, columns.reshape(-1)))
    assert in_shape["codec"] == "context"
    assert in_shape["wire_nbytes"] < 0.8 * flat["wire_nbytes"]


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("array", [NORMAL, RELU, RELU.astype(np.float64), np.zeros((0, 2))])
def test_floats_are_rounded_and_the_loss_is_said(tmp_path: Path, bits: int, array: np.ndarray) -> None:
    figures = weigh(save(tmp_path, array), "quantized", "auto", Options(bits=bits))
    # Half a step; signs alone are off by the magnitude at most.
    num_steps = 2**bits - 1 if array.size and array.min() >= 0 else 2 ** (bits - 1) - 1 or 0.5
    assert figures["rounding_error"] <= 0.501 * np.abs(array).max(initial=0) / num_steps
    assert (figures["rounding_error"] > 0) == bool(array.size)
    said = "something: numbers are off by up to " if array.size else "nothing\n"
    assert f"rounding before that lost {said}" in weigh_text(figures)


@pytest.mark.parametrize("dtype", [">f4", ">i8", ">f2"])
def test_any_byte_order_and_any_layout(tmp_path: Path, dtype: str) -> None:
    numbers = np.arange(1, 13).reshape(3, 4)
    loaded = load_array(save(tmp_path, np.asfortranarray(numbers.astype(dtype))))
    assert loaded.flags.c_contiguous
    assert loaded.dtype.isnative
    assert (loaded == numbers).all()
    weigh(save(tmp_path, numbers.astype(dtype)), "quantized" if dtype == ">i8" else None)


def test_the_table_of_kinds_is_left_alone(tmp_path: Path) -> None:
    before = dict(KINDS)
    for array in (MASK, SYMBOLS, RELU, NORMAL):
        weigh(save(tmp_path, array))
    with pytest.raises(ConfigError, match="need"):
        weigh(save(tmp_path, np.array([300])))
    assert before == KINDS


def header(text: str) -> bytes:
    raw = text.encode()
    return b"\x93NUMPY\x01\x00" + len(raw).to_bytes(2, "little") + raw


DESCRIPTION = "{'descr': '<f4', 'fortran_order': False, 'shape': %s, }\n"


@pytest.mark.parametrize(
    "content",
    [
        b"", b"text", b"\x93NUM", b"\x80\x04N.", header("(" * 3000), header("\0" * 9), header("{1: 2, 'a': 3}\n"),
        header(DESCRIPTION % "(9,)") + b"abcd", header(DESCRIPTION % "(-1,)"), header(DESCRIPTION % "(True,)"),
        header(DESCRIPTION % str((10**20,))), header(DESCRIPTION % str((2**40, 2**40))) + b"abcd",
    ],
)  # fmt: skip
def test_a_broken_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.npy"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"broken\.npy is not a whole \.npy file of numbers"):
        load_array(path)


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not a whole"):
        load_array(save(tmp_path, np.array([ast, {}], object).astype(object)[1:]))
    with zipfile.ZipFile(tmp_path / "several.npy", "w") as several:
        several.writestr("a.npy", b"")
    with pytest.raises(DataError, match="not a whole"):
        load_array(tmp_path / "several.npy")


def test_files_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"missing\.npy: No such file"):
        load_array(tmp_path / "missing.npy")
    with pytest.raises(DataError, match="Is a directory"):
        load_array(tmp_path)


@pytest.mark.parametrize(
    ("array", "kind", "words"),
    [
        (MASK.view(np.uint8), "mask", "uint8 can be sent as quantized or dense, not as mask"),
        (MASK, "sparse", "bool can be sent as mask, not as sparse"),
        (SYMBOLS, "sparse", "int64 can be sent as quantized or dense, not as sparse"),
        (
            SYMBOLS.astype(np.int8),
            "dense",
            "int8 .* quantized, not as dense: convert to int32, which --kind dense takes$",
        ),
        (NORMAL.astype(np.complex64), None, "whole numbers of at most 8 bits, got complex64"),
        (NORMAL.astype(np.longdouble), None, "got float128"),
        (np.array(["a"]), None, "got <U1"),
        (np.zeros(3, [("a", "f4")]), "dense", "got "),
        (
            PATTERNS,
            "dense",
            "uint16 can be sent as quantized, not as dense: convert to int32.* or say --dtype bfloat16",
        ),
        (np.array([1], np.uint32), "dense", "not as dense: convert to int64"),
        (np.array([2**63], np.uint64), "dense", "--kind dense takes int64 at most, which cannot hold them"),
        (MASK, "dense", "bool can be sent as mask, not as dense$"),
        (np.array([256]), None, "from 256 to 256 need 9 bits, more than 8: try --kind dense$"),
        (np.array([-129], np.int16), None, "need 9 bits, more than 8: convert to int32, which --kind dense takes$"),
        (np.array([2**16 - 1], np.uint16), None, "need 16 bits, .* convert to int32, .* or say --dtype bfloat16 if"),
        (np.array([2**16], np.uint32), None, "need 17 bits, more than 8: convert to int64"),
        (np.array([2**64 - 1], np.uint64), None, "need 64 bits, more than 8: .* int64 at most, which cannot hold"),
    ],
)
def test_arrays_of_another_kind(tmp_path: Path, array: np.ndarray, kind: str | None, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        weigh(save(tmp_path, array), kind)


@pytest.mark.parametrize("numbers", [[300], [-129, 4], [2**20]])
@pytest.mark.parametrize("dtype", ["int16", "uint16", "int32", "uint32", "int64", "uint64"])
def test_advice_for_numbers_of_many_bits_works(tmp_path: Path, dtype: str, numbers: list[int]) -> None:
    if not all(np.iinfo(dtype).min <= number <= np.iinfo(dtype).max for number in numbers):
        return
    array = np.array(numbers, dtype)
    with pytest.raises(ConfigError, match="--kind dense") as caught:
        weigh(save(tmp_path, array))
    converted = re.search(r"convert to (\w+)", str(caught.value))
    advised = array.astype(converted[1]) if converted else array
    assert (advised == array).all()
    assert weigh(save(tmp_path, advised), "dense")["num_params"] == array.size


@pytest.mark.parametrize("number", [np.nan, np.inf, 1e300])
def test_numbers_that_cannot_be_rounded(tmp_path: Path, number: float) -> None:
    with pytest.raises(ConfigError, match="cannot be rounded to 4 bits"):
        weigh(save(tmp_path, np.array([1.0, number])), "quantized", options=Options(bits=4))


@pytest.mark.parametrize(
    ("companion", "words"),
    [
        (THETA[:-1], r"must have the array's shape \(2000,\), got \(1999,\)"), (THETA.reshape(2, 1000), "shape"),
        (MASK, "must be floats, got bool"), (THETA + 0.5, r"must be in \[0, 1\]"), (-THETA, r"in \[0, 1\]"),
        (np.full(2000, np.nan), r"in \[0, 1\]"),
    ],
)  # fmt: skip
def test_probabilities_that_do_not_fit(tmp_path: Path, companion: np.ndarray, words: str) -> None:
    with pytest.raises(ConfigError, match=r"p\.npy: .*" + words):
        weigh(save(tmp_path, DRAWN), options=Options(prior=save(tmp_path, companion, "p.npy")))


@pytest.mark.parametrize(
    ("array", "base", "words"),
    [
        (MASK, MASK[1:], "shape"), (MASK, MASK.view(np.uint8), "must be bool, got uint8"),
        (RELU, RELU.astype(np.int32), "must be float32, got int32"), (RELU, MASK, "shape"),
        (NORMAL, NORMAL.astype(np.float64), "must be float32, got float64"),
        (NORMAL, NORMAL.reshape(-1), "shape"),
    ],
)  # fmt: skip
def test_bases_that_do_not_fit(tmp_path: Path, array: np.ndarray, base: np.ndarray, words: str) -> None:
    with pytest.raises(ConfigError, match=r"old\.npy: .*" + words):
        weigh(save(tmp_path, array), options=Options(base=save(tmp_path, base, "old.npy")))


@pytest.mark.parametrize(
    ("array", "kind", "codec", "options", "words"),
    [
        (MASK, "maks", "auto", Options(), "--kind must be one of .*, got 'maks'; did you mean mask"),
        (MASK, None, "bit", Options(), "--codec for mask arrays .*, got 'bit'; did you mean bits"),
        (MASK, None, "layers", Options(), "must be one of"),
        (MASK, None, "packed", Options(), "must be one of"),
        (RELU, None, "uint23", Options(), "--codec for positions .*; did you mean uint32"),
        (RELU, None, "uint32+row", Options(), "--codec for values .*; did you mean raw"),
        (RELU, None, "uint32+", Options(), "--codec for values"),
        (NORMAL, None, "raw+raw", Options(), "--codec for dense"),
        (MASK, None, "prior", Options(), "--codec prior needs --prior"),
        (MASK, None, "ranks", Options(), "--codec ranks needs --base"),
        (NORMAL, None, "delta", Options(), "--codec delta needs --base"),
        (MASK, None, "auto", Options(bits=2), "--bits goes with quantized arrays, and .* is sent as mask"),
        (RELU, None, "auto", Options(prior=Path("p")), "--prior goes with mask arrays"),
        (SYMBOLS, None, "auto", Options(base=Path("p")), "--base goes with mask and sparse and dense arrays"),
        (SYMBOLS, None, "auto", Options(bits=0), "--bits must be from 1 to 8, got 0"),
        (NORMAL, "quantized", "auto", Options(bits=9), "--bits must be from 1 to 8, got 9"),
        (NORMAL, None, "auto", Options(bits=9), "--bits must be from 1 to 8, got 9"),
        (MASK, "dense", "auto", Options(bits=9), "--bits must be from 1 to 8, got 9"),
        (NORMAL, "quantized", "auto", Options(), "say to how many --bits"),
        (NORMAL, "dense", "auto", Options(bits=4), "--bits goes with quantized arrays, and .* is sent as dense"),
        (NORMAL, None, "auto", Options(bits=4, base=Path("p")), "--base goes with .*, and .* is sent as quantized"),
        (NORMAL, None, "auto", BFLOAT16, "--dtype bfloat16 goes with .* uint16, got float32"),
        (MASK, None, "auto", BFLOAT16, "--dtype bfloat16 goes with .* uint16, got bool"),
        (PATTERNS, None, "auto", Options(dtype="float16"), "--dtype can only be bfloat16, got 'float16'"),
        (PATTERNS, "quantized", "auto", BFLOAT16, "not as quantized: convert it to float32 to have it rounded"),
        (PATTERNS, None, "auto", BFLOAT16._replace(bits=4), "bfloat16 .* not as quantized: convert it to float32"),
        (PATTERNS, "mask", "auto", BFLOAT16, "bfloat16 can be sent as sparse or dense, not as mask$"),
    ],
)
def test_options_that_do_not_fit(
    tmp_path: Path, array: np.ndarray, kind: str | None, codec: str, options: Options, words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        weigh(save(tmp_path, array), kind, codec, options)


def test_options_are_checked_before_files() -> None:
    with pytest.raises(ConfigError, match="--bits must be from 1 to 8"):
        weigh(Path("missing.npy"), options=Options(bits=0))


def test_a_base_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"old\.npy: No such file"):
        weigh(save(tmp_path, NORMAL), options=Options(base=tmp_path / "old.npy"))

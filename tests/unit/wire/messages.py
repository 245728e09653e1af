"""Real messages of every class of values, codec and variant, each with the schema of both ends.

Their frames in ``tests/fixtures/frames`` are part of the format, so that nothing here may change once a frame exists.
All numbers come from SHAKE-256 and whole-number arithmetic: numpy's generators may give others one day.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch

from fedmpi.algorithms.averaging import ModelDown, ModelUp, SeedDown
from fedmpi.algorithms.ecofed_messages import DeviceInit, DeviceInitSeed, EcoFedResult, RoundStart
from fedmpi.algorithms.fedgkt_messages import Begin, FedGktResult, TestedDevice, TurnLogits
from fedmpi.algorithms.grasp import GraSPScores
from fedmpi.algorithms.prunefl import ImportanceUp
from fedmpi.algorithms.sparse_messages import SparseModelDown, SparseModelUp, SparseSeedDown
from fedmpi.algorithms.sparse_updates import UpdateUp
from fedmpi.algorithms.split_messages import (
    Activations,
    DeviceDown,
    DeviceSeedDown,
    DeviceUp,
    Gradients,
    LogitsDown,
    LogitsUp,
    QuantizedActivations,
    SplitResult,
    TurnLabels,
)
from fedmpi.config import WireConfig
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
    single,
    sparse,
)
from fedmpi.wire.values import Counts, Dense, Labels, Mask, MaskedValues, Quantized, Sparse

PARAMS, WEIGHTS, SHORT = 20_000, 700, 400
VERSION = 300
"""Of what both ends hold: two bytes as a varint."""


class Golden(NamedTuple):
    """A message and how it is sent.

    Attributes
    ----------
    message : Message
    schema : Schema
        With the codecs that its `wire` fixes.
    zstd : bool
        Whether zstd made some of the bytes, or decided about them: another version of its library may write other
        ones. Every version reads all of them.
    """

    message: Message
    schema: Schema
    zstd: bool = False


# ---------------------------------------------------------------------------------------------------------------------
# Numbers that never change


def words(name: str, count: int) -> np.ndarray:
    """Return random uint32, which follow from the name."""
    return np.frombuffer(hashlib.shake_256(name.encode()).digest(4 * count), "<u4")


def chance(name: str, count: int, percent: float) -> np.ndarray:
    """Return random bools, True with this probability."""
    return words(name, count) < int(percent / 100 * 2**32)


def bell(name: str, count: int, dtype: str = "float32") -> np.ndarray:
    """Return numbers around 0 as sums of four, each a whole multiple of 2^-33 before it is rounded to the dtype."""
    total = words(name, 4 * count).reshape(4, count).astype(np.int64).sum(axis=0)
    return (np.ldexp((total - 2**33).astype(np.float64), -33)).astype(dtype)


def near_one(name: str, count: int, dtype: str) -> np.ndarray:
    """Return numbers from 1 to 2, 8 % of them from 1/16 to 1/8, half of them negative.

    Of byte planes those with the exponent have two symbols, where rANS is far ahead of zstd, and the others are random,
    which neither makes smaller. So no version of zstd changes what is chosen.
    """
    nbits, exponent_nbits = {"float32": (32, 8), "float64": (64, 11), "float16": (16, 5)}[dtype]
    mantissa_nbits = nbits - 1 - exponent_nbits
    low = words(name, 2 * count).view("<u8") >> np.uint64(65 - nbits + -exponent_nbits % 8 + exponent_nbits)
    exponents = np.where(
        chance(name + " small", count, 8), 2 ** (exponent_nbits - 1) - 5, 2 ** (exponent_nbits - 1) - 1
    )
    signs = chance(name + " sign", count, 50).astype(np.uint64)
    patterns = signs << np.uint64(nbits - 1) | exponents.astype(np.uint64) << np.uint64(mantissa_nbits) | low
    return patterns.astype(f"u{nbits // 8}").view(dtype)


def bfloat16(array: np.ndarray) -> np.ndarray:
    """Return the bit patterns of the upper halves of float32."""
    return (np.ascontiguousarray(array).view(np.uint32) >> 16).astype(np.uint16)


def chosen(name: str, percent: float, numel: int = PARAMS) -> np.ndarray:
    return np.flatnonzero(chance(name, numel, percent))


def clustered(numel: int = PARAMS) -> np.ndarray:
    """Return bits that repeat, as where whole rows and columns of weights are dead."""
    row = chance("cluster", 200, 40)
    rows = chance("rows", numel // 200, 30)
    return np.outer(rows, row).reshape(-1)


def maps(name: str, shape: tuple[int, ...], bits: int) -> np.ndarray:
    """Return smooth symbols of 0 to 2^bits - 1: each is near the mean of its left and upper neighbour."""
    noise = words(name, int(np.prod(shape))).reshape(-1, *shape[-2:]) % 1000
    symbols = np.zeros(noise.shape, np.int64)
    for row in range(shape[-2]):
        for column in range(shape[-1]):
            up = symbols[:, max(row - 1, 0), column]
            left = symbols[:, row, max(column - 1, 0)]
            far = noise[:, row, column] < 60
            near = (up + left + 1) // 2 + noise[:, row, column].astype(np.int64) % 3 - 1
            symbols[:, row, column] = np.where(far, noise[:, row, column], near) % 2**bits
    return symbols.reshape(shape).astype(np.uint8)


# ---------------------------------------------------------------------------------------------------------------------
# Message classes


@message("golden-dtypes", "up")
class AllDtypes(Message):
    """Raw vectors of nearly every dtype, every kind of number, a field that is absent."""

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


@message("golden-numbers", "up")
class Numbers(Message):
    """Plain fields and no values."""

    zero: int
    low: int
    exact: float
    rounded: float = single()
    tiny: float = single()


@message("golden-vectors", "down")
class Vectors(Message):
    """Vectors as models have them."""

    singles: Dense = dense("weights", base="weights")
    halves: Dense = dense("weights", dtype="bfloat16", base="halves")
    few: Dense = dense(40, at_most=True)


@message("golden-wide", "up")
class WideVectors(Message):
    """Vectors of the other dtypes."""

    f16: Dense = dense("short", dtype="float16", base="f16")
    f64: Dense = dense("short", dtype="float64", base="f64")
    i64: Dense = dense("short", dtype="int64", base="i64")
    i32: Dense = dense("short", dtype="int32", base="i32")
    u8: Dense = dense("short", dtype="uint8", at_most=True)


@message("golden-mask", "down")
class MaskDown(Message):
    """A mask that may be coded against all there is."""

    kept: Mask = mask("params", prior="theta", base="mask")


@message("golden-masks", "up")
class SmallMasks(Message):
    """Masks of a few positions, of none and of all."""

    some: Mask = mask(13, per_tensor=False)
    none: Mask = mask(100)
    all_: Mask = mask(100)
    one: Mask = mask(1000)
    empty: Mask = mask(0)


@message("golden-sparse", "up")
class SparseUp(Message):
    """Single precision at chosen positions."""

    num_samples: int
    update: Sparse = sparse("params", base="mask")


@message("golden-sparse-half", "down")
class SparseHalf(Message):
    """Half precision at chosen positions of a vector whose length varies."""

    update: Sparse = sparse("params", dtype="bfloat16", per_tensor=False, at_most=True)
    none: Sparse = sparse(50)


@message("golden-levels", "up")
class SparseLevels(Message):
    """Quantized numbers at chosen positions."""

    signs: Sparse = sparse("params", dtype="", base="mask")
    levels: Sparse = sparse("params", dtype="")


@message("golden-masked", "down")
class Masked(Message):
    """Numbers at the positions of a mask that comes in front of them."""

    mask: Mask = mask("params", base="mask")
    kept: MaskedValues = masked_values("params", mask="mask")


@message("golden-held", "up")
class Held(Message):
    """Numbers at the positions of a mask that both ends hold."""

    singles: MaskedValues = masked_values("params", mask="held")
    halves: MaskedValues = masked_values("params", mask="held", dtype="bfloat16")
    levels: MaskedValues = masked_values("params", mask="held", dtype="")


@message("golden-quantized", "up")
class EveryQuantized(Message):
    """All that quantized numbers can be: signed or not, a scale or many, with zero points or without."""

    a: Quantized = quantized((4, 3, 5, 6))
    b: Quantized = quantized((4, 3, 5, 6))
    c: Quantized = quantized((4, 3, 5, 6))
    d: Quantized = quantized((4, 3, 5, 6), at_most=True)
    e: Quantized = quantized((4, 3, 5, 6), at_most=True)
    f: Quantized = quantized((4, 3, 5, 6), at_most=True)
    g: Quantized = quantized(600)
    h: Quantized = quantized((5, 120), at_most=True)
    i: Quantized = quantized((20, 30), at_most=True)
    j: Quantized = quantized((20, 30))
    k: Quantized = quantized((20, 30))
    l: Quantized = quantized((7, 7, 7), at_most=True)  # noqa: E741


@message("golden-maps", "up")
class Maps(Message):
    """Activations of a batch, and their labels."""

    activations: Quantized = quantized((16, 4, 16, 16), at_most=True)
    targets: Labels = labels(16, num_classes="classes", at_most=True)


@message("golden-labels", "up")
class ManyLabels(Message):
    """Labels of few and of many classes, and counts."""

    ten: Labels = labels(500, num_classes=10)
    two: Labels = labels(100, num_classes=2, at_most=True)
    one: Labels = labels(30, num_classes=1, at_most=True)
    many: Labels = labels(50, num_classes=2**31)
    none: Labels = labels(8, num_classes=10, at_most=True)
    small: Counts = counts(10)
    large: Counts = counts(200, at_most=True)


@message("golden-mixed", "up")
class Mixed(Message):
    """One of each, any of which may be absent."""

    loss: float = single()
    vector: Dense | None = dense(5)
    kept: Mask | None = mask(300)
    update: Sparse | None = sparse(300)
    at_mask: MaskedValues | None = masked_values(300, mask="kept")
    symbols: Quantized | None = quantized((2, 8))
    targets: Labels | None = labels(8, num_classes=10, at_most=True)
    classes: Counts | None = counts(10)


@message("golden-empty", "down")
class Empty(Message):
    """One of each, and no number in any."""

    vector: Dense = dense(0, base="nothing")
    kept: Mask = mask(0, prior="chances", base="none")
    update: Sparse = sparse(0, base="none")
    at_mask: MaskedValues = masked_values(0, mask="kept")
    rows: Quantized = quantized((0, 3))
    columns: Quantized = quantized((3, 0))
    targets: Labels = labels(0, num_classes=10)
    classes: Counts = counts(0)


# ---------------------------------------------------------------------------------------------------------------------
# What both ends hold

HELD = KnownMask(chance("held", PARAMS, 4), 7)
BASE = KnownMask(chance("base", PARAMS, 20), VERSION)
NONE = KnownMask(np.empty(0, np.bool_), 0)
THETA = KnownProbabilities.of((words("theta", PARAMS) >> 8).astype(np.float32) * np.float32(2**-24), VERSION)
_SINGLES = near_one("weights", WEIGHTS, "float32")
_HALVES = bfloat16(near_one("halves", WEIGHTS, "float32"))
_WIDE = {
    "f16": near_one("f16", SHORT, "float16"),
    "f64": near_one("f64", SHORT, "float64"),
    "i64": words("i64", SHORT) % 5 * chance("i64 not 0", SHORT, 15) - np.int64(2),
    "i32": np.where(chance("i32", SHORT, 15), np.int32(-70_000), np.int32(300)),
}


def known() -> Known:
    """Return what an end holds: the newest of each name, and an older one."""
    held = Known()
    held.hold("held", HELD)
    held.hold("mask", BASE)
    held.hold("mask", KnownMask(~BASE.array, VERSION - 1))
    held.hold("theta", THETA)
    held.hold("weights", KnownVector(_SINGLES, VERSION))
    held.hold("halves", KnownVector(_HALVES, VERSION))
    for name, array in _WIDE.items():
        held.hold(name, KnownVector(array, VERSION))
    held.hold("nothing", KnownVector(np.empty(0, np.float32), 0))
    held.hold("none", NONE)
    held.hold("chances", KnownProbabilities(np.empty(0, np.uint16), 0))
    return held


SMALL = Schema({"params": 3, "state": 4, "int_buffers": 2}, 0x1234ABCD)
"""Of the frames that are older than codecs."""

SPARSE = Schema(
    {"params": 40, "buffers": 0, "state": 40, "int_buffers": 0}, 0x1234ABCD, {"params": np.array([0, 36, 40])}
)

_FIRST = KnownMask(np.isin(np.arange(40), (1, 2, 8, 20, 33, 36, 37, 38, 39)), 0)
_SECOND = KnownMask(np.isin(np.arange(40), (1, 2, 9, 20, 33, 36, 37, 38, 39)), 1)


def _masks_known() -> Known:
    held = Known()
    held.hold("mask", _FIRST)
    held.hold("mask", _SECOND)
    return held


MASKED = Schema(
    {"params": 40, "weights": 36, "biases": 4, "buffers": 2, "state": 42, "int_buffers": 1},
    0x1234ABCD,
    {"params": np.array([0, 36, 40])},
    WireConfig(mask="change", values="raw"),
    _masks_known(),
)
"""Of models that train under a mask."""

LARGE = Schema(
    {"params": PARAMS, "weights": WEIGHTS, "short": SHORT, "classes": 100},
    0x600DF00D,
    # With a tensor that is empty, and one of a few numbers.
    {"params": np.array([0, 15_000, 15_000, 19_000, 19_960, PARAMS])},
    known=known(),
)


def sent(msg: Message, *, zstd: bool = False, **wire: Any) -> Golden:
    return Golden(msg, dataclasses.replace(LARGE, wire=WireConfig(**wire)), zstd)


# ---------------------------------------------------------------------------------------------------------------------
# The messages


def vector(dtype: str, *numbers: float) -> Dense:
    return Dense(np.array(numbers, dtype))


STATE = vector("float32", 1.0, -0.5, 3.25e-5, 65504.0)
INTS = vector("int64", 7, -(2**62))


def _old() -> Iterator[tuple[str, Golden]]:
    yield "seed_down", Golden(SeedDown(init_seed=1234567890, state_hash=0x7FEDCBA9), SMALL)
    yield "model_down", Golden(ModelDown(int_buffers=None, state=STATE), SMALL)
    yield "model_down_ints", Golden(ModelDown(int_buffers=INTS, state=STATE), SMALL)
    yield "model_up", Golden(ModelUp(num_samples=600, int_buffers=None, state=STATE), SMALL)
    yield "model_up_ints", Golden(ModelUp(num_samples=600, int_buffers=INTS, state=STATE), SMALL)
    dtypes = AllDtypes(
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
    )
    yield "all_dtypes", Golden(dtypes, SMALL)


def _numbers() -> Iterator[tuple[str, Golden]]:
    yield "numbers", sent(Numbers(zero=0, low=-(2**63), exact=-0.0, rounded=0.15625, tiny=2.0**-149))
    update = Sparse(40, np.array([2, 3, 17, 30, 38]), np.array([0.1, -0.07, 1.3, 0.011, -0.6], np.float32))
    yield "sparse_up", Golden(UpdateUp(num_samples=600, int_buffers=None, buffers=None, update=update), SPARSE)


def _masked_models() -> Iterator[tuple[str, Golden]]:
    seed = SparseSeedDown(init_seed=1234567890, state_hash=0x7FEDCBA9, mask_checksum=0xFFFFFFFE, has_model=1)
    yield "sparse_seed_down", Golden(seed, MASKED)
    nine = MaskedValues(np.array([0.5, -1.25, 0, 3, 1e-3, 1, 2, -4, 0.125], np.float32), _SECOND)
    rest = {"int_buffers": vector("int64", 12), "buffers": vector("float32", 0.25, -8)}
    yield "sparse_model_down", Golden(SparseModelDown(version=1, alpha=0.0, mask=None, weights=nine, **rest), MASKED)
    moved = Mask(_SECOND.array, base=_FIRST)
    yield (
        "sparse_model_down_mask",
        Golden(
            SparseModelDown(version=1, alpha=0.0099, mask=moved, int_buffers=None, buffers=None, weights=nine), MASKED
        ),
    )
    up = SparseModelUp(weight=40, version=1, mask=None, weights=nine, **rest)
    yield "sparse_model_up", Golden(up, MASKED)
    own = KnownMask(_FIRST.array, 1)  # of the version that it was made from; found by what came with it
    moved_up = SparseModelUp(
        weight=40,
        version=1,
        mask=Mask(own.array, base=_SECOND),
        weights=MaskedValues(nine.values, own),
        int_buffers=None,
        buffers=None,
    )
    yield "sparse_model_up_mask", Golden(moved_up, MASKED)
    importance = vector("float32", *(i / 64 for i in range(36)))
    yield "sparse_importance_up", Golden(ImportanceUp(**vars(up), importance=importance), MASKED)
    yield "grasp_scores_up", Golden(GraSPScores(weight=40, scores=vector("float32", *range(-18, 18))), MASKED)


CUT = Schema(
    {
        "device_state": 4,
        "device_ints": 1,
        "auxiliary": 3,
        "activation": 2 * 3 * 2 * 2,
        "batch": 2,
        "channels": 3,
        "height": 2,
        "width": 2,
        "classes": 10,
        "logits": 20,
        "turn_labels": 64,
        "most": 64,
        "num_frames": 8,
    },
    0x5EED,
)


WHOLE = Schema({**SMALL.sizes, "auxiliary": 3, "frames": 64, "num_frames": 8}, SMALL.layout_id)


def _split() -> Iterator[tuple[str, Golden]]:
    yield "split_seed_down", Golden(DeviceSeedDown(init_seed=1234567890, state_hash=0x7FEDCBA9), CUT)
    state, ints, head = vector("float32", 1, -2, 0.5, 0), vector("int64", 12), vector("float32", 0.25, 8, -1)
    yield "split_device_down", Golden(DeviceDown(int_buffers=ints, state=state, auxiliary=head), CUT)
    yield "split_device_up", Golden(DeviceUp(int_buffers=None, state=state, auxiliary=None), CUT)
    yield "split_labels", Golden(TurnLabels(labels=Labels(np.array([3, 1, 4, 1, 5, 9, 2, 6]), 10)), CUT)
    numbers = vector("float32", *(i / 8 for i in range(12)))
    yield "split_activations", Golden(Activations(numbers=numbers), CUT)  # the last batch, of one sample
    symbols = np.arange(24, dtype=np.uint8).reshape(2, 3, 2, 2) * 11
    rounded = Quantized(symbols, 8, np.array([0.0123], np.float32))
    yield "split_activations_8", Golden(QuantizedActivations(symbols=rounded), CUT)
    yield "split_gradients", Golden(Gradients(numbers=numbers), CUT)
    logits = vector("float32", *range(-5, 5))
    yield "split_logits_up", Golden(LogitsUp(numbers=logits), CUT)
    yield "split_logits_down", Golden(LogitsDown(numbers=logits), CUT)
    yield "fedgkt_begin", Golden(Begin(has_logits=1), CUT)
    yield "fedgkt_logits", Golden(TurnLogits(numbers=vector("float32", *range(30))), CUT)
    device = {"init_seed": 1234567890, "device_hash": 0x7FEDCBA9}
    yield "ecofed_init", Golden(DeviceInit(**device, int_buffers=ints, state=state), CUT)
    yield "ecofed_init_seed", Golden(DeviceInitSeed(**device), CUT)
    yield "ecofed_start", Golden(RoundStart(update=1), CUT)
    # What stays within the simulation: hosts of conversations send it to rank 0.
    whole = {"num_samples": 40, "int_buffers": INTS, "state": STATE}
    yield "split_result", Golden(SplitResult(**whole, auxiliary=head), WHOLE)
    octets, lengths = vector("uint8", *range(12)), Counts(np.array([5, 0, 7]))
    yield "ecofed_result", Golden(EcoFedResult(**whole, frames=octets, lengths=lengths), WHOLE)
    yield "fedgkt_tested", Golden(TestedDevice(num_samples=40, int_buffers=ints, state=state), CUT)
    collected = FedGktResult(num_samples=40, int_buffers=None, state=state, frames=octets, lengths=lengths)
    yield "fedgkt_result", Golden(collected, CUT)


def _dense() -> Iterator[tuple[str, Golden]]:
    base, halves = KnownVector(_SINGLES, VERSION), KnownVector(_HALVES, VERSION)
    steps = (words("steps", WEIGHTS) % 9 * chance("moves", WEIGHTS, 15)).astype(np.uint32)
    vectors = Vectors(
        singles=Dense((_SINGLES.view(np.uint32) + steps).view(np.float32), base=base),
        halves=Dense((_HALVES + steps // 5).astype(np.uint16), dtype="bfloat16", base=halves),
        few=Dense(np.full(17, -0.25, np.float32)),
    )
    few = words("few", SHORT) % 8 * chance("some", SHORT, 20)
    wide = WideVectors(
        f16=Dense((_WIDE["f16"].view(np.uint16) + few.astype(np.uint16)).view(np.float16), base=_held("f16")),
        f64=Dense((_WIDE["f64"].view(np.uint64) + few).view(np.float64), base=_held("f64")),
        i64=Dense(_WIDE["i64"] - few, base=_held("i64")),
        i32=Dense(_WIDE["i32"] + few.astype(np.int32), base=_held("i32")),
        u8=Dense((few[:333] * 16).astype(np.uint8)),
    )
    for codec in ("raw", "planes", "delta"):
        yield f"dense_{codec}", sent(vectors, dense=codec)
        yield f"wide_{codec}", sent(wide, dense=codec)
    again = np.tile(bell("again", 70), WEIGHTS // 70)
    special = np.array([np.nan, -np.nan, np.inf, -np.inf, -0.0, 0.0, 1e-45, 3e38], np.float32)
    repeated = Vectors(singles=Dense(again), halves=Dense(bfloat16(again), dtype="bfloat16"), few=Dense(special))
    yield "dense_repeated", sent(repeated, zstd=True, dense="planes")


def _held(name: str) -> KnownVector:
    return KnownVector(_WIDE[name], VERSION)


def _masks() -> Iterator[tuple[str, Golden]]:
    by_itself = {"bits": 50, "byte-rans": 30, "gap-rans": 94, "golomb": 0.5}
    for codec, percent in by_itself.items():
        yield f"mask_{codec}", sent(MaskDown(kept=Mask(chance(codec, PARAMS, percent))), mask=codec)
    yield "mask_zstd", sent(MaskDown(kept=Mask(clustered())), mask="zstd", zstd=True)
    near = Mask(BASE.array ^ chance("change", PARAMS, 3), base=BASE)
    yield "mask_change", sent(MaskDown(kept=near), mask="change")
    nearer = Mask(BASE.array ^ chance("ranks", PARAMS, 0.3), base=BASE)
    yield "mask_ranks", sent(MaskDown(kept=nearer), mask="ranks")
    drawn = words("drawn", PARAMS) >> 20 < THETA.array
    yield "mask_prior", sent(MaskDown(kept=Mask(drawn, prior=THETA)), mask="prior")
    yield "mask_layers", sent(MaskDown(kept=Mask(by_tensor())), mask="layers")
    small = SmallMasks(
        some=Mask(np.isin(np.arange(13), (0, 5, 6, 12))),
        none=Mask(np.zeros(100, np.bool_)),
        all_=Mask(np.ones(100, np.bool_)),
        one=Mask(np.arange(1000) == 999),
        empty=Mask(np.zeros(0, np.bool_)),
    )
    for codec in ("bits", "byte-rans", "gap-rans", "golomb", "zstd"):
        yield f"small_masks_{codec}", sent(small, mask=codec, zstd=codec == "zstd")


def by_tensor() -> np.ndarray:
    """Return bits of another density in each tensor: many, few, and all of them."""
    bits = chance("many", PARAMS, 12)
    bits[15_000:19_000] = chance("few", 4000, 0.6)
    bits[19_000:19_960] = chance("half", 960, 50)
    bits[19_960:] = True
    return bits


def _sparse() -> Iterator[tuple[str, Golden]]:
    by_itself = {"bits": 5, "byte-rans": 5, "gap-rans": 4, "golomb": 1, "uint32": 2, "int64": 2, "gaps": 0.2}
    for codec, percent in by_itself.items():
        indices = chosen(f"sparse {codec}", percent)
        values = bell(f"values {codec}", indices.size)
        yield f"sparse_{codec}", sent(_up(indices, values), sparse=codec, values="raw")
    indices = np.flatnonzero(clustered())[::4]
    yield "sparse_zstd", sent(_up(indices, bell("z", indices.size)), sparse="zstd", values="raw", zstd=True)
    indices = np.flatnonzero(BASE.array ^ chance("near", PARAMS, 0.2))[:]
    near = _up(indices, near_one("near", indices.size, "float32"), BASE)
    yield "sparse_ranks", sent(near, sparse="ranks", values="planes")
    indices = np.flatnonzero(by_tensor())[::3]
    layers = _up(indices, near_one("layers", indices.size, "float32"))
    yield "sparse_layers", sent(layers, sparse="layers", values="planes")
    indices = chosen("half", 5, 12_345)
    update = Sparse(12_345, indices, bfloat16(near_one("half", indices.size, "float32")), "bfloat16")
    half = SparseHalf(update=update, none=Sparse(50, np.empty(0, np.int64), np.empty(0, np.float32)))
    yield "sparse_half_raw", sent(half, sparse="gap-rans", values="raw")
    yield "sparse_half_planes", sent(half, sparse="golomb", values="planes")
    for codec in ("packed", "order0", "context"):
        indices = np.flatnonzero(BASE.array ^ chance("signs", PARAMS, 1))
        some = chosen("levels", 4)
        steps = np.minimum(words("steps", some.size) % 40, 7).astype(np.int8)
        signs = Quantized(_signs(chance("sign", indices.size, 30)), 1, np.array([0.125], np.float32))
        levels = Quantized(steps, 4, np.array([0.02], np.float32), np.array([7], np.int32))
        both = SparseLevels(signs=Sparse(PARAMS, indices, signs, base=BASE), levels=Sparse(PARAMS, some, levels))
        yield f"sparse_levels_{codec}", sent(both, sparse="ranks", quantized=codec)


def _up(indices: np.ndarray, values: np.ndarray, base: KnownMask | None = None) -> SparseUp:
    return SparseUp(num_samples=600, update=Sparse(PARAMS, indices, values, base=base))


def _masked() -> Iterator[tuple[str, Golden]]:
    bits = BASE.array ^ chance("masked", PARAMS, 0.5)
    inside = KnownMask(bits, 2**32 - 1)
    for codec in ("raw", "planes"):
        singles = near_one("kept", inside.indices.size, "float32")
        together = Masked(mask=Mask(bits, base=BASE), kept=MaskedValues(singles, inside))
        yield f"masked_{codec}", sent(together, mask="ranks", values=codec)
    count = HELD.indices.size
    for values, symbols in (("raw", "packed"), ("planes", "order0"), ("planes", "context")):
        held = Held(
            singles=MaskedValues(near_one("held", count, "float32"), HELD),
            halves=MaskedValues(bfloat16(near_one("h", count, "float32")), HELD, "bfloat16"),
            levels=MaskedValues(
                Quantized(maps("l", (1, 1, count), 5).reshape(-1), 5, np.array([1e-3], np.float32)), HELD
            ),
        )
        yield f"held_{values}_{symbols}", sent(held, values=values, quantized=symbols)
    again = np.tile(bell("tile", 50), count // 50 + 1)[:count]
    repeated = dataclasses.replace(held, singles=MaskedValues(again, HELD))
    yield "held_repeated", sent(repeated, values="planes", quantized="packed", zstd=True)


def _quantized() -> Iterator[tuple[str, Golden]]:
    fields: dict[str, Any] = {}
    variants = [(signed, axis, zero) for signed in (False, True) for axis in (None, 0, 1) for zero in (False, True)]
    for number, (name, (signed, axis, zero)) in enumerate(zip("abcdefghijkl", variants, strict=True)):
        declared = EveryQuantized.value_fields[number].declared
        shape = tuple(int(length) for length in declared.shape)
        if declared.at_most:
            shape = (shape[0] - 1, *shape[1:])
        fields[name] = _symbols(name, shape, number % 8 + 1, signed=signed, axis=axis, zero=zero)
    every = EveryQuantized(**fields)
    pictures = Maps(
        activations=_symbols("maps", (6, 4, 16, 16), 4, signed=False, axis=0, zero=False),
        targets=Labels((words("targets", 6) % 100).astype(np.int64), 100),
    )
    none = Maps(
        activations=Quantized(np.zeros((0, 4, 16, 16), np.uint8), 8, np.ones(1, np.float32)),
        targets=Labels(np.empty(0, np.int64), 100),
    )
    for codec in ("packed", "order0", "context"):
        yield f"quantized_{codec}", sent(every, quantized=codec)
        yield f"maps_{codec}", sent(pictures, quantized=codec)
    yield "maps_none", sent(none, quantized="packed")


def _symbols(name: str, shape: tuple[int, ...], bits: int, *, signed: bool, axis: int | None, zero: bool) -> Quantized:
    unsigned = maps(name, (*(1,) * (2 - len(shape)), *shape), bits).reshape(shape)
    lowest = -(1 << (bits - 1)) if signed else 0
    if signed and bits == 1:
        symbols = _signs(unsigned)
    else:
        symbols = (unsigned.astype(np.int64) + lowest).astype(np.int8 if signed else np.uint8)
    count = 1 if axis is None else shape[axis]
    zero_points = (words(f"zero {name}", count) % 2**bits).astype(np.int32) + np.int32(lowest) if zero else None
    return Quantized(symbols, bits, bell(f"scale {name}", count), zero_points, axis)


def _signs(bits: np.ndarray) -> np.ndarray:
    """Return -1 and 1: the signed symbols of 1 bit."""
    return 2 * bits.astype(np.int8) - np.int8(1)


def _labels() -> Iterator[tuple[str, Golden]]:
    large = words("large", 150).astype(np.int64) >> words("shift", 150).astype(np.int64) % 33
    large[:3] = 2**63 - 1, 0, 127
    yield (
        "labels",
        sent(
            ManyLabels(
                ten=Labels((words("ten", 500) % 10).astype(np.int64), 10),
                two=Labels((words("two", 77) % 2).astype(np.int64), 2),
                one=Labels(np.zeros(21, np.int64), 1),
                many=Labels((words("many", 50) % 2**31).astype(np.int64), 2**31),
                none=Labels(np.empty(0, np.int64), 10),
                small=Counts((words("small", 10) % 200).astype(np.int64)),
                large=Counts(large),
            )
        ),
    )
    bits = np.arange(300) % 7 == 3
    one = np.array([0.5], np.float32)
    full = Mixed(
        loss=0.25,
        vector=Dense(np.array([1, 2, 3, 4, 5], np.float32)),
        kept=Mask(bits),
        update=Sparse(300, np.array([0, 299]), np.array([0.1, -0.3], np.float32)),
        at_mask=MaskedValues(bell("at mask", int(bits.sum())), KnownMask(bits, 0)),
        symbols=Quantized((words("s", 16) % 2).astype(np.uint8).reshape(2, 8), 1, one),
        targets=Labels(np.array([9, 0, 3]), 10),
        classes=Counts(np.arange(10) * 60),
    )
    chosen_codecs = {"mask": "golomb", "sparse": "gaps", "values": "raw", "quantized": "packed"}
    yield "mixed_full", sent(full, **chosen_codecs)
    empty = Empty(
        vector=Dense(np.empty(0, np.float32), base=KnownVector(np.empty(0, np.float32), 0)),
        kept=Mask(NONE.array, base=NONE, prior=KnownProbabilities(np.empty(0, np.uint16), 0)),
        update=Sparse(0, np.empty(0, np.int64), np.empty(0, np.float32), base=NONE),
        at_mask=MaskedValues(np.empty(0, np.float32), NONE),
        rows=Quantized(np.empty((0, 3), np.uint8), 8, np.empty(0, np.float32), axis=0),
        columns=Quantized(np.empty((3, 0), np.int8), 2, np.empty(0, np.float32), np.empty(0, np.int32), 1),
        targets=Labels(np.empty(0, np.int64), 10),
        classes=Counts(np.empty(0, np.int64)),
    )
    for codec, where in (("raw", "bits"), ("planes", "golomb"), ("delta", "ranks")):
        yield f"empty_{codec}", sent(empty, dense=codec, mask=where, sparse=where)
    for codec in ("prior", "change", "zstd", "gap-rans", "byte-rans"):
        yield f"empty_{codec}", sent(empty, mask=codec)
    absent = dict.fromkeys((field.name for field in Mixed.value_fields), None)
    yield "mixed_absent", sent(Mixed(loss=-1.5, **absent), **chosen_codecs)


GOLDEN: dict[str, Golden] = dict(
    [
        *_old(),
        *_numbers(),
        *_masked_models(),
        *_split(),
        *_dense(),
        *_masks(),
        *_sparse(),
        *_masked(),
        *_quantized(),
        *_labels(),
    ]
)
"""All of them by name."""

assert torch.get_default_dtype() == torch.float32  # what probabilities are rounded in

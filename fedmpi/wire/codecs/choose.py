"""The smallest of the ways to say where: a set by itself, tensor by tensor, against a base, or against a prior."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numba import njit

from fedmpi.errors import WireError
from fedmpi.wire.codecs import change, layers, rans
from fedmpi.wire.codecs import positions as sets
from fedmpi.wire.codecs.base import BITS, CHANGE, GAPS, LAYERS, NAMES, PRIOR, RANKS, ZSTD, FieldSpec
from fedmpi.wire.codecs.reference import put_reference, take_reference
from fedmpi.wire.codecs.sets.base import Positions
from fedmpi.wire.known import P12_ONE, Known, KnownMask, KnownProbabilities

_ALONE = -1
"""Stands for the smallest codec of a set by itself where codecs are compared."""

_SET_HEADER = 2
_REFERENCE = 5
"""Bytes to expect at least of a set's header and of a reference."""

_LEAST_PIECE = 256
"""Bytes of a piece of a sample below which zstd is run at once."""

_TABLES = 1024
"""Bytes that eight times a sample's own tables may come to."""


class Found(NamedTuple):
    """A set of positions as it was read, and what it was coded against."""

    positions: Positions
    base: KnownMask | None = None
    prior: KnownProbabilities | None = None


class Choice(NamedTuple):
    """A set of positions, and all that it may be coded against.

    Attributes
    ----------
    positions : Positions
    segments : numpy.ndarray, optional
        Where the tensors begin, and the end.
    base : KnownMask, optional
    prior : KnownProbabilities, optional
    """

    positions: Positions
    segments: np.ndarray | None
    base: KnownMask | None = None
    prior: KnownProbabilities | None = None


def segments_of(spec: FieldSpec, numel: int) -> np.ndarray | None:
    """Return the tensors' segments where a field has them and a value of `numel` positions is made of them."""
    return spec.segments if spec.segments is not None and int(spec.segments[-1]) == numel else None


def check_references(
    spec: FieldSpec, numel: int, base: KnownMask | None = None, prior: KnownProbabilities | None = None
) -> None:
    """Raise ValueError for a base or a prior that the field does not declare, or of another length."""
    for word, name, reference in (("base", spec.base, base), ("prior", spec.prior, prior)):
        if reference is None:
            continue
        if not name:
            raise ValueError(f"{spec.where} declares no {word}, got one")
        if reference.array.size != numel:
            raise ValueError(f"{spec.where}: expected a {word} of {numel} positions, got {reference.array.size}")


def encode_positions(choice: Choice, codec: str, allowed: frozenset[int]) -> tuple[int, np.ndarray]:
    """Say where.

    Parameters
    ----------
    choice : Choice
    codec : str
        Name of a codec, which is taken if the set can have it; else, as for ``auto``, the smallest is.
    allowed : frozenset of int
        Codecs beyond those of sets that may be chosen: of `LAYERS`, `PRIOR`, `CHANGE` and `RANKS`.

    Returns
    -------
    codec_id : int
    payload : numpy.ndarray, shape (nbytes,), uint8
    """
    if codec in sets.set_codec_names():
        return _alone(choice.positions, codec)
    more = {number: encode for number, encode in _codecs(choice).items() if number in allowed}
    for number, encode in more.items():
        if NAMES[number] == codec:
            return number, encode()
    return _smallest(choice, more)


def decode_positions(
    codec_id: int, payload: np.ndarray, numel: int, spec: FieldSpec, known: Known, offset: int, allowed: frozenset[int]
) -> Found:
    """Return the set of some of `numel` positions that a payload says.

    Raises
    ------
    WireError
        If the payload is not exactly one set, or what it was coded against is not held.
    """
    where = spec.where
    if codec_id == LAYERS and codec_id in allowed:
        segments = segments_of(spec, numel)
        if segments is not None:
            return Found(layers.decode_layers(payload, segments, where, offset))
    elif codec_id == PRIOR and codec_id in allowed and spec.prior:
        prior, start = take_reference(KnownProbabilities, spec.prior, payload, known, numel, where, offset)
        bits = rans.decode_bits(payload[start:], prior.array, where, offset + start)
        return Found(Positions(numel, bits=bits), prior=prior)
    elif codec_id in (CHANGE, RANKS) and codec_id in allowed and spec.base:
        base, start = take_reference(KnownMask, spec.base, payload, known, numel, where, offset)
        decode = change.decode_change if codec_id == CHANGE else change.decode_ranks
        return Found(decode(payload[start:], base, where, offset + start), base=base)
    elif BITS <= codec_id <= GAPS:
        return Found(sets.decode_set(codec_id, payload, numel, where, offset))
    raise WireError(f"{where} codec", offset=offset, expected="a codec that this field can have", got=codec_id)


def _alone(positions: Positions, codec: str = "auto") -> tuple[int, np.ndarray]:
    coded = sets.encode_set(positions, codec)
    return coded.codec_id, coded.payload


def _codecs(choice: Choice) -> dict[int, Callable[[], np.ndarray]]:
    """Return what makes the payload of each codec that a set can have beyond those of sets."""
    positions, segments, base, prior = choice
    found: dict[int, Callable[[], np.ndarray]] = {}
    if segments is not None:
        found[LAYERS] = lambda: layers.encode_layers(positions, segments)
    if prior is not None:
        found[PRIOR] = lambda: np.concatenate([put_reference(prior), rans.encode_bits(positions.bits, prior.array)])
    if base is not None:
        found[RANKS] = lambda: change.encode_ranks(positions, base)
        found[CHANGE] = lambda: change.encode_change(positions, base)
    return found


def _smallest(choice: Choice, more: dict[int, Callable[[], np.ndarray]]) -> tuple[int, np.ndarray]:
    """Encode in the order of the estimates whatever may be smaller than the best so far; return the smallest."""
    positions = choice.positions
    if not more:
        return _alone(positions)
    # Floats may decide here: the codec travels, and the coders' tables are integers.
    alone = set_nbytes(positions.numel, positions.count)
    waiting = {number: _estimate(choice, number) for number in more} | {_ALONE: alone}
    best: tuple[int, np.ndarray] | None = None
    for number in sorted(waiting, key=waiting.__getitem__):
        if best is None or waiting[number] < best[1].size:
            del waiting[number]
            best = _smaller(best, _alone(positions) if number == _ALONE else (number, more[number]()))
    assert best is not None
    # No estimate knows how positions cluster. Where a set by itself gains by that, so may each tensor's set.
    if _ALONE in waiting and _may_cluster(positions, best[1].size):
        best = _smaller(best, _alone(positions))
    if LAYERS in waiting and BITS <= best[0] <= GAPS and best[1].size < alone:
        best = _smaller(best, (LAYERS, more[LAYERS]()))
    return best


def _smaller(best: tuple[int, np.ndarray] | None, coded: tuple[int, np.ndarray]) -> tuple[int, np.ndarray]:
    return coded if best is None or coded[1].size < best[1].size else best


def _may_cluster(positions: Positions, nbytes: int) -> bool:
    """Return whether zstd may bring a set below a size, judged by eight samples of a 64th each."""
    packed = positions.packed
    piece = packed.size // 64
    if piece < _LEAST_PIECE:
        return True
    sample = packed[: packed.size // 8 * 8].reshape(8, -1)[:, :piece].reshape(-1)
    coded = sets.encode_set(Positions(8 * sample.size, packed=sample), NAMES[ZSTD])
    # A sample repeats itself less than the whole, and pays for tables of its own.
    return 8 * coded.payload.size < 4 * nbytes + _TABLES


def _estimate(choice: Choice, number: int) -> float:
    positions, segments, base, prior = choice
    if number == LAYERS:
        assert segments is not None
        kept = layers.counts_kept(positions, segments).tolist()
        numels = np.diff(segments).tolist()
        return sum(1 + set_nbytes(n, k) if 0 < k < n else 1 for n, k in zip(numels, kept, strict=True))
    if number == PRIOR:
        assert prior is not None
        return _REFERENCE + rans.STATES_NBYTES / 2 + _cross_entropy_nbytes(positions.bits, prior.array)
    assert base is not None
    num_dropped, num_grown = change.count_moves(positions, base)
    num_kept = int(base.indices.size)
    num_others = base.array.size - num_kept
    if number == CHANGE:
        return _REFERENCE + change.change_nbytes(num_dropped, num_grown, num_kept, num_others)
    return _REFERENCE + 2 + set_nbytes(num_kept, num_dropped) + set_nbytes(num_others, num_grown)


def set_nbytes(numel: int, count: int) -> float:
    """Estimate from below the size of a set that does not cluster: log2 C(n, k) bits and a header, or all bits."""
    nbits = (math.lgamma(numel + 1) - math.lgamma(count + 1) - math.lgamma(numel - count + 1)) / math.log(2)
    return min(numel / 8, _SET_HEADER + nbits / 8)


_COSTS = np.round(-np.log2(np.arange(1, P12_ONE + 1) / P12_ONE) * (1 << 16)).astype(np.int64)
"""Bits that a symbol of probability (i + 1) / 4096 costs, in units of 2^-16."""


@njit(cache=True)
def _cross_entropy(bits, p12, costs):  # type: ignore[no-untyped-def]
    total = np.int64(0)
    for i in range(bits.size):
        p = np.int64(p12[i])
        total += costs[(p if bits[i] else P12_ONE - p) - 1]
    return total


def _cross_entropy_nbytes(bits: np.ndarray, p12: np.ndarray) -> float:
    # A read-only array is another type to numba, which would compile the kernel again.
    return float(_cross_entropy(bits, np.require(p12, np.uint16, ["C", "W"]), _COSTS)) / (8 << 16)


def warm_up(allowed: frozenset[int]) -> None:
    """Compile, or load from the cache, the kernels of sets and of these codecs."""
    sets.warm_up()
    if allowed & {CHANGE, RANKS}:
        change.warm_up()
    if PRIOR in allowed:
        bits, p12 = np.zeros(64, np.uint8), np.full(64, P12_ONE // 4, np.uint16)
        _cross_entropy_nbytes(bits, p12)
        rans.decode_bits(rans.encode_bits(bits, p12), p12, "", 0)

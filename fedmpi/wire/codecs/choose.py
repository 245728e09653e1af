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

_REFERENCE = 5
"""Bytes of a reference at least."""

_LEAST_PIECE = 256
"""Bytes of a piece of a sample below which zstd is run at once."""

_TABLES = 1024
"""Bytes that eight times a sample's own tables may come to."""

_SMALL = 4096
"""Positions of a set so small that everything is tried: estimates of it say little, and coding it takes no time."""

_FEW = 32
"""Every 32nd position: no more moves than these are ranked at once, which takes as long as a test of clusters."""

_PIECES, _PIECE = 32, 1 / 256
"""Pieces of a sample of what moved, each this part of it."""


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
    wanted = frozenset(number for number in allowed if NAMES[number] == codec)
    for number, coder in _coders(choice, wanted).items():
        return number, coder.encode()
    return _smallest(choice, _coders(choice, allowed))


def decode_positions(
    codec_id: int, payload: np.ndarray, numel: int, spec: FieldSpec, known: Known, offset: int, allowed: frozenset[int]
) -> Found:
    """Return the set of some of `numel` positions that a payload says.

    Raises
    ------
    WireError
        If the payload is not exactly one set, or what it was coded against is not held.
    """
    where, most = spec.where, spec.max_kept or numel
    if codec_id == LAYERS and codec_id in allowed:
        segments = segments_of(spec, numel)
        if segments is not None:
            return Found(layers.decode_layers(payload, segments, where, offset, most))
    elif codec_id == PRIOR and codec_id in allowed and spec.prior:
        prior, start = take_reference(KnownProbabilities, spec.prior, payload, known, numel, where, offset)
        bits = rans.decode_bits(payload[start:], prior.array, where, offset + start)
        return Found(Positions(numel, bits=bits), prior=prior)
    elif codec_id in (CHANGE, RANKS) and codec_id in allowed and spec.base:
        base, start = take_reference(KnownMask, spec.base, payload, known, numel, where, offset)
        body, offset = payload[start:], offset + start
        if codec_id == CHANGE:
            return Found(change.decode_change(body, base, where, offset), base=base)
        return Found(change.decode_ranks(body, base, where, offset, most), base=base)
    elif BITS <= codec_id <= GAPS:
        return Found(sets.decode_set(codec_id, payload, numel, where, offset, most))
    raise WireError(f"{where} codec", offset=offset, expected="a codec that this field can have", got=codec_id)


def _alone(positions: Positions, codec: str = "auto") -> tuple[int, np.ndarray]:
    coded = sets.encode_set(positions, codec)
    return coded.codec_id, coded.payload


class _Coder(NamedTuple):
    """A way to say where.

    Attributes
    ----------
    encode : callable
        Returns the payload.
    estimate : callable
        Returns about how many bytes it has where what it codes is scattered at random.
    may_gain : callable
        Takes the best size so far; returns whether this way may be smaller though its estimate is not, because what
        it codes clusters.
    """

    encode: Callable[[], np.ndarray]
    estimate: Callable[[], float]
    may_gain: Callable[[int], bool]


def _coders(choice: Choice, allowed: frozenset[int]) -> dict[int, _Coder]:
    """Return the ways that a set has beyond those of sets, of those that are allowed."""
    positions, segments, base, prior = choice
    found: dict[int, _Coder] = {}
    if segments is not None and LAYERS in allowed:
        found[LAYERS] = _Coder(
            lambda: layers.encode_layers(positions, segments),
            lambda: _layers_nbytes(positions, segments),
            lambda best: positions.numel <= _SMALL and layers.least_nbytes(positions, segments) < best,
        )
    if prior is not None and PRIOR in allowed:
        found[PRIOR] = _Coder(
            lambda: np.concatenate([put_reference(prior), rans.encode_bits(positions.bits, prior.array)]),
            lambda: _REFERENCE + rans.STATES_NBYTES / 2 + _cross_entropy_nbytes(positions.bits, prior.array),
            lambda best: False,
        )
    if base is not None and allowed & {CHANGE, RANKS}:
        moves = change.moves_of(positions, base)
        if RANKS in allowed:
            found[RANKS] = _Coder(
                lambda: change.encode_ranks(moves),
                lambda: _ranks_nbytes(moves),
                lambda best: _moves_may_cluster(moves, best),
            )
        if CHANGE in allowed:
            found[CHANGE] = _Coder(
                lambda: change.encode_change(moves),
                lambda: _REFERENCE + change.change_nbytes(*moves.sizes),
                lambda best: False,
            )
    return found


def _smallest(choice: Choice, coders: dict[int, _Coder]) -> tuple[int, np.ndarray]:
    """Encode in the order of the estimates whatever may be smaller than the best so far; return the smallest."""
    positions = choice.positions
    if not coders:
        return _alone(positions)
    # Floats may decide here: the codec travels, and the coders' tables are integers.
    alone = set_nbytes(positions.numel, positions.count)
    waiting = {number: coder.estimate() for number, coder in coders.items()} | {_ALONE: alone}
    best: tuple[int, np.ndarray] | None = None
    for number in sorted(waiting, key=waiting.__getitem__):
        if best is None or waiting[number] < best[1].size:
            del waiting[number]
            best = _smaller(best, _alone(positions) if number == _ALONE else (number, coders[number].encode()))
    assert best is not None
    # No estimate knows how positions cluster.
    if _ALONE in waiting and _may_cluster(positions, best[1].size):
        best = _smaller(best, _alone(positions))
    for number in (LAYERS, RANKS):
        # Where a set by itself gains by that, so may each tensor's set, and what is kept or left out of a base.
        gains = (BITS <= best[0] <= GAPS or best[0] == LAYERS) and best[1].size < alone
        if number in waiting and (gains or coders[number].may_gain(best[1].size)):
            best = _smaller(best, (number, coders[number].encode()))
    return best


def _smaller(best: tuple[int, np.ndarray] | None, coded: tuple[int, np.ndarray]) -> tuple[int, np.ndarray]:
    return coded if best is None or coded[1].size < best[1].size else best


def _may_cluster(positions: Positions, nbytes: int) -> bool:
    """Return whether zstd may bring a set below a size, judged by eight samples of a 64th each."""
    packed = positions.packed
    piece = packed.size // 64
    if piece < _LEAST_PIECE:
        return True
    # A sample repeats itself less than the whole, and pays for tables of its own.
    return 8 * _zstd_nbytes(_sample(packed, 8, piece)) < 4 * nbytes + _TABLES


def _moves_may_cluster(moves: change.Moves, best: int) -> bool:
    """Return whether ranks may come below a size, though they would not at random."""
    numel, num_moved = moves.positions.numel, moves.num_dropped + moves.num_grown
    if numel <= _SMALL or num_moved <= numel // _FEW:
        return True
    # The sets of ranks cluster about as the moves do: by as much as zstd needs less for these than for random ones.
    size = moves.changed.size
    sample = _sample(moves.changed, _PIECES, max(int(size * _PIECE), 1)) if size > 1 << 13 else moves.changed
    return _zstd_nbytes(sample) * size / sample.size * _ranks_nbytes(moves) < best * set_nbytes(numel, num_moved)


def _sample(packed: np.ndarray, pieces: int, length: int) -> np.ndarray:
    """Return pieces of packed bits from all over them, one after the other."""
    return packed[: packed.size // pieces * pieces].reshape(pieces, -1)[:, :length].reshape(-1)


def _zstd_nbytes(packed: np.ndarray) -> int:
    return sets.encode_set(Positions(8 * packed.size, packed=packed), NAMES[ZSTD]).payload.size


def _layers_nbytes(positions: Positions, segments: np.ndarray) -> float:
    kept = layers.counts_kept(positions, segments).tolist()
    numels = np.diff(segments).tolist()
    return sum(1 + set_nbytes(n, k) if 0 < k < n else min(n, 1) for n, k in zip(numels, kept, strict=True))


def _ranks_nbytes(moves: change.Moves) -> float:
    num_dropped, num_grown, num_kept, num_others = moves.sizes
    dropped = 1 + set_nbytes(num_kept, num_dropped) if num_dropped else 0
    return _REFERENCE + 1 + dropped + (set_nbytes(num_others, num_grown) if num_grown else 0)


def set_nbytes(numel: int, count: int) -> float:
    """Estimate from below the size of a set at random: log2 C(n, k) bits and a header, a byte a gap, or all bits."""
    nbytes = (math.lgamma(numel + 1) - math.lgamma(count + 1) - math.lgamma(numel - count + 1)) / (8 * math.log(2))
    header = ((2 * min(count, numel - count) | 1).bit_length() + 6) // 7
    long_gaps = count * (1 - count / numel) ** 128 if numel > 128 else 0  # of two bytes where seven bits are too few
    return min(numel / 8, header + nbytes, count + long_gaps)


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

"""The smallest of the ways to say where: a set by itself, tensor by tensor, against a base, or against a prior."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from fedmpi.errors import WireError
from fedmpi.wire.codecs import change, estimates, layers, rans
from fedmpi.wire.codecs import positions as sets
from fedmpi.wire.codecs.base import BITS, CHANGE, GAPS, LAYERS, NAMES, PRIOR, RANKS, FieldSpec
from fedmpi.wire.codecs.reference import put_reference, take_reference
from fedmpi.wire.codecs.sets.base import Positions
from fedmpi.wire.known import P12_ONE, Known, KnownMask, KnownProbabilities

_ALONE = -1
"""Stands for the smallest codec of a set by itself where codecs are compared."""


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
            lambda: estimates.layers_nbytes(positions, segments),
            lambda best: positions.numel <= estimates.SMALL and layers.least_nbytes(positions, segments) < best,
        )
    if prior is not None and PRIOR in allowed:
        found[PRIOR] = _Coder(
            lambda: np.concatenate([put_reference(prior), rans.encode_bits(positions.bits, prior.array)]),
            lambda: (
                estimates.REFERENCE_NBYTES
                + rans.STATES_NBYTES / 2
                + estimates.cross_entropy_nbytes(positions.bits, prior.array)
            ),
            lambda best: False,
        )
    if base is not None and allowed & {CHANGE, RANKS}:
        moves = change.moves_of(positions, base)
        if RANKS in allowed:
            found[RANKS] = _Coder(
                lambda: change.encode_ranks(moves),
                lambda: estimates.ranks_nbytes(moves),
                lambda best: estimates.moves_may_cluster(moves, best),
            )
        if CHANGE in allowed:
            found[CHANGE] = _Coder(
                lambda: change.encode_change(moves),
                lambda: estimates.REFERENCE_NBYTES + change.change_nbytes(*moves.sizes),
                lambda best: False,
            )
    return found


def _smallest(choice: Choice, coders: dict[int, _Coder]) -> tuple[int, np.ndarray]:
    """Encode in the order of the estimates whatever may be smaller than the best so far; return the smallest."""
    positions = choice.positions
    if not coders:
        return _alone(positions)
    alone = estimates.set_nbytes(positions.numel, positions.count)
    waiting = {number: coder.estimate() for number, coder in coders.items()} | {_ALONE: alone}
    best: tuple[int, np.ndarray] | None = None
    for number in sorted(waiting, key=waiting.__getitem__):
        if best is None or waiting[number] < best[1].size:
            del waiting[number]
            best = _smaller(best, _alone(positions) if number == _ALONE else (number, coders[number].encode()))
    assert best is not None
    # No estimate knows how positions cluster.
    if _ALONE in waiting and estimates.may_cluster(positions, best[1].size):
        best = _smaller(best, _alone(positions))
    for number in (LAYERS, RANKS):
        # Where a set by itself gains by that, so may each tensor's set, and what is kept or left out of a base.
        gains = (BITS <= best[0] <= GAPS or best[0] == LAYERS) and best[1].size < alone
        if number in waiting and (gains or coders[number].may_gain(best[1].size)):
            best = _smaller(best, (number, coders[number].encode()))
    return best


def _smaller(best: tuple[int, np.ndarray] | None, coded: tuple[int, np.ndarray]) -> tuple[int, np.ndarray]:
    return coded if best is None or coded[1].size < best[1].size else best


def warm_up(allowed: frozenset[int]) -> None:
    """Compile, or load from the cache, the kernels of sets and of these codecs."""
    sets.warm_up()
    if allowed & {CHANGE, RANKS}:
        change.warm_up()
    if PRIOR in allowed:
        bits, p12 = np.zeros(64, np.uint8), np.full(64, P12_ONE // 4, np.uint16)
        estimates.cross_entropy_nbytes(bits, p12)
        rans.decode_bits(rans.encode_bits(bits, p12), p12, "", 0)

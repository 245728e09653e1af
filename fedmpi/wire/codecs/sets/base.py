"""A set of positions in its three forms, and what a coder of such sets is."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numba import njit

from fedmpi.errors import WireError
from fedmpi.wire.codecs.bitpack import stream_of
from fedmpi.wire.codecs.numbers import MAX_VARINT_NBYTES, put_varint, take_varint
from fedmpi.wire.codecs.plane_kernels import histogram

_ONE = np.uint64(1)
_TOP_SIX = np.uint64(58)
_DE_BRUIJN = np.uint64(0x03F79D71B4CB0A89)
_PLACE_OF = np.zeros(64, np.int64)
for _bit in range(64):
    _PLACE_OF[((int(_DE_BRUIJN) << _bit) & (1 << 64) - 1) >> 58] = _bit


@njit(cache=True)
def lowest_bit(word):  # type: ignore[no-untyped-def]
    """Return the place of the lowest 1 of a uint64 above 0 (Leiserson, Prokop and Randall 1998)."""
    return _PLACE_OF[((word & (~word + _ONE)) * _DE_BRUIJN) >> _TOP_SIX]


@njit(cache=True)
def _list_bits(words, indices):  # type: ignore[no-untyped-def]
    count = 0
    for w in range(words.size):
        word = words[w]
        while word:
            indices[count] = 64 * w + lowest_bit(word)
            word &= word - _ONE
            count += 1


@njit(cache=True)
def _set_bits(indices, packed):  # type: ignore[no-untyped-def]
    for index in indices:
        packed[index >> 3] |= np.uint8(1 << (index & 7))


@njit(cache=True)
def _increase_below(indices, numel):  # type: ignore[no-untyped-def]
    before = -1
    for index in indices:
        if index <= before:
            return False
        before = index
    return before < numel


def count_bits(packed: np.ndarray) -> int:
    """Return how many bits of a contiguous vector of uint8 are 1."""
    whole = packed.size - packed.size % 8
    in_words = np.bitwise_count(packed[:whole].view(np.uint64)).sum(dtype=np.int64)
    return int(in_words + np.bitwise_count(packed[whole:]).sum(dtype=np.int64))


class Positions:
    """A set of k out of n positions, immutable; a form that it was not made from is made when first asked for.

    Parameters
    ----------
    numel : int
        n.
    bits, packed, indices : numpy.ndarray, optional
        At least one, as the properties of these names say. They are not copied and not checked: see `from_mask` and
        `from_indices` for arrays of unknown origin.
    """

    def __init__(
        self,
        numel: int,
        *,
        bits: np.ndarray | None = None,
        packed: np.ndarray | None = None,
        indices: np.ndarray | None = None,
    ) -> None:
        assert bits is not None or packed is not None or indices is not None
        self.numel = numel
        self._bits = bits
        self._packed = packed
        self._indices = indices
        self._count: int | None = None
        self._complement: Positions | None = None
        self._byte_counts: np.ndarray | None = None
        self.gap_counts: dict[int, np.ndarray] = {}
        """What `count_gaps` found before, by its shift."""

    @classmethod
    def from_mask(cls, mask: np.ndarray) -> Positions:
        """Make a set from a mask, shape (n,), bool or uint8, not 0 where the position is in the set.

        Raises
        ------
        ValueError
            For another shape or dtype.
        """
        if mask.ndim != 1 or mask.dtype not in (np.bool_, np.uint8):
            raise ValueError(f"a mask is a vector of bool or uint8, got {mask.dtype} {mask.shape}")
        kept = mask if mask.dtype == np.bool_ else mask != 0
        return cls(mask.size, bits=np.ascontiguousarray(kept).view(np.uint8))

    @classmethod
    def from_indices(cls, indices: np.ndarray, numel: int) -> Positions:
        """Make a set from indices, shape (k,), of any integer dtype, each above the one before.

        Raises
        ------
        ValueError
            If they do not increase, or are not from 0 to n - 1.
        """
        if indices.ndim != 1 or indices.dtype.kind not in "iu":
            raise ValueError(f"indices are a vector of integers, got {indices.dtype} {indices.shape}")
        wide = np.require(indices, np.int64, ["C", "W"])
        if not _increase_below(wide, numel):
            raise ValueError(f"the indices of a set must increase from 0 or more to at most {numel - 1}")
        return cls(numel, indices=wide)

    @property
    def count(self) -> int:
        """Number of positions in the set, k."""
        if self._count is None:
            if self._indices is not None:
                self._count = self._indices.size
            else:
                # Packed in words this is faster than counting the bytes of a mask, and coders pack it anyway.
                self._count = count_bits(self.packed)
        return self._count

    @property
    def bits(self) -> np.ndarray:
        """1 for the positions in the set, uint8 of shape (n,)."""
        if self._bits is None:
            if self._packed is not None:
                self._bits = np.unpackbits(self._packed, count=self.numel, bitorder="little")
            else:
                self._bits = np.zeros(self.numel, np.uint8)
                self._bits[self._indices] = 1
        return self._bits

    @property
    def packed(self) -> np.ndarray:
        """The bits, eight a byte, uint8 of shape (ceil(n / 8),): position i is bit i % 8 of byte i // 8."""
        if self._packed is None:
            if self._bits is not None:
                self._packed = np.packbits(self._bits, bitorder="little")
            else:
                assert self._indices is not None
                self._packed = np.zeros((self.numel + 7) // 8, np.uint8)
                _set_bits(self._indices, self._packed)
        return self._packed

    @property
    def is_listed(self) -> bool:
        """Whether `indices` are there already, rather than to be made from bits."""
        return self._indices is not None

    @property
    def indices(self) -> np.ndarray:
        """The positions in the set in order, int64 of shape (k,)."""
        if self._indices is None:
            self._indices = np.empty(self.count, np.int64)
            _list_bits(stream_of(self.packed), self._indices)
        return self._indices

    @property
    def byte_counts(self) -> np.ndarray:
        """How often each byte occurs in `packed`, int64 of shape (256,)."""
        if self._byte_counts is None:
            self._byte_counts = histogram(self.writable_packed)
        return self._byte_counts

    @property
    def writable_packed(self) -> np.ndarray:
        """`packed`, or a copy if that is read-only, for which numba would compile every kernel a second time."""
        packed = self.packed
        return packed if packed.flags.writeable else packed.copy()

    @property
    def complement(self) -> Positions:
        """The set of the positions that are not in this one."""
        if self._complement is None:
            packed = ~self.packed
            if self.numel % 8:
                packed[-1] &= (1 << self.numel % 8) - 1
            self._complement = Positions(self.numel, packed=packed)
            self._complement._count = self.numel - self.count
        return self._complement

    @property
    def minority(self) -> Positions:
        """The set itself or its complement: the one with fewer positions."""
        return self.complement if 2 * self.count > self.numel else self


class SetCoder(Protocol):
    """Makes bytes of a set of positions, and back. Both ends know n; the receiver may know a limit of k."""

    codec_id: int
    name: str

    def least_nbytes(self, positions: Positions) -> int:
        """Return a lower bound of the payload's length, cheaper than the payload and close to it."""

    def encode(self, positions: Positions) -> np.ndarray:
        """Return the payload, uint8."""

    def decode(self, payload: np.ndarray, numel: int, where: str, offset: int, max_count: int) -> Positions:
        """Return the set; raises `WireError`, its offsets counted from `offset`, for anything else."""


def put_count(positions: Positions) -> bytes:
    """Return the header of a coder of minorities: the varint 2 k', plus 1 if k' counts the positions left out."""
    out = bytearray()
    put_varint(_count_number(positions), out)
    return bytes(out)


def count_nbytes(positions: Positions) -> int:
    """Return the length of what `put_count` makes."""
    return (max(_count_number(positions).bit_length(), 1) + 6) // 7


def _count_number(positions: Positions) -> int:
    count = positions.count
    return 2 * min(count, positions.numel - count) + (2 * count > positions.numel)


def take_count(
    payload: np.ndarray, numel: int, where: str, offset: int, max_count: int
) -> tuple[int, bool, np.ndarray, int]:
    """Read what `put_count` wrote.

    Returns
    -------
    fewer : int
        k', at most half of n.
    flipped : bool
        Whether k' counts the positions left out.
    body : numpy.ndarray, uint8
        What comes behind; nothing for a k' of 0.
    offset : int
        Where in the frame that is.
    """
    number, position = take_varint(payload[:MAX_VARINT_NBYTES].tobytes(), 0, offset)
    fewer, flipped = number >> 1, bool(number & 1)
    if 2 * fewer > numel:
        raise WireError(f"{where} count", offset=offset, expected=f"at most half of {numel}", got=fewer)
    check_count(numel - fewer if flipped else fewer, where, offset, max_count)
    body = payload[position:]
    if fewer == 0 and body.size:
        raise WireError(f"{where} set", offset=offset + position, expected="the end", got=f"{body.size} bytes more")
    return fewer, flipped, body, offset + position


def from_minority(numel: int, indices: np.ndarray, flipped: bool) -> Positions:
    """Return the set of these indices, or its complement."""
    positions = Positions(numel, indices=indices)
    return positions.complement if flipped else positions


def check_count(count: int, where: str, offset: int, max_count: int) -> None:
    """Raise WireError if a set has more positions than the receiver allows."""
    if count > max_count:
        raise WireError(f"{where} count", offset=offset, expected=f"at most {max_count} positions", got=count)


def from_packed(packed: np.ndarray, numel: int, where: str, offset: int, max_count: int) -> Positions:
    """Return the set of packed bits that came, of the right length."""
    if numel % 8 and packed[-1] >> numel % 8:
        got = f"byte {int(packed[-1])}"
        raise WireError(f"{where} bits", offset=offset, expected=f"zeros after bit {numel - 1}", got=got)
    positions = Positions(numel, packed=packed)
    check_count(positions.count, where, offset, max_count)
    return positions


def from_listed(indices: np.ndarray, numel: int, where: str, offset: int) -> Positions:
    """Return the set of indices that came, int64."""
    if not _increase_below(indices, numel):
        raise WireError(f"{where} indices", offset=offset, expected=f"increasing below {numel}", got="others")
    return Positions(numel, indices=indices)

"""What both ends of a conversation hold already, so that it need not travel: masks, probabilities, weights.

A message that is coded against such a thing names its version and its checksum, and a receiver that holds another
refuses it. Each half of an algorithm has its own `Known`: the server's knowledge is not a client's.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import numpy as np
import torch
import xxhash
from torch import Tensor

from fedmpi.errors import WireError

MAX_VERSION = 2**32 - 1
_MOST_NAMED = 10
P12_ONE = 4096
"""Probabilities that a coder uses are whole multiples of 1 / 4096."""


def checksum(array: np.ndarray) -> int:
    """Return the low 32 bits of XXH3-64 (seed 0) over an array's bytes."""
    return xxhash.xxh3_64(np.ascontiguousarray(array).view(np.uint8).data).intdigest() & 0xFFFFFFFF


@dataclass(frozen=True, eq=False)
class Reference:
    """A version of something that both ends hold.

    Parameters
    ----------
    array : numpy.ndarray, shape (n,)
        Copied: what it was made from may change, and a version must not.
    version : int
        0 to 2^32 - 1; by habit the round in which it was made.
    """

    array: np.ndarray
    version: int

    def __post_init__(self) -> None:
        if not 0 <= self.version <= MAX_VERSION:
            raise ValueError(f"a version must be 0 to {MAX_VERSION}, got {self.version}")
        if self.array.ndim != 1:
            raise ValueError(f"what both ends hold must be a vector, got shape {self.array.shape}")
        object.__setattr__(self, "array", self.array.copy())

    @cached_property
    def checksum(self) -> int:
        """Checksum of the content, 32 bits."""
        return checksum(self.array)


@dataclass(frozen=True, eq=False)
class KnownMask(Reference):
    """A mask that both ends hold: bool, shape (n,), True where kept."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.array.dtype != np.bool_:
            raise ValueError(f"a mask must be bool, got {self.array.dtype}")
        if bool((self.array.view(np.uint8) > 1).any()):  # another dtype's bytes, seen as bool: coders count on 0 and 1
            raise ValueError("a mask's bytes must be 0 or 1")

    @cached_property
    def checksum(self) -> int:
        """Checksum of the mask, eight positions a byte."""
        return checksum(self.packed)

    @cached_property
    def packed(self) -> np.ndarray:
        """The mask's bits, eight a byte, the lowest first, ((n + 7) // 8,) uint8."""
        return np.packbits(self.array, bitorder="little")

    @cached_property
    def count(self) -> int:
        """How many positions are kept."""
        return int(np.count_nonzero(self.array))

    @cached_property
    def indices(self) -> np.ndarray:
        """Positions that are kept, ascending, (k,) int64."""
        return np.flatnonzero(self.array)

    @classmethod
    def of(cls, mask: Tensor, version: int) -> KnownMask:
        """Take over a bool vector."""
        return cls(mask.detach().cpu().numpy(), version)


@dataclass(frozen=True, eq=False)
class KnownProbabilities(Reference):
    """Probabilities that bits are 1, which both ends hold: uint16, shape (n,), in 1 to 4095 of 4096."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.array.dtype != np.uint16:
            raise ValueError(f"probabilities must be uint16 multiples of 1/{P12_ONE}, got {self.array.dtype}")
        if self.array.size and not 1 <= int(self.array.min()) <= int(self.array.max()) < P12_ONE:
            raise ValueError(f"probabilities must be 1 to {P12_ONE - 1} of {P12_ONE}")

    @classmethod
    def of(cls, theta: Tensor | np.ndarray, version: int) -> KnownProbabilities:
        """Quantize probabilities to 12 bits: floor(4096 theta + 1/2), at least 1 and at most 4095.

        In float32 arithmetic, which is the same on every IEEE machine. Both ends must derive it from the bytes that
        were broadcast, never from the sender's private copy.

        Raises
        ------
        ValueError
            If a probability is NaN or outside [0, 1].
        """
        theta_N = torch.as_tensor(theta).detach().reshape(-1).to(torch.float32)
        if not bool(((theta_N >= 0) & (theta_N <= 1)).all()):
            raise ValueError("probabilities must be in [0, 1]")
        p12_N = (theta_N * P12_ONE + 0.5).floor_().clamp_(1, P12_ONE - 1).to(torch.int32).cpu().numpy()
        return cls(p12_N.astype(np.uint16), version)


@dataclass(frozen=True, eq=False)
class KnownVector(Reference):
    """Numbers that both ends hold, such as the weights of an earlier round: shape (n,), a dtype of `Dense`."""


R = TypeVar("R", bound=Reference)


class Known:
    """What one half holds, by name and version."""

    def __init__(self) -> None:
        self._held: dict[tuple[str, int], Reference] = {}
        self._masks_inside: dict[str, np.ndarray] = {}

    def hold(self, name: str, reference: Reference) -> None:
        """Keep a version under a name, replacing one of the same version."""
        self._held[name, reference.version] = reference

    def get(self, name: str, version: int) -> Reference | None:
        """Return a version, None where it is not held."""
        return self._held.get((name, version))

    def versions(self, name: str) -> list[int]:
        """Return the versions that are held, ascending."""
        return sorted(version for held, version in self._held if held == name)

    def forget(self, name: str, before: int) -> None:
        """Drop the versions below `before`."""
        for version in self.versions(name):
            if version < before:
                del self._held[name, version]

    def retain(self, name: str, versions: Collection[int]) -> None:
        """Drop all versions under a name but these."""
        for version in self.versions(name):
            if version not in versions:
                del self._held[name, version]

    def with_mask(self, name: str, bits: np.ndarray) -> Known:
        """Return what is held and a mask that came in the same message, for the fields behind it."""
        more = Known()
        more._held = self._held
        more._masks_inside = {**self._masks_inside, name: bits}
        return more

    def inside(self, name: str) -> np.ndarray | None:
        """Return the mask of that name which came in the same message, (n,) bool, None if none did."""
        return self._masks_inside.get(name)

    def find(self, wanted: type[R], name: str, version: int, stated: int, *, numel: int, where: str, offset: int) -> R:
        """Return what a message was coded against.

        Parameters
        ----------
        wanted : class
        name : str
        version, stated : int
            The version and the checksum that the message names. A mask that came in the same message has no version:
            it is meant where none of that version and checksum is held, and its checksum is compared.
        numel : int
            Length that it must have.
        where, offset : str, int
            For the error.

        Raises
        ------
        WireError
            If that version is not held, or what is held under it is something else.
        """
        what = f"{where}: {name}"
        found = self._held.get((name, version))
        if wanted is KnownMask and name in self._masks_inside and (found is None or found.checksum != stated):
            found = KnownMask(self._masks_inside[name], version)
        if not isinstance(found, wanted):
            versions = self.versions(name)
            held = ", ".join([*(["..."] if len(versions) > _MOST_NAMED else []), *map(str, versions[-_MOST_NAMED:])])
            held = held or "none"
            raise WireError(
                f"{what} version",
                offset=offset,
                expected=f"one of those held: {held}",
                got=version,
                hint="what the two ends hold is of different rounds or runs",
            )
        if found.checksum != stated:
            expected, got = f"checksum {found.checksum:08x}", f"{stated:08x}"
            raise WireError(f"{what} version {version}", offset=offset, expected=expected, got=got)
        if found.array.size != numel:
            raise WireError(
                f"{what} version {version}", offset=offset, expected=f"{numel} numbers", got=found.array.size
            )
        return found

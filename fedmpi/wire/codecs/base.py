"""What a codec is, and the registry that maps the codec byte of a section to it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from fedmpi.wire.values import Value


@dataclass(frozen=True)
class FieldSpec:
    """What the receiver knows of a section before it reads it.

    Parameters
    ----------
    where : str
        ``Message.field``, for error messages.
    dtype : numpy.dtype
    numel : int
        Number of numbers, or the most there may be if `at_most`.
    at_most : bool
    """

    where: str
    dtype: np.dtype
    numel: int
    at_most: bool


@dataclass(frozen=True)
class Encoded:
    """A section as a codec made it.

    Parameters
    ----------
    param : int
        The codec's own byte in the section table.
    payload : numpy.ndarray, shape (nbytes,), uint8
        May be a view of the value's memory.
    alignment : int
        The payload starts at a multiple of this many bytes from the frame's start.
    index_nbytes, value_nbytes : int
        Bytes of the payload that say where, and bytes that say what.
    """

    param: int
    payload: np.ndarray
    alignment: int
    index_nbytes: int
    value_nbytes: int


@dataclass(frozen=True)
class Decoded:
    """A section as a codec read it: the value, and how many of its bytes say where and what."""

    value: Value
    index_nbytes: int
    value_nbytes: int


class Codec(Protocol):
    """Makes the payload of a section from a value, and back, without loss."""

    codec_id: int
    name: str
    exact_size: bool
    """Whether a payload's length follows from the number of values alone, so that it is known before training."""

    def encode(self, value: Value, spec: FieldSpec) -> Encoded:
        """Return the section; raises ValueError if the value is not what `spec` declares."""

    def alignment(self, spec: FieldSpec) -> int:
        """Return the alignment of the payload, known to both ends."""

    def decode(self, payload: np.ndarray, param: int, spec: FieldSpec, offset: int) -> Decoded:
        """Return the value, a view of `payload` if it can be; raises `WireError`, its offsets counted from `offset`."""


ABSENT = 0
"""Codec byte of an optional field that is not there."""

NUMBERS = 1
"""Codec byte of the section that holds a message's ints and floats."""

_CODECS: dict[int, Codec] = {}
_DEFAULTS: dict[type[Value], Codec] = {}


def register(codec: Codec, default_for: type[Value] | None = None) -> None:
    """Add a codec; `default_for` names the value type that it serves unless another is asked for."""
    if codec.codec_id in (ABSENT, NUMBERS) or codec.codec_id in _CODECS:
        raise ValueError(f"codec id {codec.codec_id} of {codec.name} is taken")
    _CODECS[codec.codec_id] = codec
    if default_for is not None:
        _DEFAULTS[default_for] = codec


def codec_by_id(codec_id: int) -> Codec | None:
    """Return the codec of a section table's byte, None where there is none."""
    return _CODECS.get(codec_id)


def all_codecs() -> list[Codec]:
    """Return the codecs in the order of their numbers."""
    return [_CODECS[codec_id] for codec_id in sorted(_CODECS)]


def codec_for(value: Value) -> Codec:
    """Return the codec that a value is sent with."""
    return _DEFAULTS[type(value)]

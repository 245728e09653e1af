"""What turns a value into a section of a frame and back: one format for each class of values, found when first needed.

A format chooses among codecs, unless the configuration fixes one, and writes its choice into the section's codec byte.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from fedmpi.config import WireConfig
from fedmpi.wire.known import Known
from fedmpi.wire.values import Value

ABSENT = 0
"""Codec byte of an optional field that is not there."""

NUMBERS = 1
"""Codec byte of the section that holds a message's ints and floats."""


class CodecInfo(NamedTuple):
    """A codec as users see it.

    Attributes
    ----------
    codec_id : int
        Byte in the section table.
    name : str
        As the ledger's ``codec`` column has it; sparse values have two, joined by ``+``.
    summary : str
        One line.
    """

    codec_id: int
    name: str
    summary: str


RAW, PLANES, DELTA = 2, 3, 4
PACKED, ORDER0, CONTEXT = 8, 9, 10
RADIX, VARINTS = 12, 13
BITS, BYTE_RANS, GAP_RANS, GOLOMB, ZSTD, UINT32, INT64, GAPS = range(16, 24)
PRIOR, CHANGE, RANKS, LAYERS = range(24, 28)

CODECS = (
    CodecInfo(NUMBERS, "numbers", "Whole numbers as variable-length integers, floats in 4 or 8 bytes."),
    CodecInfo(RAW, "raw", "Every number in its own dtype, one after the other."),
    CodecInfo(PLANES, "planes", "Bytes of one significance together, each plane raw, entropy coded or by zstd."),
    CodecInfo(DELTA, "delta", "Steps from numbers that the receiver holds, as planes."),
    CodecInfo(PACKED, "packed", "Symbols of 1 to 8 bits, packed."),
    CodecInfo(ORDER0, "order0", "Symbols entropy coded by how often each occurs."),
    CodecInfo(CONTEXT, "context", "Symbols entropy coded in the context of their left and upper neighbours."),
    CodecInfo(RADIX, "radix", "Class labels as digits of large numbers, close to log2(classes) bits each."),
    CodecInfo(VARINTS, "varints", "Counts as variable-length integers."),
    CodecInfo(BITS, "bits", "One bit for each position."),
    CodecInfo(BYTE_RANS, "byte-rans", "Packed bits, entropy coded by the byte for the set's density."),
    CodecInfo(GAP_RANS, "gap-rans", "Distances between positions, entropy coded for the set's density."),
    CodecInfo(GOLOMB, "golomb", "Distances between positions in Golomb's code, for small sets."),
    CodecInfo(ZSTD, "zstd", "Packed bits by zstd, for sets that cluster."),
    CodecInfo(UINT32, "uint32", "Four bytes for each index, as papers often assume."),
    CodecInfo(INT64, "int64", "Eight bytes for each index, as tensor libraries store them."),
    CodecInfo(GAPS, "gaps", "Distances between positions as variable-length integers, for a handful."),
    CodecInfo(PRIOR, "prior", "Mask coded bit by bit with probabilities that both ends hold."),
    CodecInfo(CHANGE, "change", "Mask coded bit by bit given an earlier one that both ends hold."),
    CodecInfo(RANKS, "ranks", "Positions dropped from and added to an earlier mask, each as a small set."),
    CodecInfo(LAYERS, "layers", "Each tensor's positions by themselves, each with the codec that suits it."),
)
"""All codecs, in the order of their numbers."""

NAMES = {info.codec_id: info.name for info in CODECS if info.codec_id != NUMBERS}
"""Names of the codecs of values."""


@dataclass(frozen=True)
class FieldSpec:
    """What the receiver knows of a section before it reads it.

    Parameters
    ----------
    where : str
        ``Message.field``, for error messages.
    dtype : str
        Name of the dtype of its numbers, "" for `Quantized` ones and values that have none.
    shape : tuple of int
        Its numbers' shape.
    at_most : bool
        Whether the first dimension may be smaller.
    segments : numpy.ndarray, shape (tensors + 1,), int64, optional
        Where the model's tensors begin, for sets that have a density a tensor.
    base, prior : str
        Names of what both ends hold (see `Known`), "" for nothing.
    num_classes : int
        Of `Labels`.
    max_kept : int
        The most positions that `Sparse` may keep; 0 for no limit.
    """

    where: str
    dtype: str = "float32"
    shape: tuple[int, ...] = (0,)
    at_most: bool = False
    segments: np.ndarray | None = None
    base: str = ""
    prior: str = ""
    num_classes: int = 0
    max_kept: int = 0

    @property
    def numel(self) -> int:
        """Number of numbers, or the most there may be."""
        count = 1
        for length in self.shape:
            count *= length
        return count

    @property
    def length_words(self) -> str:
        """The number of numbers as an error message says it."""
        return f"at most {self.numel}" if self.at_most else str(self.numel)

    def accepts(self, count: int) -> bool:
        """Return whether a vector may have so many numbers."""
        return count <= self.numel if self.at_most else count == self.numel


@dataclass(frozen=True)
class Encoded:
    """A section as a format made it.

    Parameters
    ----------
    codec_id : int
        Byte that says how to read the payload.
    codec : str
        Name for the ledger.
    param : int
        The format's own byte in the section table.
    payload : numpy.ndarray, shape (nbytes,), uint8
        May be a view of the value's memory.
    index_nbytes, value_nbytes : int
        Bytes of the payload that say where, and bytes that say what.
    """

    codec_id: int
    codec: str
    param: int
    payload: np.ndarray
    index_nbytes: int
    value_nbytes: int


@dataclass(frozen=True)
class Decoded:
    """A section as a format read it: the value, and its figures for the ledger."""

    value: Value
    codec: str
    index_nbytes: int
    value_nbytes: int


class Format(Protocol):
    """Makes the payload of a section from a value of one class, and back, without loss."""

    def encode(self, value: Value, spec: FieldSpec, wire: WireConfig) -> Encoded:
        """Return the section; raises ValueError if the value is not what `spec` declares."""

    def alignment(self, codec_id: int, spec: FieldSpec) -> int:
        """Return what the payload's start is a multiple of, counted from the frame's start; known to both ends."""

    def decode(
        self, codec_id: int, param: int, payload: np.ndarray, spec: FieldSpec, known: Known, offset: int
    ) -> Decoded:
        """Return the value, a view of `payload` if it can be; raises `WireError`, its offsets counted from `offset`."""

    def warm_up(self) -> None:
        """Compile, or load from the cache, what coding and decoding need."""


# Modules by name, not the formats themselves: what a run does not send it does not import, and numba takes its time.
_MODULES = {
    "Dense": "dense",
    "Mask": "mask",
    "Sparse": "sparse",
    "MaskedValues": "masked_values",
    "Quantized": "quantized",
    "Labels": "labels",
    "Counts": "counts",
}


_FORMATS: dict[type[Value], Format] = {}


def format_of(value_class: type[Value]) -> Format:
    """Return the format of a class of values.

    Raises
    ------
    TypeError
        If there is none.
    """
    found = _FORMATS.get(value_class)
    if found is None:
        name = _MODULES.get(value_class.__name__)
        if name is None:
            raise TypeError(f"{value_class.__name__} has no format: messages are made of {', '.join(_MODULES)}")
        found = _FORMATS[value_class] = importlib.import_module(f"fedmpi.wire.codecs.{name}").FORMAT
    return found

"""What can be said of a message's size before its values are known."""

from __future__ import annotations

import math

from fedmpi.config import WireConfig
from fedmpi.wire.message import Declared, Message, Schema
from fedmpi.wire.values import Counts, Dense, Labels, Mask, MaskedValues, Quantized, Sparse, storage

_SLACK_NBYTES = 32
"""Varints, references and coder bytes around a value that is sent as it is."""


def has_exact_size(message_class: type[Message], wire: WireConfig) -> bool:
    """Return whether a message's length follows from the numbers of its values and of its kept positions.

    Ints are as many bytes as they are large; those of a dry run are those of the run.
    """
    return all(_is_exact(field.declared, wire) for field in message_class.value_fields)


def _is_exact(declared: Declared, wire: WireConfig) -> bool:
    numbers = wire.values == "raw" if declared.dtype else wire.quantized == "packed"
    return {
        Dense: wire.dense == "raw" or (wire.dense == "delta" and not declared.base),
        Mask: wire.mask == "bits",
        Sparse: wire.sparse in ("bits", "uint32", "int64") and numbers,
        MaskedValues: numbers,
        Quantized: wire.quantized == "packed",
        Labels: True,
        Counts: False,
    }[declared.value_class]


def most_payload_nbytes(message_class: type[Message], schema: Schema, num_kept: int) -> int:
    """Return the most that a message's payload may be; the smallest codecs fall back to sending as it is.

    Parameters
    ----------
    message_class : class
    schema : Schema
    num_kept : int
        How many numbers the message carries, as the ledger counts them.
    """
    nbytes = 10 * len(message_class.number_fields)
    width = 0
    for field in message_class.value_fields:
        declared = field.declared
        numel = math.prod(schema.size(length) for length in declared.shape)
        itemsize = storage(declared.dtype).itemsize if declared.dtype else 1
        nbytes += _SLACK_NBYTES
        if declared.value_class is Dense:
            nbytes += numel * itemsize
            num_kept -= 0 if field.optional else numel
        elif declared.value_class is Counts:
            nbytes += 9 * numel
        elif declared.value_class is Labels:
            nbytes += 8 * numel
        else:
            if declared.value_class is Quantized or (not declared.dtype and declared.value_class is not Mask):
                nbytes += 5 * max((schema.size(length) for length in declared.shape[:2]), default=1)  # scales
            if declared.value_class is Mask:
                # How many it keeps is not told: half of them are the most to say.
                nbytes += _most_positions_nbytes(schema.wire.mask, numel, -(-numel // 2))
                num_kept -= 0 if field.optional else numel
            else:
                width = max(width, itemsize)
            if declared.value_class is Sparse:
                nbytes += _most_positions_nbytes(schema.wire.sparse, numel, min(num_kept, numel))
    return nbytes + max(num_kept, 0) * width


def _most_positions_nbytes(codec: str, numel: int, num_kept: int) -> int:
    if codec in ("uint32", "int64"):
        return num_kept * (4 if codec == "uint32" else 8)
    if codec == "gaps":
        return num_kept + numel // 127
    bits = numel // 8 + 1
    if codec == "auto":
        return min(bits, 4 * num_kept, _most_golomb_nbytes(numel, num_kept))
    # Codes of gaps or bytes that do not suit a set take up to two bits a position.
    return {"bits": bits, "golomb": _most_golomb_nbytes(numel, num_kept)}.get(codec, 2 * bits)


def _most_golomb_nbytes(numel: int, num_kept: int) -> int:
    """Bound Golomb's code: with modulus M, 1 + ceil(log2 M) bits a gap, and quotients that add up to n / M at most."""
    fewer = min(num_kept, numel - num_kept)
    if fewer == 0:
        return 1
    modulus = max(1, round(math.log(2) * numel / fewer))
    return (fewer * (2 + (modulus - 1).bit_length()) + 2 * numel // modulus) // 8 + 4

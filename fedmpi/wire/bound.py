"""The Shannon bound of what is sent. No codec imports this: the yardstick must not know the coder."""

from __future__ import annotations

from fedmpi.wire.message import Message
from fedmpi.wire.values import Dense, Value


def value_bound_nbits(value: Value) -> float:
    """Return the bound of one value, by the definitions of docs/wire_format.md.

    A dense vector has no model that a codec could know of it: its bound is the width of its dtype a number.
    """
    if isinstance(value, Dense):
        return float(value.array.size * value.array.dtype.itemsize * 8)
    raise TypeError(f"no bound is defined for {type(value).__name__}")


def number_bound_nbits(number: int | float) -> float:
    """Return 64 for a float, and for an integer the bits of its zigzag form, at least 1."""
    if isinstance(number, float):
        return 64.0
    zigzag = 2 * number if number >= 0 else -2 * number - 1
    return float(max(1, zigzag.bit_length()))


def bound_nbits(message: Message) -> float:
    """Return the Shannon bound of a message in bits: that of its values and numbers before any coding."""
    bits = sum(value_bound_nbits(value) for value in message.values())
    for field in message.number_fields:
        bits += number_bound_nbits(field.number_class(getattr(message, field.name)))
    return bits

"""A message there and back: its size, its bound, the time it takes, and whether it comes back bit for bit."""

from __future__ import annotations

import dataclasses
import statistics
import time

import numpy as np

from fedmpi.engine.rows import Figures
from fedmpi.errors import ProtocolError
from fedmpi.ledger.schema import MessageRow
from fedmpi.wire import frame as framing
from fedmpi.wire.bound import bound_nbits
from fedmpi.wire.buffers import BufferPool
from fedmpi.wire.message import Message, Schema
from fedmpi.wire.values import Value
from fedmpi.wire.warm import warm_up

_MIN_REPEATS, _MAX_REPEATS = 3, 101
_HELD_BEFORE = ("room", "base", "prior", "mask")
"""Fields of values that are not what is sent: where it lies, and what both ends hold."""


def measure(sent: Message, schema: Schema, *, in_place: bool = False, budget_s: float = 0.5) -> MessageRow:
    """Encode and decode a message several times, after a first time that does not count.

    Parameters
    ----------
    sent : Message
    schema : Schema
        Of both ends; what is held by one is held by the other.
    in_place : bool
        Frame a dense vector where it lies, as a run does.
    budget_s : float
        CPU time to spend; at least three repeats are made.

    Returns
    -------
    MessageRow
        What the ledger would have of it; `encode_s` and `decode_s` are medians of this thread's CPU time.

    Raises
    ------
    ProtocolError
        If what comes out is not bit for bit what went in.
    """
    pool = BufferPool()
    warm_up([type(sent)], schema.wire)
    frame, got = _there_and_back(sent, schema, pool, in_place)[:2]
    for before, after in zip(sent.values(), got.values(), strict=True):
        check_equal(before, after, frame.codec)
    figures = Figures(sent, frame, schema, bound_nbits(sent, schema))
    encode_s: list[float] = []
    decode_s: list[float] = []
    while len(encode_s) < _MIN_REPEATS or (len(encode_s) < _MAX_REPEATS and sum(encode_s + decode_s) < budget_s):
        del frame, got  # their buffer goes back to the pool and serves once more, as in a run
        frame, got, encoding_s, decoding_s = _there_and_back(sent, schema, pool, in_place)
        encode_s.append(encoding_s)
        decode_s.append(decoding_s)
    return figures.row((0, 0, 0, 0), statistics.median(encode_s), statistics.median(decode_s), 0.0, 0.0)


def _there_and_back(
    sent: Message, schema: Schema, pool: BufferPool, in_place: bool
) -> tuple[framing.Frame, Message, float, float]:
    start = time.thread_time()
    frame = framing.encode(sent, schema, pool, in_place=in_place)
    between = time.thread_time()
    got, _ = framing.decode(frame.buffer, (type(sent),), schema)
    return frame, got, between - start, time.thread_time() - between


def check_equal(sent: Value, got: Value, codec: str) -> None:
    """Raise ProtocolError unless two values are equal bit for bit: NaNs and the signs of zeros included."""
    for field in dataclasses.fields(sent):  # type: ignore[arg-type]
        if field.name in _HELD_BEFORE:
            continue
        before, after = getattr(sent, field.name), getattr(got, field.name)
        if isinstance(before, Value) and type(before) is type(after):
            check_equal(before, after, codec)
            continue
        if isinstance(before, np.ndarray) and isinstance(after, np.ndarray):
            same_form = (before.shape, before.dtype) == (after.shape, after.dtype)
            same = same_form and before.tobytes() == after.tobytes()
        else:
            same = type(before) is type(after) and before == after
        if not same:
            raise ProtocolError(f"codec {codec} did not give back what it was given: other {field.name}")

"""Ledger rows: made where a message's figures meet, packed where they must travel to the ledger's writer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fedmpi.ledger.schema import MessageRow
from fedmpi.wire.frame import Frame
from fedmpi.wire.message import Message, Schema

_PACKED = np.dtype([(name, "S32" if name in ("direction", "kind", "codec") else "f8") for name in MessageRow._fields])


class Figures:
    """The columns of a row that follow from a message and its frame; worked out once for a frame sent to many.

    Parameters
    ----------
    message : Message
    frame : Frame
    schema : Schema
    bound : float
        Shannon bound in bits, of the message as its sender had it.
    """

    def __init__(self, message: Message, frame: Frame, schema: Schema, bound: float) -> None:
        num_params = message.num_params(schema)
        self.columns = (
            message.direction,
            message.kind,
            frame.codec,
            frame.header_nbytes,
            frame.payload_nbytes,
            frame.wire_nbytes,
            frame.index_nbytes,
            frame.value_nbytes,
            4 * num_params,
            bound,
            message.paper_nbits(schema),
            num_params,
            message.num_kept(schema),
        )

    def row(
        self,
        key: tuple[int, int, int, int],
        encode_s: float,
        decode_s: float,
        send_t: float,
        recv_t: float,
    ) -> MessageRow:
        """Return the row of one transfer; `key` is (round_idx, step, client_id, rank)."""
        return MessageRow._make((*key, *self.columns, encode_s, decode_s, send_t, recv_t))


def pack_rows(rows: Sequence[MessageRow]) -> np.ndarray:
    """Return rows as (nbytes,) uint8."""
    encoded = [tuple(value.encode() if isinstance(value, str) else value for value in row) for row in rows]
    return np.array(encoded, _PACKED).reshape(-1).view(np.uint8)


def unpack_rows(body: np.ndarray) -> list[MessageRow]:
    """Read packed rows."""
    rows = []
    for values in body.view(_PACKED).tolist():
        plain = (
            value.decode()
            if isinstance(value, bytes)
            else value
            if name.endswith(("_s", "_t", "_nbits"))
            else int(value)
            for name, value in zip(MessageRow._fields, values, strict=True)
        )
        rows.append(MessageRow._make(plain))
    return rows


def join_parts(*parts: np.ndarray) -> np.ndarray:
    """Return several bodies as one: their lengths, then each at a multiple of 8 bytes."""
    lengths = np.array([len(parts), *(part.size for part in parts)], np.int64)
    pieces = [lengths.view(np.uint8)]
    for part in parts:
        pieces += [part, np.zeros(-part.size % 8, np.uint8)]
    return np.concatenate(pieces)


def split_parts(body: np.ndarray) -> list[np.ndarray]:
    """Take joined bodies apart, as views."""
    count = int(body[:8].view(np.int64)[0])
    lengths = body[8 : 8 * (count + 1)].view(np.int64)
    parts, start = [], 8 * (count + 1)
    for length in lengths.tolist():
        parts.append(body[start : start + length])
        start += length + -length % 8
    return parts

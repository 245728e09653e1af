"""Digests that say whether two runs did the same; docs/file_format.md defines every byte."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from fedmpi.ledger.schema import DIRECTIONS, MESSAGE_COLUMNS, NAME_COLUMNS

_NAMED = frozenset(column.name for column in NAME_COLUMNS)
# What may differ between two equal runs: who did the work, and when.
_LEFT_OUT = frozenset({"rank", "encode_s", "decode_s", "send_t", "recv_t"})


def ledger_digest(messages: Mapping[str, np.ndarray[Any, Any]]) -> str:
    """Hash what was sent, whatever the order of rows, the times and the ranks.

    Parameters
    ----------
    messages : mapping of str to ndarray, each of shape (num_rows,)
        Columns as `fedmpi.ledger.reader.Ledger.messages` gives them: ``direction``, ``kind`` and ``codec`` as str.
        The key (round_idx, client_id, step, direction) is unique, so the order of the sorted rows is too.

    Returns
    -------
    str
        SHA-256 as 64 hex digits.
    """
    direction = np.where(messages["direction"] == DIRECTIONS[1], np.uint8(1), np.uint8(0))
    order = np.lexsort((direction, messages["step"], messages["client_id"], messages["round_idx"]))
    sha = hashlib.sha256(len(order).to_bytes(8, "little"))
    for column in MESSAGE_COLUMNS:
        if column.name in _LEFT_OUT:
            continue
        values = (direction if column.name == "direction" else messages[column.name])[order]
        if column.name in _NAMED:
            sha.update("".join(f"{name}\0" for name in values.tolist()).encode())
        else:
            sha.update(values.astype(column.dtype).tobytes())
    return sha.hexdigest()


def model_digest(state_f32: np.ndarray[Any, Any], ints_i64: np.ndarray[Any, Any]) -> str:
    """Hash a model.

    Parameters
    ----------
    state_f32 : ndarray of float32
        Parameters and floating buffers, in stored order.
    ints_i64 : ndarray of int64
        Integer buffers, in stored order.

    Returns
    -------
    str
        SHA-256, as 64 hex digits, over the little-endian bytes of the first, then of the second.
    """
    sha = hashlib.sha256(np.ascontiguousarray(state_f32, dtype="<f4").data)
    sha.update(np.ascontiguousarray(ints_i64, dtype="<i8").data)
    return sha.hexdigest()

"""All randomness of a run: independent streams keyed by what they are for, never by rank or by history."""

from __future__ import annotations

import hashlib
import struct

import numpy as np

ANY = -1
"""Stands for "not tied to a round" or "not tied to a client" in a stream's key."""


def stream_key(seed: int, round_idx: int, client_id: int, purpose: str) -> int:
    """Return the 128-bit key of a stream; a pure function of its arguments on every machine."""
    text = struct.pack("<qqq", seed, round_idx, client_id) + purpose.encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=16).digest(), "little")


def stream(seed: int, round_idx: int, client_id: int, purpose: str) -> np.random.Generator:
    """Return a fresh generator for one purpose of one client in one round.

    Parameters
    ----------
    seed : int
        The run's seed.
    round_idx, client_id : int
        From 0, or `ANY`.
    purpose : str
        What the numbers decide, such as ``"cohort"`` or ``"batches"``.

    Returns
    -------
    numpy.random.Generator
        A Philox generator: counter-based, so streams with different keys are independent.
    """
    return np.random.Generator(np.random.Philox(key=stream_key(seed, round_idx, client_id, purpose)))


def stream_seed(seed: int, round_idx: int, client_id: int, purpose: str) -> int:
    """Return 63 bits of the stream's key, to seed a generator of another library (torch)."""
    return stream_key(seed, round_idx, client_id, purpose) & (2**63 - 1)

"""What the engine tells those who listen; it knows none of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol


class Listener(Protocol):
    """Is told what happens, on rank 0."""

    def client_done(self, round_idx: int, num_done: int, num_clients: int) -> None:
        """A client's reply has been added."""

    def round_done(self, values: Mapping[str, float]) -> None:
        """A round is complete, its evaluation too; `values` is its row in the ledger."""

    def warned(self, words: str) -> None:
        """The algorithm has something to say to the user."""


class Listeners:
    """Passes every event on to each listener."""

    def __init__(self, listeners: Sequence[Listener]) -> None:
        self._listeners = list(listeners)

    def client_done(self, round_idx: int, num_done: int, num_clients: int) -> None:
        """Pass on; see `Listener`."""
        for listener in self._listeners:
            listener.client_done(round_idx, num_done, num_clients)

    def round_done(self, values: Mapping[str, float]) -> None:
        """Pass on; see `Listener`."""
        for listener in self._listeners:
            listener.round_done(values)

    def warned(self, words: str) -> None:
        """Pass on; see `Listener`."""
        for listener in self._listeners:
            listener.warned(words)

"""Where a rank's time goes: exclusive phases, so that they add up to the wall time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter

PHASES = ("train", "encode", "wait", "decode", "aggregate", "evaluate", "log", "compile", "other")


class PhaseTimer:
    """Seconds a phase; time inside a nested phase is the inner one's alone.

    Attributes
    ----------
    seconds : dict of str to float
        By phase of `PHASES`, up to the last change of phase.
    """

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self._current = "other"
        self._since = perf_counter()

    def switch(self, phase: str) -> str:
        """Enter a phase and return the one left."""
        now = perf_counter()
        self.seconds[self._current] += now - self._since
        left, self._current, self._since = self._current, phase, now
        return left

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Spend the body of a ``with`` in a phase."""
        left = self.switch(name)
        try:
            yield
        finally:
            self.switch(left)

    def totals(self) -> list[float]:
        """Return the seconds of `PHASES` up to now."""
        self.switch(self._current)
        return [self.seconds[name] for name in PHASES]

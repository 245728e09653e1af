"""Who plays which client next. Whatever is decided here changes times, never results."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

IN_FLIGHT = 2
"""Pieces of work a worker holds: the one it does, and the one it does next."""


class Dispatcher:
    """Deals a round's clients to the workers.

    The largest goes first, to the worker with least work before it, as long as the replies that must wait for their
    turn fit `hold_nbytes`; beyond that the lowest client_id goes first, so that replies arrive nearly in order.

    Parameters
    ----------
    workers : sequence of int
        Their ranks.
    hold_nbytes : int
    reply_nbytes : int
        Expected size of a reply, until one has been seen.
    """

    def __init__(self, workers: Sequence[int], hold_nbytes: int, reply_nbytes: int) -> None:
        self.workers = list(workers)
        self._hold_nbytes = hold_nbytes
        self._reply_nbytes = reply_nbytes
        self._cost: Mapping[int, int] = {}
        self._largest_first: list[int] = []
        self._todo: set[int] = set()
        self._work: dict[int, dict[object, int]] = {worker: {} for worker in workers}

    def begin(self, cost: Mapping[int, int]) -> None:
        """Take a round's clients, each with its expected cost."""
        self._cost = cost
        self._todo = set(cost)
        # Reversed, to pop from the end: largest last, and of equals the lowest client_id.
        self._largest_first = sorted(cost, key=lambda client: (cost[client], -client))

    @property
    def all_dealt(self) -> bool:
        """Whether every client of the round is with a worker or done."""
        return not self._todo

    def free_worker(self, allowed: Callable[[int], bool] = lambda worker: True) -> int | None:
        """Return the worker with least work that can take more, None where none can."""
        free = [w for w in self.workers if len(self._work[w]) < IN_FLIGHT and allowed(w)]
        return min(free, key=lambda w: (sum(self._work[w].values()), len(self._work[w]), w), default=None)

    def next_client(self, held_nbytes: int) -> int | None:
        """Return the client to deal next and take it off the list, None where all are dealt."""
        if not self._todo:
            return None
        in_flight = sum(len(work) for work in self._work.values())
        if held_nbytes + (in_flight + 1) * self._reply_nbytes <= self._hold_nbytes:
            while self._largest_first[-1] not in self._todo:
                self._largest_first.pop()
            client = self._largest_first.pop()
        else:
            client = min(self._todo)
        self._todo.discard(client)
        return client

    def give(self, worker: int, work: object, cost: int) -> None:
        """Note that a worker has been given a piece of work (a client_id, or any other key)."""
        self._work[worker][work] = cost

    def take_back(self, worker: int, work: object) -> None:
        """Note that a piece of work is done."""
        del self._work[worker][work]

    def saw_reply(self, nbytes: int) -> None:
        """Learn the size of a reply."""
        self._reply_nbytes = max(1, nbytes)

"""Who plays which client next. Whatever is decided here changes times, never results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

IN_FLIGHT = 2
"""Pieces of work a worker holds: the one it does, and the one it does next."""


class Dispatcher:
    """Deals a round's clients to the workers.

    At the start of a round the clients are planned for the workers, the largest first, each for the one with least
    planned so far; a worker whose plan is done takes from the one with most left. That holds as long as the replies
    that must wait for their turn fit `hold_nbytes`; beyond that the lowest client_id goes first, to whoever is free, so
    that replies arrive nearly in order.

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
        self._plans: dict[int, list[int]] = {worker: [] for worker in workers}
        self._num_todo = 0
        self._work: dict[int, dict[object, int]] = {worker: {} for worker in workers}

    def begin(self, cost: Mapping[int, int], homes: Mapping[int, Sequence[int]] | None = None) -> None:
        """Plan a round.

        Parameters
        ----------
        cost : mapping of int to int
            Expected work of each client.
        homes : mapping of int to sequence of int, optional
            For clients that some workers can play without being sent their state: those workers.
        """
        self._cost = cost
        self._num_todo = len(cost)
        load = dict.fromkeys(self.workers, 0)
        for client in sorted(cost, key=lambda client: (-cost[client], client)):
            workers = (homes or {}).get(client) or self.workers
            worker = min(workers, key=lambda w: (load[w], w))
            load[worker] += cost[client]
            self._plans[worker].append(client)

    @property
    def all_dealt(self) -> bool:
        """Whether every client of the round is with a worker or done."""
        return self._num_todo == 0

    def free_worker(self) -> int | None:
        """Return the worker with least work that can take more, None where none can."""
        free = [worker for worker in self.workers if len(self._work[worker]) < IN_FLIGHT]
        return min(free, key=lambda w: (len(self._work[w]), sum(self._work[w].values()), w), default=None)

    def next_client(self, worker: int, held_nbytes: int) -> int:
        """Return the client that a worker is to play next, and take it off the plans; there must be one left."""
        in_flight = sum(len(work) for work in self._work.values())
        if held_nbytes + (in_flight + 1) * self._reply_nbytes > self._hold_nbytes:
            client = min(client for plan in self._plans.values() for client in plan)
            next(plan for plan in self._plans.values() if client in plan).remove(client)
        elif self._plans[worker]:
            client = self._plans[worker].pop(0)
        else:
            # Its last client is the smallest: taking that one disturbs the other's plan least.
            most = max(self._plans.values(), key=lambda plan: (bool(plan), sum(self._cost[c] for c in plan)))
            client = most.pop()
        self._num_todo -= 1
        return client

    def give(self, worker: int, work: object) -> None:
        """Note that a worker has been given a piece of work (a client_id, or any other key)."""
        self._work[worker][work] = self._cost.get(work, 0) if isinstance(work, int) else 0

    def take_back(self, worker: int, work: object) -> None:
        """Note that a piece of work is done."""
        del self._work[worker][work]

    def saw_reply(self, nbytes: int) -> None:
        """Learn the size of a reply."""
        self._reply_nbytes = max(1, nbytes)

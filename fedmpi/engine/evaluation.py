"""One evaluation, shared out in fixed batches over the workers and put together in batch order."""

from __future__ import annotations

import numpy as np

from fedmpi.comm.base import Envelope, Packet
from fedmpi.engine.rank import Rank, Topic, unpack_floats


class Evaluation:
    """The test of the model after one round.

    Parameters
    ----------
    rank : Rank
    round_idx : int
    model : numpy.ndarray, uint8
        Packed state; sent to each worker that takes part.
    num_test, num_labels, batch_size : int
        Test samples, and what is to be told of them: one label an image, one a character of a text.
    num_workers : int
        Decides how much is handed out at once; not the result.
    """

    def __init__(
        self,
        rank: Rank,
        round_idx: int,
        model: np.ndarray,
        *,
        num_test: int,
        num_labels: int,
        batch_size: int,
        num_workers: int,
    ) -> None:
        self._rank = rank
        self.round_idx = round_idx
        self._model = model
        self._num_labels = num_labels
        num_batches = -(-num_test // batch_size)
        self._correct = np.zeros(num_batches)
        self._loss = np.zeros(num_batches)
        self._next = 0
        self._missing = num_batches
        self._piece = max(1, num_batches // (4 * num_workers))
        self._informed: set[int] = set()

    @property
    def all_dealt(self) -> bool:
        """Whether every batch is with a worker or done."""
        return self._next == self._correct.size

    @property
    def finished(self) -> bool:
        """Whether every batch is done."""
        return self._missing == 0

    def deal(self, worker: int) -> tuple[str, int]:
        """Send a worker its next batches; return a key for this piece of work."""
        if worker not in self._informed:
            self._informed.add(worker)
            self._rank.send(worker, Envelope(Topic.EVAL_MODEL, False, self.round_idx), self._model)
        first = self._next
        self._next = min(first + self._piece, self._correct.size)
        self._rank.send(worker, Envelope(Topic.EVAL, False, self.round_idx, step=self._next - first, arg=first))
        return ("eval", first)

    def take(self, packet: Packet) -> tuple[str, int]:
        """Take in a worker's results; return the key of the piece of work."""
        first, count = packet.envelope.arg, packet.envelope.step
        numbers = unpack_floats(packet.body)
        self._correct[first : first + count] = numbers[::2]
        self._loss[first : first + count] = numbers[1::2]
        self._missing -= count
        return ("eval", first)

    def result(self) -> tuple[float, float]:
        """Return mean loss and accuracy: batches summed in their order."""
        return sum(self._loss.tolist()) / self._num_labels, int(self._correct.sum()) / self._num_labels

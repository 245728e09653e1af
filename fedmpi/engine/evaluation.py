"""One evaluation, shared out in fixed batches over the workers and put together in batch order."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedmpi.comm.base import Envelope, Packet
from fedmpi.data.datasets import Dataset
from fedmpi.data.partition import Partition
from fedmpi.engine.rank import Rank, Topic, unpack_floats
from fedmpi.ledger.reader import client_accuracies, mean_and_std


def count_apart(dataset: Dataset) -> int:
    """Return how many counts of right labels a test has: one a class of images, one in all of a text's characters."""
    return dataset.num_classes if dataset.test_labels.ndim == 1 else 1


class ToTest(NamedTuple):
    """What there is to test, the same after every round.

    Attributes
    ----------
    num_samples : int
        Images, or sequences of characters.
    num_labels : numpy.ndarray, shape (num_counts,), int64
        What is to be told of them: the images of each class, or the number of characters.
    class_counts : numpy.ndarray or None
        (num_clients, num_classes) int64, training images of each client by class; None for text.
    """

    num_samples: int
    num_labels: NDArray[np.int64]
    class_counts: NDArray[np.int64] | None


def what_to_test(dataset: Dataset, partition: Partition) -> ToTest:
    """Count the labels of a test set, and who trains on which classes."""
    labels, num_counts = dataset.test_labels, count_apart(dataset)
    if labels.ndim > 1:
        return ToTest(len(labels), np.array([labels.size]), None)
    by_class = np.bincount(labels, minlength=num_counts)
    return ToTest(len(labels), by_class, partition.class_counts(dataset.train_labels, num_counts))


class Evaluation:
    """The test of the model after one round.

    Parameters
    ----------
    rank : Rank
    round_idx : int
    model : numpy.ndarray, uint8
        Packed state; sent to each worker that takes part.
    to_test : ToTest
    batch_size : int
    num_workers : int
        Decides how much is handed out at once; not the result.

    Attributes
    ----------
    num_correct : numpy.ndarray, shape (num_counts,), int64
        What was told rightly so far of each of `ToTest.num_labels`.
    """

    def __init__(
        self,
        rank: Rank,
        round_idx: int,
        model: np.ndarray,
        to_test: ToTest,
        *,
        batch_size: int,
        num_workers: int,
    ) -> None:
        self._rank = rank
        self.round_idx = round_idx
        self._model = model
        self.to_test = to_test
        num_batches = -(-to_test.num_samples // batch_size)
        self.num_correct = np.zeros_like(to_test.num_labels)
        self._loss = np.zeros(num_batches)
        self._next = 0
        self._missing = num_batches
        self._piece = max(1, num_batches // (4 * num_workers))
        self._informed: set[int] = set()

    @property
    def all_dealt(self) -> bool:
        """Whether every batch is with a worker or done."""
        return self._next == self._loss.size

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
        self._next = min(first + self._piece, self._loss.size)
        self._rank.send(worker, Envelope(Topic.EVAL, False, self.round_idx, step=self._next - first, arg=first))
        return ("eval", first)

    def take(self, packet: Packet) -> tuple[str, int]:
        """Take in a worker's results; return the key of the piece of work.

        The body is simulation traffic: float64 numbers, `num_correct` of the piece, then each of its batches' loss.
        """
        first, count = packet.envelope.arg, packet.envelope.step
        numbers = unpack_floats(packet.body)
        num_counts = self.num_correct.size
        self.num_correct += np.array(numbers[:num_counts], np.int64)
        self._loss[first : first + count] = numbers[num_counts:]
        self._missing -= count
        return ("eval", first)

    def result(self) -> tuple[float, float]:
        """Return mean loss and accuracy: batches summed in their order."""
        num_labels = int(self.to_test.num_labels.sum())
        return sum(self._loss.tolist()) / num_labels, int(self.num_correct.sum()) / num_labels

    def client_result(self) -> tuple[float, float]:
        """Return the mean of all clients' accuracies and its standard deviation; NaN for text.

        A client's accuracy is that on all test images of the classes that it trains on, which the counts by class give
        without testing an image again for every client.
        """
        if self.to_test.class_counts is None:
            return math.nan, math.nan
        return mean_and_std(client_accuracies(self.to_test.class_counts, self.num_correct, self.to_test.num_labels))

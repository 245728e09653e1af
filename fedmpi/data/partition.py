"""Which client holds which training samples."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedmpi.config import (
    ClassRunsPartition,
    DirichletPartition,
    IidPartition,
    NaturalPartition,
    PartitionConfig,
    QuantityPartition,
)
from fedmpi.data import splits
from fedmpi.errors import ConfigError
from fedmpi.rng import ANY, stream

# Samples whose labels are looked up at once in `Partition.class_counts`: the look-up takes a few times 8 bytes a label.
_LABELS_AT_ONCE = 1 << 22


@dataclass(frozen=True, eq=False)
class Partition:
    """The samples of every client.

    Attributes
    ----------
    indices : numpy.ndarray
        (M,) int64, each client's sample indices, back to back in ascending client id. No index occurs twice.
    offsets : numpy.ndarray
        (N + 1,) int64, where each client's part begins, and the end of the last.
    num_dropped : int
        Clients that got no sample and were left out; those in `offsets` are numbered without them.
    """

    indices: NDArray[np.int64]
    offsets: NDArray[np.int64]
    num_dropped: int = 0

    @property
    def num_clients(self) -> int:
        """Number of clients in the pool."""
        return len(self.offsets) - 1

    @property
    def sizes(self) -> NDArray[np.int64]:
        """Samples of each client, (N,) int64."""
        return np.diff(self.offsets)

    def client(self, client_id: int) -> NDArray[np.int64]:
        """Return the sample indices of one client, a view; `IndexError` if there is no such client."""
        if not 0 <= client_id < self.num_clients:
            raise IndexError(f"client_id must be from 0 to {self.num_clients - 1}, got {client_id}")
        return self.indices[self.offsets[client_id] : self.offsets[client_id + 1]]

    def class_counts(self, labels: NDArray[np.int64], num_classes: int) -> NDArray[np.int64]:
        """Return how many samples of each class each client holds; for text, how many characters of each kind.

        Parameters
        ----------
        labels : numpy.ndarray
            (M,) int64, or (M, T) for text: labels of all samples of the data set, from 0 to `num_classes` - 1.
        num_classes : int
            Number of classes.

        Returns
        -------
        numpy.ndarray
            (N, num_classes) int64.
        """
        counts = np.zeros((self.num_clients, num_classes), np.int64)
        owners = np.repeat(np.arange(self.num_clients), self.sizes)
        step = max(1, _LABELS_AT_ONCE // max(1, labels[:1].size))
        for start in range(0, len(owners), step):
            rows = slice(start, start + step)
            # Owners ascend, so a block belongs to the clients from its first sample's to its last one's.
            first, last = owners[rows][[0, -1]]
            row_labels = labels[self.indices[rows]]
            lines = (owners[rows] - first).reshape(-1, *[1] * (labels.ndim - 1))
            cells = np.bincount((lines * num_classes + row_labels).ravel(), minlength=(last - first + 1) * num_classes)
            counts[first : last + 1] += cells.reshape(-1, num_classes)
        return counts


def make_partition(
    cfg: PartitionConfig,
    labels: NDArray[np.int64],
    num_classes: int,
    seed: int,
    groups: NDArray[np.int64] | None = None,
) -> Partition:
    """Share the samples out over the clients; a pure function of its arguments.

    Parameters
    ----------
    cfg : one of the classes of `PartitionConfig`
        The section ``partition``.
    labels : numpy.ndarray
        (M,) int64, or (M, T) for text, from 0 to `num_classes` - 1.
    num_classes : int
        Number of classes.
    seed : int
        The run's seed.
    groups : numpy.ndarray, optional
        (M,) int64, writer or role of each sample.

    Raises
    ------
    ConfigError
        If there are more clients than samples (for ``natural``: than writers or roles), too few samples for the shards,
        a split by class of text, ``natural`` without `groups`, or a client would hold no sample and is not to be
        dropped.
    """
    rng = stream(seed, ANY, ANY, "partition")
    num_samples = len(labels)
    if isinstance(cfg, NaturalPartition):
        return _assemble(*splits.natural(cfg, groups, rng))
    if cfg.num_clients > num_samples:
        raise ConfigError(
            f"partition.num_clients must be at most the {num_samples} training samples there are, got {cfg.num_clients}"
        )
    if isinstance(cfg, IidPartition):
        return _assemble(*splits.iid(cfg, num_samples, rng))
    if isinstance(cfg, QuantityPartition):
        return _assemble(*_handle_empty(cfg, splits.quantity(cfg, num_samples, rng)))
    if labels.ndim > 1:
        raise ConfigError(
            f"partition.name must be natural, iid or quantity for a data set of text, whose samples have no class to "
            f"split by, got {cfg.name!r}"
        )
    if isinstance(cfg, DirichletPartition):
        return _assemble(*_handle_empty(cfg, splits.dirichlet(cfg, labels, num_classes, rng)))
    if isinstance(cfg, ClassRunsPartition):
        return _assemble(*_handle_empty(cfg, splits.class_runs(cfg, labels, num_classes, rng)))
    return _assemble(*splits.shards(cfg, labels, rng))


def _handle_empty(
    cfg: DirichletPartition | QuantityPartition | ClassRunsPartition, split: splits.Split
) -> tuple[NDArray[np.int64], NDArray[np.int64], int]:
    """Refuse clients without samples or leave them out, as ``empty_clients`` says; returns also how many they are."""
    indices, sizes = split
    empty = np.flatnonzero(sizes == 0)
    if len(empty) and cfg.empty_clients == "error":
        larger = "" if isinstance(cfg, ClassRunsPartition) else "take a larger partition.beta, "
        raise ConfigError(
            f"partition leaves {len(empty)} of {cfg.num_clients} clients without data, client {empty[0]} first; "
            f"{larger}take a smaller partition.num_clients, or set partition.empty_clients=drop to go on with the "
            f"{cfg.num_clients - len(empty)} others"
        )
    return indices, sizes[sizes > 0], len(empty)


def _assemble(indices: NDArray[np.int64], sizes: NDArray[np.int64], num_dropped: int = 0) -> Partition:
    return Partition(indices, np.concatenate(([0], np.cumsum(sizes))).astype(np.int64), num_dropped)

"""Which client holds which training samples."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedmpi.config import DirichletPartition, IidPartition, ShardsPartition
from fedmpi.errors import ConfigError
from fedmpi.rng import ANY, stream


@dataclass(frozen=True, eq=False)
class Partition:
    """The samples of every client.

    Attributes
    ----------
    indices : numpy.ndarray
        (M,) int64, each client's sample indices, back to back in ascending client id. No index occurs twice.
    offsets : numpy.ndarray
        (N + 1,) int64, where each client's part begins, and the end of the last.
    """

    indices: NDArray[np.int64]
    offsets: NDArray[np.int64]

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
        """Return how many samples of each class each client holds.

        Parameters
        ----------
        labels : numpy.ndarray
            Labels of all samples of the data set, from 0 to `num_classes` - 1.
        num_classes : int
            Number of classes.

        Returns
        -------
        numpy.ndarray
            (N, num_classes) int64.
        """
        owners = np.repeat(np.arange(self.num_clients), self.sizes)
        cells = owners * num_classes + labels[self.indices]
        return np.bincount(cells, minlength=self.num_clients * num_classes).reshape(self.num_clients, num_classes)


def make_partition(
    cfg: IidPartition | DirichletPartition | ShardsPartition, labels: NDArray[np.int64], num_classes: int, seed: int
) -> Partition:
    """Share the samples out over the clients; a pure function of its arguments.

    Parameters
    ----------
    cfg : IidPartition, DirichletPartition or ShardsPartition
        The section ``partition``.
    labels : numpy.ndarray
        (M,) int64, from 0 to `num_classes` - 1.
    num_classes : int
        Number of classes.
    seed : int
        The run's seed.

    Raises
    ------
    ConfigError
        If there are more clients than samples, too few samples for the shards, or a client would hold no sample.
    """
    if cfg.num_clients > len(labels):
        raise ConfigError(
            f"partition.num_clients must be at most the {len(labels)} training samples there are, got {cfg.num_clients}"
        )
    rng = stream(seed, ANY, ANY, "partition")
    if isinstance(cfg, IidPartition):
        partition = _iid(cfg, len(labels), rng)
    elif isinstance(cfg, DirichletPartition):
        partition = _dirichlet(cfg, labels, num_classes, rng)
    else:
        partition = _shards(cfg, labels, rng)
    empty = np.flatnonzero(partition.sizes == 0)
    if len(empty):
        raise ConfigError(
            f"partition leaves {len(empty)} of {cfg.num_clients} clients without data, client {empty[0]} first; take a "
            f"larger partition.beta or a smaller partition.num_clients"
        )
    return partition


def _iid(cfg: IidPartition, num_samples: int, rng: np.random.Generator) -> Partition:
    clients = np.arange(cfg.num_clients + 1, dtype=np.int64)
    each, extra = divmod(num_samples, cfg.num_clients)
    return Partition(rng.permutation(num_samples).astype(np.int64), each * clients + np.minimum(clients, extra))


def _dirichlet(
    cfg: DirichletPartition, labels: NDArray[np.int64], num_classes: int, rng: np.random.Generator
) -> Partition:
    """For every class draw p ~ Dirichlet(beta * 1_N) over the clients and cut the class's samples in these shares."""
    samples, owners = [], []
    for class_idx in range(num_classes):
        of_class = rng.permutation(np.flatnonzero(labels == class_idx))
        shares = rng.dirichlet(np.full(cfg.num_clients, cfg.beta))
        if not abs(shares.sum() - 1) < 1e-6:  # near 1e308 the draw overflows
            raise ConfigError(f"partition.beta is too large for floating point, got {cfg.beta}; 1e6 is even already")
        # From 0 to the whole class: rounding must neither skip the first share nor lose the last sample.
        cuts = np.floor(np.cumsum(shares) * len(of_class)).astype(np.int64)
        cuts = np.concatenate(([0], np.minimum(cuts[:-1], len(of_class)), [len(of_class)]))
        samples.append(of_class)
        owners.append(np.repeat(np.arange(cfg.num_clients), np.diff(cuts)))
    owner = np.concatenate(owners)
    assert len(owner) == len(labels), "every sample has one owner"
    sizes = np.bincount(owner, minlength=cfg.num_clients)
    offsets = np.concatenate(([0], np.cumsum(sizes))).astype(np.int64)
    return Partition(np.concatenate(samples)[np.argsort(owner, kind="stable")].astype(np.int64), offsets)


def _shards(cfg: ShardsPartition, labels: NDArray[np.int64], rng: np.random.Generator) -> Partition:
    """Cut the label-sorted samples into equal shards and deal them out; what is left over stays unused."""
    num_dealt = cfg.num_clients * cfg.shards_per_client
    # With shards of this size more may fit than are dealt. All take part in the draw, else the last class would lose.
    size = cfg.samples_per_shard or len(labels) // num_dealt
    if size == 0 or num_dealt * size > len(labels):
        raise ConfigError(
            f"partition needs {cfg.num_clients} clients x {cfg.shards_per_client} shards x {max(size, 1)} samples = "
            f"{num_dealt * max(size, 1)} samples, got {len(labels)}"
        )
    dealt = rng.permutation(len(labels) // size)[:num_dealt]
    positions = dealt[:, np.newaxis] * size + np.arange(size)
    indices = np.argsort(labels, kind="stable")[positions.reshape(-1)].astype(np.int64)
    return Partition(indices, np.arange(cfg.num_clients + 1, dtype=np.int64) * (cfg.shards_per_client * size))

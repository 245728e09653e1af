"""The splits behind `fedmpi.data.partition`: each draws every client's sample indices.

Each returns a `Split`: sample indices, (M,) int64, back to back in ascending client id, and sizes, (N,) int64.
"""

from __future__ import annotations

from bisect import bisect_left

import numpy as np
from numpy.typing import NDArray

from fedmpi.config import (
    ClassRunsPartition,
    DirichletPartition,
    IidPartition,
    NaturalPartition,
    QuantityPartition,
    ShardsPartition,
)
from fedmpi.errors import ConfigError

Indices = NDArray[np.int64]
Split = tuple[Indices, Indices]


def iid(cfg: IidPartition, num_samples: int, rng: np.random.Generator) -> Split:
    """Shuffle and deal out evenly: sizes differ by one at most."""
    each, extra = divmod(num_samples, cfg.num_clients)
    sizes = np.full(cfg.num_clients, each, np.int64)
    sizes[:extra] += 1
    return rng.permutation(num_samples).astype(np.int64), sizes


def quantity(cfg: QuantityPartition, num_samples: int, rng: np.random.Generator) -> Split:
    """Shuffle and cut in shares p ~ Dirichlet(beta * 1_N): the quantity skew of Li et al. (2022)."""
    indices = rng.permutation(num_samples).astype(np.int64)
    return indices, _dirichlet_sizes(num_samples, cfg.num_clients, cfg.beta, rng)


def dirichlet(cfg: DirichletPartition, labels: NDArray[np.int64], num_classes: int, rng: np.random.Generator) -> Split:
    """For every class draw p ~ Dirichlet(beta * 1_N) over the clients and cut the class's samples in these shares."""
    samples, owners = [], []
    for of_class in _by_class(labels, num_classes):
        samples.append(rng.permutation(of_class))
        sizes = _dirichlet_sizes(len(of_class), cfg.num_clients, cfg.beta, rng)
        owners.append(np.repeat(np.arange(cfg.num_clients), sizes))
    owner = np.concatenate(owners)
    indices = np.concatenate(samples)[np.argsort(owner, kind="stable")]
    return indices, np.bincount(owner, minlength=cfg.num_clients)


def shards(cfg: ShardsPartition, labels: NDArray[np.int64], rng: np.random.Generator) -> Split:
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
    return indices, np.full(cfg.num_clients, cfg.shards_per_client * size, np.int64)


def class_runs(cfg: ClassRunsPartition, labels: NDArray[np.int64], num_classes: int, rng: np.random.Generator) -> Split:
    """Give clients of unequal size runs of consecutive classes: the non-iid split of FedPM (Isik et al. 2023).

    Client k draws j_k from 10 to 99 and gets n_k = floor(j_k / sum(j) * M) samples, the last client all that remain.
    From a random class on it takes n_k // classes_per_client samples a class, or what is left there, until it has n_k;
    so a client holds a few more classes where one runs out or the quotas do not add up to n_k.
    """
    weights = rng.integers(10, 100, cfg.num_clients)
    sizes = weights * len(labels) // weights.sum()
    sizes[-1] = len(labels) - sizes[:-1].sum()
    classes = [rng.permutation(of_class) for of_class in _by_class(labels, num_classes)]
    starts = rng.integers(num_classes, size=cfg.num_clients).tolist()

    used = [0] * num_classes
    # Only classes that have samples left, or the last clients would walk round and round past empty ones.
    remaining = [class_idx for class_idx in range(num_classes) if len(classes[class_idx])]
    runs = []
    for start, size in zip(starts, sizes.tolist(), strict=True):
        quota, budget = max(1, size // cfg.classes_per_client), size
        place = bisect_left(remaining, start)
        while budget:
            place %= len(remaining)
            class_idx = remaining[place]
            begin = used[class_idx]
            count = min(quota, len(classes[class_idx]) - begin, budget)
            runs.append(classes[class_idx][begin : begin + count])
            used[class_idx] += count
            budget -= count
            if used[class_idx] == len(classes[class_idx]):
                del remaining[place]  # and the next one takes its place
            else:
                place += 1
    return np.concatenate(runs), sizes


def natural(cfg: NaturalPartition, groups: NDArray[np.int64] | None, rng: np.random.Generator) -> Split:
    """Make a client of each group, in ascending order, or of ``num_clients`` of them drawn without replacement."""
    if groups is None:
        raise ConfigError(
            "partition.name=natural needs a data set that knows who wrote or speaks each sample: femnist, shakespeare "
            "or play_mini; set data.name to one of these, or take another partition.name"
        )
    group_sizes = np.bincount(groups)
    chosen = np.flatnonzero(group_sizes >= cfg.min_samples)
    if len(chosen) == 0:
        raise ConfigError(
            f"partition.min_samples must be at most {group_sizes.max(initial=0)}, the most training samples that one "
            f"writer or role has, got {cfg.min_samples}"
        )
    if cfg.num_clients is not None:
        if cfg.num_clients > len(chosen):
            raise ConfigError(
                f"partition.num_clients must be at most the {len(chosen)} writers or roles with at least "
                f"partition.min_samples={cfg.min_samples} training samples, got {cfg.num_clients}"
            )
        chosen = np.sort(rng.choice(chosen, cfg.num_clients, replace=False))
    is_chosen = np.zeros(len(group_sizes), bool)
    is_chosen[chosen] = True
    by_group = np.argsort(groups, kind="stable")
    return by_group[is_chosen[groups[by_group]]], group_sizes[chosen]


def _by_class(labels: NDArray[np.int64], num_classes: int) -> list[Indices]:
    """Return the indices of each class's samples, ascending."""
    counts = np.bincount(labels, minlength=num_classes)
    assert len(counts) == num_classes, "labels are below the number of classes"
    return np.split(np.argsort(labels, kind="stable"), np.cumsum(counts)[:-1])


def _dirichlet_sizes(num_samples: int, num_clients: int, beta: float, rng: np.random.Generator) -> Indices:
    """Cut `num_samples` in shares drawn from Dirichlet(beta * 1_N) and return the parts' sizes."""
    shares = rng.dirichlet(np.full(num_clients, beta))
    if not abs(shares.sum() - 1) < 1e-6:  # near 1e308 the draw overflows
        raise ConfigError(f"partition.beta is too large for floating point, got {beta}; 1e6 is even already")
    # From 0 to all of them: rounding must neither skip the first share nor lose the last sample.
    cuts = np.floor(np.cumsum(shares) * num_samples).astype(np.int64)
    return np.diff(np.concatenate(([0], np.minimum(cuts[:-1], num_samples), [num_samples])))

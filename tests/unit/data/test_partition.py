"""Partitions: every definition checked against a plain loop or its own words, and every refusal."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, reject
from hypothesis import strategies as st
from numpy.typing import NDArray

from fedmpi.config import DirichletPartition, IidPartition, ShardsPartition
from fedmpi.data.partition import Partition, make_partition
from fedmpi.errors import ConfigError
from fedmpi.rng import ANY, stream

NUM_CLASSES = 5
Labels = NDArray[np.int64]

seeds = st.integers(0, 2**63 - 1)
label_arrays = st.lists(st.integers(0, NUM_CLASSES - 1), min_size=1, max_size=120).map(
    lambda ys: np.array(ys, np.int64)
)


def check_form(partition: Partition, num_clients: int, num_samples: int) -> None:
    """Check what holds for every partition: the types, whole parts back to back, no sample twice."""
    assert partition.indices.dtype == partition.offsets.dtype == partition.sizes.dtype == np.int64
    assert partition.num_clients == num_clients
    assert partition.sizes.min() >= 1
    parts = [partition.client(k) for k in range(num_clients)]
    assert np.array_equal(np.concatenate(parts), partition.indices)
    assert len(np.unique(partition.indices)) == len(partition.indices)
    assert 0 <= partition.indices.min() <= partition.indices.max() < num_samples


@given(labels=label_arrays, seed=seeds, data=st.data())
def test_iid_deals_every_sample_out_evenly(labels: Labels, seed: int, data: st.DataObject) -> None:
    num_clients = data.draw(st.integers(1, len(labels)))
    partition = make_partition(IidPartition(num_clients=num_clients), labels, NUM_CLASSES, seed)
    check_form(partition, num_clients, len(labels))
    assert len(partition.indices) == len(labels)
    assert partition.sizes.max() - partition.sizes.min() <= 1


def test_iid_is_shuffled() -> None:
    first = make_partition(IidPartition(num_clients=2), np.zeros(1000, np.int64), 1, seed=0).client(0)
    assert 400 < first.mean() < 600  # 249.5 if it were the first half; the standard error is 9


@given(labels=label_arrays, seed=seeds, num_clients=st.integers(1, 4), beta=st.floats(0.3, 100))
def test_dirichlet_assigns_every_sample_once(labels: Labels, seed: int, num_clients: int, beta: float) -> None:
    try:
        partition = make_partition(DirichletPartition(num_clients=num_clients, beta=beta), labels, NUM_CLASSES, seed)
    except ConfigError:
        reject()  # a client without data, which has a test of its own
    check_form(partition, num_clients, len(labels))
    assert len(partition.indices) == len(labels)


def test_dirichlet_follows_its_definition() -> None:
    """Replay the draws with one loop a client; slice k of a class lies between the cumulated shares k - 1 and k."""
    labels = np.random.default_rng(0).integers(0, NUM_CLASSES, 2000)
    partition = make_partition(DirichletPartition(num_clients=7, beta=0.5), labels, NUM_CLASSES, seed=3)
    rng = stream(3, ANY, ANY, "partition")
    expected: list[list[int]] = [[] for _ in range(7)]
    for class_idx in range(NUM_CLASSES):
        of_class = rng.permutation(np.flatnonzero(labels == class_idx)).tolist()
        shares = rng.dirichlet([0.5] * 7)
        start, total = 0, 0.0
        for k in range(7):
            total += shares[k]
            end = len(of_class) if k == 6 else int(total * len(of_class))
            expected[k] += of_class[start:end]
            start = end
    assert [partition.client(k).tolist() for k in range(7)] == expected


def test_dirichlet_with_large_beta_is_even_for_the_first_and_the_last_client_too() -> None:
    labels = np.repeat(np.arange(NUM_CLASSES), 1000)
    partition = make_partition(DirichletPartition(num_clients=4, beta=1e6), labels, NUM_CLASSES, seed=0)
    assert abs(partition.class_counts(labels, NUM_CLASSES) - 250).max() <= 3


def test_dirichlet_with_small_beta_gives_a_class_to_few() -> None:
    labels = np.repeat(np.arange(100), 50)
    partition = make_partition(DirichletPartition(num_clients=4, beta=0.01), labels, 100, seed=0)
    counts = partition.class_counts(labels, 100)
    assert (counts.max(axis=0) > 45).mean() > 0.8
    assert counts.sum(axis=1).min() > 5 * 50  # and every client, the first and the last too, gets its share of classes


def test_dirichlet_shuffles_within_a_class() -> None:
    partition = make_partition(DirichletPartition(num_clients=2, beta=1e6), np.zeros(1000, np.int64), 1, seed=0)
    assert 400 < partition.client(0).mean() < 600


@given(
    labels=label_arrays,
    seed=seeds,
    num_clients=st.integers(1, 12),
    shards_per_client=st.integers(1, 4),
    samples_per_shard=st.none() | st.integers(1, 6),
)
def test_shards_are_whole_slices_of_the_sorted_labels(
    labels: Labels, seed: int, num_clients: int, shards_per_client: int, samples_per_shard: int | None
) -> None:
    num_dealt = num_clients * shards_per_client
    size = len(labels) // num_dealt if samples_per_shard is None else samples_per_shard
    cfg = ShardsPartition(
        num_clients=num_clients, shards_per_client=shards_per_client, samples_per_shard=samples_per_shard
    )
    if num_clients > len(labels) or size == 0 or num_dealt * size > len(labels):
        with pytest.raises(ConfigError, match=f"{len(labels)}"):
            make_partition(cfg, labels, NUM_CLASSES, seed)
        return
    partition = make_partition(cfg, labels, NUM_CLASSES, seed)
    check_form(partition, num_clients, len(labels))
    assert (partition.sizes == shards_per_client * size).all()
    by_label = sorted(range(len(labels)), key=lambda i: labels[i])  # Python's sort is stable
    shards = {tuple(by_label[start : start + size]) for start in range(0, len(labels) - size + 1, size)}
    assert {tuple(shard) for shard in partition.indices.reshape(-1, size).tolist()} <= shards


def test_shards_are_all_drawn_from_uniformly() -> None:
    """19 samples for 10 shards of one: the nine that stay unused must not always be the last labels."""
    labels = np.arange(19, dtype=np.int64)
    times_used = np.zeros(19)
    for seed in range(400):
        times_used[make_partition(ShardsPartition(num_clients=10, shards_per_client=1), labels, 19, seed).indices] += 1
    assert abs(times_used - 400 * 10 / 19).max() < 50  # five standard deviations


def test_class_counts() -> None:
    partition = Partition(np.array([4, 0, 3, 1]), np.array([0, 1, 4]))
    counts = partition.class_counts(np.array([2, 0, 1, 2, 1]), 4)
    assert counts.tolist() == [[0, 1, 0, 0], [1, 0, 2, 0]]
    assert counts.dtype == np.int64


def test_client_is_a_view_and_refuses_strangers() -> None:
    partition = Partition(np.array([4, 0, 3, 1]), np.array([0, 1, 4]))
    assert partition.client(1).tolist() == [0, 3, 1]
    assert np.shares_memory(partition.client(1), partition.indices)
    for client_id in (-1, 2):
        with pytest.raises(IndexError, match=f"from 0 to 1, got {client_id}"):
            partition.client(client_id)


CONFIGS = [IidPartition(num_clients=10), DirichletPartition(num_clients=10, beta=5.0), ShardsPartition(num_clients=10)]


@pytest.mark.parametrize("cfg", CONFIGS, ids=lambda cfg: cfg.name)
def test_the_seed_decides_and_nothing_else(cfg: IidPartition | DirichletPartition | ShardsPartition) -> None:
    labels = np.random.default_rng(0).integers(0, NUM_CLASSES, 500)
    np.random.seed(1)  # the global generator must not matter
    one, same, other = (make_partition(cfg, labels, NUM_CLASSES, seed) for seed in (1, 1, 2))
    assert np.array_equal(one.indices, same.indices)
    assert np.array_equal(one.offsets, same.offsets)
    assert not np.array_equal(one.indices, other.indices)


@pytest.mark.parametrize("cfg", CONFIGS, ids=lambda cfg: cfg.name)
def test_more_clients_than_samples(cfg: IidPartition | DirichletPartition | ShardsPartition) -> None:
    with pytest.raises(ConfigError, match="num_clients must be at most the 9 training samples there are, got 10"):
        make_partition(cfg, np.zeros(9, np.int64), 1, seed=0)


def test_too_few_samples_for_the_shards() -> None:
    cfg = ShardsPartition(num_clients=4, shards_per_client=3, samples_per_shard=5)
    with pytest.raises(ConfigError, match=r"4 clients x 3 shards x 5 samples = 60 samples, got 59"):
        make_partition(cfg, np.zeros(59, np.int64), 1, seed=0)
    assert len(make_partition(cfg, np.zeros(60, np.int64), 1, seed=0).indices) == 60


def test_clients_left_without_data_are_counted_and_named() -> None:
    labels = np.zeros(50, np.int64)
    with pytest.raises(ConfigError) as caught:
        make_partition(DirichletPartition(num_clients=20, beta=0.01), labels, 1, seed=0)
    rng = stream(0, ANY, ANY, "partition")
    rng.permutation(50)
    cuts = np.floor(np.cumsum(rng.dirichlet([0.01] * 20)) * 50)
    cuts[-1] = 50
    empty = np.flatnonzero(np.diff(cuts, prepend=0) == 0)
    assert f"leaves {len(empty)} of 20 clients without data, client {empty[0]} first" in str(caught.value)
    assert "larger partition.beta" in str(caught.value)


def test_beta_beyond_floating_point() -> None:
    with pytest.raises(ConfigError, match="too large for floating point"):
        make_partition(DirichletPartition(num_clients=5, beta=1e308), np.zeros(50, np.int64), 1, seed=0)


@pytest.mark.parametrize(
    "cfg",
    [
        IidPartition(num_clients=100_000),
        DirichletPartition(num_clients=100_000, beta=1000),
        ShardsPartition(num_clients=100_000),
    ],
    ids=lambda cfg: cfg.name,
)
def test_a_hundred_thousand_clients(cfg: IidPartition | DirichletPartition | ShardsPartition) -> None:
    labels = np.random.default_rng(0).integers(0, 10, 1_000_000)
    start = time.process_time()
    partition = make_partition(cfg, labels, 10, seed=0)
    assert time.process_time() - start < 2
    assert partition.class_counts(labels, 10).sum() == 1_000_000

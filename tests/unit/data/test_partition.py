"""Partitions: every definition checked against a plain loop or its own words, and every refusal."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, reject
from hypothesis import strategies as st
from numpy.typing import NDArray

from fedmpi.config import (
    ClassRunsPartition,
    DirichletPartition,
    IidPartition,
    NaturalPartition,
    PartitionConfig,
    QuantityPartition,
    ShardsPartition,
)
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


def test_class_counts_of_text_counts_characters() -> None:
    labels = np.array([[2, 0, 2], [1, 1, 1], [0, 2, 0], [3, 3, 0]])
    counts = Partition(np.array([3, 0, 1]), np.array([0, 2, 2, 3])).class_counts(labels, 4)
    assert counts.tolist() == [[2, 0, 2, 2], [0, 0, 0, 0], [0, 3, 0, 0]]


@pytest.mark.parametrize("labels_at_once", [1, 7, 50])
def test_class_counts_do_not_depend_on_the_blocks(labels_at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = np.random.default_rng(0).integers(0, NUM_CLASSES, (200, 3))
    partition = make_partition(QuantityPartition(num_clients=9, beta=1.0), labels, NUM_CLASSES, seed=0)
    monkeypatch.setattr("fedmpi.data.partition._LABELS_AT_ONCE", labels_at_once)
    expected = [np.bincount(labels[partition.client(k)].ravel(), minlength=NUM_CLASSES).tolist() for k in range(9)]
    assert partition.class_counts(labels, NUM_CLASSES).tolist() == expected


@given(labels=label_arrays, seed=seeds, num_clients=st.integers(1, 20), beta=st.floats(0.01, 1e6), text=st.booleans())
def test_quantity_deals_every_sample_out_in_dirichlet_shares(
    labels: Labels, seed: int, num_clients: int, beta: float, text: bool
) -> None:
    num_clients = min(num_clients, len(labels))
    cfg = QuantityPartition(num_clients=num_clients, beta=beta, empty_clients="drop")
    partition = make_partition(cfg, np.stack([labels, labels], 1) if text else labels, NUM_CLASSES, seed)
    check_form(partition, num_clients - partition.num_dropped, len(labels))
    assert len(partition.indices) == len(labels)
    rng = stream(seed, ANY, ANY, "partition")
    assert partition.indices.tolist() == rng.permutation(len(labels)).tolist()
    expected, start, total = [], 0, 0.0
    shares = rng.dirichlet([beta] * num_clients)
    for k in range(num_clients):
        total += shares[k]
        end = len(labels) if k == num_clients - 1 else min(len(labels), int(total * len(labels)))
        expected += [end - start] if end > start else []
        start = end
    assert partition.sizes.tolist() == expected


def test_quantity_skews_the_amounts_and_not_the_classes() -> None:
    labels = np.repeat(np.arange(NUM_CLASSES), 4000)
    partition = make_partition(QuantityPartition(num_clients=8, beta=1.0), labels, NUM_CLASSES, seed=0)
    assert partition.sizes.max() > 5 * partition.sizes.min()
    large = partition.class_counts(labels, NUM_CLASSES)[partition.sizes > 1000]
    shares = large / large.sum(axis=1, keepdims=True)
    assert len(large) >= 3
    assert abs(shares - 1 / NUM_CLASSES).max() < 0.06  # five standard deviations of a client of 1,000


def class_runs_by_the_book(labels: Labels, num_clients: int, classes_per_client: int, seed: int) -> list[list[int]]:
    """FedPM's split word for word, one class after the other, also past the empty ones."""
    rng = stream(seed, ANY, ANY, "partition")
    weights = [int(j) for j in rng.integers(10, 100, num_clients)]
    pools = [rng.permutation(np.flatnonzero(labels == c)).tolist() for c in range(NUM_CLASSES)]
    starts = rng.integers(NUM_CLASSES, size=num_clients).tolist()
    clients: list[list[int]] = []
    for k in range(num_clients):
        size = len(labels) * weights[k] // sum(weights)
        if k == num_clients - 1:
            size = len(labels) - sum(map(len, clients))
        quota, c = max(1, size // classes_per_client), starts[k]
        taken: list[int] = []
        while len(taken) < size:
            count = min(quota, len(pools[c]), size - len(taken))
            taken += pools[c][:count]
            pools[c] = pools[c][count:]
            c = (c + 1) % NUM_CLASSES
        clients.append(taken)
    return clients


@given(labels=label_arrays, seed=seeds, num_clients=st.integers(1, 12), classes_per_client=st.integers(1, 7))
def test_class_runs_follow_their_definition(
    labels: Labels, seed: int, num_clients: int, classes_per_client: int
) -> None:
    num_clients = min(num_clients, len(labels))
    cfg = ClassRunsPartition(num_clients=num_clients, classes_per_client=classes_per_client, empty_clients="drop")
    partition = make_partition(cfg, labels, NUM_CLASSES, seed)
    check_form(partition, num_clients - partition.num_dropped, len(labels))
    assert len(partition.indices) == len(labels)
    clients = class_runs_by_the_book(labels, num_clients, classes_per_client, seed)
    assert [partition.client(k).tolist() for k in range(partition.num_clients)] == [taken for taken in clients if taken]
    assert partition.num_dropped == clients.count([])


def test_class_runs_of_the_first_clients_are_runs_of_so_many_classes() -> None:
    """As long as no class runs out, a client holds c consecutive classes, or one more for what the division leaves."""
    labels = np.repeat(np.arange(10), 1000)
    partition = make_partition(ClassRunsPartition(num_clients=50, classes_per_client=3), labels, 10, seed=0)
    held = partition.class_counts(labels, 10) > 0
    for k in range(5):
        run = np.flatnonzero(held[k])
        assert len(run) in (3, 4)
        assert any(set(run.tolist()) == {(start + i) % 10 for i in range(len(run))} for start in range(10))
    assert partition.sizes[:-1].max() > 4 * partition.sizes[:-1].min()  # weights from 10 to 99
    assert held.sum() < 50 * 4.5


def test_class_runs_start_everywhere() -> None:
    labels = np.repeat(np.arange(NUM_CLASSES), 2000)
    first = [
        make_partition(ClassRunsPartition(num_clients=40, classes_per_client=1), labels, NUM_CLASSES, seed).client(0)[0]
        for seed in range(100)
    ]
    assert set(labels[first]) == set(range(NUM_CLASSES))


def test_class_runs_of_many_classes_and_a_thousand_clients_are_quick() -> None:
    labels = np.random.default_rng(0).integers(0, 200, 300_000)
    start = time.process_time()
    partition = make_partition(ClassRunsPartition(num_clients=1000, classes_per_client=200), labels, 200, seed=0)
    assert time.process_time() - start < 2
    assert len(partition.indices) == 300_000


@given(
    groups=st.lists(st.integers(0, 15), min_size=1, max_size=80).map(lambda gs: np.array(gs, np.int64)),
    seed=seeds,
    min_samples=st.integers(1, 6),
    data=st.data(),
)
def test_natural_has_a_client_for_each_group(groups: Labels, seed: int, min_samples: int, data: st.DataObject) -> None:
    qualified = [g for g in range(16) if groups.tolist().count(g) >= min_samples]
    num_clients = data.draw(st.none() | st.integers(1, max(1, len(qualified))))
    cfg = NaturalPartition(num_clients=num_clients, min_samples=min_samples)
    labels = np.zeros((len(groups), 2), np.int64)
    if not qualified:
        with pytest.raises(ConfigError, match=f"most training samples .* got {min_samples}"):
            make_partition(cfg, labels, NUM_CLASSES, seed, groups)
        return
    partition = make_partition(cfg, labels, NUM_CLASSES, seed, groups)
    check_form(partition, num_clients or len(qualified), len(groups))
    owners = [set(groups[partition.client(k)].tolist()) for k in range(partition.num_clients)]
    assert all(len(owner) == 1 for owner in owners)
    order = [owner.pop() for owner in owners]
    assert order == sorted(set(order))
    assert set(order) <= set(qualified)
    assert all(partition.sizes[k] == (groups == group).sum() for k, group in enumerate(order))


def test_natural_draws_all_groups_alike() -> None:
    groups = np.repeat(np.arange(10), 3)
    times_drawn = np.zeros(10)
    for seed in range(400):
        partition = make_partition(NaturalPartition(num_clients=3), np.zeros(30, np.int64), 1, seed, groups)
        times_drawn[groups[partition.indices[::3]]] += 1
    assert abs(times_drawn - 120).max() < 46  # five standard deviations


def test_natural_refusals() -> None:
    labels, groups = np.zeros(9, np.int64), np.array([0, 0, 0, 0, 1, 1, 3, 3, 3])
    with pytest.raises(ConfigError, match="femnist, shakespeare or play_mini"):
        make_partition(NaturalPartition(), labels, 1, seed=0)
    with pytest.raises(ConfigError, match=r"at most the 2 writers or roles .*min_samples=3 .*got 3"):
        make_partition(NaturalPartition(num_clients=3, min_samples=3), labels, 1, 0, groups)
    with pytest.raises(ConfigError, match=r"min_samples must be at most 4, .*got 5"):
        make_partition(NaturalPartition(min_samples=5), labels, 1, 0, groups)


@pytest.mark.parametrize(
    "cfg",
    [DirichletPartition(num_clients=2), ShardsPartition(num_clients=2), ClassRunsPartition(num_clients=2)],
    ids=lambda cfg: cfg.name,
)
def test_text_is_not_split_by_class(cfg: PartitionConfig) -> None:
    with pytest.raises(ConfigError, match=f"natural, iid or quantity .* got '{cfg.name}'"):
        make_partition(cfg, np.zeros((40, 5), np.int64), 3, seed=0)


def test_text_is_split_evenly() -> None:
    labels = np.zeros((41, 5), np.int64)
    partition = make_partition(IidPartition(num_clients=4), labels, 3, seed=0)
    check_form(partition, 4, 41)
    assert partition.class_counts(labels, 3)[:, 0].tolist() == [55, 50, 50, 50]


@pytest.mark.parametrize(
    "cfg",
    [
        DirichletPartition(num_clients=30, beta=0.02),
        QuantityPartition(num_clients=30, beta=0.02),
        ClassRunsPartition(num_clients=30),
    ],
    ids=lambda cfg: cfg.name,
)
def test_empty_clients_are_refused_or_dropped(cfg: DirichletPartition | QuantityPartition | ClassRunsPartition) -> None:
    labels = np.arange(33) % NUM_CLASSES
    with pytest.raises(ConfigError) as caught:
        make_partition(cfg, labels, NUM_CLASSES, seed=0)
    partition = make_partition(cfg.model_copy(update={"empty_clients": "drop"}), labels, NUM_CLASSES, seed=0)
    check_form(partition, 30 - partition.num_dropped, 33)
    assert len(partition.indices) == 33
    words = str(caught.value)
    assert f"leaves {partition.num_dropped} of 30 clients without data" in words
    assert f"with the {partition.num_clients} others" in words
    assert "partition.empty_clients=drop" in words
    assert "smaller partition.num_clients" in words
    assert ("larger partition.beta" in words) == (cfg.name != "class_runs")


def test_nothing_is_dropped_where_nobody_is_empty() -> None:
    labels = np.arange(300) % NUM_CLASSES
    one = make_partition(DirichletPartition(num_clients=3, beta=5.0), labels, NUM_CLASSES, seed=0)
    other = make_partition(DirichletPartition(num_clients=3, beta=5.0, empty_clients="drop"), labels, NUM_CLASSES, 0)
    assert one.num_dropped == other.num_dropped == 0
    assert np.array_equal(one.indices, other.indices)
    assert np.array_equal(one.offsets, other.offsets)


CONFIGS: list[PartitionConfig] = [
    IidPartition(num_clients=10),
    DirichletPartition(num_clients=10, beta=5.0),
    ShardsPartition(num_clients=10),
    ClassRunsPartition(num_clients=10),
    QuantityPartition(num_clients=10, beta=5.0),
]
NATURAL = NaturalPartition(num_clients=10)


@pytest.mark.parametrize("cfg", [*CONFIGS, NATURAL], ids=lambda cfg: cfg.name)
def test_the_seed_decides_and_nothing_else(cfg: PartitionConfig) -> None:
    labels = np.random.default_rng(0).integers(0, NUM_CLASSES, 500)
    np.random.seed(1)  # the global generator must not matter
    groups = np.arange(500) % 40
    one, same, other = (make_partition(cfg, labels, NUM_CLASSES, seed, groups) for seed in (1, 1, 2))
    assert np.array_equal(one.indices, same.indices)
    assert np.array_equal(one.offsets, same.offsets)
    assert not np.array_equal(one.indices, other.indices)


@pytest.mark.parametrize("cfg", CONFIGS, ids=lambda cfg: cfg.name)
def test_more_clients_than_samples(cfg: PartitionConfig) -> None:
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
        DirichletPartition(num_clients=100_000, beta=0.3, empty_clients="drop"),
        QuantityPartition(num_clients=100_000, empty_clients="drop"),
        ClassRunsPartition(num_clients=100_000, empty_clients="drop"),
    ],
    ids=lambda cfg: cfg.name,
)
def test_a_hundred_thousand_clients(cfg: PartitionConfig) -> None:
    labels = np.random.default_rng(0).integers(0, 10, 1_000_000)
    start = time.process_time()
    partition = make_partition(cfg, labels, 10, seed=0)
    counts = partition.class_counts(labels, 10)
    assert time.process_time() - start < 2
    assert np.array_equal(counts.sum(axis=1), partition.sizes)
    assert counts.sum() == 1_000_000

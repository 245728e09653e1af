"""Who takes part: counts, shares, availability and drop-out, as functions of seed and round."""

from __future__ import annotations

import numpy as np
import pytest

from fedmpi.config import ParticipationConfig
from fedmpi.engine.participation import Participation

SIZES = np.array([1, 2, 3, 4, 10, 10, 20, 50], np.int64)


def participation(num_clients: int = 0, seed: int = 1, **settings: object) -> Participation:
    sizes = np.full(num_clients, 5) if num_clients else SIZES
    return Participation(ParticipationConfig(**settings), sizes, seed)  # type: ignore[arg-type]


def counts(drawn: Participation, num_rounds: int, num_clients: int) -> np.ndarray:
    cohorts = [drawn.cohort(round_idx) for round_idx in range(num_rounds)]
    return np.bincount([client for cohort in cohorts for client in cohort], minlength=num_clients)


def test_a_cohort_is_ascending_without_repeats_and_a_function_of_seed_and_round() -> None:
    one = participation(40, clients_per_round=7)
    for round_idx in range(20):
        cohort = one.cohort(round_idx)
        assert len(set(cohort)) == 7
        assert cohort == sorted(cohort) == participation(40, clients_per_round=7).cohort(round_idx)
    assert one.cohort(0) != one.cohort(1)
    assert one.cohort(0) != participation(40, 2, clients_per_round=7).cohort(0)


def test_uniform_draws_everybody_alike() -> None:
    seen = counts(participation(20, clients_per_round=5), 2000, 20)
    assert abs(seen / 500 - 1).max() < 0.2


def test_by_size_draws_in_proportion_to_samples() -> None:
    seen = counts(participation(clients_per_round=1, sampling="by_size"), 4000, 8)
    assert np.allclose(seen / 4000, SIZES / SIZES.sum(), atol=0.03)


def test_by_size_draws_without_replacement() -> None:
    assert participation(clients_per_round=8, sampling="by_size").cohort(3) == list(range(8))


def test_availability_thins_the_pool() -> None:
    drawn = participation(200, clients_per_round=200, availability=0.3)
    sizes = [len(drawn.cohort(round_idx)) for round_idx in range(50)]
    assert 50 < np.mean(sizes) < 70
    assert len(set(sizes)) > 5


def test_a_round_may_find_nobody() -> None:
    drawn = participation(2, clients_per_round=2, availability=0.01)
    assert [] in [drawn.cohort(round_idx) for round_idx in range(5)]


def test_each_client_has_its_own_availability() -> None:
    drawn = participation(300, clients_per_round=300, availability=0.5, availability_spread=0.5)
    seen = counts(drawn, 200, 300) / 200
    assert seen.min() < 0.1
    assert seen.max() > 0.9
    assert 0.45 < seen.mean() < 0.55


def test_availability_and_size_together() -> None:
    drawn = participation(clients_per_round=2, sampling="by_size", availability=0.6)
    seen = counts(drawn, 2000, 8)
    assert seen[7] == seen.max()
    assert seen[0] < seen[4] < seen[7]


@pytest.mark.parametrize("dropout", [0.0, 0.25])
def test_dropout_has_its_probability_and_is_the_same_everywhere(dropout: float) -> None:
    one, other = participation(dropout=dropout), participation(dropout=dropout)
    lost = [one.drops_out(round_idx, client) for round_idx in range(100) for client in range(30)]
    assert abs(np.mean(lost) - dropout) < 0.03
    assert lost == [other.drops_out(round_idx, client) for round_idx in range(100) for client in range(30)]


def test_a_hundred_thousand_clients_are_drawn_from_in_milliseconds() -> None:
    drawn = participation(100_000, clients_per_round=100, sampling="by_size", availability=0.9)
    assert len(drawn.cohort(0)) == 100

"""Who takes part in a round: a function of the seed and the round alone, the same on every rank."""

from __future__ import annotations

import numpy as np

from fedmpi.config import ParticipationConfig
from fedmpi.rng import ANY, stream


class Participation:
    """Draws cohorts, and who of them is lost.

    Parameters
    ----------
    config : ParticipationConfig
    sizes : numpy.ndarray, shape (num_clients,), int64
        Samples of each client.
    seed : int
    """

    def __init__(self, config: ParticipationConfig, sizes: np.ndarray, seed: int) -> None:
        self._config = config
        self._sizes = sizes
        self._seed = seed
        self._availability: float | np.ndarray = config.availability
        if config.availability_spread:
            own = stream(seed, ANY, ANY, "own availability").uniform(-1, 1, sizes.size)
            self._availability = np.clip(config.availability + own * config.availability_spread, 0, 1)

    def cohort(self, round_idx: int) -> list[int]:
        """Return the round's clients in ascending order; fewer than asked for where fewer are at hand."""
        rng = stream(self._seed, round_idx, ANY, "cohort")
        at_hand = np.arange(self._sizes.size)
        if self._config.availability < 1:
            draws = stream(self._seed, round_idx, ANY, "availability").random(self._sizes.size)
            at_hand = np.flatnonzero(draws < self._availability)
        count = min(self._config.clients_per_round, at_hand.size)
        weights = None
        if self._config.sampling == "by_size":
            weights = self._sizes[at_hand] / self._sizes[at_hand].sum()
        if not count:
            return []
        return sorted(at_hand[rng.choice(at_hand.size, count, replace=False, p=weights)].tolist())

    def drops_out(self, round_idx: int, client_id: int) -> bool:
        """Return whether a client of the cohort is lost once it has received its first message."""
        if not self._config.dropout:
            return False
        return bool(stream(self._seed, round_idx, client_id, "dropout").random() < self._config.dropout)

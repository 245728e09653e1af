"""Halves whose first rounds are of another sort: fewer clients, and answers that are no model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from masked import Turn, World


class StagedWorld(World):
    """A world that plays the clients that the algorithm chooses."""

    def __init__(self, name: str, **settings: Any) -> None:
        super().__init__(name, **settings)
        self.client.ctx.weight_uses = self.server.ctx.weight_uses

    def play(self, round_idx: int, cohort: Sequence[int], lost: Sequence[int] = ()) -> list[Turn]:
        return super().play(round_idx, self.server.choose(round_idx, cohort), lost)

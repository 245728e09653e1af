"""Progress: one line a round, and on a terminal a live bar beneath."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Mapping
from typing import Any

from tqdm import tqdm

from fedmpi.report.console import BAR_COLUMNS, Console, megabytes, on_terminal


class Progress:
    """Listens to the engine and prints.

    Parameters
    ----------
    console : Console
    num_rounds, clients_per_round : int
    """

    def __init__(self, console: Console, num_rounds: int, clients_per_round: int) -> None:
        self._console = console
        self._num_rounds = num_rounds
        self._clients = clients_per_round
        self._bar: tqdm[Any] | None = None
        if on_terminal():
            columns = int(os.environ.get(BAR_COLUMNS, "0")) or None
            total = num_rounds * clients_per_round
            self._bar = tqdm(total=total, unit="client", file=sys.stdout, leave=False, ncols=columns)

    def client_done(self, round_idx: int, num_done: int, num_clients: int) -> None:
        """Move the bar."""
        if self._bar is not None:
            self._bar.n = round_idx * self._clients + num_done
            self._bar.set_description(f"round {round_idx + 1}/{self._num_rounds}", refresh=False)
            self._bar.update(0)

    def round_done(self, values: Mapping[str, float]) -> None:
        """Print the round's line."""
        parts = [
            f"round {int(values['round_idx']) + 1:>{len(str(self._num_rounds))}}/{self._num_rounds}",
            f"clients {_clients(values)}",
            f"train_loss {_loss(values['train_loss'])}",
        ]
        if not math.isnan(values["test_accuracy"]):
            parts.append(f"test_loss {_loss(values['test_loss'])}  test_acc {values['test_accuracy']:.4f}")
        if values["density"] < 1:
            parts.append(f"density {values['density']:.4f}")
        parts.append(f"down {megabytes(values['down_nbytes'])} MB  up {megabytes(values['up_nbytes'])} MB")
        parts.append(f"{values['wall_s']:.3f} s")
        self._console.print("  ".join(parts))

    def warned(self, words: str) -> None:
        """Print a warning."""
        self._console.print(f"warning: {words}")

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.close()


def _clients(values: Mapping[str, float]) -> str:
    """Write how many clients were drawn, or how many of them replied if some did not."""
    drawn, lost = int(values["num_clients"]), int(values["num_faults"])
    return f"{drawn - lost} of {drawn}" if lost else str(drawn)


def _loss(loss: float) -> str:
    return f"{loss:.4f}" if not abs(loss) >= 1e4 else f"{loss:.4g}"

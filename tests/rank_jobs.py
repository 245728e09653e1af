"""Tests on several ranks: the jobs that they share, and what every rank says of each test."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

import pytest
from support import run_ranks

VERDICTS = "FEDMPI_TEST_VERDICTS"
"""Set for the ranks of a test: the folder for their verdicts."""


class RankJobs:
    """The tests of this pytest on several ranks, and what became of them."""

    def __init__(self, items: list[pytest.Item], *, together: bool) -> None:
        self._problems: dict[str, list[str]] = {}
        self._items = [item for item in items if item.get_closest_marker("ranks")]
        self._together = together

    def timeout(self, item: pytest.Item) -> float:
        """Return the seconds in which the job of a test must be over."""
        return sum(seconds_of(other) for other in self._batch(item))

    def problems(self, item: pytest.Item) -> list[str]:
        """Return what went wrong with a test, on which rank; it is run if no earlier job has run it."""
        if item.nodeid not in self._problems:
            self._run(self._batch(item))
        return self._problems[item.nodeid]

    def _batch(self, item: pytest.Item) -> list[pytest.Item]:
        """Return the tests that share a job with this one, itself first."""
        if not self._together:
            return [item]
        after = self._items[self._items.index(item) :]
        return [other for other in after if job_of(other) == job_of(item) and other.nodeid not in self._problems]

    def _run(self, batch: list[pytest.Item]) -> None:
        (num_ranks, env), timeout = job_of(batch[0]), self.timeout(batch[0])
        folder = Path(tempfile.mkdtemp(prefix="verdicts."))
        arguments = ["-X", "faulthandler", "-m", "pytest", "-q", "-x", "-s", "--no-header", "-p", "no:cacheprovider"]
        arguments += [f"--rootdir={batch[0].config.rootpath}", "-m", ""]  # a slow test is no less wanted on its ranks
        arguments += [f"{item.path}::{item.nodeid.split('::', 1)[1]}" for item in batch]
        outcome = run_ranks(num_ranks, arguments, timeout=timeout, env={VERDICTS: str(folder), **dict(env)})
        ended = [] if outcome.status is not None else [f"not over after {timeout} s"]
        said = [_verdicts(folder / f"rank{rank}") for rank in range(num_ranks)]
        shutil.rmtree(folder, ignore_errors=True)
        for item in batch:
            none = "no verdict: it died, hung, or ended with the job"
            verdicts = [of_rank.get(item.nodeid, none) for of_rank in said]
            bad = [f"--- rank {rank}:\n{verdict}" for rank, verdict in enumerate(verdicts) if verdict != "ok"]
            if bad or (outcome.status != 0 and item is batch[-1]):
                # Whatever comes after it had no turn.
                self._problems[item.nodeid] = [*ended, *bad, f"--- exit {outcome.status}\n{outcome.output[-6000:]}"]
                return
            self._problems[item.nodeid] = []


def job_of(item: pytest.Item) -> tuple[int, tuple[tuple[str, str], ...]]:
    """Return what tests in one job have in common: the number of ranks and their environment."""
    marker = item.get_closest_marker("ranks")
    assert marker is not None
    return marker.args[0], tuple(marker.kwargs.get("env", {}).items())


def seconds_of(item: pytest.Item) -> float:
    """Return how long a test on several ranks may take."""
    marker = item.get_closest_marker("ranks")
    assert marker is not None
    return marker.kwargs.get("timeout", 60)


def judge(folder: str, rank: int, item: pytest.Item, said: str) -> None:
    """Write what a rank has to say of a test: "ok", or what went wrong."""
    with (Path(folder) / f"rank{rank}").open("a") as file:
        print(json.dumps([item.nodeid, said]), file=file)


def _verdicts(path: Path) -> dict[str, str]:
    lines = path.read_text().splitlines() if path.exists() else []
    return dict(json.loads(line) for line in lines)

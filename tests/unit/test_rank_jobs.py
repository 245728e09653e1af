"""Tests that share a job: each is judged by itself, and those without a turn get another job."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import rank_jobs
from rank_jobs import RankJobs
from support import Outcome


def make_item(name: str, num_ranks: int = 2, **options: Any) -> Any:
    """Return what `RankJobs` asks of a collected test."""
    marker = pytest.mark.ranks(num_ranks, **options).mark
    return SimpleNamespace(
        nodeid=f"tests/test_x.py::{name}",
        path=Path("/tests/test_x.py"),
        config=SimpleNamespace(rootpath=Path("/")),
        get_closest_marker=lambda wanted: marker if wanted == "ranks" else None,
    )


class Jobs:
    """In place of mpiexec: remembers what was started, and has every rank say what `says` returns."""

    def __init__(self, says: Callable[[str, int], str | None]) -> None:
        self.started: list[tuple[int, list[str], float]] = []
        self._says = says

    def __call__(self, num_ranks: int, arguments: list[str], *, timeout: float, env: dict[str, str]) -> Outcome:
        names = [word.split("::")[1] for word in arguments if "::" in word]
        self.started.append((num_ranks, names, timeout))
        for name in names:
            said = [self._says(name, rank) for rank in range(num_ranks)]
            for rank, words in enumerate(said):
                if words is not None:
                    rank_jobs.judge(env[rank_jobs.VERDICTS], rank, make_item(name), words)
            if None in said:
                return Outcome(None, "silence")
            if said != ["ok"] * num_ranks:
                return Outcome(1, "words of the job")
        return Outcome(0, "")


def test_tests_of_the_same_ranks_share_a_job(monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = Jobs(lambda name, rank: "ok")
    monkeypatch.setattr(rank_jobs, "run_ranks", jobs)
    items = [
        make_item("a", timeout=20),
        make_item("b", 3),
        make_item("c", timeout=30),
        make_item("d", env={"X": "1"}),
        make_item("e", timeout=5),
    ]
    tests = RankJobs(items, together=True)
    assert [tests.problems(item) for item in items] == [[]] * 5
    assert jobs.started == [(2, ["a", "c", "e"], 55), (3, ["b"], 60), (2, ["d"], 60)]


def test_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = Jobs(lambda name, rank: "ok")
    monkeypatch.setattr(rank_jobs, "run_ranks", jobs)
    items = [make_item("a"), make_item("b")]
    tests = RankJobs(items, together=False)
    assert [tests.problems(item) for item in items] == [[], []]
    assert [names for _, names, _ in jobs.started] == [["a"], ["b"]]


@pytest.mark.parametrize("bad", ["call: failed", None])
def test_after_a_failure_the_others_have_their_turn(monkeypatch: pytest.MonkeyPatch, bad: str | None) -> None:
    jobs = Jobs(lambda name, rank: bad if name == "b" and rank == 1 else "ok")
    monkeypatch.setattr(rank_jobs, "run_ranks", jobs)
    items = [make_item(name) for name in "abcd"]
    tests = RankJobs(items, together=True)
    problems = [tests.problems(item) for item in items]
    assert [names for _, names, _ in jobs.started] == [["a", "b", "c", "d"], ["c", "d"]]
    assert [bool(found) for found in problems] == [False, True, False, False]
    said = "\n".join(problems[1])
    assert f"rank 1:\n{bad or 'no verdict'}" in said
    assert "rank 0" not in said
    assert ("silence" if bad is None else "words of the job") in said
    assert ("not over after 240 s" in said) is (bad is None)


def test_a_job_that_ends_badly_after_its_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(num_ranks: int, arguments: list[str], *, timeout: float, env: dict[str, str]) -> Outcome:
        for rank in range(num_ranks):
            rank_jobs.judge(env[rank_jobs.VERDICTS], rank, item, "ok")
        return Outcome(139, "Segmentation fault")

    item = make_item("a")
    monkeypatch.setattr(rank_jobs, "run_ranks", run)
    assert RankJobs([item], together=True).problems(item) == ["--- exit 139\nSegmentation fault"]


def test_a_teardown_that_fails_overrules_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(num_ranks: int, arguments: list[str], *, timeout: float, env: dict[str, str]) -> Outcome:
        for said in ("ok", "teardown: failed"):
            for rank in range(num_ranks):
                rank_jobs.judge(env[rank_jobs.VERDICTS], rank, item, said)
        return Outcome(1, "")

    item = make_item("a")
    monkeypatch.setattr(rank_jobs, "run_ranks", run)
    assert RankJobs([item], together=True).problems(item)[:2] == [
        "--- rank 0:\nteardown: failed",
        "--- rank 1:\nteardown: failed",
    ]

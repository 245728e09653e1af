"""Plain ``pytest`` runs the several-rank tests too: a test marked ``ranks(n)`` is run again on n MPI ranks.

The outer pytest starts mpiexec with one pytest a rank, which runs this test and those after it that want the same
ranks, so that not every test waits for their start; every rank writes a verdict on each, and all must say ok. A rank
that fails aborts its job, a silent one runs into the time limit, and the whole process group is killed, so that no rank
can hang the suite; the tests that had not had their turn get a job of their own. Inside somebody's own mpiexec such
tests are skipped.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import hypothesis
import pytest
from rank_jobs import VERDICTS, RankJobs, judge, seconds_of

from fedmpi.comm.launcher import launched_as

# Two shared cores: how long an example takes says nothing about the code.
hypothesis.settings.register_profile("fedmpi", deadline=None)
hypothesis.settings.load_profile("fedmpi")


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the tests' arrays out of the user's cache; the ranks of a test share the outer pytest's."""
    if "FEDMPI_CACHE" in os.environ:
        yield
        return
    os.environ["FEDMPI_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    yield
    del os.environ["FEDMPI_CACHE"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    launched = launched_as()
    if launched is None or VERDICTS in os.environ:
        return
    for item in items:
        # A command that runs `here` would take itself for a rank of that job.
        if item.get_closest_marker("ranks") or {"launches", "here"} & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.skip(reason="starts ranks of its own; this pytest is a rank itself"))


@pytest.fixture(autouse=True)
def _own_signals() -> Iterator[None]:
    """Put back what a command that ran in this process did to signals: children inherit that one is ignored."""
    before = signal.getsignal(signal.SIGUSR1)
    yield
    signal.signal(signal.SIGUSR1, before)


@pytest.fixture(autouse=True)
def _stacks_of_silent_ranks(request: pytest.FixtureRequest) -> Iterator[None]:
    """Have every rank of a test say where it is, shortly before the first that is out of time ends the job."""
    if VERDICTS not in os.environ:
        yield
        return
    faulthandler.dump_traceback_later(max(1, seconds_of(request.node) - 5), file=sys.__stderr__)
    yield
    faulthandler.cancel_dump_traceback_later()


@pytest.fixture
def launches() -> None:
    """For tests that start jobs themselves: they are skipped inside somebody's mpiexec."""


@pytest.fixture
def here(capfd: pytest.CaptureFixture[str]) -> Iterator[Callable[..., tuple[int, str, str]]]:
    """Run a command of the command line in this process, which saves the start: status, output and errors."""
    import torch

    from fedmpi.cli import main

    threads = torch.get_num_threads()

    def command(*arguments: object) -> tuple[int, str, str]:
        capfd.readouterr()
        return main([str(argument) for argument in arguments]), *capfd.readouterr()

    yield command
    torch.set_num_threads(threads)


JOBS = pytest.StashKey[RankJobs]()


def pytest_collection_finish(session: pytest.Session) -> None:
    if VERDICTS in os.environ:
        for item in session.items:
            item.add_marker(pytest.mark.timeout(max(1, seconds_of(item) - 3)))
        return
    jobs = RankJobs(session.items, together=not hasattr(session.config, "workerinput"))
    session.config.stash[JOBS] = jobs
    for item in session.items:
        if item.get_closest_marker("ranks"):
            item.add_marker(pytest.mark.timeout(jobs.timeout(item) + 30))


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    if pyfuncitem.get_closest_marker("ranks") is None or VERDICTS in os.environ:
        return None
    problems = pyfuncitem.config.stash[JOBS].problems(pyfuncitem)
    if problems:
        pytest.fail("\n".join(problems), pytrace=False)
    return True


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[Any]) -> Any:
    report = yield
    folder = os.environ.get(VERDICTS)
    if folder and (report.when == "call" or report.outcome != "passed"):
        from mpi4py import MPI

        said = "ok" if report.passed else f"{report.when}: {report.outcome}\n{report.longreprtext or report.longrepr}"
        judge(folder, MPI.COMM_WORLD.rank, item, said)
        if report.failed:
            time.sleep(0.3)  # ranks that fail at the same time write theirs too
            MPI.COMM_WORLD.Abort(1)
    return report

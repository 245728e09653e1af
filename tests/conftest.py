"""Plain ``pytest`` runs the several-rank tests too: a test marked ``ranks(n)`` is run again on n MPI ranks.

The outer pytest starts mpiexec with one pytest a rank that runs this test alone; every rank writes a verdict, and all
must say ok. A rank that fails aborts its job, a silent one runs into the time limit, and the whole process group is
killed, so that no rank can hang the suite. Inside somebody's own mpiexec such tests are skipped.
"""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from support import run_ranks

from fedmpi.comm.launcher import launched_as

# Two shared cores: how long an example takes says nothing about the code.
hypothesis.settings.register_profile("fedmpi", deadline=None)
hypothesis.settings.load_profile("fedmpi")

VERDICTS = "FEDMPI_TEST_VERDICTS"
"""Set for the ranks of a test: the folder for their verdicts."""


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


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    marker = pyfuncitem.get_closest_marker("ranks")
    if marker is None or VERDICTS in os.environ:
        return None
    num_ranks, timeout = marker.args[0], marker.kwargs.get("timeout", 60)
    folder = Path(tempfile.mkdtemp(prefix="verdicts."))
    node = f"{pyfuncitem.path}::{pyfuncitem.nodeid.split('::', 1)[1]}"
    arguments = ["-X", "faulthandler", "-m", "pytest", "-q", "-x", "-s", "--no-header", "-p", "no:cacheprovider"]
    arguments += ["-o", f"faulthandler_timeout={max(1, timeout - 3)}", f"--rootdir={pyfuncitem.config.rootpath}"]
    arguments += ["-m", "", node]  # a slow test is no less wanted on its ranks
    env = {VERDICTS: str(folder), **marker.kwargs.get("env", {})}
    outcome = run_ranks(num_ranks, arguments, timeout=timeout, env=env)
    problems = [] if outcome.status is not None else [f"not over after {timeout} s"]
    for rank in range(num_ranks):
        verdict = folder / f"rank{rank}"
        said = verdict.read_text() if verdict.exists() else "no verdict: it died, hung, or ended with the job"
        if said != "ok":
            problems.append(f"--- rank {rank}:\n{said}")
    shutil.rmtree(folder, ignore_errors=True)
    if problems or outcome.status:
        pytest.fail("\n".join([*problems, f"--- exit {outcome.status}\n{outcome.output[-6000:]}"]), pytrace=False)
    return True


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[Any]) -> Any:
    report = yield
    folder = os.environ.get(VERDICTS)
    if folder and (report.when == "call" or report.outcome != "passed"):
        from mpi4py import MPI

        said = "ok" if report.passed else f"{report.when}: {report.outcome}\n{report.longreprtext or report.longrepr}"
        (Path(folder) / f"rank{MPI.COMM_WORLD.rank}").write_text(said)
        if report.failed:
            time.sleep(0.3)  # ranks that fail at the same time write theirs too
            MPI.COMM_WORLD.Abort(1)
    return report

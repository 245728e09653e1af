"""Files beside the package: that they parse, agree with it, and that the job script on the page works."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import textwrap
import time
from pathlib import Path

import pytest
import yaml

import fedmpi
from fedmpi.errors import EXIT_STOPPED, FedmpiError

ROOT = Path(__file__).parents[2]
STATUSES = (ROOT / "docs" / "exit_statuses.md").read_text()


def test_the_citation_is_of_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert str(citation["version"]) == fedmpi.__version__
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    assert citation["cff-version"] == "1.2.0"
    assert citation["license"] == "Apache-2.0"


def test_the_hooks_are_what_make_lint_runs() -> None:
    (repo,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert repo["repo"] == "local"
    assert {hook["language"] for hook in repo["hooks"]} == {"system"}
    hooks = {hook["entry"].removesuffix(" --force-exclude") for hook in repo["hooks"]}
    lint = re.search(r"^lint:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert lint is not None
    commands = (line.strip().removeprefix("$(BIN)/").removesuffix(" .") for line in lint[1].splitlines())
    assert hooks == {command.removesuffix(" --check") for command in commands}


def subclasses(error: type[FedmpiError]) -> set[type[FedmpiError]]:
    return {error} | {below for sub in error.__subclasses__() for below in subclasses(sub)}


def test_every_status_is_on_the_page() -> None:
    rows = re.findall(r"^\| (\d+) \|", STATUSES, re.MULTILINE)
    ours = {error.exit_status for error in subclasses(FedmpiError) if error.__module__ == "fedmpi.errors"}
    assert {int(row) for row in rows[: len(ours) + 2]} == ours | {0, EXIT_STOPPED}


def test_pictures_that_the_readme_draws_are_not_tracked() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("no git checkout")
    drawn = re.findall(r"^    python analysis/(?:.*\\\n)*.* -o (\S+)", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert len(drawn) == 5
    command = ["git", "check-ignore", "--no-index", *drawn, "docs/demo.png"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30, check=False)
    assert done.stdout.split() == drawn, done.stderr


def job_script() -> str:
    script = re.search(r"^    #!/bin/bash\n(?:    .*\n)+", STATUSES, re.MULTILINE)
    assert script is not None
    return textwrap.dedent(script[0])


@pytest.mark.parametrize(
    ("run", "sent", "restarts", "status", "requeued"),
    [
        ("exit 0", None, 0, 0, False),
        ("exit 2", None, 0, 2, False),
        ("exit 137", None, 0, 137, False),
        ("trap 'exit 75' USR1; touch ready; while :; do sleep 0.05; done", signal.SIGUSR1, 0, 75, True),
        ("trap 'exit 75' USR1; touch ready; while :; do sleep 0.05; done", signal.SIGUSR1, 3, 75, False),
    ],
)
def test_the_job_script(
    tmp_path: Path, run: str, sent: signal.Signals | None, restarts: int, status: int, requeued: bool
) -> None:
    """SLURM's and MPI's programs are stood in for; the script is the page's."""
    programs = {"mpirun": run, "scontrol": 'echo "$@" > requeued', "fedmpi": "exit 0"}
    for name, text in programs.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "job.sh").write_text(job_script())
    env = {
        "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}",
        "SLURM_JOB_ID": "17",
        "SLURM_RESTART_COUNT": str(restarts),
    }
    process = subprocess.Popen(["bash", "job.sh"], cwd=tmp_path, env=env, start_new_session=True)
    try:
        if sent is not None:
            end = time.monotonic() + 20
            while not (tmp_path / "ready").exists() and time.monotonic() < end:
                time.sleep(0.02)
            process.send_signal(sent)
        assert process.wait(timeout=30) == status
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert (tmp_path / "requeued").exists() == requeued
    if requeued:
        assert (tmp_path / "requeued").read_text() == "requeue 17\n"

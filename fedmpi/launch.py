"""``fedmpi launch``: start this environment's own mpiexec, and say in words how the job ended."""

from __future__ import annotations

import os
import re
import selectors
import shutil
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from pathlib import Path

from fedmpi.errors import FedmpiError, PlacementError
from fedmpi.report.console import BAR_COLUMNS

MPI_ENVIRONMENT: Mapping[str, str] = {
    # Open MPI refuses root and more ranks than cores unless told otherwise; MPICH ignores all four.
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
    "OMPI_MCA_rmaps_base_oversubscribe": "1",
}

_TAIL_NBYTES = 20_000
_KILLED = (
    # MPICH's launcher names the process, Open MPI's the rank too.
    re.compile(r"PID (?P<pid>\d+) RUNNING AT (?P<host>\S+)[\s\S]*?EXIT STRING: [^\n]*\(signal (?P<signal>\d+)\)"),
    re.compile(r"rank \d+ with PID (?P<pid>\d+) on node (?P<host>\S+) exited on\s+signal (?P<signal>\d+)"),
)


def find_mpiexec() -> str:
    """Return the mpiexec beside this python, else the one on PATH.

    Raises
    ------
    PlacementError
        If there is none.
    """
    own = Path(sysconfig.get_path("scripts")) / "mpiexec"
    found = str(own) if own.exists() else shutil.which("mpiexec")
    if found is None:
        raise PlacementError("no mpiexec beside this python nor on PATH; pip install 'fedmpi[mpich]' brings one")
    return found


def launch(num_ranks: int, arguments: Sequence[str], out: Path) -> int:
    """Run ``fedmpi ARGUMENTS`` on `num_ranks` ranks of this machine.

    Returns
    -------
    int
        The job's exit status; 128 + the signal's number if a rank was killed.
    """
    command = [find_mpiexec(), "-n", str(num_ranks), sys.executable, "-m", "fedmpi", *arguments]
    env = {**os.environ, **MPI_ENVIRONMENT}
    if sys.stdout.isatty():
        env[BAR_COLUMNS] = str(shutil.get_terminal_size().columns)
    # In a session of its own the job gets a terminal's Ctrl-C from here alone: a second one would cut its clean-up off.
    process = subprocess.Popen(
        command,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    wishes = 0

    def ask(*_: object) -> None:
        # MPICH's and Open MPI's launchers pass USR1 on to every rank; a rank stops after its round. Asked again, the
        # job must end all the same: it may not have come as far as to hear a wish, or be stuck.
        nonlocal wishes
        wishes += 1
        if wishes < 3:
            process.send_signal(signal.SIGUSR1 if wishes == 1 else signal.SIGTERM)
        else:
            os.killpg(process.pid, signal.SIGKILL)

    for wish in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(wish, ask)
    try:
        tail = _pass_on(process)
        status = process.wait()
    except BrokenPipeError:
        process.send_signal(signal.SIGINT)  # whoever read the output has gone away: the ranks close their ledger
        process.communicate()
        raise
    except KeyboardInterrupt:
        process.send_signal(signal.SIGINT)
        process.wait()
        print(f"fedmpi: error: interrupted; {_what_is_left(out, -1)[1]}", file=sys.stderr)
        return 128 + signal.SIGINT
    for pattern in _KILLED:
        killed = pattern.search(tail)
        if killed:
            number = int(killed["signal"])
            name = signal.Signals(number).name if number in set(signal.Signals) else str(number)
            who, rest = _what_is_left(out, int(killed["pid"]))
            # Launchers kill the other ranks too and may name one of those: what they say is passed on as theirs.
            print(
                f"fedmpi: error: a rank was killed by signal {number} ({name}), and the job with it; the launcher "
                f"names process {killed['pid']} on {killed['host']}{who}; {rest}",
                file=sys.stderr,
            )
            return 128 + number
    return status


def _what_is_left(out: Path, pid: int) -> tuple[str, str]:
    """Return which rank a process was, and what its run's ledger holds, as far as the ledger tells."""
    from fedmpi.ledger.reader import Ledger
    from fedmpi.ledger.schema import LEDGER_NAME

    path = out / LEDGER_NAME
    if not path.exists():
        return "", "no ledger was written yet"
    try:
        with Ledger(path) as ledger:
            summary = ledger.summary()
            ranks = [f", rank {row['rank']}" for row in ledger.placement if row.get("pid") == pid]
    except FedmpiError as error:
        return "", f"no readable ledger is left: {error}"
    rest = f"{path} holds {summary['num_messages']} messages of {summary['rounds']} complete rounds"
    return ranks[0] if ranks else "", rest


def _pass_on(process: subprocess.Popen[bytes]) -> str:
    """Copy the job's output to this process's as it comes; return the end of it."""
    assert process.stdout is not None and process.stderr is not None
    tail = b""
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ, sys.stdout.buffer)
        selector.register(process.stderr, selectors.EVENT_READ, sys.stderr.buffer)
        while selector.get_map():
            for key, _ in selector.select():
                data = os.read(key.fd, 65536)
                if not data:
                    selector.unregister(key.fileobj)
                    continue
                key.data.write(data)
                key.data.flush()
                tail = (tail + data)[-_TAIL_NBYTES:]
    return tail.decode(errors="replace")

"""How a run ends that cannot go on: what is said, by whom, and that nobody is left waiting."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import sys
import time
import traceback

import numpy as np

from fedmpi.comm.base import Communicator, Envelope, Packet
from fedmpi.engine.rank import Topic
from fedmpi.errors import FedmpiError, RemoteError

_LAST_WORDS_S = 8.0
_DISMISSAL_S = 5.0


def words_of(error: BaseException) -> str:
    """Return what went wrong as a user reads it; a class name only where the error is not one of fedmpi's."""
    if isinstance(error, KeyboardInterrupt):
        return f"interrupted{f' ({error})' if error.args else ''}"
    if isinstance(error, BrokenPipeError):
        return "whoever read the output has gone away"
    return str(error) if isinstance(error, FedmpiError) else f"{type(error).__name__}: {error}"


def status_of(error: BaseException) -> int:
    """Return the exit status that goes with an error."""
    if isinstance(error, FedmpiError):
        return error.exit_status
    if isinstance(error, BrokenPipeError):
        return 128 + signal.SIGPIPE
    return 128 + signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1


def refuse_to_start(comm: Communicator, error: FedmpiError, *, all_heard: bool) -> int:
    """Rank 0 finds that the run cannot start: say so, and send the workers home, quietly.

    A worker goes home when it has prepared and waits to be welcomed. `all_heard` says that every one does; else they
    are waited for, and if one does not come in time, it may never: then the job is aborted.
    """
    print(f"fedmpi: error: {error}", file=sys.stderr, flush=True)
    for worker in range(1, comm.size):
        comm.send(worker, Envelope(Topic.QUIT, arg=error.exit_status))
    missing = set() if all_heard else set(range(1, comm.size))
    end = time.monotonic() + _DISMISSAL_S
    while comm.num_unsent() or missing:
        packet = comm.poll()
        if packet is not None:
            missing.discard(packet.source)  # its greeting, or that it has failed
        elif time.monotonic() > end:
            comm.abort(error.exit_status)
            break
        else:
            comm.nap(0.001)
    return error.exit_status


def fail(comm: Communicator, error: BaseException) -> int:
    """Say what went wrong, once, and end the job: a rank that is gone must not be waited for."""
    status, words = status_of(error), words_of(error)
    if comm.size > 1 and not isinstance(error, RemoteError):
        words = f"rank {comm.rank} on {socket.gethostname()}: {words}"
    said = ""
    if not isinstance(error, (FedmpiError, KeyboardInterrupt, BrokenPipeError)):
        said = "".join(traceback.format_exception(error))
    if comm.rank == 0:
        said += f"fedmpi: error: {words}\n"
    # In one piece: a launcher that is told of the abort may not come to read a second.
    print(said, end="", file=sys.stderr, flush=True)
    if comm.size == 1:
        return status
    if comm.rank != 0:
        refused_with = _tell_server(comm, words, status)
        if refused_with is not None:
            return refused_with
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    sys.stderr.flush()
    comm.abort(status)
    return status


def on_fail(packet: Packet) -> None:
    """Raise what another rank said before it ended."""
    content = json.loads(packet.body.tobytes())
    raise RemoteError(content["words"], content["status"])


def _tell_server(comm: Communicator, words: str, status: int) -> int | None:
    """Let rank 0 say it, close the ledger and end the job; if it does not in time, this rank does.

    Returns the status to go home with if rank 0 says that there is no run, for a reason of its own.
    """
    body = np.frombuffer(json.dumps({"words": words, "status": status}).encode(), np.uint8)
    end = time.monotonic() + _LAST_WORDS_S
    with contextlib.suppress(Exception):
        comm.send(0, Envelope(Topic.FAIL), body)
        while time.monotonic() < end:
            packet = comm.poll()
            if packet is not None and packet.envelope.topic == Topic.QUIT:
                return packet.envelope.arg
            comm.nap(0.01)
    print(f"fedmpi: error: {words}", file=sys.stderr, flush=True)
    return None

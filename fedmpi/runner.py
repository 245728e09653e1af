"""One run on one rank, from the meeting of the ranks to the last line, and what happens when a rank fails."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import numpy as np
import torch

from fedmpi.comm.base import Communicator, Envelope, Packet
from fedmpi.comm.placement import place_row
from fedmpi.config import RunConfig, describe
from fedmpi.engine.clientstate import ClientStateStore, state_folder
from fedmpi.engine.events import Listeners
from fedmpi.engine.join import Membership, join
from fedmpi.engine.player import Player
from fedmpi.engine.rank import Rank, Topic
from fedmpi.engine.server import Server
from fedmpi.engine.setup import Setup, prepare, resolve
from fedmpi.engine.worker import run_worker
from fedmpi.errors import EXIT_STOPPED, FedmpiError, OutputError, RemoteError
from fedmpi.ledger.reader import Ledger
from fedmpi.ledger.writer import LedgerWriter
from fedmpi.report import banner, summary
from fedmpi.report.console import Console
from fedmpi.report.progress import Progress
from fedmpi.wire.buffers import keep_freed_memory

LEDGER_NAME = "ledger.h5"
_LAST_WORDS_S = 8.0


def run(config: RunConfig, out: Path, comm: Communicator, *, overwrite: bool = False) -> int:
    """Take part in a run, as the server on rank 0 and as a worker elsewhere; with one rank, as both.

    Parameters
    ----------
    config : RunConfig
    out : Path
        Folder for ``ledger.h5``, ``config.yaml`` and ``log.txt``; only rank 0 touches it.
    comm : Communicator
    overwrite : bool
        Replace the run that `out` holds.

    Returns
    -------
    int
        The exit status. When a rank fails and there are several, the whole job is aborted with it instead.
    """
    try:
        with _stop_flag() as stop, contextlib.ExitStack() as cleanup:
            config = resolve(config)
            if comm.rank == 0:
                return _serve(config, out, comm, overwrite, stop, cleanup)
            _work(config, comm, cleanup)
            return 0
    except BaseException as error:
        return _fail(comm, error)
    finally:
        comm.close()


def _serve(
    config: RunConfig, out: Path, comm: Communicator, overwrite: bool, stop: list[int], cleanup: contextlib.ExitStack
) -> int:
    _check_output(out, overwrite)
    console = Console()
    cleanup.callback(console.close)
    ledger = None
    try:
        facts = banner.provenance(_mpi_library(comm))
        console.print(banner.banner(facts))
        console.print(banner.echo(config))
        rank, members = join(comm, config, on_fail=_on_fail)
        console.print(banner.placement(members.places, members.warnings))
        torch.set_num_threads(members.places[0].threads)
        setup = prepare(config)
        # Only now that nothing is left to check is an earlier run overwritten.
        (out / LEDGER_NAME).unlink(missing_ok=True)
        (out / "config.yaml").write_text(describe(config))
        console.log_to(out / "log.txt")
        ledger = LedgerWriter(
            out / LEDGER_NAME,
            attrs={**facts, "seed": config.seed, "algorithm": setup.algorithm.name, "num_ranks": comm.size},
            config_yaml=describe(config),
            flush_s=config.ledger.flush_s,
        )
        ledger.set_placement([place_row(place) for place in members.places])
        counts = setup.partition.class_counts(setup.dataset.train_labels, setup.dataset.num_classes)
        ledger.set_partition(setup.partition.sizes, counts)
        if comm.size == 1:
            _start_player(rank, setup, members, cleanup)
        progress = Progress(console, config.rounds, config.participation.clients_per_round)
        domains = [_domain(config, members, r) for r in range(comm.size)]
        server = Server(rank, setup, domains, ledger, Listeners([progress]))
        try:
            totals = server.run(lambda: bool(stop))
        finally:
            progress.close()
        ledger.finish("stopped" if totals.stopped else "done", totals.attributes())
    except BaseException as error:
        words = f"failed: {_words(error)}"
        if ledger is not None:
            with contextlib.suppress(FedmpiError):
                ledger.finish(words, {})
        elif not (out / LEDGER_NAME).exists():
            with contextlib.suppress(OSError):
                console.log_to(out / "log.txt")
        console.print(f"fedmpi: {words}")
        raise
    console.print(
        summary.timing_table([part.phase_s for part in totals.ranks], [part.peak_nbytes for part in totals.ranks])
    )
    with Ledger(out / LEDGER_NAME) as written:
        console.print(summary.byte_table(written))
        console.print(
            f"  handed to the communicator: {written.attrs['message_nbytes']} bytes of messages, "
            f"{written.attrs['simulation_nbytes']} beside them"
        )
        console.print(summary.last_line(written.summary()))
    return EXIT_STOPPED if totals.stopped else 0


def _work(config: RunConfig, comm: Communicator, cleanup: contextlib.ExitStack) -> None:
    rank, members = join(comm, config)
    setup = prepare(config)
    _start_player(rank, setup, members, cleanup)
    run_worker(rank, setup)


def _start_player(rank: Rank, setup: Setup, members: Membership, cleanup: contextlib.ExitStack) -> None:
    place = members.places[rank.comm.rank]
    torch.set_num_threads(place.threads)
    keep_freed_memory()
    device = torch.device(place.device)
    if device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is deterministic only with this
        torch.cuda.set_device(device)
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.backends.cudnn.benchmark = False
    folder = state_folder(setup.config.placement.state_dir, rank.comm.rank, members.token)
    store = ClientStateStore(folder, rank.comm.pool)
    cleanup.callback(store.close)
    Player(rank, setup, device, store)
    # What the imports left behind lives as long as the process: collecting garbage need not walk through it again.
    gc.collect()
    gc.freeze()


def _domain(config: RunConfig, members: Membership, rank: int) -> str:
    """Name the client state folder that a rank sees: those of one name can play each other's clients."""
    return f"{members.places[rank].host}:{state_folder(config.placement.state_dir, rank, members.token)}"


def _check_output(out: Path, overwrite: bool) -> None:
    if (out / LEDGER_NAME).exists() and not overwrite:
        raise OutputError(f"{out} holds a run already; choose another folder with -o, or --overwrite it")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make the output folder {out}: {error}") from error
    if not os.access(out, os.W_OK):
        raise OutputError(f"the output folder {out} is not writable")


def _mpi_library(comm: Communicator) -> str:
    module = sys.modules.get("fedmpi.comm.mpi")
    return module.library_version() if module is not None else "none (one process)"


@contextlib.contextmanager
def _stop_flag() -> Iterator[list[int]]:
    """Turn SIGTERM and SIGUSR1 into a wish to stop after the round, and a second one into an end at once."""
    asked: list[int] = []
    numbers = (signal.SIGTERM, signal.SIGUSR1)

    def ask(number: int, _: FrameType | None) -> None:
        if number in asked:  # launchers pass signals on to every rank, so each rank counts its own
            raise KeyboardInterrupt(f"asked to stop twice, by {signal.Signals(number).name}")
        asked.append(number)

    before = [signal.signal(number, ask) for number in numbers]
    try:
        yield asked
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def _on_fail(packet: Packet) -> None:
    content = json.loads(packet.body.tobytes())
    raise RemoteError(content["words"], content["status"])


def _fail(comm: Communicator, error: BaseException) -> int:
    """Say what went wrong, once, and end the job: a rank that is gone must not be waited for."""
    if isinstance(error, FedmpiError):
        status = error.exit_status
    else:
        status = 130 if isinstance(error, KeyboardInterrupt) else 1
    words = _words(error)
    if comm.size > 1 and not isinstance(error, RemoteError):
        words = f"rank {comm.rank} on {socket.gethostname()}: {words}"
    if not isinstance(error, FedmpiError) and not isinstance(error, KeyboardInterrupt):
        traceback.print_exception(error, file=sys.stderr)
    if comm.rank == 0:
        text = str(error) if isinstance(error, RemoteError) else words
        print(f"fedmpi: error: {text}", file=sys.stderr, flush=True)
    if comm.size == 1:
        return status
    if comm.rank != 0:
        _tell_server(comm, words, status)
    sys.stdout.flush()
    sys.stderr.flush()
    comm.abort(status)
    return status


def _words(error: BaseException) -> str:
    if isinstance(error, KeyboardInterrupt):
        return f"interrupted{f' ({error})' if error.args else ''}"
    return f"{type(error).__name__}: {error}"


def _tell_server(comm: Communicator, words: str, status: int) -> None:
    """Let rank 0 close the ledger and end the job; if it does not in time, this rank does."""
    print(f"fedmpi: {words}", file=sys.stderr, flush=True)
    body = np.frombuffer(json.dumps({"words": words, "status": status}).encode(), np.uint8)
    end = time.monotonic() + _LAST_WORDS_S
    with contextlib.suppress(Exception):
        comm.send(0, Envelope(Topic.FAIL), body)
        while time.monotonic() < end:
            comm.poll()
            comm.nap(0.01)

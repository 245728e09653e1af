"""One run on one rank, from the meeting of the ranks to the last line, and what happens when a rank fails."""

from __future__ import annotations

import contextlib
import gc
import json
import signal
import socket
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

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
_LAST_WORDS_S = 5.0


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
        with _stop_flag() as stop:
            config = resolve(config)
            if comm.rank == 0:
                return _serve(config, out, comm, overwrite, stop)
            _work(config, comm)
            return 0
    except BaseException as error:
        return _fail(comm, error)
    finally:
        comm.close()


def _serve(config: RunConfig, out: Path, comm: Communicator, overwrite: bool, stop: list[int]) -> int:
    console = _open_output(out, overwrite)
    (out / "config.yaml").write_text(describe(config))
    facts = banner.provenance(_mpi_library(comm))
    console.print(banner.banner(facts))
    console.print(banner.echo(config))
    rank, members = join(comm, config)
    rank.handlers[Topic.FAIL] = _on_fail
    console.print(banner.placement(members.places, members.warnings))
    torch.set_num_threads(members.places[0].threads)
    setup = prepare(config)
    ledger = LedgerWriter(
        out / LEDGER_NAME,
        attrs={**facts, "seed": config.seed, "algorithm": setup.algorithm.name, "num_ranks": comm.size},
        config_yaml=describe(config),
        flush_s=config.ledger.flush_s,
    )
    try:
        ledger.set_placement([place_row(place) for place in members.places])
        counts = setup.partition.class_counts(setup.dataset.train_labels, setup.dataset.num_classes)
        ledger.set_partition(setup.partition.sizes, counts)
        domains = [_domain(config, members, r) for r in range(comm.size)]
        store = None
        if comm.size == 1:
            store = _start_player(rank, setup, members)
        progress = Progress(console, config.rounds, config.participation.clients_per_round)
        server = Server(rank, setup, domains, ledger, Listeners([progress]))
        try:
            totals = server.run(lambda: bool(stop))
        finally:
            progress.close()
        if store is not None:
            store.close()
        status = "stopped" if totals.stopped else "done"
        ledger.finish(status, totals.attributes())
    except BaseException as error:
        words = f"failed: {type(error).__name__}: {error}"
        with contextlib.suppress(FedmpiError):
            ledger.finish(words, {})
        console.print(f"fedmpi: {words}")
        console.close()
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
    console.close()
    return EXIT_STOPPED if totals.stopped else 0


def _work(config: RunConfig, comm: Communicator) -> None:
    rank, members = join(comm, config)
    setup = prepare(config)
    store = _start_player(rank, setup, members)
    run_worker(rank, setup)
    store.close()


def _start_player(rank: Rank, setup: Setup, members: Membership) -> ClientStateStore:
    place = members.places[rank.comm.rank]
    torch.set_num_threads(place.threads)
    keep_freed_memory()
    device = torch.device(place.device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
        torch.backends.cudnn.deterministic = True
        torch.backends.cudnn.benchmark = False
    folder = state_folder(setup.config.placement.state_dir, rank.comm.rank, members.token)
    store = ClientStateStore(folder, rank.comm.pool)
    Player(rank, setup, device, store)
    # What the imports left behind lives as long as the process: collecting garbage need not walk through it again.
    gc.collect()
    gc.freeze()
    return store


def _domain(config: RunConfig, members: Membership, rank: int) -> str:
    """Name the client state folder that a rank sees: those of one name can play each other's clients."""
    return f"{members.places[rank].host}:{state_folder(config.placement.state_dir, rank, members.token)}"


def _open_output(out: Path, overwrite: bool) -> Console:
    ledger = out / LEDGER_NAME
    if ledger.exists() and not overwrite:
        raise OutputError(f"{out} holds a run already; choose another folder with -o, or --overwrite it")
    try:
        out.mkdir(parents=True, exist_ok=True)
        ledger.unlink(missing_ok=True)
        return Console(out / "log.txt")
    except OSError as error:
        raise OutputError(f"cannot write to the output folder {out}: {error}") from error


def _mpi_library(comm: Communicator) -> str:
    module = sys.modules.get("fedmpi.comm.mpi")
    return module.library_version() if module is not None else "none (one process)"


@contextlib.contextmanager
def _stop_flag() -> Iterator[list[int]]:
    """Turn SIGTERM and SIGUSR1 into a wish to stop after the round; launchers pass them to every rank."""
    asked: list[int] = []
    numbers = (signal.SIGTERM, signal.SIGUSR1)
    before = [signal.signal(number, lambda number, _: asked.append(number)) for number in numbers]
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
    words = f"{type(error).__name__}: {error}"
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

"""One run on one rank, from the meeting of the ranks to the last line, and what happens when a rank fails."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import torch

from fedmpi.comm.base import Communicator
from fedmpi.comm.placement import place_row
from fedmpi.config import RunConfig
from fedmpi.configfile import describe
from fedmpi.engine.clientstate import ClientStateStore, state_folder
from fedmpi.engine.events import Listeners
from fedmpi.engine.join import Membership, NoRunError, join
from fedmpi.engine.player import Player
from fedmpi.engine.rank import Rank
from fedmpi.engine.server import Server
from fedmpi.engine.setup import Setup, prepare, resolve
from fedmpi.engine.worker import run_worker
from fedmpi.errors import EXIT_STOPPED, FedmpiError, OutputError, RemoteError
from fedmpi.lastwords import fail, on_fail, refuse_to_start, words_of
from fedmpi.ledger.reader import Ledger
from fedmpi.ledger.schema import LEDGER_NAME
from fedmpi.ledger.writer import LedgerWriter
from fedmpi.report import banner, summary
from fedmpi.report.console import Console
from fedmpi.report.progress import Progress
from fedmpi.wire.buffers import STAGING, keep_freed_memory, pinned_memory


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
            if comm.rank != 0:
                return _work(config, comm, cleanup)
            # All that a user can get wrong is looked for first, while nothing is printed and the workers only prepare.
            try:
                check_output(out, overwrite)
                setup = prepare(config)
                rank, members = join(comm, config, on_fail=on_fail)
                out.mkdir(parents=True, exist_ok=True)
            except RemoteError:
                raise
            except FedmpiError as error:
                return refuse_to_start(comm, error)
            return _serve(setup, out, rank, members, stop, cleanup)
    except BaseException as error:
        return fail(comm, error)
    finally:
        comm.close()


def _serve(
    setup: Setup, out: Path, rank: Rank, members: Membership, stop: list[int], cleanup: contextlib.ExitStack
) -> int:
    config, comm = setup.config, rank.comm
    console = Console()
    cleanup.callback(console.close)
    ledger = None
    try:
        facts = banner.provenance(_mpi_library(comm))
        console.print(banner.banner(facts))
        console.print(banner.echo(config))
        console.print(banner.placement(members.places, members.warnings))
        console.print(banner.data(setup))
        torch.set_num_threads(members.places[0].threads)
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
        words = f"failed: {words_of(error)}"
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


def _work(config: RunConfig, comm: Communicator, cleanup: contextlib.ExitStack) -> int:
    problem = setup = None
    try:
        setup = prepare(config)
    except FedmpiError as error:
        problem = error
    try:
        rank, members = join(comm, config, problem=problem)
    except NoRunError as error:
        return error.exit_status
    assert setup is not None, "rank 0 starts no run with a rank that has a problem"
    _start_player(rank, setup, members, cleanup)
    run_worker(rank, setup)
    return 0


def _start_player(rank: Rank, setup: Setup, members: Membership, cleanup: contextlib.ExitStack) -> None:
    place = members.places[rank.comm.rank]
    torch.set_num_threads(place.threads)
    keep_freed_memory()
    device = torch.device(place.device)
    if device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is deterministic only with this
        torch.cuda.set_device(device)
        for pool in (rank.comm.pool, STAGING):
            pool.allocate_with(pinned_memory)
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


def check_output(out: Path, overwrite: bool) -> None:
    """Raise `OutputError` if a run cannot be written to `out`; nothing is made."""
    if (out / LEDGER_NAME).exists() and not overwrite:
        raise OutputError(f"{out} holds a run already; choose another folder with -o, or --overwrite it")
    for folder in (out, *out.absolute().parents):
        if folder.exists():
            break
    if not folder.is_dir():
        raise OutputError(f"cannot make the output folder {out}: {folder} is a file; choose another with -o")
    try:
        # Asking the file system beats asking about permissions, which root always has.
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OutputError(
            f"the output folder {out} is not writable ({folder}: {error.strerror}); choose another with -o"
        ) from error


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

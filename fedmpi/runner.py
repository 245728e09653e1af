"""One run on one rank, from the meeting of the ranks to the last line, and what happens when a rank fails."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import torch

from fedmpi.comm.base import Communicator
from fedmpi.comm.placement import check_num_ranks, place_row
from fedmpi.config import RunConfig
from fedmpi.engine.clientstate import ClientStateStore, state_folder
from fedmpi.engine.events import Listeners
from fedmpi.engine.join import Membership, NoRunError, join
from fedmpi.engine.player import Player
from fedmpi.engine.rank import Rank
from fedmpi.engine.server import Server
from fedmpi.engine.setup import Setup, prepare, resolve
from fedmpi.engine.worker import run_worker
from fedmpi.errors import EXIT_STOPPED, FedmpiError, PlacementError
from fedmpi.lastwords import fail, on_fail, refuse_to_start, words_of
from fedmpi.ledger.reader import Ledger
from fedmpi.output import begin_output, check_output, check_state_dir
from fedmpi.report import banner, summary
from fedmpi.report.console import Console
from fedmpi.report.progress import Progress
from fedmpi.wire.buffers import STAGING, keep_freed_memory, pinned_memory


def run(
    config: RunConfig | None,
    out: Path,
    comm: Communicator,
    *,
    overwrite: bool = False,
    problem: FedmpiError | None = None,
) -> int:
    """Take part in a run, as the server on rank 0 and as a worker elsewhere; with one rank, as both.

    Parameters
    ----------
    config : RunConfig or None
        None where `problem` says why there is none.
    out : Path
        Folder for ``ledger.h5``, ``config.yaml`` and ``log.txt``; only rank 0 touches it.
    comm : Communicator
    overwrite : bool
        Replace the run that `out` holds.
    problem : FedmpiError, optional
        Why this rank cannot take part: the others must hear of it.

    Returns
    -------
    int
        The exit status. When a rank fails in the run and there are several, the whole job is aborted with it instead.
    """
    try:
        with _stop_flag() as stop, contextlib.ExitStack() as cleanup:
            # All that a user can get wrong is looked for first, while nothing is printed and nothing is sent.
            setup = None
            try:
                if config is not None:
                    check_num_ranks(comm.size, config.placement)
                    if comm.rank == 0:
                        check_output(out, overwrite)
                    check_state_dir(config.placement.state_dir, comm.rank)
                    setup = prepare(resolve(config))
                    if comm.rank == 0:
                        setup.check_server()
            except FedmpiError as error:
                problem = error
            if comm.rank != 0:
                return _work(config, setup, comm, cleanup, problem)
            if problem is not None:
                return refuse_to_start(comm, problem, all_heard=False)
            assert setup is not None
            try:
                rank, members = join(comm, setup.config, on_fail=on_fail, warm_up=setup.warm_up)
            except (NoRunError, PlacementError) as error:
                return refuse_to_start(comm, error, all_heard=True)
            return _serve(setup, out, rank, members, stop, cleanup, overwrite)
    except BaseException as error:
        return fail(comm, error)
    finally:
        comm.close()


def _serve(
    setup: Setup,
    out: Path,
    rank: Rank,
    members: Membership,
    stop: list[int],
    cleanup: contextlib.ExitStack,
    overwrite: bool,
) -> int:
    config, comm = setup.config, rank.comm
    console = Console()
    cleanup.callback(console.close)
    ledger = None
    try:
        facts = banner.provenance(_mpi_library(comm))
        console.print(banner.banner(facts))
        console.print(banner.echo(config))
        console.print(banner.placement(members.places, [*members.warnings, *setup.warnings]))
        console.print(banner.data(setup))
        torch.set_num_threads(members.places[0].threads)
        attrs: dict[str, str | int | float] = {
            **facts,
            "seed": config.seed,
            "algorithm": setup.algorithm.name,
            "num_ranks": comm.size,
        }
        if setup.pretrained is not None:
            attrs |= {"pretrained_source": setup.pretrained.source, "pretrained_hash": setup.pretrained.hash}
        ledger = begin_output(out, attrs, config, overwrite=overwrite)
        console.log_to(out / "log.txt")
        ledger.set_placement([place_row(place) for place in members.places])
        counts = setup.partition.class_counts(setup.dataset.train_labels, setup.dataset.num_classes)
        ledger.set_partition(setup.partition.sizes, counts)
        if comm.size == 1:
            _start_player(rank, setup, members, cleanup)
        device = _use_device(members.places[0].device, rank)
        progress = Progress(console, config.rounds, config.participation.clients_per_round)
        domains = [_domain(config, members, r) for r in range(comm.size)]
        server = Server(rank, setup, domains, ledger, Listeners([progress]), device)
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
        with contextlib.suppress(OSError):
            console.print(f"fedmpi: {words}")
        raise
    console.print(
        summary.timing_table([part.phase_s for part in totals.ranks], [part.peak_nbytes for part in totals.ranks])
    )
    with Ledger(ledger.path) as written:
        console.print(summary.byte_table(written))
        console.print(
            f"  handed to the communicator: {written.attrs['message_nbytes']} bytes of messages, "
            f"{written.attrs['simulation_nbytes']} beside them"
        )
        if len(written.faults["fault"]):
            console.print(summary.fault_line(written))
        console.print(summary.last_line(written.summary()))
    return EXIT_STOPPED if totals.stopped else 0


def _work(
    config: RunConfig | None,
    setup: Setup | None,
    comm: Communicator,
    cleanup: contextlib.ExitStack,
    problem: FedmpiError | None,
) -> int:
    try:
        rank, members = join(
            comm,
            setup.config if setup is not None else config,
            problem=problem,
            warm_up=setup.warm_up if setup is not None else lambda: None,
        )
    except NoRunError as error:
        return error.exit_status
    assert setup is not None, "rank 0 starts no run with a rank that has a problem"
    _start_player(rank, setup, members, cleanup)
    run_worker(rank, setup, torch.device(members.places[rank.comm.rank].device))
    return 0


def _use_device(name: str, rank: Rank) -> torch.device:
    """Make a device this rank's; a GPU computes deterministically from now on, and buffers for it are pinned."""
    device = torch.device(name)
    if device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is deterministic only with this
        torch.cuda.set_device(device)
        for pool in (rank.comm.pool, STAGING):
            pool.allocate_with(pinned_memory)
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # nobody reads it
        torch.backends.cudnn.benchmark = False
    return device


def _start_player(rank: Rank, setup: Setup, members: Membership, cleanup: contextlib.ExitStack) -> None:
    place = members.places[rank.comm.rank]
    torch.set_num_threads(place.threads)
    keep_freed_memory()
    device = _use_device(place.device, rank)
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

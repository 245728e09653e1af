"""``fedmpi run --dry-run``: everything is checked and the first rounds' messages are made, but nothing is trained.

The rounds go through the same engine in this process, over the clients that the run would draw, and are logged in a
ledger that is thrown away. So the bytes of kinds whose size does not follow from what was learnt are those of the run.
"""

from __future__ import annotations

import dataclasses
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from fedmpi.comm.local import LocalCommunicator
from fedmpi.comm.placement import RankFacts, check_num_ranks, gather_facts, place_ranks
from fedmpi.config import RunConfig
from fedmpi.configfile import describe
from fedmpi.engine.clientstate import ClientStateStore
from fedmpi.engine.events import Listeners
from fedmpi.engine.memory import RankMemory, estimate_memory, resident_nbytes
from fedmpi.engine.player import Player
from fedmpi.engine.rank import Rank
from fedmpi.engine.server import Server
from fedmpi.engine.setup import Setup, prepare
from fedmpi.ledger.reader import Ledger
from fedmpi.ledger.schema import LEDGER_NAME
from fedmpi.ledger.writer import LedgerWriter
from fedmpi.output import check_output, check_state_dir
from fedmpi.report import banner
from fedmpi.report.console import megabytes, table
from fedmpi.wire.message import KINDS, Schema
from fedmpi.wire.sizes import has_exact_size, most_payload_nbytes


def dry_run(config: RunConfig, out: Path, num_ranks: int, *, overwrite: bool = False) -> int:
    """Check a run as if on `num_ranks` ranks of this machine and print what it would take; return the exit status.

    Raises
    ------
    FedmpiError
        Whatever the run itself would be refused with.
    """
    check_output(out, overwrite)
    check_num_ranks(num_ranks, config.placement)
    check_state_dir(config.placement.state_dir, 0)
    setup = dataclasses.replace(prepare(config), dry_run=True)
    setup.check_server()
    setup.warm_up()  # compiled kernels and their compiler take memory, too
    program_nbytes = resident_nbytes()
    places, warnings = place_ranks(_facts(num_ranks), config.placement)
    torch.set_num_threads(places[0].threads)
    with tempfile.TemporaryDirectory(prefix="fedmpi-dry-run-") as folder:
        messages = messages_of_rounds(setup, Path(folder))
    print(banner.banner(banner.provenance("not started")))
    print(banner.echo(config))
    print(banner.data(setup))
    print(banner.placement([dataclasses.replace(place, pid=0) for place in places], [*warnings, *setup.warnings]))
    sizes = bounded(messages, setup.schema)
    ups = sizes.nbytes[messages["direction"] == "up"]
    memory = estimate_memory(setup, places, program_nbytes, int(ups.max(initial=0)))
    print(memory_table(memory))
    needed = needed_nbytes(memory)
    if needed > (here := memory_of_this_machine()):
        print(f"  warning: about {needed / 1e6:.0f} MB in all, this machine has {here / 1e6:.0f}")
    repeats = setup.algorithm.rounds_until_repeated(setup.algorithm_config)
    print(message_table(messages, sizes, num_made(setup)))
    down, up = whole_run(setup, messages, sizes)
    is_bound = repeats is not None and not sizes.is_exact.all()
    unlike = "" if repeats is not None else " (if all but the first were like the second, which they are not)"
    print(
        f"fedmpi: dry run ok, nothing trained or written; {config.rounds} rounds would send "
        f"{'at most' if is_bound else 'about'} down_bytes={down} up_bytes={up}{unlike}"
    )
    return 0


def num_made(setup: Setup) -> int:
    """Return of how many rounds the messages are made: the first, and those of one cycle."""
    return min(setup.config.rounds, 1 + (setup.algorithm.rounds_until_repeated(setup.algorithm_config) or 1))


def messages_of_rounds(setup: Setup, folder: Path) -> dict[str, np.ndarray[Any, Any]]:
    """Hold the first rounds' conversations without training; return the columns of their messages."""
    config = setup.config
    evaluate = config.evaluate.model_copy(update={"every": 0})
    short = config.model_copy(update={"rounds": num_made(setup), "evaluate": evaluate})
    setup = dataclasses.replace(setup, config=short)
    rank = Rank(LocalCommunicator(), config.comm.timeout_s)
    store = ClientStateStore(folder / "state", rank.comm.pool)
    path = folder / LEDGER_NAME
    writer = LedgerWriter(path, attrs={}, config_yaml=describe(config), flush_s=config.ledger.flush_s)
    try:
        Player(rank, setup, torch.device("cpu"), store)
        Server(rank, setup, ["here"], writer, Listeners([])).run(lambda: False)
        writer.finish("done", {})
        with Ledger(path) as ledger:
            return ledger.messages
    finally:
        writer.finish("failed: dry run", {})
        store.close()


def _facts(num_ranks: int) -> list[RankFacts]:
    own = gather_facts(0, "", "", is_worker=True)
    return [dataclasses.replace(own, rank=rank) for rank in range(num_ranks)]


def needed_nbytes(memory: Sequence[RankMemory]) -> int:
    """Return the bytes that ranks of one node take together: they share the data, which are counted once."""
    return sum(rank.total - rank.data for rank in memory) + max(rank.data for rank in memory)


def memory_of_this_machine() -> int:
    """Return the bytes of main memory that this machine has."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGESIZE")


def memory_table(memory: Sequence[RankMemory]) -> str:
    """Return the estimates, one row for the server and one for all workers."""
    shown = {rank.role: rank for rank in reversed(memory)}
    rows = []
    for role in ("both", "server", "worker"):
        if role in shown:
            rank, count = shown[role], sum(other.role == role for other in memory)
            parts = (rank.program, rank.data, rank.model, rank.activations, rank.messages, rank.total)
            rows.append((role, count, *(f"{part / 1e6:.0f}" for part in parts)))
    header = ("role", "ranks", "program", "data", "model", "activations", "messages", "total")
    title = (
        "memory a rank (MB, estimated; ranks of a node share the data; on top come MPI, the kernels' own buffers, and\n"
        "what an algorithm keeps beside a model: replay buffers, the server's part for each client in progress)"
    )
    return f"{title}\n{table(header, rows)}"


class Bounded(NamedTuple):
    """What messages weigh, (num_messages,) int64, and for which this is exact, bool."""

    nbytes: np.ndarray[Any, Any]
    is_exact: np.ndarray[Any, Any]


def message_table(messages: dict[str, np.ndarray[Any, Any]], sizes: Bounded, num_rounds: int) -> str:
    """Return the messages of the first rounds by kind, sizes in bytes; of a long cycle the beginning and the end."""
    rows = []
    for round_idx in sorted({0, min(1, num_rounds - 1), num_rounds - 1}):
        for direction in ("down", "up"):
            of_direction = (messages["round_idx"] == round_idx) & (messages["direction"] == direction)
            for kind in dict.fromkeys(messages["kind"][of_direction].tolist()):
                chosen = of_direction & (messages["kind"] == kind)
                wire = int(sizes.nbytes[chosen].sum())
                is_exact = bool(sizes.is_exact[chosen].all())
                count = int(np.count_nonzero(chosen))
                name = "later" if round_idx == 1 and num_rounds == 2 else str(round_idx + 1)
                rows.append(
                    (name, direction, kind, count, f"{'' if is_exact else '<= '}{wire}", f"{wire / count:.0f}",
                     megabytes(wire))
                )  # fmt: skip
    header = ("round", "direction", "kind", "messages", "bytes", "B/message", "MB")
    title = "messages of a round (<= where the size depends on what is learnt, else exact)\n"
    return title + table(header, rows, left=3)


def bounded(messages: dict[str, np.ndarray[Any, Any]], schema: Schema) -> Bounded:
    """Return what messages weigh: exactly, or at most where that depends on what is learnt."""
    classes = {(cls.direction, cls.kind): cls for cls in KINDS.values()}
    nbytes, is_exact = messages["wire_nbytes"].astype(np.int64), np.ones(len(messages["kind"]), np.bool_)
    for direction, kind in set(zip(messages["direction"].tolist(), messages["kind"].tolist(), strict=True)):
        message_class = classes[direction, kind]
        if has_exact_size(message_class, schema.wire):
            continue
        chosen = (messages["direction"] == direction) & (messages["kind"] == kind)
        is_exact[chosen] = False
        most = [most_payload_nbytes(message_class, schema, kept) for kept in messages["num_kept"][chosen].tolist()]
        nbytes[chosen] = messages["header_nbytes"][chosen] + np.array(most, np.int64)
    return Bounded(nbytes, is_exact)


def whole_run(setup: Setup, messages: dict[str, np.ndarray[Any, Any]], sizes: Bounded) -> tuple[int, int]:
    """Return the bytes down and up of all rounds, from the sizes of the messages that were made.

    Who takes part in the other rounds, and who is lost, is known; what a client's messages weigh is taken to be as in
    the same round of the cycle that was made.
    """
    num_rounds = setup.config.rounds
    participation = setup.config.participation
    always_the_same = participation.availability == 1 and not participation.dropout
    taking_part, replying = [], []
    for round_idx in range(0 if always_the_same else num_rounds):
        cohort = setup.cohort(round_idx)
        taking_part.append(len(cohort))
        replying.append(sum(not setup.participation.drops_out(round_idx, client_id) for client_id in cohort))
    if always_the_same:
        taking_part = replying = [participation.clients_per_round] * num_rounds
    totals = []
    for direction, counts in (("down", taking_part), ("up", replying)):
        of_direction = messages["direction"] == direction
        made = [
            int(sizes.nbytes[of_direction & (messages["round_idx"] == round_idx)].sum())
            for round_idx in range(num_made(setup))
        ]
        # Where nobody took part in such a round, as in the last before it in which somebody did.
        each = [0.0] * len(made)
        for i, nbytes in enumerate(made):
            each[i] = nbytes / counts[i] if counts[i] else each[max(0, i - 1)]
        cycle = each[1:] or each
        rest = sum(cycle[(i - 1) % len(cycle)] * counts[i] for i in range(len(made), num_rounds))
        totals.append(sum(made) + round(rest))
    return totals[0], totals[1]

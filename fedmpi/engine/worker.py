"""A worker rank: plays clients, and hosts conversations where the run shares them out, until it is told to stop."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import numpy as np
import torch

from fedmpi.algorithms.base import ServerContext, ServerHalf
from fedmpi.comm.base import Envelope, Packet
from fedmpi.engine.host import Host
from fedmpi.engine.rank import Rank, Topic, pack_floats
from fedmpi.engine.reply import FAULTS, Reply
from fedmpi.engine.rows import join_parts, pack_rows, split_parts
from fedmpi.engine.setup import Setup
from fedmpi.engine.statefile import unpack_state
from fedmpi.engine.totals import send_bye
from fedmpi.wire import frame as framing


def make_server_half(
    setup: Setup, device: torch.device, warn: Callable[[str], None] = lambda words: None
) -> ServerHalf:
    """Build the algorithm's server half as the configuration has it; `warn` shows its warnings."""
    send_seed = setup.config.server.initial_model != "full" and not setup.initial.from_file
    context = ServerContext(
        setup.config.seed,
        setup.initial.layout,
        setup.initial,
        send_seed,
        setup.schema.known,
        setup.num_rounds,
        functools.cache(setup.weight_uses),
        warn,
        setup.model,
        setup.config.train,
        device,
        setup.schema,
        dry_run=setup.dry_run,
    )
    return setup.algorithm.server(setup.algorithm_config, context)


def make_host(rank: Rank, setup: Setup, algorithm: ServerHalf, on_reply: Callable[[Reply], None]) -> Host:
    """Build the host of conversations as the configuration has it."""
    return Host(
        rank,
        algorithm,
        setup.schema,
        on_reply,
        drops_out=setup.participation.drops_out,
        drop_nonfinite=setup.config.server.nonfinite == "drop",
        max_in_flight=setup.config.server.max_in_flight,
        work=algorithm.ctx.work,
    )


def run_worker(rank: Rank, setup: Setup, device: torch.device) -> None:
    """Work until rank 0 says stop, then send it this rank's totals. A `Player` serves the rank already."""
    stopped = False

    def on_stop(packet: Packet) -> None:
        nonlocal stopped
        stopped = True

    rank.handlers[Topic.STOP] = on_stop
    if setup.config.server.host != "rank0":
        serve_conversations(rank, setup, make_server_half(setup, device))
    # However long the others train: if rank 0 goes, MPI ends this rank.
    rank.wait_until(lambda: stopped, lambda: "its next client from rank 0", may_work=True, timeout_s=math.inf)
    rank.flush()
    send_bye(rank)


def serve_conversations(rank: Rank, setup: Setup, algorithm: ServerHalf) -> None:
    """Host conversations for rank 0: take the state at the start of a round, send back every result."""

    def on_reply(reply: Reply) -> None:
        buffer = np.empty(0, np.uint8)
        times: tuple[float, ...] = ()
        if reply.waiting is not None:
            waiting = reply.waiting
            buffer = waiting.body
            times = (waiting.step, waiting.send_t, waiting.recv_t, waiting.encode_s, waiting.bound_nbits)
        elif reply.message is not None:
            buffer = framing.encode(reply.message, setup.schema, rank.comm.pool).buffer
        report, ops = pack_floats(*reply.report.floats()), pack_floats(reply.server_ops)
        body = join_parts(pack_rows(reply.rows), report, ops, pack_floats(*times), buffer)
        fault = FAULTS.index(reply.fault)  # a result's step says nothing else
        rank.send(0, Envelope(Topic.RESULT, False, reply.round_idx, reply.client_id, fault, reply.player), body)

    host = make_host(rank, setup, algorithm, on_reply)

    def on_round(packet: Packet) -> None:
        host.begin_round()
        state, cohort = split_parts(packet.body)
        algorithm.load_state_dict(unpack_state(state, f"the server's state from rank {packet.source}"))
        algorithm.begin_round(packet.envelope.round_idx, cohort.view(np.int64).tolist())

    def on_host(packet: Packet) -> None:
        envelope = packet.envelope
        if packet.body.size:
            brief = unpack_state(packet.body, f"what a conversation needs, from rank {packet.source}")
            algorithm.take_brief(envelope.round_idx, envelope.client_id, brief)
        host.start(envelope.round_idx, envelope.client_id, envelope.arg, envelope.step)

    rank.handlers[Topic.ROUND] = on_round
    rank.handlers[Topic.HOST] = on_host

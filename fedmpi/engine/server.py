"""Rank 0: the rounds. Deals clients to workers, adds replies in ascending client_id, writes the ledger."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from time import perf_counter

import numpy as np
import torch

from fedmpi.comm.base import Envelope, Packet
from fedmpi.engine.clock import RoundClock
from fedmpi.engine.evaluation import Evaluation, ToTest, what_to_test
from fedmpi.engine.events import Listeners
from fedmpi.engine.phases import PHASES
from fedmpi.engine.rank import Rank, Topic, unpack_floats
from fedmpi.engine.reply import FAULTS, Arrived, Reply, TurnReport
from fedmpi.engine.rows import join_parts, split_parts, unpack_rows
from fedmpi.engine.schedule import Dispatcher
from fedmpi.engine.setup import Setup
from fedmpi.engine.statefile import pack_state
from fedmpi.engine.totals import RunTotals, dismiss_workers
from fedmpi.engine.worker import make_host, make_server_half
from fedmpi.errors import NonFiniteError, ProtocolError
from fedmpi.ledger.digest import model_digest
from fedmpi.ledger.schema import ROUND_COLUMNS
from fedmpi.ledger.writer import LedgerWriter
from fedmpi.wire import frame as framing
from fedmpi.wire.message import Message

CPU = torch.device("cpu")
_DENSE_ITEM_NBYTES = 4
_OWN_COLUMNS = {column.name for column in ROUND_COLUMNS} - {"density"}
_TIMED = PHASES[: PHASES.index("log") + 1]


class Server:
    """The server of a run.

    Parameters
    ----------
    rank : Rank
    setup : Setup
    domains : sequence of str
        By rank: which client state folder it sees.
    ledger : LedgerWriter
    listeners : Listeners
    device : torch.device
        Where the server half computes, if it does.
    """

    def __init__(
        self,
        rank: Rank,
        setup: Setup,
        domains: Sequence[str],
        ledger: LedgerWriter,
        listeners: Listeners,
        device: torch.device = CPU,
    ) -> None:
        self._rank = rank
        self._setup = setup
        self._domains = list(domains)
        self._ledger = ledger
        self._listeners = listeners
        config = setup.config
        self._workers = list(range(1, rank.comm.size)) or [0]
        self._algorithm = make_server_half(setup, device, listeners.warned)
        self._host = make_host(rank, setup, self._algorithm, self._on_reply)
        # Nothing to hold for its turn makes the order of dealing that of the clients' numbers.
        hold_nbytes = 0 if self._algorithm.is_sequential else config.server.hold_nbytes
        self._dispatcher = Dispatcher(self._workers, hold_nbytes, _DENSE_ITEM_NBYTES * setup.initial.layout.num_state)
        self._num_open = 0  # clients that were dealt and not yet aggregated
        self._replies: dict[int, Reply] = {}
        self._held_nbytes = 0
        self._away: set[int] = set()  # clients whose conversations other ranks host
        self._homes: dict[int, tuple[int, int]] = {}  # client: round of its newest state, rank that wrote it
        self._evaluation: Evaluation | None = None
        self._round_rows: deque[dict[str, float]] = deque()
        self._cum_nbytes = {"down": 0, "up": 0}
        self._last_phases: dict[int, list[float]] = {}
        self._round_idx = 0
        self._clock = RoundClock(config.time, config.seed)
        rank.handlers[Topic.RESULT] = self._on_result
        rank.handlers[Topic.EVAL_RESULT] = self._on_eval_result

    def run(self, stop_requested: Callable[[], bool]) -> RunTotals:
        """Do all rounds, or those until `stop_requested` says so between two; then collect the workers' totals."""
        start = perf_counter()
        stopped = False
        try:
            for round_idx in range(self._setup.config.rounds):
                if stop_requested():
                    stopped = True
                    if self._evaluation is None and self._round_rows:
                        self._start_evaluation(round_idx - 1, last=True)
                    break
                self._round(round_idx)
            self._finish_evaluation()
        finally:
            # If something has failed, what is known of the last rounds is kept, untested.
            self._evaluation = None
            try:
                self._log_arrived()
                self._emit_rounds()
            finally:
                self._algorithm.close()
        model = self._algorithm.global_model()
        state, ints = model.state_S.cpu().numpy(), model.ints_I.cpu().numpy()
        if self._setup.config.ledger.save_model:
            entries = self._setup.initial.layout.entries
            self._ledger.set_model(state, ints, [(entry.name, entry.shape, entry.offset) for entry in entries])
        ranks = dismiss_workers(self._rank, [w for w in self._workers if w != self._rank.comm.rank])
        return RunTotals(ranks, perf_counter() - start, model_digest(state, ints), stopped)

    def _round(self, round_idx: int) -> None:
        start = perf_counter()
        setup, rank = self._setup, self._rank
        self._round_idx = round_idx
        drawn = setup.cohort(round_idx)
        cohort = sorted(self._algorithm.choose(round_idx, drawn))
        if not set(cohort) <= set(drawn) or len(set(cohort)) < len(cohort):
            raise ValueError(f"choose must return some of the clients drawn, each once, got {cohort} of {drawn}")
        phases_before = self._phase_sums()
        self._share_state(round_idx, cohort)
        with rank.timer.phase("aggregate"):
            self._algorithm.begin_round(round_idx, cohort)
        self._host.begin_round()
        drops_out = setup.participation.drops_out
        cost = {client: 0 if drops_out(round_idx, client) else setup.num_samples(client) for client in cohort}
        self._dispatcher.begin(
            cost, {client: self._workers_at_home(client) for client in cohort if client in self._homes}
        )
        self._deal()
        self._ledger_work()
        nbytes = {"down": 0, "up": 0}
        loss_sum = num_samples = 0.0
        num_faults = 0
        for num_done, client_id in enumerate(cohort):
            rank.wait_until(lambda: client_id in self._replies, self._waiting_for, may_work=True)  # noqa: B023
            reply = self._replies.pop(client_id)
            self._held_nbytes -= reply.held_nbytes
            try:
                result = self._result(reply)
            finally:
                with rank.timer.phase("log"):
                    for message_row in reply.rows:
                        self._ledger.add_message(message_row)
                        nbytes[message_row.direction] += message_row.wire_nbytes
                    self._clock.add(reply)
                    if self._clock.runs:
                        self._ledger.add_turn(round_idx, client_id, reply.report.device_ops, reply.server_ops)
                    if reply.fault:
                        num_faults += 1
                        self._ledger.add_fault(round_idx, client_id, reply.player, reply.fault)
                    self._ledger.write_due()
            if result is not None:
                # The state of a turn that came to nothing is left where it lies: the client goes on from its last.
                if reply.report.kept_state:
                    self._homes[client_id] = (round_idx, reply.player)
                with rank.timer.phase("aggregate"):
                    self._algorithm.aggregate(round_idx, client_id, result)
            if reply.report.num_samples and not reply.fault:
                loss_sum += reply.report.loss * reply.report.num_samples
                num_samples += reply.report.num_samples
            self._listeners.client_done(round_idx, num_done + 1, len(cohort))
            self._num_open -= 1
            if self._algorithm.is_sequential:
                self._deal()
        # What is framed in place must have left before it changes.
        rank.flush()
        with rank.timer.phase("aggregate"):
            scalars = self._algorithm.end_round(round_idx)
        if not isinstance(scalars, Mapping):
            raise TypeError(f"end_round must return a dict of numbers for the ledger, got {type(scalars).__name__}")
        taken = sorted(_OWN_COLUMNS & scalars.keys())
        if taken:
            raise ValueError(f"end_round returned {', '.join(taken)}: columns of the ledger's own; take another name")
        for direction, count in nbytes.items():
            self._cum_nbytes[direction] += count
        aggregate_ops, self._algorithm.ctx.work.ops = self._algorithm.ctx.work.ops, 0.0
        self._finish_evaluation()
        now = self._phase_sums()
        self._round_rows.append(
            {
                **{f"{name}_s": now[i] - phases_before[i] for i, name in enumerate(_TIMED)},
                "wall_s": perf_counter() - start,
                "round_idx": round_idx,
                "num_clients": len(cohort),
                "num_faults": num_faults,
                "train_loss": loss_sum / num_samples if num_samples else float("nan"),
                "test_loss": float("nan"),
                "test_accuracy": float("nan"),
                "client_accuracy": float("nan"),
                "client_accuracy_std": float("nan"),
                "down_nbytes": nbytes["down"],
                "up_nbytes": nbytes["up"],
                "cum_down_nbytes": self._cum_nbytes["down"],
                "cum_up_nbytes": self._cum_nbytes["up"],
                "density": 1.0,
                **self._clock.end_round(aggregate_ops),
                **scalars,
            }
        )
        self._start_evaluation(round_idx)
        row = self._round_rows[-1]
        if self._algorithm.reads_evaluation:
            self._finish_evaluation()
            if not np.isnan(row["test_accuracy"]):
                self._algorithm.evaluated(round_idx, row["test_loss"], row["test_accuracy"])

    def _log_arrived(self) -> None:
        """Log the messages that have arrived and wait for their turn, which does not come if the round has failed."""
        rows = list(self._host.arrived_rows())
        for reply in self._replies.values():
            with suppress(ProtocolError):  # only its row is wanted, which a reply that cannot be used has too
                self._result(reply)
            rows += reply.rows
        self._replies.clear()
        for row in rows:
            self._ledger.add_message(row)

    def _result(self, reply: Reply) -> Message | None:
        """Return what a conversation came to, None if it came to nothing; then `reply.fault` says why."""
        if reply.fault:
            return None
        try:
            return reply.result(self._rank, self._setup.schema)
        except NonFiniteError:
            reply.fault = "nonfinite"
            if self._setup.config.server.nonfinite == "drop":
                return None
            raise

    def _deal(self) -> None:
        """Give out work while workers can take it: clients first, then batches to test."""
        while not self._dispatcher.all_dealt:
            worker = self._dispatcher.free_worker()
            if worker is None or (self._num_open and self._algorithm.is_sequential):
                return
            self._num_open += 1
            self._deal_client(self._dispatcher.next_client(worker, self._held_nbytes), worker)
        evaluation = self._evaluation
        while evaluation is not None and not evaluation.all_dealt:
            worker = self._dispatcher.free_worker()
            if worker is None:
                return
            self._dispatcher.give(worker, evaluation.deal(worker))

    def _deal_client(self, client_id: int, player: int) -> None:
        state_version, home = self._homes.get(client_id, (-1, -1))
        if home >= 0 and self._domains[player] != self._domains[home]:
            self._rank.send(home, Envelope(Topic.STATE_WANT, False, state_version, client_id, arg=player))
        self._dispatcher.give(player, client_id)
        host = self._host_of(player)
        if host == self._rank.comm.rank:
            self._host.start(self._round_idx, client_id, player, state_version)
        else:
            self._away.add(client_id)
            envelope = Envelope(Topic.HOST, False, self._round_idx, client_id, step=state_version, arg=player)
            brief = self._algorithm.brief(self._round_idx, client_id)
            self._rank.send(host, envelope, pack_state(brief, self._rank.comm.pool) if brief else None)

    def _workers_at_home(self, client_id: int) -> list[int]:
        """Return the workers that see a client's newest state."""
        home = self._domains[self._homes[client_id][1]]
        return [worker for worker in self._workers if self._domains[worker] == home]

    @property
    def _hosting(self) -> str:
        return "rank0" if self._algorithm.is_sequential else self._setup.config.server.host

    def _host_of(self, player: int) -> int:
        policy = self._hosting
        if policy == "rank0":
            return 0
        if policy == "player":
            return player
        return self._workers[(self._workers.index(player) + 1) % len(self._workers)]

    def _share_state(self, round_idx: int, cohort: list[int]) -> None:
        """Send the server half's state to the ranks that will host conversations."""
        if self._hosting == "rank0" or self._workers == [0]:
            return
        state = pack_state(self._algorithm.shared_state(), self._rank.comm.pool)
        body = join_parts(state, np.array(cohort, np.int64).view(np.uint8))
        for worker in self._workers:
            self._rank.send(worker, Envelope(Topic.ROUND, False, round_idx), body)

    def _on_result(self, packet: Packet) -> None:
        rows, report, ops, times, buffer = split_parts(packet.body)
        envelope = packet.envelope
        waiting = message = None
        floats = unpack_floats(times)
        if floats:
            step, *rest = floats
            waiting = Arrived(buffer, int(step), *rest)
        elif not envelope.step:
            message_class = framing.message_class_of(buffer)
            message, _ = framing.decode(buffer, (message_class,) if message_class else (), self._setup.schema)
        self._away.discard(envelope.client_id)
        self._on_reply(
            Reply(
                envelope.round_idx,
                envelope.client_id,
                envelope.arg,
                unpack_rows(rows),
                TurnReport.from_body(report),
                message,
                waiting,
                FAULTS[envelope.step],
                *unpack_floats(ops),
            )
        )

    def _on_reply(self, reply: Reply) -> None:
        self._replies[reply.client_id] = reply
        nbytes = reply.held_nbytes
        self._held_nbytes += nbytes
        self._dispatcher.saw_reply(nbytes)
        self._dispatcher.take_back(reply.player, reply.client_id)
        self._last_phases[reply.player] = reply.report.phase_totals
        self._deal()

    @cached_property
    def _to_test(self) -> ToTest:
        return what_to_test(self._setup.dataset, self._setup.partition)

    def _start_evaluation(self, round_idx: int, *, last: bool = False) -> None:
        config = self._setup.config
        every = config.evaluate.every
        is_last = last or round_idx + 1 == config.rounds
        if not every or ((round_idx + 1) % every and not is_last):
            return
        model = self._algorithm.global_model()
        packed = pack_state({"state": model.state_S, "int_buffers": model.ints_I}, self._rank.comm.pool)
        self._evaluation = Evaluation(
            self._rank,
            round_idx,
            packed,
            self._to_test,
            batch_size=config.evaluate.batch_size,
            num_workers=len(self._workers),
        )

    def _on_eval_result(self, packet: Packet) -> None:
        evaluation = self._evaluation
        assert evaluation is not None and evaluation.round_idx == packet.envelope.round_idx
        self._dispatcher.take_back(packet.source, evaluation.take(packet))
        self._deal()

    def _finish_evaluation(self) -> None:
        """Wait for the evaluation under way, if any, and complete its round's row."""
        evaluation = self._evaluation
        if evaluation is None:
            return
        self._deal()
        self._rank.wait_until(
            lambda: evaluation.finished, lambda: f"the test of round {evaluation.round_idx}", may_work=True
        )
        self._evaluation = None
        row = next(row for row in self._round_rows if row["round_idx"] == evaluation.round_idx)
        row["test_loss"], row["test_accuracy"] = evaluation.result()
        row["client_accuracy"], row["client_accuracy_std"] = evaluation.client_result()
        if self._to_test.class_counts is not None:
            with self._rank.timer.phase("log"):
                self._ledger.add_class_tests(evaluation.round_idx, evaluation.num_correct, self._to_test.num_labels)

    def _ledger_work(self) -> None:
        """Write what is due, now that the workers have work."""
        self._emit_rounds()
        with self._rank.timer.phase("log"):
            self._ledger.write_due()

    def _emit_rounds(self) -> None:
        """Write and announce the rounds that are complete, in order."""
        open_round = self._evaluation.round_idx if self._evaluation else -1
        while self._round_rows and self._round_rows[0]["round_idx"] != open_round:
            row = self._round_rows.popleft()
            with self._rank.timer.phase("log"):
                self._ledger.add_round(row)
            self._listeners.round_done(row)

    def _waiting_for(self) -> str:
        away = ", ".join(f"client {client}" for client in sorted(self._away))
        return "; ".join(text for text in (self._host.waiting_for(), away) if text) or "a reply"

    def _phase_sums(self) -> list[float]:
        """Return the seconds by phase, summed over ranks, as far as they are known here."""
        self._last_phases[self._rank.comm.rank] = self._rank.timer.totals()
        return [sum(column) for column in zip(*self._last_phases.values(), strict=True)]

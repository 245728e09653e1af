"""An evaluation's batches are dealt once, and the result does not depend on who did what."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmpi.comm.base import Envelope, Packet
from fedmpi.comm.local import LocalCommunicator
from fedmpi.engine.evaluation import Evaluation
from fedmpi.engine.rank import Rank, Topic, pack_floats

NUM_TEST, BATCH_SIZE = 1234, 50
NUM_BATCHES = 25
rng = random.Random(1)
CORRECT = [rng.randrange(51) for _ in range(NUM_BATCHES)]
LOSS = [rng.uniform(0.01, 99) * 10 ** rng.randrange(-3, 4) for _ in range(NUM_BATCHES)]
MODEL = np.arange(100, dtype=np.uint8)


class Office(LocalCommunicator):
    """Keeps what is sent to any rank."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[tuple[int, Envelope, bytes]] = []

    def send(self, dest: int, envelope: Envelope, body: np.ndarray | None = None) -> None:
        self.sent.append((dest, envelope, b"" if body is None else body.tobytes()))


def start(num_workers: int, num_test: int = NUM_TEST) -> tuple[Evaluation, Office]:
    office = Office()
    rank = Rank(office, 1.0)
    evaluation = Evaluation(
        rank, 7, MODEL, num_test=num_test, num_labels=num_test, batch_size=BATCH_SIZE, num_workers=num_workers
    )
    return evaluation, office


def answer(worker: int, task: Envelope) -> Packet:
    """Return what a worker sends back for a task."""
    batches = range(task.arg, task.arg + task.step)
    body = pack_floats(*(number for i in batches for number in (CORRECT[i], LOSS[i])))
    return Packet(worker, Envelope(Topic.EVAL_RESULT, False, 7, arg=task.arg, step=task.step), body)


def expected() -> tuple[float, float]:
    loss = 0.0
    for one in LOSS:
        loss += one
    return loss / NUM_TEST, sum(CORRECT) / NUM_TEST


@given(num_workers=st.integers(1, 40), seed=st.integers(0, 99))
@settings(deadline=None)
def test_any_workers_in_any_order_give_the_same_bits(num_workers: int, seed: int) -> None:
    evaluation, office = start(num_workers)
    chance = random.Random(seed)
    keys = []
    tasks: list[tuple[int, Envelope]] = []
    while not evaluation.finished:
        if not evaluation.all_dealt and (not tasks or chance.random() < 0.6):
            keys.append(evaluation.deal(chance.randrange(1, num_workers + 1)))
            dest, envelope, _ = office.sent[-1]
            tasks.append((dest, envelope))
        else:
            worker, task = tasks.pop(chance.randrange(len(tasks)))
            assert evaluation.take(answer(worker, task)) in keys
    assert evaluation.all_dealt
    assert not tasks
    given_out = [envelope for _, envelope, _ in office.sent if envelope.topic == Topic.EVAL]
    batches = [batch for task in given_out for batch in range(task.arg, task.arg + task.step)]
    assert batches == list(range(NUM_BATCHES))
    assert len(set(keys)) == len(keys) == len(given_out)
    assert evaluation.result() == expected()


def test_the_model_goes_once_to_each_who_takes_part_and_before_its_batches() -> None:
    evaluation, office = start(2)
    for worker in (2, 1, 2, 1, 2):
        evaluation.deal(worker)
    assert [(dest, envelope.topic) for dest, envelope, _ in office.sent] == [
        (2, Topic.EVAL_MODEL), (2, Topic.EVAL), (1, Topic.EVAL_MODEL), (1, Topic.EVAL),
        (2, Topic.EVAL), (1, Topic.EVAL), (2, Topic.EVAL),
    ]  # fmt: skip
    assert {body for _, envelope, body in office.sent if envelope.topic == Topic.EVAL_MODEL} == {MODEL.tobytes()}
    assert {envelope.round_idx for _, envelope, _ in office.sent} == {7}
    assert not any(envelope.counted for _, envelope, _ in office.sent)


def test_it_is_not_finished_before_the_last_piece_is_back() -> None:
    evaluation, office = start(1)
    tasks = []
    while not evaluation.all_dealt:
        evaluation.deal(1)
        tasks.append(office.sent[-1][1])
    assert len(tasks) > 1
    for task in tasks:
        assert not evaluation.finished
        evaluation.take(answer(1, task))
    assert evaluation.finished


@pytest.mark.parametrize("num_workers", [1, 2, 8, 100])
def test_pieces_are_small_enough_to_share_out(num_workers: int) -> None:
    evaluation, office = start(num_workers)
    while not evaluation.all_dealt:
        evaluation.deal(1)
    sizes = [envelope.step for _, envelope, _ in office.sent if envelope.topic == Topic.EVAL]
    assert min(sizes) >= 1
    assert max(sizes) <= max(1, NUM_BATCHES / (4 * num_workers))


def test_fewer_images_than_a_batch() -> None:
    evaluation, office = start(3, num_test=10)
    assert evaluation.deal(2) == ("eval", 0)
    assert evaluation.all_dealt
    assert office.sent[-1][1].step == 1
    evaluation.take(Packet(2, Envelope(Topic.EVAL_RESULT, False, 7, arg=0, step=1), pack_floats(6, 25.0)))
    assert evaluation.result() == (2.5, 0.6)

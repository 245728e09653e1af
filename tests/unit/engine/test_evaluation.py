"""An evaluation's batches are dealt once, and the result does not depend on who did what; clients' accuracies."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmpi.comm.base import Envelope, Packet
from fedmpi.comm.local import LocalCommunicator
from fedmpi.data.datasets import Dataset
from fedmpi.data.partition import Partition
from fedmpi.engine.evaluation import Evaluation, ToTest, count_apart, what_to_test
from fedmpi.engine.rank import Rank, Topic, pack_floats

NUM_TEST, BATCH_SIZE = 1234, 50
NUM_BATCHES = 25
rng = random.Random(1)
CORRECT = [[rng.randrange(18) for _ in range(3)] for _ in range(NUM_BATCHES)]  # by class
LOSS = [rng.uniform(0.01, 99) * 10 ** rng.randrange(-3, 4) for _ in range(NUM_BATCHES)]
MODEL = np.arange(100, dtype=np.uint8)
# The third class has no test image, and the last client none but of that class.
IMAGES = ToTest(NUM_TEST, np.array([600, 634, 0]), np.array([[3, 0, 0], [1, 9, 0], [0, 2, 5], [0, 0, 4]]))


class Office(LocalCommunicator):
    """Keeps what is sent to any rank."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[tuple[int, Envelope, bytes]] = []

    def send(self, dest: int, envelope: Envelope, body: np.ndarray | None = None) -> None:
        self.sent.append((dest, envelope, b"" if body is None else body.tobytes()))


def start(num_workers: int, to_test: ToTest = IMAGES) -> tuple[Evaluation, Office]:
    office = Office()
    rank = Rank(office, 1.0)
    return Evaluation(rank, 7, MODEL, to_test, batch_size=BATCH_SIZE, num_workers=num_workers), office


def answer(worker: int, task: Envelope) -> Packet:
    """Return what a worker sends back for a task."""
    batches = range(task.arg, task.arg + task.step)
    body = pack_floats(*(sum(CORRECT[i][k] for i in batches) for k in range(3)), *(LOSS[i] for i in batches))
    return Packet(worker, Envelope(Topic.EVAL_RESULT, False, 7, arg=task.arg, step=task.step), body)


def expected() -> tuple[float, float]:
    loss = 0.0
    for one in LOSS:
        loss += one
    return loss / NUM_TEST, sum(map(sum, CORRECT)) / NUM_TEST


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
    assert evaluation.num_correct.tolist() == [sum(batch[k] for batch in CORRECT) for k in range(3)]


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
    evaluation, office = start(3, ToTest(10, np.array([4, 6]), np.array([[1, 0], [0, 1], [7, 7]])))
    assert evaluation.deal(2) == ("eval", 0)
    assert evaluation.all_dealt
    assert office.sent[-1][1].step == 1
    evaluation.take(Packet(2, Envelope(Topic.EVAL_RESULT, False, 7, arg=0, step=1), pack_floats(1, 5, 25.0)))
    assert evaluation.result() == (2.5, 0.6)
    accuracies = [1 / 4, 5 / 6, 6 / 10]
    mean = sum(accuracies) / 3
    std = math.sqrt(sum((accuracy - mean) ** 2 for accuracy in accuracies) / 3)
    assert evaluation.client_result() == pytest.approx((mean, std), rel=1e-12)


def test_a_client_without_test_images_is_left_out_of_the_mean() -> None:
    evaluation, _ = start(1)
    evaluation.num_correct += [300, 317, 0]
    assert evaluation.client_result() == (0.5, 0.0)
    evaluation, _ = start(1, IMAGES._replace(class_counts=np.array([[0, 0, 4]])))
    assert all(map(math.isnan, evaluation.client_result()))


def data(test_labels: np.ndarray, num_classes: int) -> Dataset:
    """Return a data set of 5 training samples."""
    train_labels = np.array([0, 0, 1, 3, 3]) if test_labels.ndim == 1 else np.zeros((5, 4), np.int64)
    pixels = np.zeros((len(test_labels), 1, 1, 1), np.uint8)
    return Dataset("x", np.zeros((5, 1, 1, 1), np.uint8), train_labels, pixels, test_labels, num_classes, (), ())


def test_what_there_is_to_test_of_images() -> None:
    dataset = data(np.array([0, 1, 1, 3, 0, 1]), 5)
    num_samples, num_labels, class_counts = what_to_test(
        dataset, Partition(np.array([1, 2, 0, 4]), np.array([0, 3, 4]))
    )
    assert (num_samples, num_labels.tolist()) == (6, [2, 3, 0, 1, 0])
    assert class_counts is not None
    assert class_counts.tolist() == [[2, 1, 0, 0, 0], [0, 0, 0, 1, 0]]
    assert count_apart(dataset) == 5


def test_a_text_is_counted_as_a_whole() -> None:
    dataset = data(np.zeros((7, 4), np.int64), 5)
    to_test = what_to_test(dataset, Partition(np.arange(5), np.array([0, 5])))
    assert (to_test.num_samples, to_test.num_labels.tolist(), to_test.class_counts) == (7, [28], None)
    assert count_apart(dataset) == 1
    evaluation, _ = start(1, to_test)
    evaluation.deal(1)
    evaluation.take(Packet(1, Envelope(Topic.EVAL_RESULT, False, 7, arg=0, step=1), pack_floats(21, 14.0)))
    assert evaluation.finished
    assert evaluation.result() == (0.5, 0.75)
    assert all(map(math.isnan, evaluation.client_result()))

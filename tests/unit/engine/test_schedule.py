"""Dispatch: largest first while replies fit, lowest id beyond, every client dealt exactly once."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fedmpi.engine.schedule import IN_FLIGHT, Dispatcher

PLENTY = 10**12


def dealt(dispatcher: Dispatcher, held_nbytes: int = 0) -> list[int]:
    """Deal all that is left to nobody in particular."""
    order = []
    while (client := dispatcher.next_client(held_nbytes)) is not None:
        order.append(client)
    return order


def test_largest_first_and_of_equals_the_lowest_id() -> None:
    dispatcher = Dispatcher([1], PLENTY, 100)
    dispatcher.begin({4: 10, 2: 30, 9: 20, 1: 10, 7: 30})
    assert not dispatcher.all_dealt
    assert dealt(dispatcher) == [2, 7, 9, 1, 4]
    assert dispatcher.all_dealt
    assert dispatcher.next_client(0) is None


def test_beyond_the_limit_the_lowest_id() -> None:
    dispatcher = Dispatcher([1], 1000, 100)
    dispatcher.begin({1: 1, 2: 2, 3: 3, 4: 4, 5: 5})
    assert dispatcher.next_client(900) == 5  # 900 held and one more reply of 100: it fits
    assert dispatcher.next_client(901) == 1
    assert dispatcher.next_client(PLENTY) == 2
    assert dispatcher.next_client(0) == 4
    assert dispatcher.next_client(0) == 3
    assert dispatcher.all_dealt


def test_replies_on_their_way_count() -> None:
    dispatcher = Dispatcher([1, 2], 300, 100)
    dispatcher.begin({1: 1, 2: 2, 3: 3})
    dispatcher.give(1, 50, 1)
    dispatcher.give(2, 51, 1)
    assert dispatcher.next_client(0) == 3  # two in flight and this one: 300
    assert dispatcher.next_client(1) == 1
    dispatcher.take_back(1, 50)
    assert dispatcher.next_client(1) == 2


def test_the_size_of_a_reply_is_learned() -> None:
    dispatcher = Dispatcher([1], 1000, 10_000)
    dispatcher.begin(dict.fromkeys(range(5), 1) | {9: 9, 8: 8})
    assert dispatcher.next_client(0) == 0
    dispatcher.saw_reply(100)
    assert dispatcher.next_client(0) == 9
    dispatcher.saw_reply(2000)
    assert dispatcher.next_client(0) == 1
    dispatcher.saw_reply(0)
    assert dispatcher.next_client(999) == 8
    assert dispatcher.next_client(1000) == 2


def test_a_limit_of_nothing_is_ascending() -> None:
    dispatcher = Dispatcher([1], 0, 1)
    dispatcher.begin({3: 1, 1: 9, 2: 5})
    assert dealt(dispatcher) == [1, 2, 3]


def test_the_free_worker_with_least_work() -> None:
    dispatcher = Dispatcher([1, 2, 3], PLENTY, 1)
    assert dispatcher.free_worker() == 1
    dispatcher.give(1, "a", 10)
    assert dispatcher.free_worker() == 2
    dispatcher.give(2, "b", 3)
    dispatcher.give(3, "c", 5)
    assert dispatcher.free_worker() == 2
    assert dispatcher.free_worker(lambda worker: worker != 2) == 3
    dispatcher.give(2, "d", 0)
    assert dispatcher.free_worker() == 3  # 2 has two pieces
    dispatcher.give(3, "e", 5)
    assert dispatcher.free_worker() == 1
    dispatcher.give(1, "f", 1)
    assert dispatcher.free_worker() is None
    dispatcher.take_back(3, "c")
    assert dispatcher.free_worker() == 3
    assert dispatcher.free_worker(lambda worker: False) is None


def test_the_next_round_starts_afresh() -> None:
    dispatcher = Dispatcher([1], PLENTY, 1)
    dispatcher.begin({1: 1, 2: 2})
    assert dealt(dispatcher) == [2, 1]
    dispatcher.begin({2: 1, 3: 5})
    assert dealt(dispatcher) == [3, 2]


@given(
    cost=st.dictionaries(st.integers(0, 10**6), st.integers(0, 9), max_size=30),
    num_workers=st.integers(1, 5),
    limit=st.integers(0, 2000),
    data=st.data(),
)
def test_every_client_is_dealt_exactly_once(
    cost: dict[int, int], num_workers: int, limit: int, data: st.DataObject
) -> None:
    """Workers finish in any order, replies wait for their turn, and sizes vary."""
    dispatcher = Dispatcher(range(1, num_workers + 1), limit, 100)
    dispatcher.begin(cost)
    busy: list[tuple[int, int]] = []
    order: list[int] = []
    finished: set[int] = set()
    waiting = sorted(cost)
    while busy or not dispatcher.all_dealt:
        worker = dispatcher.free_worker()
        if worker is not None and not dispatcher.all_dealt and (not busy or data.draw(st.booleans())):
            held = 100 * sum(client in finished for client in waiting)
            client = dispatcher.next_client(held)
            assert client is not None
            left = set(cost) - set(order)
            fits = held + 100 * (len(busy) + 1) <= limit
            assert client == (min(left, key=lambda c: (-cost[c], c)) if fits else min(left))
            order.append(client)
            dispatcher.give(worker, client, cost[client])
            busy.append((worker, client))
            assert all(sum(w == worker for w, _ in busy) <= IN_FLIGHT for worker in dispatcher.workers)
        elif busy:
            worker, client = busy.pop(data.draw(st.integers(0, len(busy) - 1)))
            dispatcher.take_back(worker, client)
            finished.add(client)
            while waiting and waiting[0] in finished:
                waiting.pop(0)
    assert sorted(order) == sorted(cost)
    assert dispatcher.next_client(0) is None

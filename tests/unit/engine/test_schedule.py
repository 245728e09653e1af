"""Dispatch: a plan a worker, stealing, the lowest id where replies do not fit; every client dealt exactly once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from fedmpi.engine.schedule import IN_FLIGHT, Dispatcher

PLENTY = 10**12


def dealt(dispatcher: Dispatcher, worker: int, held_nbytes: int = 0) -> list[int]:
    """Deal all that is left to one worker, which is done with each at once."""
    order = []
    while not dispatcher.all_dealt:
        order.append(dispatcher.next_client(worker, held_nbytes))
    return order


def planned(cost: Mapping[int, int], workers: Sequence[int], homes: Mapping[int, Sequence[int]]) -> dict[int, set[int]]:
    """Plan by the rule alone: the largest first, of equals the lowest id, to the worker with least so far."""
    plans: dict[int, set[int]] = {worker: set() for worker in workers}
    for client in sorted(sorted(cost), key=lambda client: cost[client], reverse=True):
        loads = {worker: sum(cost[c] for c in plans[worker]) for worker in homes.get(client) or workers}
        plans[min(worker for worker in loads if loads[worker] == min(loads.values()))].add(client)
    return plans


def test_one_worker_takes_the_largest_first_and_of_equals_the_lowest_id() -> None:
    dispatcher = Dispatcher([1], PLENTY, 100)
    dispatcher.begin({4: 10, 2: 30, 9: 20, 1: 10, 7: 30})
    assert not dispatcher.all_dealt
    assert dealt(dispatcher, 1) == [2, 7, 9, 1, 4]
    assert dispatcher.all_dealt


def test_each_worker_follows_its_own_plan() -> None:
    dispatcher = Dispatcher([1, 2], PLENTY, 100)
    dispatcher.begin({1: 10, 2: 30, 3: 20, 4: 10, 5: 30})  # planned: 2 3 and 5 1 4, 50 each
    assert [dispatcher.next_client(worker, 0) for worker in (2, 1, 1, 2, 2)] == [5, 2, 3, 1, 4]
    assert dispatcher.all_dealt


def test_a_worker_whose_plan_is_done_takes_the_smallest_of_the_one_with_most_left() -> None:
    dispatcher = Dispatcher([1, 2, 3], PLENTY, 100)
    dispatcher.begin({1: 91, 2: 82, 3: 70, 4: 20, 5: 7, 6: 6})  # planned: 1, 2 5 6 and 3 4
    assert dispatcher.next_client(1, 0) == 1
    assert dispatcher.next_client(1, 0) == 6  # 2 has 95 left, 3 has 90
    assert dispatcher.next_client(1, 0) == 4  # 2 has 89 left
    assert dispatcher.next_client(1, 0) == 5  # 3 has 70
    assert dispatcher.next_client(3, 0) == 3
    assert dispatcher.next_client(3, 0) == 2
    assert dispatcher.all_dealt


def test_clients_are_planned_where_their_state_is() -> None:
    dispatcher = Dispatcher([1, 2, 3], PLENTY, 100)
    homes = {7: [2], 8: [2, 3], 5: [2], 6: []}
    dispatcher.begin({7: 10, 8: 9, 9: 8, 5: 7, 6: 6}, homes)  # planned: 9 6, 7 5, 8
    assert [dispatcher.next_client(worker, 0) for worker in (2, 3, 1, 2, 1)] == [7, 8, 9, 5, 6]


def test_a_client_away_from_home_is_better_than_an_idle_worker() -> None:
    dispatcher = Dispatcher([1, 2], PLENTY, 100)
    dispatcher.begin({1: 5, 2: 4, 3: 3}, {1: [2], 2: [2], 3: [2]})
    assert [dispatcher.next_client(worker, 0) for worker in (1, 2, 1)] == [3, 1, 2]


def test_beyond_the_limit_the_lowest_id() -> None:
    dispatcher = Dispatcher([1], 1000, 100)
    dispatcher.begin({1: 1, 2: 2, 3: 3, 4: 4, 5: 5})
    assert dispatcher.next_client(1, 900) == 5  # 900 held and one more reply of 100: it fits
    assert dispatcher.next_client(1, 901) == 1
    assert dispatcher.next_client(1, PLENTY) == 2
    assert dispatcher.next_client(1, 0) == 4
    assert dispatcher.next_client(1, 0) == 3
    assert dispatcher.all_dealt


def test_beyond_the_limit_the_plans_do_not_count() -> None:
    dispatcher = Dispatcher([1, 2], 1000, 100)
    dispatcher.begin({1: 1, 2: 9, 3: 8, 4: 2}, {1: [2]})  # planned: 2, and 3 4 1
    assert dispatcher.next_client(1, PLENTY) == 1
    assert dispatcher.next_client(2, PLENTY) == 2
    assert dispatcher.next_client(2, 0) == 3
    assert dispatcher.next_client(1, 0) == 4


def test_replies_on_their_way_count() -> None:
    dispatcher = Dispatcher([1, 2], 300, 100)
    dispatcher.begin({1: 1, 2: 2, 3: 3})  # planned: 3, and 2 1
    dispatcher.give(1, 50)
    dispatcher.give(2, 51)
    assert dispatcher.next_client(1, 0) == 3  # two in flight and this one: 300
    assert dispatcher.next_client(2, 1) == 1
    dispatcher.take_back(1, 50)
    assert dispatcher.next_client(2, 1) == 2


def test_the_size_of_a_reply_is_learned() -> None:
    dispatcher = Dispatcher([1], 1000, 10_000)
    dispatcher.begin(dict.fromkeys(range(5), 1) | {9: 9, 8: 8})
    assert dispatcher.next_client(1, 0) == 0
    dispatcher.saw_reply(100)
    assert dispatcher.next_client(1, 0) == 9
    dispatcher.saw_reply(2000)
    assert dispatcher.next_client(1, 0) == 1
    dispatcher.saw_reply(0)
    assert dispatcher.next_client(1, 999) == 8
    assert dispatcher.next_client(1, 1000) == 2


def test_a_limit_of_nothing_is_ascending() -> None:
    dispatcher = Dispatcher([1, 2], 0, 1)
    dispatcher.begin({3: 1, 1: 9, 2: 5})
    assert dealt(dispatcher, 2) == [1, 2, 3]


def test_the_free_worker_with_least_work() -> None:
    dispatcher = Dispatcher([1, 2, 3], PLENTY, 1)
    dispatcher.begin({10: 10, 13: 3, 15: 5, 16: 5, 11: 1})
    assert dispatcher.free_worker() == 1
    dispatcher.give(1, 10)
    assert dispatcher.free_worker() == 2
    dispatcher.give(2, 13)
    dispatcher.give(3, 15)
    assert dispatcher.free_worker() == 2
    dispatcher.give(2, ("eval", 0))  # batches to test weigh nothing, but are a piece of work
    assert dispatcher.free_worker() == 3
    dispatcher.give(3, 16)
    assert dispatcher.free_worker() == 1
    dispatcher.give(1, 11)
    assert dispatcher.free_worker() is None
    dispatcher.take_back(2, ("eval", 0))
    assert dispatcher.free_worker() == 2
    dispatcher.take_back(3, 15)
    assert dispatcher.free_worker() == 2  # one piece each; 3 against 5
    dispatcher.take_back(3, 16)
    assert dispatcher.free_worker() == 3


def test_the_next_round_starts_afresh() -> None:
    dispatcher = Dispatcher([1, 2], PLENTY, 1)
    dispatcher.begin({1: 1, 2: 2})
    assert dealt(dispatcher, 1) == [2, 1]
    dispatcher.begin({2: 1, 3: 5, 4: 9})  # planned: 4, and 3 2
    assert not dispatcher.all_dealt
    assert dealt(dispatcher, 2) == [3, 2, 4]


@given(
    cost=st.dictionaries(st.integers(0, 10**6), st.integers(1, 9), max_size=30),
    num_workers=st.integers(1, 5),
    limit=st.integers(0, 2000),
    data=st.data(),
)
@settings(max_examples=60, deadline=None)
def test_every_client_is_dealt_exactly_once(
    cost: dict[int, int], num_workers: int, limit: int, data: st.DataObject
) -> None:
    """Workers finish in any order, replies wait for their turn, and some clients have a home."""
    workers = list(range(1, num_workers + 1))
    homes = {
        client: data.draw(st.lists(st.sampled_from(workers), unique=True))
        for client in sorted(cost)
        if data.draw(st.booleans())
    }
    dispatcher = Dispatcher(workers, limit, 100)
    dispatcher.begin(cost, homes)
    plans = planned(cost, workers, homes)
    busy: list[tuple[int, int]] = []
    order: list[int] = []
    finished: set[int] = set()
    waiting = sorted(cost)
    while busy or not dispatcher.all_dealt:
        worker = dispatcher.free_worker()
        if worker is not None and not dispatcher.all_dealt and (not busy or data.draw(st.booleans())):
            held = 100 * sum(client in finished for client in waiting)
            client = dispatcher.next_client(worker, held)
            left = set(cost) - set(order)
            assert client in left
            if held + 100 * (len(busy) + 1) > limit:
                assert client == min(left)
            elif own := plans[worker] & left:
                assert client == min(own, key=lambda c: (-cost[c], c))
            else:
                loads = {w: sum(cost[c] for c in plan & left) for w, plan in plans.items()}
                (owner,) = (w for w, plan in plans.items() if client in plan)
                assert loads[owner] == max(loads.values())
                assert client == max(plans[owner] & left, key=lambda c: (-cost[c], c))
            order.append(client)
            dispatcher.give(worker, client)
            busy.append((worker, client))
            assert all(sum(w == worker for w, _ in busy) <= IN_FLIGHT for worker in workers)
        elif busy:
            worker, client = busy.pop(data.draw(st.integers(0, len(busy) - 1)))
            dispatcher.take_back(worker, client)
            finished.add(client)
            while waiting and waiting[0] in finished:
                waiting.pop(0)
    assert sorted(order) == sorted(cost)
    assert dispatcher.free_worker() == 1

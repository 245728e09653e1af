"""Virtual times, worked out by hand."""

from __future__ import annotations

import math
from typing import Any, get_args

import numpy as np
import pytest

from fedmpi.config import DevicePreset, TimeConfig
from fedmpi.netmodel import DEVICES, LINKS, Link, System, Turns, factors, round_times, turn_times, turns_of

# A byte takes 1 s down and 4 s up.
LINK = Link(up_bits_per_s=2.0, down_bits_per_s=8.0, latency_s=0.5)
SYSTEM = System(LINK, device_ops_per_s=10.0, server_ops_per_s=100.0)


def messages(*rows: tuple[int, int, str, int, int]) -> dict[str, Any]:
    """Return columns of rows (round_idx, client_id, direction, step, wire_nbytes)."""
    names = ("round_idx", "client_id", "direction", "step", "wire_nbytes")
    columns = zip(*rows, strict=True) if rows else [()] * 5
    dtypes = ("i4", "i4", "U4", "i4", "u8")
    return {name: np.array(column, dtype) for name, column, dtype in zip(names, columns, dtypes, strict=True)}


def turns(*rows: tuple[int, int, str, int, int], of: list[tuple[int, int]]) -> Turns:
    return turns_of(*np.array(of, np.int64).reshape(-1, 2).T, messages(*rows))


def seconds(
    found: Turns, device: float = 0, server: float = 0, *, overlap: bool, system: System = SYSTEM
) -> list[float]:
    each = np.ones(len(found.client_id))
    return turn_times(system, 7, found, device * each, server * each, overlap=overlap).tolist()


TALK = (
    (3, 5, "up", 1, 30),
    (3, 5, "down", 0, 10),
    (3, 5, "up", 0, 20),
    (3, 5, "down", 1, 100),
    (3, 5, "up", 2, 7),
)


def test_what_went_over_the_links() -> None:
    other = ((3, 9, "down", 0, 1), (2, 5, "up", 0, 1), (4, 5, "up", 0, 1))
    found = turns(*TALK, *other, of=[(3, 9), (3, 5), (3, 6)])
    assert {name: values.tolist() for name, values in found._asdict().items()} == {
        "client_id": [9, 5, 6],
        "down_nbytes": [1, 110, 0],
        "up_nbytes": [0, 57, 0],
        "num_messages": [1, 5, 0],
        "num_ways": [1, 2, 0],
        "first_down_nbytes": [1, 10, 0],
        "last_up_nbytes": [0, 7, 0],
    }


def test_in_sequence_all_adds_up() -> None:
    found = turns(*TALK, of=[(3, 5)])
    # 5 latencies, 110 bytes down, 57 up, 70 operations of the device, 200 of the server
    assert seconds(found, 70, 200, overlap=False) == [5 * 0.5 + 110 + 4 * 57 + 7 + 2]


@pytest.mark.parametrize(
    ("device", "server", "longest"),
    [
        (70, 200, 4 * 57),  # the link up: 228
        (70, 22_900, 229),  # the server
        (1920, 200, 10 + 192 + 4 * 7),  # the first message, the device, the last message: 230
    ],
)
def test_with_overlap_the_longest_counts(device: float, server: float, longest: float) -> None:
    assert seconds(turns(*TALK, of=[(3, 5)]), device, server, overlap=True) == [2 * 0.5 + longest]


def test_with_overlap_the_link_down_may_be_the_longest() -> None:
    found = turns((0, 1, "down", 0, 3), (0, 1, "down", 1, 500), (0, 1, "up", 0, 2), of=[(0, 1)])
    assert seconds(found, 70, overlap=True) == [1.0 + 503]


def test_one_message_each_way_has_nothing_to_overlap() -> None:
    found = turns((0, 1, "down", 0, 3), (0, 1, "up", 0, 2), of=[(0, 1)])
    assert seconds(found, 70, overlap=True) == seconds(found, 70, overlap=False) == [2 * 0.5 + 3 + 7 + 8]


def test_a_client_that_was_lost_and_one_without_messages() -> None:
    found = turns((0, 1, "down", 0, 3), of=[(0, 1), (0, 2)])
    assert seconds(found, server=100, overlap=False) == [0.5 + 3 + 1, 1]
    assert seconds(found, server=100, overlap=True) == [0.5 + 3, 1]


def test_overlap_is_never_longer_than_the_sequence() -> None:
    rng = np.random.default_rng(0)
    rows = [(0, c, way, s, int(rng.integers(1, 500))) for c in range(50) for way in ("down", "up") for s in range(3)]
    found = turns(*rows, of=[(0, c) for c in range(50)])
    ops = rng.integers(0, 5000, (2, 50))
    spread = SYSTEM._replace(link_spread=1.0, device_spread=1.0)
    plain, bound = (turn_times(spread, 7, found, *ops, overlap=overlap) for overlap in (False, True))
    assert (bound < plain).all()


def test_no_turns() -> None:
    found = turns(of=[])
    assert seconds(found, overlap=False) == seconds(found, overlap=True) == []
    assert [t.tolist() for t in round_times(np.zeros(0), np.zeros(0, np.int64), np.array([2.0]))] == [[2.0]] * 3


def test_rounds() -> None:
    times = round_times(np.array([1.0, 5.0, 3.0, 4.0]), np.array([1, 0, 0, 0]), np.array([10.0, 0.0, 7.0]))
    assert times.sum.tolist() == [12 + 10, 1, 7]
    assert times.mean.tolist() == [4 + 10, 1, 7]
    assert times.max.tolist() == [5 + 10, 1, 7]


def test_infinitely_fast_devices_take_no_time() -> None:
    found = turns((0, 1, "down", 0, 3), of=[(0, 1)])
    fast = System(LINK, math.inf, math.inf)
    assert seconds(found, 1e18, 1e18, overlap=False, system=fast) == [3.5]


def test_a_factor_is_the_clients_own() -> None:
    clients = np.arange(3000)
    link, device = factors(7, clients, "link", 0.5), factors(7, clients, "device", 0.5)
    assert factors(7, clients[::-1], "link", 0.5).tolist() == link[::-1].tolist()
    assert factors(7, clients[2:3], "link", 1.0) == pytest.approx(link[2:3] ** 2)
    assert factors(7, clients, "link", 0.0).tolist() == [1.0] * 3000
    assert (factors(8, clients, "link", 0.5) != link).all()
    for found in (link, device):
        assert np.log(found).mean() == pytest.approx(0, abs=0.03)
        assert np.log(found).std() == pytest.approx(0.5, rel=0.05)
    assert abs(np.corrcoef(np.log(link), np.log(device))[0, 1]) < 0.06


def test_a_factor_divides_the_times_but_not_the_latency() -> None:
    found = turns((0, 4, "down", 0, 3), (0, 4, "up", 0, 2), of=[(0, 4)])
    spread = SYSTEM._replace(link_spread=0.8, device_spread=0.4)
    link, device = (factors(7, found.client_id, of, sigma)[0] for of, sigma in (("link", 0.8), ("device", 0.4)))
    assert seconds(found, 70, 100, overlap=False, system=spread) == pytest.approx([1 + 11 / link + 7 / device + 1])


def test_the_configuration_names_the_same_presets() -> None:
    (words, _) = get_args(TimeConfig.model_fields["link"].annotation)
    assert get_args(words) == tuple(LINKS)
    assert get_args(DevicePreset) == tuple(DEVICES)
    assert all(min(link.up_bits_per_s, link.down_bits_per_s) > 0 and link.latency_s > 0 for link in LINKS.values())
    assert all(rate > 0 for rate in DEVICES.values())

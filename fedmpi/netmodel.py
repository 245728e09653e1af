"""How long the simulated system would have taken: seconds from bytes, messages and operations, links and devices.

A turn is what one client and the server's side of it do in one round. It keeps four things busy: the link down, the
link up, the client's device and the server. On a link with latency L that sends B bits a second, a message of n bytes
takes L + 8 n / B; a device that does R operations a second takes ops / R, a multiplication with its addition being two
operations, as `fedmpi.models.operations` counts them.

- In sequence, nothing overlaps: the sum over all messages and both devices.
- With overlap, all four work at once, as far as a conversation lets them: a bound from below, see `turn_times`.

numpy and the standard library only: scripts that read ledgers import this. docs/time_model.md has the same in words.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from fedmpi.rng import ANY, stream

Array: TypeAlias = np.ndarray[Any, Any]


class Link(NamedTuple):
    """A client's connection to the server.

    Parameters
    ----------
    up_bits_per_s, down_bits_per_s : float
        Bandwidth from and to the client, above 0.
    latency_s : float
        What every message takes beside its transfer.
    """

    up_bits_per_s: float
    down_bits_per_s: float
    latency_s: float


LINKS: Mapping[str, Link] = {
    "lan_1g": Link(1e9, 1e9, 0.0005),
    "wifi_100m": Link(100e6, 100e6, 0.003),
    "home_50m_10m": Link(10e6, 50e6, 0.015),
    "lte_20m_5m": Link(5e6, 20e6, 0.05),
    "nb_slow": Link(50e3, 100e3, 1.0),
}
"""Links by name. Assumptions all, in round numbers: none was measured."""

DEVICES: Mapping[str, float] = {
    "microcontroller": 1e8,
    "raspberry_pi_4": 5e9,
    "phone": 2e10,
    "jetson": 1e11,
    "desktop_cpu": 2e11,
    "workstation_gpu": 1e13,
}
"""Operations a second that a device keeps up in training, by name. Assumptions all, in round numbers, as the links."""


class System(NamedTuple):
    """What a run is timed on.

    Parameters
    ----------
    link : Link
    device_ops_per_s, server_ops_per_s : float
        Operations a second of a client's device and, for each conversation, of the server; infinity for no time at all.
    link_spread, device_spread : float
        Standard deviation of the logarithm of each client's own factor, at least 0: see `factors`. The link's is on
        both bandwidths, not on the latency.
    """

    link: Link
    device_ops_per_s: float
    server_ops_per_s: float
    link_spread: float = 0.0
    device_spread: float = 0.0


class Turns(NamedTuple):
    """What went over the links in some turns, each (num_turns,).

    Parameters
    ----------
    client_id : int ndarray
    down_nbytes, up_nbytes : float64 ndarray
        Sums of the messages' bytes.
    num_messages : int ndarray
        Both ways.
    num_ways : int ndarray
        1 if all messages went one way, 2 if some went down and some up, 0 without messages.
    first_down_nbytes, last_up_nbytes : float64 ndarray
        The first message down and the last one up; 0 where there is none.
    """

    client_id: Array
    down_nbytes: Array
    up_nbytes: Array
    num_messages: Array
    num_ways: Array
    first_down_nbytes: Array
    last_up_nbytes: Array


class RoundTimes(NamedTuple):
    """Seconds of rounds from those of their turns; floats, or (num_rounds,) float64.

    Parameters
    ----------
    sum
        One turn after the other.
    mean
        Mean over the turns.
    max
        All turns at once: that of the slowest client.
    """

    sum: Any
    mean: Any
    max: Any


def turns_of(round_idx: Array, client_id: Array, messages: Mapping[str, Array]) -> Turns:
    """Return what went over the links in each of some turns.

    Parameters
    ----------
    round_idx, client_id : int ndarray, shape (num_turns,)
        Which turns; no two are the same.
    messages : mapping
        Columns round_idx, client_id, direction ("down" or "up"), step and wire_nbytes of ``messages`` in a ledger, each
        (num_messages,). Messages of other turns are left out.
    """
    turns, found = _pairs(round_idx, client_id), _pairs(messages["round_idx"], messages["client_id"])
    order = np.argsort(turns)
    place = np.searchsorted(turns[order], found)
    at = np.flatnonzero(place < len(turns))
    at = at[turns[order][place[at]] == found[at]]
    turn, num_turns = order[place[at]], len(turns)
    is_up = messages["direction"][at] == "up"
    step, nbytes = messages["step"][at], messages["wire_nbytes"][at].astype(np.float64)
    num_up, num_down = (np.bincount(turn[way], minlength=num_turns) for way in (is_up, ~is_up))
    is_first, is_last = ~is_up & (step == 0), is_up & (step == num_up[turn] - 1)

    def total(chosen: Array) -> Array:
        return np.bincount(turn[chosen], nbytes[chosen], num_turns)

    ways = (num_up > 0).astype(np.int64) + (num_down > 0)
    return Turns(
        np.asarray(client_id), total(~is_up), total(is_up), num_up + num_down, ways, total(is_first), total(is_last)
    )


def turn_times(
    system: System, seed: int, turns: Turns, device_ops: Array, server_ops: Array, *, overlap: bool
) -> Array:
    """Return the seconds of turns.

    With overlap it is the longest of: all bytes down; all bytes up; the server's operations; and the first message
    down, the device's operations and the last message up, one after the other. To this comes one latency each way in
    which there are messages. That assumes

    - that the first message down opens the turn and the last one up closes the client's part of it, so that the device
      works between the two. A turn of one message down and one up is therefore as long as in sequence: it has nothing
      to overlap, unless the server works too;
    - and that beyond this nothing waits for anything, as if the messages were cut finely and came in time. A real
      pipeline takes longer. One in which the server's gradient must be back before the client's next batch, as in split
      learning, comes near its time in sequence.

    Parameters
    ----------
    system : System
    seed : int
        The run's, which the clients' own factors are drawn from.
    turns : Turns
    device_ops, server_ops : ndarray, shape (num_turns,)
    overlap : bool

    Returns
    -------
    float64 ndarray, shape (num_turns,)
    """
    link = system.link
    link_factor = factors(seed, turns.client_id, "link", system.link_spread)
    down_s_per_byte = 8 / (link.down_bits_per_s * link_factor)
    up_s_per_byte = 8 / (link.up_bits_per_s * link_factor)
    device_s = device_ops / (system.device_ops_per_s * factors(seed, turns.client_id, "device", system.device_spread))
    server_s = server_ops / system.server_ops_per_s
    down_s, up_s = turns.down_nbytes * down_s_per_byte, turns.up_nbytes * up_s_per_byte
    if not overlap:
        return link.latency_s * turns.num_messages + down_s + up_s + device_s + server_s
    between_s = turns.first_down_nbytes * down_s_per_byte + device_s + turns.last_up_nbytes * up_s_per_byte
    longest: Array = np.maximum.reduce([down_s, up_s, between_s, server_s])
    return link.latency_s * turns.num_ways + longest


def round_times(turn_s: Array, round_of_turn: Array, aggregate_s: Array) -> RoundTimes:
    """Return the seconds of rounds, (num_rounds,) each.

    Parameters
    ----------
    turn_s : float64 ndarray, shape (num_turns,)
    round_of_turn : int ndarray, shape (num_turns,)
        The place in `aggregate_s` of the round of each turn.
    aggregate_s : float64 ndarray, shape (num_rounds,)
        What the server does once a round beside the turns; it follows them. A round without turns takes that alone.
    """
    num_rounds = len(aggregate_s)
    total = np.bincount(round_of_turn, turn_s, num_rounds)
    longest = np.zeros(num_rounds)
    np.maximum.at(longest, round_of_turn, turn_s)
    mean = total / np.maximum(1, np.bincount(round_of_turn, minlength=num_rounds))
    return RoundTimes(total + aggregate_s, mean + aggregate_s, longest + aggregate_s)


def factors(seed: int, client_id: Array, of: str, sigma: float) -> Array:
    """Return each client's own factor on a rate: log-normal with median 1, drawn once for a run.

    Parameters
    ----------
    seed : int
    client_id : int ndarray, shape (N,)
    of : str
        What it is a factor of, "link" or "device"; the two are independent.
    sigma : float
        Standard deviation of its logarithm; about two thirds of the clients lie within a factor of exp(sigma) of 1.

    Returns
    -------
    float64 ndarray, shape (N,)
    """
    if not sigma:
        return np.ones(len(client_id))
    return np.array([math.exp(sigma * _normal(seed, client, of)) for client in client_id.tolist()])


@lru_cache(maxsize=1 << 20)
def _normal(seed: int, client_id: int, of: str) -> float:
    return float(stream(seed, ANY, client_id, of).standard_normal())


def _pairs(round_idx: Array, client_id: Array) -> Array:
    """Return each turn as one integer."""
    pairs: Array = np.asarray(round_idx).astype(np.int64) << 32 | np.asarray(client_id).astype(np.int64)
    return pairs

"""The virtual time of rounds: what each would have taken on the links and devices that the configuration names."""

from __future__ import annotations

import numpy as np

from fedmpi.config import TimeConfig
from fedmpi.engine.reply import Reply
from fedmpi.ledger.schema import MessageRow
from fedmpi.netmodel import DEVICES, LINKS, Link, System, round_times, turn_times, turns_of

_MESSAGE_DTYPES = {"round_idx": "i8", "client_id": "i8", "direction": "U4", "step": "i8", "wire_nbytes": "i8"}
"""The columns of messages that times follow from; with their dtypes also where there are no rows."""


def system_of(config: TimeConfig) -> System:
    """Return the links and devices that a configuration names: a preset's numbers, but for those that it gives."""
    given = {
        name: value
        for name in ("up_bits_per_s", "down_bits_per_s", "latency_s")
        if (value := getattr(config, name)) is not None
    }
    preset = LINKS[config.link]._asdict() if config.link is not None else {}
    device, server = (DEVICES[rate] if isinstance(rate, str) else rate for rate in (config.device, config.server))
    return System(Link(**{**preset, **given}), device, server, config.link_spread, config.device_spread)


class RoundClock:
    """Gathers a round's turns and tells its virtual time; without a configuration it does nothing.

    Parameters
    ----------
    config : TimeConfig or None
    seed : int
    """

    def __init__(self, config: TimeConfig | None, seed: int) -> None:
        self._system = None if config is None else system_of(config)
        self._seed = seed
        self._replies: list[tuple[int, int, float, float]] = []  # round, client, operations of device and server
        self._messages: list[MessageRow] = []

    @property
    def runs(self) -> bool:
        """Whether virtual time is wanted."""
        return self._system is not None

    def add(self, reply: Reply) -> None:
        """Take in a finished conversation, of which all rows are known."""
        if self.runs:
            self._replies.append((reply.round_idx, reply.client_id, reply.report.device_ops, reply.server_ops))
            self._messages += reply.rows

    def end_round(self, aggregate_ops: float) -> dict[str, float]:
        """Return the round's columns of the ledger and forget its turns; empty where virtual time is not wanted."""
        if self._system is None:
            return {}
        messages = {
            name: np.array([getattr(row, name) for row in self._messages], dtype)
            for name, dtype in _MESSAGE_DTYPES.items()
        }
        table = np.array(self._replies, np.float64).reshape(-1, 4)
        round_idx, client_id = table[:, 0].astype(np.int64), table[:, 1].astype(np.int64)
        turns = turns_of(round_idx, client_id, messages)
        values = {
            "device_ops": float(table[:, 2].sum()),
            "server_ops": float(table[:, 3].sum()),
            "aggregate_ops": aggregate_ops,
        }
        of_round = np.zeros(len(table), np.int64)
        aggregate_s = np.array([aggregate_ops / self._system.server_ops_per_s])
        for prefix, overlap in (("virtual", False), ("virtual_overlap", True)):
            turn_s = turn_times(self._system, self._seed, turns, table[:, 2], table[:, 3], overlap=overlap)
            times = round_times(turn_s, of_round, aggregate_s)
            values |= {f"{prefix}_{name}_s": float(seconds[0]) for name, seconds in times._asdict().items()}
        self._replies.clear()
        self._messages.clear()
        return values

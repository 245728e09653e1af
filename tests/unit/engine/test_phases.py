"""Phases are exclusive: whatever nests in whatever, the seconds add up to the time that has passed."""

from __future__ import annotations

import pytest

from fedmpi.engine import phases
from fedmpi.engine.phases import PHASES, PhaseTimer


class Clock:
    def __init__(self) -> None:
        self.now = 50.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(phases, "perf_counter", clock)
    return clock


def spent(timer: PhaseTimer) -> dict[str, float]:
    """Return the phases that have taken time."""
    return {name: seconds for name, seconds in zip(PHASES, timer.totals(), strict=True) if seconds}


def test_time_in_no_phase_is_other(clock: Clock) -> None:
    timer = PhaseTimer()
    clock.now += 3
    assert spent(timer) == {"other": 3}


def test_a_nested_phase_is_the_inner_ones_alone(clock: Clock) -> None:
    timer = PhaseTimer()
    clock.now += 1
    with timer.phase("train"):
        clock.now += 2
        with timer.phase("wait"):
            clock.now += 4
            with timer.phase("decode"):
                clock.now += 8
            clock.now += 16
        clock.now += 32
    clock.now += 64
    assert spent(timer) == {"other": 65, "train": 34, "wait": 20, "decode": 8}
    assert sum(timer.totals()) == 127


def test_switch_returns_the_phase_to_go_back_to(clock: Clock) -> None:
    timer = PhaseTimer()
    assert timer.switch("encode") == "other"
    clock.now += 1
    assert timer.switch("aggregate") == "encode"
    clock.now += 2
    assert timer.switch("encode") == "aggregate"
    clock.now += 4
    assert spent(timer) == {"encode": 5, "aggregate": 2}


def test_a_phase_within_itself_counts_once(clock: Clock) -> None:
    timer = PhaseTimer()
    with timer.phase("log"), timer.phase("log"):
        clock.now += 5
    assert spent(timer) == {"log": 5}


def test_an_error_leaves_the_phase(clock: Clock) -> None:
    timer = PhaseTimer()

    def fail() -> None:
        with timer.phase("evaluate"):
            clock.now += 1
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    clock.now += 2
    assert spent(timer) == {"evaluate": 1, "other": 2}


def test_totals_may_be_asked_for_within_a_phase(clock: Clock) -> None:
    timer = PhaseTimer()
    with timer.phase("train"):
        clock.now += 1
        assert spent(timer) == {"train": 1}
        clock.now += 2
    assert spent(timer) == {"train": 3}
    assert timer.seconds["train"] == 3

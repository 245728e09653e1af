"""Doorbells: a ring ends a nap, in one process and across two; nothing is harmed by a ring that nobody hears."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from fedmpi.comm.doorbell import Doorbell

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="abstract UNIX sockets are Linux's")
LONG_S = 20.0


@pytest.fixture
def bells() -> Iterator[tuple[Doorbell, Doorbell]]:
    """The bells of ranks 0 and 1, which know each other."""
    pair = Doorbell(), Doorbell()
    pair[0].connect({1: pair[1].address})
    pair[1].connect({0: pair[0].address})
    yield pair
    for bell in pair:
        bell.close()


def test_a_nap_times_out(bells: tuple[Doorbell, Doorbell]) -> None:
    start = time.perf_counter()
    assert not bells[0].nap(0.05)
    assert 0.045 < time.perf_counter() - start < 1


def test_a_ring_before_the_nap_ends_it_and_only_it(bells: tuple[Doorbell, Doorbell]) -> None:
    bells[0].ring(1)
    bells[0].ring(1)
    start = time.perf_counter()
    assert bells[1].nap(LONG_S)
    assert time.perf_counter() - start < 1
    assert not bells[1].nap(0.01)
    assert not bells[0].nap(0.01)  # the bell of the one who rang is silent


def test_a_ring_ends_a_nap_early(bells: tuple[Doorbell, Doorbell]) -> None:
    start = time.perf_counter()
    timer = threading.Timer(0.05, bells[1].ring, [0])
    timer.start()
    assert bells[0].nap(LONG_S)
    assert 0.045 < time.perf_counter() - start < 2
    timer.join()


def test_many_rings_never_block_and_are_one(bells: tuple[Doorbell, Doorbell]) -> None:
    start = time.perf_counter()
    for _ in range(5000):
        bells[0].ring(1)
    assert time.perf_counter() - start < 2
    assert bells[1].nap(LONG_S)
    assert not bells[1].nap(0.01)


def test_a_ring_to_a_closed_bell_is_harmless(bells: tuple[Doorbell, Doorbell]) -> None:
    bells[1].close()
    bells[0].ring(1)
    assert not bells[0].nap(0.01)


def test_a_closed_bell_still_naps_and_may_be_closed_again(bells: tuple[Doorbell, Doorbell]) -> None:
    bells[0].close()
    bells[0].close()
    bells[0].ring(1)
    start = time.perf_counter()
    assert not bells[0].nap(0.03)
    assert time.perf_counter() - start > 0.025
    assert not bells[1].nap(0.01)


def test_neighbours_are_those_with_an_address() -> None:
    bell = Doorbell()
    assert bell.num_others == 0
    bell.connect({1: "fedmpi-nowhere", 2: "", 3: "fedmpi-elsewhere"})
    assert bell.num_others == 2
    for rank in (1, 2, 3, 9):  # gone, without a bell, gone, on another node
        bell.ring(rank)
    bell.close()


def test_addresses_differ_within_a_process() -> None:
    bells = [Doorbell() for _ in range(3)]
    assert len({bell.address for bell in bells}) == 3
    for bell in bells:
        bell.close()


def test_two_processes_ring_each_other() -> None:
    code = (
        "import sys; from fedmpi.comm.doorbell import Doorbell\n"
        "bell = Doorbell(); bell.connect({0: sys.argv[1]}); print(bell.address, flush=True)\n"
        f"rung = bell.nap({LONG_S}); bell.ring(0); print(rung, flush=True)\n"
    )
    own = Doorbell()
    command = [sys.executable, "-c", code, own.address]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        own.connect({1: process.stdout.readline().strip()})
        start = time.perf_counter()
        own.ring(1)
        assert own.nap(LONG_S)
        assert time.perf_counter() - start < LONG_S / 4
        assert process.stdout.readline().strip() == "True"
        assert process.wait(timeout=LONG_S) == 0
    own.ring(1)  # its process has gone
    assert not own.nap(0.01)
    own.close()

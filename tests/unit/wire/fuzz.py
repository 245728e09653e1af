"""Broken frames of every message: whatever comes, a decoder refuses it or gives what the receiver's schema allows.

``python tests/unit/wire/fuzz.py --count 200000 --seed 1`` decodes so many mutants of the frames of `messages`. Half of
them keep the checksum of the frame that they were made from and must be refused; the others get the right one, so that
the decoders behind it are reached. A mutant follows from the seed and its number alone.

A child process does the work: one that dies or hangs in compiled code is a finding, too.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import random
import resource
import signal
import struct
import sys
import time
import traceback
import tracemalloc
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from allowed import check_message
from mutants import MUTATIONS, Mutant, bombs, mutate
from real_frames import targets
from roundtrip import assert_same

from fedmpi.errors import ProtocolError, WireError
from fedmpi.wire.buffers import BufferPool
from fedmpi.wire.frame import decode, encode

LIMIT_S = 1.0
"""Thread seconds that a frame of a few kilobytes may take, many thousand times what one does take."""

HANG_S = 60.0
"""Wall seconds without progress after which the child is taken to hang."""

WARM_UP_S = 600.0
"""The same while it warms up: with bounds checks every kernel is compiled anew, on cores that others may use too."""

SAMPLE_EVERY = 50
"""Allocations are traced for one mutant in so many, and for more of those that aim at them."""

MORE_OFTEN = {"zip bomb": 10, "long payload": 10, "counts": 20}

HEADROOM_NBYTES = 256 << 20
"""What the child may allocate beyond what it has after warming up: for what is compiled late, and half of a bomb."""

MAX_GROWTH_NBYTES = 64 << 20
"""By how much the child's resident memory may grow over all mutants."""


def check(mutant: Mutant) -> str:
    """Decode a mutant; return what became of it.

    Raises
    ------
    Exception
        Whatever a decoder raised that is not a `WireError`, and AssertionError for all else that must not be.
    """
    buffer = np.frombuffer(bytearray(mutant.raw), np.uint8)
    expected, schema = (mutant.target.message_class,), mutant.target.schema
    refusal: WireError | None = None
    try:
        received, _ = decode(buffer, expected, schema)
    except WireError as error:
        refusal = error
    if refusal is not None:
        check_refusal(refusal, mutant)
        return "refused" if mutant.is_sealed else "refused, checksum wrong"
    assert mutant.is_unchanged or mutant.is_sealed, "bytes with a wrong checksum are taken"
    check_message(received, schema)
    again = encode(received, schema, BufferPool()).buffer
    twice, _ = decode(again, expected, schema)
    for each in received.value_fields:
        assert_same(getattr(received, each.name), getattr(twice, each.name), each.name)
    return "unchanged" if mutant.is_unchanged else "taken"


def check_refusal(error: WireError, mutant: Mutant) -> None:
    """Fail unless an error says what a reader needs."""
    assert isinstance(error, ProtocolError)
    assert 0 <= error.offset <= len(mutant.raw), f"an offset beyond the frame: {error}"
    assert len(str(error)) < 500, "an error that nobody reads to its end"
    assert error.expected is not None and error.got is not None
    assert not mutant.is_unchanged, f"a real frame is refused: {error}"


def allowed_nbytes(mutant: Mutant) -> int:
    """Return how much decoding may allocate: what the schema asks for, times a factor, and copies of the frame."""
    most = sum(8 * spec.numel for spec in mutant.target.schema.specs(mutant.target.message_class))
    return (1 << 20) + 64 * most + 3 * len(mutant.raw)


def check_allocations(mutant: Mutant) -> None:
    """Fail if Python and numpy allocate more for a mutant than its schema allows."""
    buffer = np.frombuffer(bytearray(mutant.raw), np.uint8)
    tracemalloc.start()
    try:
        decode(buffer, (mutant.target.message_class,), mutant.target.schema)
    except WireError:
        pass
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak <= allowed_nbytes(mutant), f"{peak} bytes are allocated, {allowed_nbytes(mutant)} are allowed"


@dataclass
class Report:
    """What became of the mutants: counts by kind and outcome, and the findings in words."""

    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)
    findings: list[str] = field(default_factory=list)
    slowest_s: float = 0.0
    growth_nbytes: int = 0

    def lines(self) -> list[str]:
        columns = sorted({outcome for _, outcome in self.outcomes})
        table = [f"{'':16s}" + "".join(f"{column:>26s}" for column in columns)]
        for kind in (*MUTATIONS, "all"):
            row = [
                sum(n for (k, outcome), n in self.outcomes.items() if outcome == column and kind in (k, "all"))
                for column in columns
            ]
            table.append(f"{kind:16s}" + "".join(f"{number:26d}" for number in row))
        figures = f"slowest {self.slowest_s * 1e3:.1f} ms, memory grew by {self.growth_nbytes >> 10} KiB"
        return [*table, figures, f"{len(self.findings)} findings", *self.findings]


def numbered(seed: int, number: int) -> random.Random:
    return random.Random(f"{seed}/{number}")


def run(start: int, count: int, seed: int, *, progress: Callable[[int], None] = lambda number: None) -> Report:
    """Decode the mutants from number `start` on, after `warm_up`."""
    report = Report()
    before = peak_nbytes()
    highest = before
    for number in range(start, start + count):
        progress(number)
        mutant = mutate(numbered(seed, number))
        began = time.thread_time()
        try:
            outcome = check(mutant)
            taken_s = time.thread_time() - began
            report.slowest_s = max(report.slowest_s, taken_s)
            assert taken_s <= LIMIT_S, f"{taken_s:.1f} s"
            if number % MORE_OFTEN.get(mutant.kind, SAMPLE_EVERY) == 0:
                check_allocations(mutant)
            now = peak_nbytes()
            grown, highest = now - highest, max(now, highest)
            assert grown <= allowed_nbytes(mutant) + (16 << 20), f"resident memory grew by {grown} bytes"
        except Exception as error:
            outcome = "finding"
            report.findings.append(described(seed, number, mutant, error))
        report.outcomes[mutant.kind, outcome] += 1
    report.growth_nbytes = highest - before
    if report.growth_nbytes > MAX_GROWTH_NBYTES:
        report.findings.append(f"resident memory grew by {report.growth_nbytes} bytes in all")
    return report


def described(seed: int, number: int, mutant: Mutant, error: BaseException) -> str:
    trace, at = error.__traceback__, ""
    while trace is not None:
        at, trace = f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}", trace.tb_next
    raw = mutant.raw.hex() if len(mutant.raw) <= 4096 else mutant.raw[:256].hex() + "..."
    return (
        f"--seed {seed} --only {number}: {mutant.kind} of {mutant.target.name}, "
        f"{'sealed' if mutant.is_sealed else 'checksum wrong'}: {type(error).__name__} at {at}: {error}\n    {raw}"
    )


def warm_up() -> None:
    """Decode and encode every real frame, so that nothing is compiled or cached for the first time afterwards."""
    bombs()
    for target in targets():
        for rng in (random.Random(0), random.Random(1)):
            check(Mutant("none", target, target.raw, True))
            for mutation, _ in MUTATIONS.values():
                mutation(rng, target)


def limit_memory() -> None:
    """Make an allocation of much more than this process has now a MemoryError, touched or not; on Linux only."""
    statm = Path("/proc/self/statm")
    if statm.exists():
        now = int(statm.read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + HEADROOM_NBYTES, resource.RLIM_INFINITY))


def peak_nbytes() -> int:
    """Return the largest resident memory that this process had so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def run_guarded(start: int, count: int, seed: int) -> Report:
    """Do as `run` does in a child; one that dies or hangs is a finding."""
    seen = mmap.mmap(-1, 8)
    struct.pack_into("<q", seen, 0, -1)
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(read_end)
            warm_up()
            limit_memory()
            struct.pack_into("<q", seen, 0, 0)
            report = run(start, count, seed, progress=lambda number: struct.pack_into("<q", seen, 0, number))
            outcomes = [[kind, outcome, n] for (kind, outcome), n in report.outcomes.items()]
            with os.fdopen(write_end, "w") as pipe:
                json.dump([outcomes, report.findings, report.slowest_s, report.growth_nbytes], pipe)
            os._exit(0)
        finally:
            traceback.print_exc()
            os._exit(1)
    os.close(write_end)
    last, since, how = -1, time.monotonic(), ""
    os.set_blocking(read_end, False)
    answer = b""
    while True:
        try:
            chunk = os.read(read_end, 1 << 16)
            if not chunk:
                break
            answer += chunk
            continue
        except BlockingIOError:
            pass
        (number,) = struct.unpack("<q", seen[:8])
        if number != last:
            last, since = number, time.monotonic()
        elif time.monotonic() - since > (limit_s := HANG_S if number >= 0 else WARM_UP_S):
            how = f"no progress for {limit_s:.0f} s"
            os.kill(child, signal.SIGKILL)
            break
        time.sleep(0.05)
    _, status = os.waitpid(child, 0)
    os.close(read_end)
    if status == 0 and answer and not how:
        outcomes, findings, slowest_s, growth_nbytes = json.loads(answer)
        return Report(
            Counter({(kind, outcome): n for kind, outcome, n in outcomes}), findings, slowest_s, growth_nbytes
        )
    number = max(0, *struct.unpack("<q", seen[:8]))
    error = RuntimeError(how or f"the process ended with status {status}")
    return Report(findings=[described(seed, number, mutate(numbered(seed, number)), error)])


def main() -> int:
    parser = argparse.ArgumentParser(description="Decode broken frames.")
    parser.add_argument("--count", type=int, default=200_000, help="mutants")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", type=int, help="decode this mutant alone, in this process, and show what it raises")
    args = parser.parse_args()
    if args.only is not None:
        mutant = mutate(numbered(args.seed, args.only))
        print(f"{mutant.kind} of {mutant.target.name}: {mutant.raw.hex()}", flush=True)
        print(check(mutant))
        check_allocations(mutant)
        return 0
    report = run_guarded(0, args.count, args.seed)
    print("\n".join(report.lines()))
    return bool(report.findings)


if __name__ == "__main__":
    sys.exit(main())

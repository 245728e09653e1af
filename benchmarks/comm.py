"""What messages cost: an empty round trip, a large dense vector, a run's start. Each on its own, two ranks.

    mpiexec -n 2 python benchmarks/comm.py

Prints, on rank 0: the median empty round trip between two ranks; the speed of a dense float32 vector of 44.7 MB from
encode to decoded vector, with frame, checksum at both ends and a ledger row; and beside it, in the same run, a bare MPI
Send and Recv of the same bytes into kept buffers and a memcpy.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
from mpi4py import MPI

from fedmpi.algorithms.averaging import ModelUp
from fedmpi.comm.base import Envelope, Packet, wait_for
from fedmpi.comm.mpi import MpiCommunicator
from fedmpi.engine.rows import Figures
from fedmpi.ledger.writer import LedgerWriter
from fedmpi.wire import frame as framing
from fedmpi.wire.bound import bound_nbits
from fedmpi.wire.message import Schema
from fedmpi.wire.values import Dense

NUMEL = 11_175_000  # 44.7 MB of float32: ResNet-18
SPIN_S = 200e-6


def receive(comm: MpiCommunicator) -> Packet:
    return wait_for(comm.poll, comm, what=lambda: "the other rank", timeout_s=60, spin_s=SPIN_S)


def empty_round_trip_us(comm: MpiCommunicator, repeats: int = 3000) -> float:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        if comm.rank == 0:
            comm.send(1, Envelope(1))
            receive(comm)
        else:
            receive(comm)
            comm.send(0, Envelope(1))
        times.append(time.perf_counter() - start)
    return 1e6 * statistics.median(times[repeats // 10 :])


def dense_gb_per_s(comm: MpiCommunicator, ledger: LedgerWriter | None, repeats: int = 15) -> float:
    schema = Schema({"state": NUMEL, "int_buffers": 0}, 1)
    vector = Dense.framed(NUMEL)
    vector.array[:] = np.random.default_rng(0).standard_normal(NUMEL, np.float32)
    times = []
    for step in range(repeats):
        MPI.COMM_WORLD.Barrier()
        start = time.perf_counter()
        if comm.rank == 1:
            message = ModelUp(num_samples=600, int_buffers=None, state=vector)
            frame = framing.encode(message, schema, comm.pool, in_place=True)
            comm.send(0, Envelope(4, True, 0, 0, step), frame.buffer)
            del frame
            wait_for(lambda: True if comm.num_unsent() == 0 else None, comm, what=str, timeout_s=60, spin_s=SPIN_S)
        else:
            packet = receive(comm)
            decoded, figures = framing.decode(packet.body, (ModelUp,), schema)
            row = Figures(decoded, figures, schema, bound_nbits(decoded, schema)).row(
                (0, step, 0, 1), 0.0, 0.0, 0.0, 0.0
            )
            assert ledger is not None
            ledger.add_message(row)
            ledger.write_due()
            times.append(time.perf_counter() - start)
            del packet, decoded, figures
    return 4e-9 * NUMEL / statistics.median(times[3:]) if comm.rank == 0 else 0.0


def bare_gb_per_s(repeats: int = 15) -> tuple[float, float]:
    """Return the speed of MPI Send and Recv into kept buffers, and of memcpy."""
    comm = MPI.COMM_WORLD
    buffer, other = np.ones(4 * NUMEL, np.uint8), np.zeros(4 * NUMEL, np.uint8)
    sends, copies = [], []
    for _ in range(repeats):
        comm.Barrier()
        start = time.perf_counter()
        if comm.rank == 1:
            comm.Send([buffer, MPI.BYTE], 0)
        else:
            comm.Recv([other, MPI.BYTE], 1)
            sends.append(time.perf_counter() - start)
            start = time.perf_counter()
            np.copyto(other, buffer)
            copies.append(time.perf_counter() - start)
    if comm.rank:
        return 0.0, 0.0
    return 4e-9 * NUMEL / statistics.median(sends), 4e-9 * NUMEL / statistics.median(copies)


def main() -> None:
    comm = MpiCommunicator()
    ledger = None
    with tempfile.TemporaryDirectory() as folder:
        if comm.rank == 0:
            ledger = LedgerWriter(Path(folder) / "ledger.h5", attrs={}, config_yaml="", flush_s=1.0)
        round_trip = empty_round_trip_us(comm)
        dense = dense_gb_per_s(comm, ledger)
        send, copy = bare_gb_per_s()
        if comm.rank == 0:
            assert ledger is not None
            ledger.finish("done", {})
            print(f"empty round trip, median: {round_trip:.1f} us (target under 20)")
            print(f"dense 44.7 MB, encode to decoded, with ledger: {dense:.2f} GB/s (target at least 1.8)")
            print(f"  beside it: MPI Send/Recv {send:.2f} GB/s, memcpy {copy:.2f} GB/s")
    comm.close()


if __name__ == "__main__":
    main()

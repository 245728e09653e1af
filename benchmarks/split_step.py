"""What splitting costs: a step of split learning against the same step in one piece, and a batch of activations.

    python benchmarks/split_step.py [--width 0.25] [--device cpu] [--repeats 5]

The first figure is SplitFed against FedAvg, through the whole engine in one process, messages to itself and all: both
take the same steps and end in the same model, bit for bit. CPU time of the process a local step, with a GPU time on
the wall; batches of 10, without the start and the first round; pairs in turn, medians. The second, on the CPU, is a
batch of 10 x 128 x 8 x 8 activations: rounded to 8 bits, coded, sent through MPI's place in one process, decoded and
turned back.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from fedmpi.algorithms.split_messages import (
    QuantizedActivations,
    SplitConfig,
    cut_of,
    decode_activations,
    encode_activations,
    split_sizes,
)
from fedmpi.comm.base import Envelope
from fedmpi.comm.local import LocalCommunicator
from fedmpi.config import NamedSection, RunConfig
from fedmpi.configfile import load_config
from fedmpi.data.shapes import ImageShape
from fedmpi.engine.setup import resolve
from fedmpi.models.registry import resolve as resolve_model
from fedmpi.models.spec import ModelSpec
from fedmpi.models.split import units
from fedmpi.runner import run
from fedmpi.wire import frame as framing
from fedmpi.wire.message import Schema
from fedmpi.wire.warm import warm_up

NUM_SAMPLES, BATCH, NUM_ROUNDS = 200, 10, 3
SETTINGS = """
seed: 1
rounds: 1
data: {name: synthetic, synthetic: {num_train: 200, num_test: 50, height: 32, width: 32, channels: 3}}
partition: {name: iid, num_clients: 1}
model: {name: vgg11}
train: {batch_size: 10, lr: 0.01, momentum: 0.9}
participation: {clients_per_round: 1}
evaluate: {every: 0}
"""


def run_s(algorithm: str, width: float, device: str, rounds: int, folder: Path) -> float:
    """Return the process's CPU seconds of a run; with a GPU those on the wall."""
    (folder / "run.yaml").write_text(SETTINGS)
    words = [f"algorithm.name={algorithm}", f"model.width={width}", f"rounds={rounds}"]
    words += [f"placement.device={device}", f"placement.server_device={device}"]
    config: RunConfig = resolve(load_config(folder / "run.yaml", words))
    clock = time.process_time if device == "cpu" else time.perf_counter
    began = clock()
    with contextlib.redirect_stdout(io.StringIO()):
        run(config, folder / "out", LocalCommunicator(), overwrite=True)
    return clock() - began


def step_ms(algorithm: str, width: float, device: str, folder: Path) -> float:
    """Return the milliseconds of a step, the start taken off."""
    more, less = (run_s(algorithm, width, device, rounds, folder) for rounds in (1 + NUM_ROUNDS, 1))
    return (more - less) / (NUM_ROUNDS * NUM_SAMPLES / BATCH) * 1e3


def activation_ms(repeats: int) -> dict[str, float]:
    """Return the CPU milliseconds of each part of a batch's way."""
    spec = ModelSpec(resolve_model(NamedSection(name="vgg11")), ImageShape(32, 32, 3), 10)
    cut = cut_of(spec, 2)
    module = units(spec.build(0))
    with torch.no_grad():
        x = torch.randn(BATCH, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        a_BCHW = module[1](module[0](x.contiguous(memory_format=torch.channels_last)))
    config = SplitConfig(name="splitfed", bits=8)
    run_config = RunConfig(rounds=1, train={"batch_size": BATCH})
    schema = Schema(dict(split_sizes(config, spec, run_config)), 1)
    warm_up([QuantizedActivations], schema.wire)
    comm = LocalCommunicator()
    times: dict[str, list[float]] = {"round and encode": [], "send": [], "decode and turn back": []}
    for _ in range(repeats):
        marks = [time.thread_time()]
        frame = framing.encode(encode_activations(a_BCHW, config), schema, comm.pool)
        marks.append(time.thread_time())
        comm.send(0, Envelope(4, True, 0, 0), frame.buffer)
        packet = comm.poll()
        assert packet is not None
        marks.append(time.thread_time())
        message, _ = framing.decode(packet.body, (QuantizedActivations,), schema)
        decode_activations(message, cut.shape, torch.device("cpu"))
        marks.append(time.thread_time())
        for name, took in zip(times, np.diff(marks), strict=True):
            times[name].append(float(took) * 1e3)
    return {name: statistics.median(values) for name, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--width", type=float, default=0.25)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    parts = activation_ms(200)
    words = ", ".join(f"{name} {value:.2f}" for name, value in parts.items())
    print(f"10 x 128 x 8 x 8 activations in 8 bits: {sum(parts.values()):.2f} ms ({words})")
    with tempfile.TemporaryDirectory() as folder:
        pairs = [
            [step_ms(name, args.width, args.device, Path(folder)) for name in ("fedavg", "splitfed")]
            for _ in range(args.repeats)
        ]
    whole, split = (statistics.median(side) for side in zip(*pairs, strict=True))
    ratios = sorted(b / a for a, b in pairs)
    print(f"vgg11 of width {args.width:g}: {whole:.1f} ms a step in one piece, {split:.1f} split")
    print(f"ratio {statistics.median(ratios):.3f} (pairs {ratios[0]:.2f} to {ratios[-1]:.2f})")


if __name__ == "__main__":
    main()

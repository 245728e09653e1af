"""What a mask costs in a local step: training under a mask against the same training without one, in turn.

    python benchmarks/masked_step.py [--model cifar10net] [--device cpu] [--repeats 15]

Both train one client of 40 images, batches of 32 and 8, as `fedmpi.train.local` does it for every algorithm, on one
thread. Medians; on a CPU the CPU time of the thread, so that others on the machine disturb little, on a GPU the time
until it has finished, and there also that of dense steps whose kernels are launched one by one instead of by CUDA
graphs. The last figure is FedDST's readjustment, which one turn in some fifteen rounds has: a gradient of one batch,
and the choice of weights.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import time
from unittest.mock import patch

import numpy as np
import torch
from torch.nn import functional as F

from fedmpi.algorithms.budgets import layer_counts
from fedmpi.algorithms.masking import MaskSpace, readjust
from fedmpi.algorithms.sparse_client import Keeper
from fedmpi.config import NamedSection, TrainConfig
from fedmpi.data.datasets import Dataset
from fedmpi.data.shapes import ImageShape
from fedmpi.data.shard import DeviceImages, Shard
from fedmpi.flat import FlatModel
from fedmpi.models.registry import build_model, resolve, warm_up
from fedmpi.rng import stream
from fedmpi.train import local
from fedmpi.train.local import train_local

SHAPES = {"cifar10net": ImageShape(32, 32, 3), "mnistnet": ImageShape(28, 28, 1)}
CONFIG = TrainConfig(local_epochs=5, batch_size=32, lr=0.01, momentum=0.9, weight_decay=1e-3)
NUM_STEPS = 10


def clock(device: torch.device) -> float:
    """Return the seconds that this thread has computed; on a GPU those on the wall, once it has finished."""
    if device.type == "cpu":
        return time.thread_time()
    torch.cuda.synchronize(device)
    return time.perf_counter()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", choices=SHAPES, default="cifar10net")
    parser.add_argument("--device", type=torch.device, default="cpu", help="cpu, or cuda:0 for the first GPU")
    parser.add_argument("--repeats", type=int, default=15)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    device: torch.device = arguments.device
    shape = SHAPES[arguments.model]
    section = resolve(NamedSection(name=arguments.model))
    warm_up(section)
    model = FlatModel(build_model(section, shape, 10, 0), device)
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (40, *shape), np.uint8), rng.integers(0, 10, 40)
    dataset = Dataset("noise", images, labels, images, labels, 10, (0.5,) * shape.channels, (0.3,) * shape.channels)
    shard = Shard(DeviceImages(images, labels, dataset, device), np.arange(40))
    space = MaskSpace(model.layout)
    counts = layer_counts(space.weights, 0.2, "erk")
    start_P = model.params_P.clone()
    mask_P = space.first_mask(start_P, counts)
    keepers = {"dense": None, "masked": Keeper(mask_P.to(torch.float32))}
    if device.type == "cuda":
        keepers["launched"] = None
    times: dict[str, list[float]] = {"readjust": [], **{name: [] for name in keepers}}
    for repeat in range(arguments.repeats + 2):  # the first two warm up
        for name, keeper in keepers.items():
            model.params_P.copy_(start_P)
            launches = patch.object(local, "step_by_graph", lambda model, cfg, step, updates: step)
            with launches if name == "launched" else contextlib.nullcontext():
                began = clock(device)
                train_local(model, shard, CONFIG, rng=stream(0, repeat, 0, "batches"), after_step=keeper)
                times[name].append((clock(device) - began) / NUM_STEPS)
        model.params_P.copy_(start_P).mul_(mask_P)
        x, y = next(shard.batches(32, 1, stream(0, repeat, 0, "batches")))
        began = clock(device)
        model.grads_P.zero_()
        F.cross_entropy(model.module(x), y).backward()  # type: ignore[no-untyped-call]
        readjust(space, model.params_P, model.grads_P, mask_P, counts, 0.01)
        times["readjust"].append(clock(device) - began)
    median = {name: statistics.median(values[2:]) * 1e3 for name, values in times.items()}
    ratios = sorted(b / a for a, b in zip(times["dense"][2:], times["masked"][2:], strict=True))
    print(f"{arguments.model}: {median['dense']:.2f} ms a step dense, {median['masked']:.2f} masked")
    print(f"ratio of the medians {median['masked'] / median['dense']:.3f} (pairs {ratios[0]:.2f} to {ratios[-1]:.2f})")
    if "launched" in median:
        print(
            f"{median['launched']:.2f} ms dense with single launches, {median['launched'] / median['dense']:.2f} of it"
        )
    print(f"readjustment: {median['readjust']:.1f} ms, once a turn in rounds that have one")


if __name__ == "__main__":
    main()

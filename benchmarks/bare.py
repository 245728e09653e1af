"""The floor: the same clients' training in plain torch, split over processes that never talk.

    python benchmarks/bare.py CONFIG.yaml [section.key=value ...] [--processes 2] [--json]

NCHW tensors, torch.optim.SGD, a normalized float copy of the images, one gather an epoch, batches as slices. Each
process trains its share of every round's clients from the model it has; shares are dealt largest client first, by
size. With --federated one process averages the models too, as FedAvg does, and tests the result: the plain loop that a
run's accuracy is held against.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from fedmpi.configfile import load_config
from fedmpi.engine.setup import Setup, prepare, resolve
from fedmpi.models.registry import build_model
from fedmpi.rng import stream

WARM_UP_ROUNDS = 2


class BareTrainer:
    """Trains one client after the other, as a first script would."""

    def __init__(self, setup: Setup) -> None:
        torch.set_num_threads(1)
        self.setup = setup
        data = setup.dataset
        self.train_x, self.test_x = self.normalized(data.train_inputs), self.normalized(data.test_inputs)
        self.train_y, self.test_y = torch.from_numpy(data.train_labels), torch.from_numpy(data.test_labels)
        self.model = build_model(setup.model_config, setup.dataset.shape, data.num_classes, setup.initial.init_seed)

    def normalized(self, images: np.ndarray) -> torch.Tensor:
        mean, std = torch.tensor(self.setup.dataset.mean), torch.tensor(self.setup.dataset.std)
        x = (torch.from_numpy(images).float() / 255 - mean) / std
        return x.permute(0, 3, 1, 2).contiguous()

    def train(self, state: list[torch.Tensor], round_idx: int, client_id: int) -> None:
        cfg = self.setup.config.train
        with torch.no_grad():
            for parameter, value in zip(self.model.parameters(), state, strict=True):
                parameter.copy_(value)
        optimizer = torch.optim.SGD(
            self.model.parameters(), lr=cfg.lr, momentum=cfg.momentum, weight_decay=cfg.weight_decay
        )
        index = self.setup.partition.client(client_id)
        rng = stream(self.setup.config.seed, round_idx, client_id, "batches")
        rng.integers(2**63)  # fedmpi seeds dropout with this one; from here on both have the same batches
        self.model.train()
        for _ in range(cfg.local_epochs):
            order = torch.from_numpy(index[rng.permutation(index.size)])
            x, y = self.train_x[order], self.train_y[order]
            for start in range(0, index.size, cfg.batch_size):
                optimizer.zero_grad()
                loss = F.cross_entropy(self.model(x[start : start + cfg.batch_size]), y[start : start + cfg.batch_size])
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()

    def state(self) -> list[torch.Tensor]:
        return [parameter.detach().clone() for parameter in self.model.parameters()]

    def accuracy(self, model: nn.Module) -> float:
        model.eval()
        with torch.no_grad():
            batches = zip(torch.split(self.test_x, 500), torch.split(self.test_y, 500), strict=True)
            correct = sum([int((model(x).argmax(1) == y).sum()) for x, y in batches])
        return float(correct) / len(self.test_y)


def deal(sizes: dict[int, int], processes: int) -> list[list[int]]:
    """Deal clients to processes, the largest first to the one with least."""
    shares: list[list[int]] = [[] for _ in range(processes)]
    totals = [0] * processes
    for client in sorted(sizes, key=lambda c: -sizes[c]):
        least = totals.index(min(totals))
        shares[least].append(client)
        totals[least] += sizes[client]
    return shares


def timed_share(config_args: tuple[Path, list[str]], process: int, processes: int, results: Any) -> None:
    """Train one process's share of all rounds; report seconds after the warm-up."""
    setup = prepare(resolve(load_config(*config_args)))
    trainer = BareTrainer(setup)
    state = trainer.state()
    start = time.perf_counter()
    for round_idx in range(setup.config.rounds):
        if round_idx == WARM_UP_ROUNDS:
            start = time.perf_counter()
        sizes = {client: setup.num_samples(client) for client in setup.cohort(round_idx)}
        for client in deal(sizes, processes)[(process + round_idx) % processes]:
            trainer.train(state, round_idx, client)
        state = trainer.state()
    results.put(time.perf_counter() - start)


def time_rounds(config_args: tuple[Path, list[str]], processes: int) -> float:
    """Return seconds a round: the slowest process's, after the warm-up."""
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    workers = [context.Process(target=timed_share, args=(config_args, p, processes, results)) for p in range(processes)]
    for worker in workers:
        worker.start()
    slowest: float = max(results.get() for _ in workers)
    for worker in workers:
        worker.join()
    return slowest / (load_config(*config_args).rounds - WARM_UP_ROUNDS)


def federated(config_args: tuple[Path, list[str]]) -> list[float]:
    """Run plain FedAvg and return its test accuracies."""
    setup = prepare(resolve(load_config(*config_args)))
    trainer = BareTrainer(setup)
    state = trainer.state()
    accuracies = []
    for round_idx in range(setup.config.rounds):
        total = [torch.zeros_like(value) for value in state]
        cohort = setup.cohort(round_idx)
        num_samples = sum(setup.num_samples(client) for client in cohort)
        for client in cohort:
            trainer.train(state, round_idx, client)
            for sum_, parameter in zip(total, trainer.model.parameters(), strict=True):
                sum_.add_(parameter.detach(), alpha=setup.num_samples(client) / num_samples)
        state = total
        if (round_idx + 1) % setup.config.evaluate.every == 0:
            with torch.no_grad():
                for parameter, value in zip(trainer.model.parameters(), state, strict=True):
                    parameter.copy_(value)
            accuracies.append(trainer.accuracy(trainer.model))
    return accuracies


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--federated", action="store_true")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if args.federated:
        result: dict[str, Any] = {"accuracy": federated((args.config, args.overrides))}
    else:
        result = {"s_per_round": time_rounds((args.config, args.overrides), args.processes)}
    print(json.dumps(result) if args.json else result)


if __name__ == "__main__":
    main()

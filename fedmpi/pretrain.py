"""``fedmpi pretrain``: a model is trained centrally, in one process, and written to a file that says on what.

The data may be other classes of the data set of a federated run, or another data set, so that what the clients start
from has not seen theirs.
"""

from __future__ import annotations

import contextlib
import gc
import json
import math
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from fedmpi import __version__
from fedmpi.comm.placement import Place, gather_facts, place_ranks
from fedmpi.config import PlacementConfig, PretrainConfig, PretrainRunConfig, TrainConfig
from fedmpi.data.datasets import Dataset, load_dataset
from fedmpi.data.shapes import ImageShape
from fedmpi.data.shard import DeviceData, Shard, device_data
from fedmpi.data.source import data_hash, source_words
from fedmpi.errors import ConfigError, NonFiniteError
from fedmpi.flat import FlatModel
from fedmpi.models import registry as models
from fedmpi.models.initial import initial_model
from fedmpi.models.pretrained import SUFFIX, describe, write_file
from fedmpi.output import check_file
from fedmpi.report import banner
from fedmpi.report.console import Console, on_terminal
from fedmpi.rng import ANY, stream, stream_seed
from fedmpi.train.evaluate import evaluate_batch
from fedmpi.train.local import train_local
from fedmpi.wire.buffers import keep_freed_memory

_TEST_BATCH_SIZE = 500


@dataclass(frozen=True)
class _Kept:
    """The epoch whose model is written: its index, how many labels were right in it, and the model's numbers."""

    epoch_idx: int
    num_right: int
    state_S: Tensor
    ints_I: Tensor


def pretrain(config: PretrainRunConfig, out: Path, *, overwrite: bool = False, dry_run: bool = False) -> int:
    """Train a model and write it; return the exit status.

    Parameters
    ----------
    config : PretrainRunConfig
    out : Path
        A file that ends in .safetensors. It appears when it is whole.
    overwrite : bool
        Replace `out`.
    dry_run : bool
        Check everything, and train and write nothing.

    Raises
    ------
    FedmpiError
        For settings, data, devices and files that are not what is needed, and if the loss is no number any more.
    """
    if out.suffix != SUFFIX:
        raise ConfigError(f"the file of pre-trained weights (-o) must end in {SUFFIX}, got {out}")
    check_file(out, overwrite)
    model_config = models.resolve(config.model)
    config = config.model_copy(update={"model": model_config})
    dataset = load_dataset(config.data, config.seed)
    init_seed = stream_seed(config.seed, ANY, ANY, "initial model") & 0x7FFFFFFF
    initial = initial_model(model_config, dataset.shape, dataset.num_classes, init_seed)
    place, warnings = _place(config)
    warnings += model_config.idle_settings()
    console = Console()
    with contextlib.ExitStack() as cleanup:
        cleanup.callback(console.close)
        console.print(banner.banner(banner.provenance("not used")))
        console.print(banner.echo(config))
        console.print(banner.placement([place], warnings))
        console.print(
            f"data\n  {source_words(config.data)}: {len(dataset.train_labels)} training and "
            f"{len(dataset.test_labels)} test samples, {dataset.num_classes} classes"
        )
        if dry_run:
            num_steps = -(-len(dataset.train_labels) // config.pretrain.batch_size)
            console.print(
                f"fedmpi: dry run ok, nothing trained or written; {config.pretrain.epochs} epochs of {num_steps} steps"
            )
            return 0
        device = _prepare_device(place)
        models.warm_up(model_config)
        model = FlatModel(
            models.build_model(model_config, dataset.shape, dataset.num_classes, initial.init_seed), device
        )
        model.load(initial.state_S, initial.ints_I)
        start = perf_counter()
        kept = _train(config, dataset, model, console)
        model.load(kept.state_S, kept.ints_I)
        train_accuracy = kept.num_right / dataset.train_labels.size
        test_accuracy = _accuracy(model, device_data(dataset, "test", device), dataset.test_labels.size)
        metadata = _metadata(config, dataset) | {
            "epoch": str(kept.epoch_idx + 1),
            "train_accuracy": repr(train_accuracy),
            "test_accuracy": repr(test_accuracy),
        }
        tensors_hash = write_file(out, model.module.state_dict(), metadata)
        console.print(
            f"fedmpi: pretrained {out} epoch={kept.epoch_idx + 1}/{config.pretrain.epochs} "
            f"train_acc={train_accuracy:.4f} test_acc={test_accuracy:.4f} wall={perf_counter() - start:.2f} "
            f"tensors={tensors_hash[:16]} data={metadata['data_hash'][:16]}"
        )
    return 0


def lr_of(cfg: PretrainConfig, epoch_idx: int) -> float:
    """Return the learning rate of an epoch, counted from 0."""
    num_drops = sum(epoch_idx / cfg.epochs >= part for part in cfg.lr_drops)
    return cfg.lr * cfg.lr_factor**num_drops


def _place(config: PretrainRunConfig) -> tuple[Place, list[str]]:
    wanted = PlacementConfig(device=config.placement.device, threads=config.placement.threads)
    (place,), warnings = place_ranks([gather_facts(0, "", "", is_worker=True)], wanted)
    return place, warnings


def _prepare_device(place: Place) -> torch.device:
    torch.set_num_threads(place.threads)
    keep_freed_memory()
    device = torch.device(place.device)
    if device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is deterministic only with this
        torch.cuda.set_device(device)
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # nobody reads it
        torch.backends.cudnn.benchmark = False
    gc.collect()
    gc.freeze()
    return device


def _train(config: PretrainRunConfig, dataset: Dataset, model: FlatModel, console: Console) -> _Kept:
    """Train for all epochs, a line each; return the epoch to keep."""
    cfg = config.pretrain
    train_data = device_data(dataset, "train", model.device, config.data.augment == "crop_flip")
    test_data = device_data(dataset, "test", model.device)
    num_train, num_test = dataset.train_labels.size, dataset.test_labels.size
    shard = Shard(train_data, np.arange(len(train_data)))
    num_right = torch.zeros((), dtype=torch.int64, device=model.device)
    kept: _Kept | None = None
    with _bar(cfg.epochs * num_train) as bar:

        def count(logits: Tensor, y: Tensor) -> None:
            num_right.add_((logits.argmax(1) == y).sum())
            if bar is not None:
                bar.update(y.numel())

        for epoch_idx in range(cfg.epochs):
            start = perf_counter()
            num_right.zero_()
            local = TrainConfig(
                batch_size=cfg.batch_size,
                lr=lr_of(cfg, epoch_idx),
                momentum=cfg.momentum,
                nesterov=cfg.nesterov,
                weight_decay=cfg.weight_decay,
            )
            rng = stream(config.seed, epoch_idx, ANY, "pretrain")
            stats = train_local(model, shard, local, rng=rng, fresh=epoch_idx == 0, after_forward=count)
            right = int(num_right)
            if not math.isfinite(stats.loss) or not bool(model.state_S.isfinite().all()):
                raise NonFiniteError(
                    f"epoch {epoch_idx + 1} ended with NaN or infinity (loss {stats.loss}); nothing is written; take a "
                    f"smaller pretrain.lr, got {cfg.lr}"
                )
            if kept is None or cfg.keep == "last" or right > kept.num_right:
                kept = _Kept(epoch_idx, right, model.state_S.clone(), model.ints_I.clone())
            line = (
                f"epoch {epoch_idx + 1:>{len(str(cfg.epochs))}}/{cfg.epochs}  lr {local.lr:g}  "
                f"train_loss {stats.loss:.4f}  train_acc {right / num_train:.4f}"
            )
            if cfg.test_every and (epoch_idx + 1) % cfg.test_every == 0:
                line += f"  test_acc {_accuracy(model, test_data, num_test):.4f}"
            console.print(f"{line}  {perf_counter() - start:.3f} s")
    assert kept is not None
    return kept


@contextlib.contextmanager
def _bar(total: int) -> Iterator[tqdm[Any] | None]:
    """Give a live bar of `total` labels on a terminal, None elsewhere."""
    if not on_terminal():
        yield None
        return
    with tqdm(total=total, unit="label", file=sys.stdout, leave=False) as bar:
        yield bar


def _accuracy(model: FlatModel, data: DeviceData, num_labels: int) -> float:
    num_right = 0
    for start in range(0, len(data), _TEST_BATCH_SIZE):
        counts, _ = evaluate_batch(model, data, start, min(start + _TEST_BATCH_SIZE, len(data)))
        num_right += int(counts.sum())
    return num_right / num_labels


def _metadata(config: PretrainRunConfig, dataset: Dataset) -> dict[str, str]:
    """Return what is known before the training; in place of paths stand hashes of what they lead to."""
    weights: Path | None = getattr(config.model, "weights", None)
    # Of files, what they held is told by its hash; where they lay concerns nobody.
    settings = config.model.model_dump(mode="json", exclude={"weights", "pretrained", "pretrained_units"})
    data = config.data.model_dump(mode="json", exclude={"root"})
    shape = dataset.shape
    size = f"{shape.height}x{shape.width}x{shape.channels}" if isinstance(shape, ImageShape) else str(shape.length)
    return {
        "source": source_words(config.data),
        "data": json.dumps(data, sort_keys=True),
        "data_hash": data_hash(dataset),
        "num_train": str(len(dataset.train_labels)),
        "num_classes": str(dataset.num_classes),
        "shape": size,
        "mean": json.dumps(dataset.mean),
        "std": json.dumps(dataset.std),
        "model_name": config.model.name,
        "model": json.dumps(settings, sort_keys=True),
        "initial_weights": describe(weights, key="model.weights").hash if weights is not None else "none",
        "pretrain": json.dumps(config.pretrain.model_dump(mode="json"), sort_keys=True),
        "epochs": str(config.pretrain.epochs),
        "seed": str(config.seed),
        "fedmpi_version": __version__,
    }

"""The initial model: a function of a seed, so that a seed can be sent in its place, or read from a file."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import xxhash
from torch import Tensor, nn

from fedmpi.data.shapes import ImageShape, InputShape
from fedmpi.errors import ConfigError, FedmpiError
from fedmpi.flat import FlatModel, Layout
from fedmpi.models import custom
from fedmpi.models.pretrained import fill_part
from fedmpi.models.registry import ModelConfig, build_model
from fedmpi.models.split import units
from fedmpi.models.weights import fill_from_file
from fedmpi.plugin import error_words, is_plugin


@dataclass(frozen=True)
class InitialModel:
    """A model before training.

    Parameters
    ----------
    init_seed : int
        What it was built from.
    layout : Layout
    state_S : Tensor, shape (num_state,), float32
    ints_I : Tensor, shape (num_int_buffers,), int64
    state_hash : int
        31 bits of a hash of both vectors: a client that builds the model from the seed checks it.
    from_file : bool
        Numbers of it are those of ``model.weights`` or ``model.pretrained``: a seed cannot stand for it.
    """

    init_seed: int
    layout: Layout
    state_S: Tensor
    ints_I: Tensor
    state_hash: int
    from_file: bool = False


def initial_model(config: ModelConfig, shape: InputShape, num_classes: int, init_seed: int) -> InitialModel:
    """Build the model of a seed on the CPU, check that it fits the data, and return its vectors.

    Where ``model.weights`` names a file, the numbers are the file's.

    Raises
    ------
    ConfigError
        If the model cannot be built, does not return the logits that the data ask for, starts with numbers that are
        not finite, or the file is another model's.
    DataError
        If the file is missing, damaged or holds what are no weights.
    """
    module = build_model(config, shape, num_classes, init_seed)
    try:
        flat = FlatModel(module, torch.device("cpu"))
    except ConfigError as error:
        raise ConfigError(f"model.name={config.name}: {error}") from error
    _check_fit(flat, config.name, shape, num_classes)
    if config.weights is not None:
        fill_from_file(flat.module, config.weights, config.name)
    if config.pretrained is not None:
        fill_part(flat.module, config.pretrained, _first_units(flat.module, config), key="model.pretrained")
    for entry in flat.layout.entries:
        if entry.role != "int_buffer" and not bool(entry.view(flat.state_S).isfinite().all()):
            raise ConfigError(f"model.name={config.name}: {entry.name} starts with NaN or infinity in it")
    digest = xxhash.xxh3_64(flat.state_S.numpy().data)
    digest.update(flat.ints_I.numpy().data)
    state_hash = digest.intdigest() & 0x7FFFFFFF
    from_file = config.weights is not None or config.pretrained is not None
    return InitialModel(init_seed, flat.layout, flat.state_S, flat.ints_I, state_hash, from_file)


def _first_units(module: nn.Module, config: ModelConfig) -> list[str]:
    """Return the names of all that is kept in the first units."""
    names = [name for name, _ in units(module).named_children()]
    if config.pretrained_units > len(names):
        raise ConfigError(
            f"model.pretrained_units must be from 1 to {len(names)}, the units of {config.name}, got "
            f"{config.pretrained_units}"
        )
    wanted = set(names[: config.pretrained_units])
    return [name for name in module.state_dict() if name.partition(".")[0] in wanted]


def _check_fit(flat: FlatModel, name: str, shape: InputShape, num_classes: int) -> None:
    """Run the model once on two samples of zeros: what it returns must be logits for these data."""
    if isinstance(shape, ImageShape):
        # Channels last in memory, as the batches of a run are.
        inputs = torch.zeros(2, shape.height, shape.width, shape.channels).permute(0, 3, 1, 2)
        expected: tuple[int, ...] = (2, num_classes)
        axes = "(batch, classes)"
    else:
        inputs = torch.zeros(2, shape.length, dtype=torch.int64)
        expected = (2, num_classes, shape.length)
        axes = "(batch, characters of the alphabet, length)"
    flat.module.eval()
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            logits = flat.module(inputs)
    except FedmpiError:
        raise
    except Exception as error:
        words = error_words(error, custom.source_file(name) if is_plugin(name) else "")
        given = f"{tuple(inputs.shape)} {str(inputs.dtype).removeprefix('torch.')}"
        raise ConfigError(f"model.name={name}: it failed on a batch of {given}: {words}") from error
    if not isinstance(logits, Tensor):
        got = f"a {type(logits).__name__}"
    elif tuple(logits.shape) == expected and logits.dtype == torch.float32:
        return
    else:
        got = f"{tuple(logits.shape)} {str(logits.dtype).removeprefix('torch.')}"
    raise ConfigError(
        f"model.name={name} must return logits {axes} = {expected} float32 for a batch of {tuple(inputs.shape)}, "
        f"got {got}"
    )

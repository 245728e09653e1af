"""A network cut in two between its units: the first ones are the device's, the rest is the server's.

A unit is one convolution, residual block or fully connected layer with what follows it up to the next: normalization,
activation and pooling, so that as little as can be crosses the cut.
"""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn

from fedmpi.data.shapes import InputShape
from fedmpi.errors import ConfigError
from fedmpi.models.zeros import evaluate_zeros


def units(module: nn.Module) -> nn.Sequential:
    """Return a module as the sequence of its units, which it must be; one of the user's own has its children as units.

    Raises
    ------
    ConfigError
        If it is no sequence.
    """
    if not isinstance(module, nn.Sequential) or type(module).forward is not nn.Sequential.forward:
        raise ConfigError(
            "only a sequence of layers can be split: model.name=vgg11 or resnet9, or a model of your own that is an "
            f"nn.Sequential, which is split between its children; this one is a {type(module).__name__}"
        )
    return module


def split(module: nn.Module, point: int, shape: InputShape | None = None) -> tuple[nn.Sequential, nn.Sequential]:
    """Return the device's and the server's part of a network: ``server(device(x))`` is ``module(x)``, bit for bit.

    Both share the module's tensors, under the module's names. Trained apart they keep the bits of the whole as long as
    the activation's gradient comes back in the memory format that it has in the whole. vgg11 and resnet9 do at every
    point if it lies as the activation does (channels last); a cut of one's own between a normalization and a Flatten
    need not, as sums are then in another order.

    Parameters
    ----------
    module : torch.nn.Module
        See `units`.
    point : int
        How many units the device has, from 1 to one less than all.
    shape : InputShape, optional
        With it, an error about the point says what would cross the cut at each point.

    Raises
    ------
    ConfigError
        If the module cannot be split, or not there.
    """
    layers = _children(units(module))
    if isinstance(point, bool) or not isinstance(point, int) or not 1 <= point < len(layers):
        raise ConfigError(_about_points(module, len(layers), point, shape))
    device, server = nn.Sequential(OrderedDict(layers[:point])), nn.Sequential(OrderedDict(layers[point:]))
    device.training = server.training = module.training
    _check_cut(device, server, point)
    return device, server


def activation_shapes(module: nn.Module, shape: InputShape) -> list[tuple[int, ...]]:
    """Return, for points 1, 2 and so on, the shape of what one sample sends across the cut there.

    The module is run on a sample of zeros, as it is evaluated, and left as it was.

    Raises
    ------
    ConfigError
        If the module cannot be split.
    """
    layers = dict.fromkeys(unit for _, unit in _children(units(module)))  # one that stands twice has one hook
    shapes: list[tuple[int, ...]] = []

    def note(unit: nn.Module, inputs: tuple[Tensor, ...], activation: Tensor) -> None:
        shapes.append(tuple(activation.shape[1:]))

    evaluate_zeros(module, shape, list(layers), note)
    return shapes[:-1]


def activation_shape(module: nn.Module, point: int, shape: InputShape) -> tuple[int, ...]:
    """Return the shape of what one sample sends across the cut, such as (channels, height, width).

    Raises
    ------
    ConfigError
        If the module cannot be split, or not there.
    """
    split(module, point, shape)
    return activation_shapes(module, shape)[point - 1]


def _children(module: nn.Sequential) -> list[tuple[str, nn.Module]]:
    """Return all children by name: one that stands twice too, which `named_children` leaves out."""
    found = module.named_modules(remove_duplicate=False)
    return [(name, child) for name, child in found if name and "." not in name]


def _about_points(module: nn.Module, num_units: int, point: object, shape: InputShape | None) -> str:
    if num_units < 2:
        return f"a model must have two units or more to be split, this one has {num_units}"
    text = (
        f"the point at which a model is split must be a whole number from 1 to {num_units - 1}, got {point!r}: "
        "so many of its units are the device's, and none is split inside"
    )
    if shape is None:
        return text
    shapes = activation_shapes(module, shape)
    listed = ", ".join(f"{number}: {'x'.join(map(str, sizes))}" for number, sizes in enumerate(shapes, 1))
    return f"{text}. What a sample sends at each: {listed}"


def _check_cut(device: nn.Sequential, server: nn.Sequential, point: int) -> None:
    """Refuse parts that cannot be trained apart: with a tensor in both, or a change of the other's in place."""
    names = {id(tensor): name for name, tensor in (*device.named_parameters(), *device.named_buffers())}
    for name, tensor in (*server.named_parameters(), *server.named_buffers()):
        if id(tensor) in names:
            raise ConfigError(
                f"a model cannot be split after unit {point}: {names[id(tensor)]} before it and {name} behind it are "
                "one tensor"
            )
    first: nn.Module = server
    while isinstance(first, nn.Sequential) and len(first):
        first = first[0]
    if getattr(first, "inplace", False):
        raise ConfigError(
            f"a model cannot be split after unit {point}: the {type(first).__name__} behind it overwrites the "
            "activation; give it inplace=False, or split elsewhere"
        )

"""Operations of a forward and a backward pass, counted from shapes.

A count, and no claim of speed: dense hardware and dense kernels multiply by a zero as long as by any other number.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn

from fedmpi.data.shapes import InputShape
from fedmpi.models.split import split
from fedmpi.models.zeros import evaluate_zeros

_COUNTED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


class Operations(NamedTuple):
    """Floating point operations a sample, a multiplication with its addition being two.

    `forward` and `backward` are those of the weights that are kept, `dense_forward` and `dense_backward` of all.
    """

    forward: int
    backward: int
    dense_forward: int
    dense_backward: int


class SplitOperations(NamedTuple):
    """Operations of a network's two parts: all are dense, so that kept and dense numbers agree."""

    device: Operations
    server: Operations


class Uses(NamedTuple):
    """How a layer's weight is used for one sample.

    Parameters
    ----------
    times : int
        How many times each of its numbers is multiplied.
    passes_back : bool
        Whether the gradient by its inputs is needed: not where these are the sample itself, or follow from numbers
        that are not trained.
    """

    times: int
    passes_back: bool


def weight_uses(module: nn.Module, shape: InputShape) -> dict[str, Uses]:
    """Return how many times each number of a weight is multiplied for one sample, and if its gradient goes further.

    `times` is the number of output positions of a convolution, of which those at the border multiply padding, and the
    number of vectors that a fully connected layer is given. What a layer is called for twice counts twice.

    The module is run on a sample of zeros, where it lies, as it is evaluated; it is left as it was.

    Parameters
    ----------
    module : torch.nn.Module
    shape : InputShape

    Returns
    -------
    dict of str to Uses
        By the parameter's name, in the module's order, for the weights of ``nn.Linear`` and ``nn.Conv1d`` to
        ``nn.Conv3d``; a weight that layers share stands under its first name. 0 for a layer that is not called, also if
        its weight is used in some other way, as the projections of ``nn.MultiheadAttention`` are. Recurrent layers,
        embeddings and transposed convolutions are not counted.
    """
    names = {id(param): name for name, param in module.named_parameters()}
    layers = [layer for layer in module.modules() if isinstance(layer, _COUNTED) and id(layer.weight) in names]
    uses_of = {id(layer.weight): Uses(0, False) for layer in layers}

    def count(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        weight = layer.weight
        assert isinstance(weight, Tensor)
        times, passes_back = uses_of[id(weight)]
        uses_of[id(weight)] = Uses(times + output.numel() // weight.shape[0], passes_back or inputs[0].requires_grad)

    evaluate_zeros(module, shape, layers, count)
    return {name: uses_of[key] for key, name in names.items() if key in uses_of}


def count_operations(numels: Sequence[int], uses: Sequence[Uses], kept: Sequence[int]) -> Operations:
    """Return the operations of one sample's forward and backward pass in layers with weights.

    Forward, layer l takes ``2 uses_l kept_l``; backward as many for the gradient by its weights and again as many for
    that by its inputs where this is needed. Biases, normalizations, activations, pooling, the loss and
    the optimizer's step are left out. A step that needs the gradient by weights that are not kept, as growth does,
    takes more.

    Parameters
    ----------
    numels : sequence of L ints
        Numbers of each weight.
    uses : sequence of L Uses
        See `weight_uses`.
    kept : sequence of L ints
        How many of its numbers are kept.

    Raises
    ------
    ValueError
        If the lengths differ, or a layer keeps fewer than 0 or more than it has.
    """
    if not len(numels) == len(uses) == len(kept):
        raise ValueError(f"numels, uses and kept must be as many, got {len(numels)}, {len(uses)} and {len(kept)}")
    for layer, (numel, count) in enumerate(zip(numels, kept, strict=True)):
        if not 0 <= count <= numel:
            raise ValueError(f"layer {layer} must keep from 0 to {numel} numbers, got {count}")

    def passes(counts: Sequence[int]) -> tuple[int, int]:
        each = [2 * use.times * int(count) for use, count in zip(uses, counts, strict=True)]
        further = sum(ops for ops, use in zip(each, uses, strict=True) if use.passes_back)
        return sum(each), sum(each) + further

    return Operations(*passes(kept), *passes(numels))


def count_split_operations(
    module: nn.Module, point: int, shape: InputShape, *, passes_back: bool = True
) -> SplitOperations:
    """Return the operations a sample of the device's and of the server's part of a network, all weights kept.

    What is counted is said at `weight_uses` and `count_operations`; a multiplication with its addition is two. The
    device's backward pass is that of a device that trains its part.

    Parameters
    ----------
    module : torch.nn.Module
    point : int
        See `fedmpi.models.split.split`.
    shape : InputShape
    passes_back : bool
        Whether the server computes the gradient by the activation, to return it. Where it does not, its first layer
        has no gradient by its inputs to compute.

    Raises
    ------
    ConfigError
        If the module cannot be split, or not there.
    """
    device, server = split(module, point, shape)
    cut: nn.Module = nn.Identity() if passes_back else _Detach()
    parts = nn.Sequential(OrderedDict(device=device, cut=cut, server=server))
    uses = weight_uses(parts, shape)

    def count(part: str) -> Operations:
        names = [name for name in uses if name.startswith(f"{part}.")]
        numels = [parts.get_parameter(name).numel() for name in names]
        return count_operations(numels, [uses[name] for name in names], numels)

    return SplitOperations(count("device"), count("server"))


class _Detach(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.detach()

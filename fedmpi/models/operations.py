"""Operations of a forward and a backward pass, counted from shapes.

A count, and no claim of speed: dense hardware and dense kernels multiply by a zero as long as by any other number.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from fedmpi.data.shapes import ImageShape, InputShape

_COUNTED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


class Operations(NamedTuple):
    """Floating point operations a sample, a multiplication with its addition being two.

    `forward` and `backward` are those of the weights that are kept, `dense_forward` and `dense_backward` of all.
    """

    forward: int
    backward: int
    dense_forward: int
    dense_backward: int


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

    _evaluate_zeros(module, shape, layers, count)
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


def _evaluate_zeros(
    module: nn.Module,
    shape: InputShape,
    layers: Sequence[nn.Module],
    hook: Callable[[nn.Module, tuple[Tensor, ...], Tensor], None],
) -> None:
    """Run a module on a sample of zeros, with a hook after each of `layers`, and leave it as it was."""
    device = next((param.device for param in module.parameters()), torch.device("cpu"))
    if isinstance(shape, ImageShape):
        sample = torch.zeros(1, shape.channels, shape.height, shape.width, device=device)
    else:
        sample = torch.zeros(1, shape.length, dtype=torch.int64, device=device)
    training = {part: part.training for part in module.modules()}
    handles = [layer.register_forward_hook(hook) for layer in layers]
    try:
        for part in training:
            part.training = False
        # A forward pass may write to buffers even when it evaluates: to copies here.
        buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            functional_call(module, buffers, (sample,))
    finally:
        for handle in handles:
            handle.remove()
        for part, mode in training.items():
            part.training = mode

"""One forward pass on a sample of zeros, to see what goes through a module's layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call

from fedmpi.data.shapes import ImageShape, InputShape


def evaluate_zeros(
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

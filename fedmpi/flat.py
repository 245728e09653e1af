"""A model whose parameters, gradients and buffers are views of a few flat vectors.

An optimizer step, a mask, a weighted sum and a send are then each a few vector operations, whatever the number of
tensors. The order in which the numbers are stored is the order everywhere: in masks, indices, messages and files.
"""

from __future__ import annotations

import zlib
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import is_lazy

from fedmpi.errors import ConfigError
from fedmpi.wire.message import Schema

CONV_NDIM = 4
_CUDNN_ALIGNMENT = 16  # bytes


@dataclass(frozen=True)
class Entry:
    """Where one tensor of the model lies.

    Parameters
    ----------
    name : str
    role : {"param", "buffer", "int_buffer"}
    shape : tuple of int
        As the module sees it.
    stored_shape : tuple of int
        As it lies in memory: convolution weights as (out, height, width, in), all else as `shape`.
    offset : int
        Of its first number, in the state vector or, for an int_buffer, in the vector of integers.
    """

    name: str
    role: str
    shape: tuple[int, ...]
    stored_shape: tuple[int, ...]
    offset: int

    @property
    def numel(self) -> int:
        """Number of elements."""
        return int(torch.Size(self.shape).numel())

    def view(self, vector: Tensor) -> Tensor:
        """Return this tensor as a view of `vector`, in the module's shape."""
        stored = vector[self.offset : self.offset + self.numel].view(self.stored_shape)
        return stored.permute(0, 3, 1, 2) if len(self.shape) == CONV_NDIM else stored


@dataclass(frozen=True)
class Layout:
    """The order of a model's numbers: parameters, then floating buffers; integer buffers in a vector of their own.

    Parameters
    ----------
    entries : tuple of Entry
    num_params : int
        Trainable numbers, P.
    num_state : int
        Parameters and floating buffers, S; a frozen parameter is a buffer here.
    num_int_buffers : int
        I.
    maskable : tuple of str
        Names of the trained weights of convolutions and fully connected layers, which masks may leave out; biases and
        the numbers of normalizations are not among them.
    """

    entries: tuple[Entry, ...]
    num_params: int
    num_state: int
    num_int_buffers: int
    maskable: tuple[str, ...] = ()

    @property
    def maskable_entries(self) -> tuple[Entry, ...]:
        """The tensors of `maskable`, in stored order."""
        names = set(self.maskable)
        return tuple(entry for entry in self.entries if entry.name in names)

    @property
    def layout_id(self) -> int:
        """CRC-32 of names, roles, shapes, storage and offsets: equal on ranks that mean the same by a vector."""
        return zlib.crc32(repr(self.entries).encode())

    def schema(self) -> Schema:
        """Return the sizes that messages' fields may name, and where the tensors of params and state begin."""
        sizes = {
            "params": self.num_params,
            "buffers": self.num_state - self.num_params,
            "state": self.num_state,
            "int_buffers": self.num_int_buffers,
        }
        starts = [entry.offset for entry in self.entries if entry.role != "int_buffer" and entry.numel]
        state = np.array([*starts, self.num_state], np.int64)
        segments = {"params": state[state <= self.num_params], "state": state}
        return Schema(sizes, self.layout_id, segments)


def layout_of(module: nn.Module) -> Layout:
    """Return the layout of a module.

    Parameters that are frozen (``requires_grad`` is False) count as floating buffers: they are sent and averaged, and
    no optimizer, penalty or mask touches them. A tensor that the module has under several names (tied weights) is one
    entry, under the first.

    Raises
    ------
    ConfigError
        For parameters that are not float32, lazy ones, two that share memory, and none to train; and for buffers that
        are neither float32 nor int64.
    """
    entries: list[Entry] = []
    starts: dict[int, str] = {}
    frozen: list[tuple[str, Tensor]] = []

    def add(name: str, role: str, tensor: Tensor, offset: int) -> int:
        shape = tuple(tensor.shape)
        stored = (shape[0], shape[2], shape[3], shape[1]) if len(shape) == CONV_NDIM else shape
        entries.append(Entry(name, role, shape, stored, offset))
        return offset + tensor.numel()

    num_params = num_ints = 0
    for name, param in module.named_parameters():
        if is_lazy(param) or param.is_meta:
            raise ConfigError(f"parameter {name} is lazy or meta: a model must have its numbers once it is built")
        if param.dtype != torch.float32:
            raise ConfigError(f"parameter {name} must be float32, got {param.dtype}")
        if param.numel():
            other = starts.setdefault(param.data_ptr(), name)
            if other != name:
                raise ConfigError(f"parameters {other} and {name} share memory: make them one nn.Parameter")
        if param.requires_grad:
            num_params = add(name, "param", param, num_params)
        else:
            frozen.append((name, param))
    if not num_params:
        raise ConfigError("the model has no parameter that is trained")
    num_state = num_params
    for name, constant in frozen:
        num_state = add(name, "buffer", constant, num_state)
    persistent = module.state_dict().keys()
    for name, buffer in module.named_buffers():
        if name not in persistent:
            continue
        if is_lazy(buffer) or buffer.is_meta:
            raise ConfigError(f"buffer {name} is lazy or meta: a model must have its numbers once it is built")
        if buffer.dtype not in (torch.float32, torch.int64):
            raise ConfigError(f"buffer {name} must be float32 or int64, got {buffer.dtype}")
        if buffer.is_floating_point():
            num_state = add(name, "buffer", buffer, num_state)
        else:
            num_ints = add(name, "int_buffer", buffer, num_ints)
    return Layout(tuple(entries), num_params, num_state, num_ints, _maskable(module, entries))


def _maskable(module: nn.Module, entries: list[Entry]) -> tuple[str, ...]:
    layers = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    weights = {id(layer.weight) for layer in module.modules() if isinstance(layer, layers)}
    found = {name for name, param in module.named_parameters() if id(param) in weights}
    return tuple(entry.name for entry in entries if entry.role == "param" and entry.name in found)


def unaligned_norms(module: nn.Module) -> list[nn.Module]:
    """Return the batch normalizations with a tensor that starts at no multiple of 16 bytes.

    A part of a vector may; a tensor by itself never does. For channels-last images cuDNN reads four of its numbers at
    once, and where they are not aligned the GPU stops with "misaligned address" for good.
    """

    def is_unaligned(layer: nn.Module) -> bool:
        tensors = [*layer.parameters(recurse=False), *layer.buffers(recurse=False)]
        return any(tensor.is_floating_point() and tensor.data_ptr() % _CUDNN_ALIGNMENT for tensor in tensors)

    return [layer for layer in module.modules() if isinstance(layer, _BatchNorm) and is_unaligned(layer)]


def leave_out_cudnn(layer: nn.Module) -> None:
    """Have torch's own kernels compute a layer, forward and, as autograd stays with them, backward."""
    entered: list[AbstractContextManager[None]] = []

    def enter(*_: object) -> None:
        entered.append(torch.backends.cudnn.flags(enabled=False))
        entered[-1].__enter__()

    def leave(*_: object) -> None:
        entered.pop().__exit__(None, None, None)

    layer.register_forward_pre_hook(enter)
    layer.register_forward_hook(leave, always_call=True)


class FlatVectors:
    """A module and the flat vectors that an optimizer steps on: of a whole model, or of a part of one.

    Parameters
    ----------
    module : torch.nn.Module
        Its trained parameters and their gradients are views of the vectors.
    layout : Layout
    params_P, grads_P : Tensor, shape (num_params,), float32

    Attributes
    ----------
    device : torch.device
    leaf_P : Tensor, shape (num_params,)
        The parameters as one differentiable leaf whose gradient is `grads_P`: a loss on the flat vector adds its
        gradient to the network's own.
    """

    def __init__(self, module: nn.Module, layout: Layout, params_P: Tensor, grads_P: Tensor) -> None:
        self.module = module
        self.layout = layout
        self.device = params_P.device
        self.params_P = params_P
        self.grads_P = grads_P
        self.leaf_P = params_P.detach().requires_grad_()
        self.leaf_P.grad = grads_P

    @cached_property
    def momentum_P(self) -> Tensor:
        """Momentum, or Adam's running mean of gradients, shape (num_params,), float32.

        Kept from client to client for its memory, not for its content.
        """
        return torch.zeros_like(self.params_P)

    @cached_property
    def second_moment_P(self) -> Tensor:
        """Adam's running mean of squared gradients, shape (num_params,), float32: kept as `momentum_P` is."""
        return torch.zeros_like(self.params_P)


class FlatModel(FlatVectors):
    """A module rebuilt on flat vectors.

    Parameters
    ----------
    module : torch.nn.Module
        Its tensors are copied into the vectors, and replaced by views of them.
    device : torch.device

    Attributes
    ----------
    state_S : Tensor, shape (num_state,), float32
        Parameters, then floating buffers.
    params_P, grads_P : Tensor, shape (num_params,), float32
        The parameters (the head of `state_S`) and their gradients.
    ints_I : Tensor, shape (num_int_buffers,), int64
    """

    def __init__(self, module: nn.Module, device: torch.device | None = None) -> None:
        device = device or torch.device("cpu")
        layout = layout_of(module)
        self.state_S = torch.zeros(layout.num_state, device=device)
        self.ints_I = torch.zeros(layout.num_int_buffers, dtype=torch.int64, device=device)
        grads_P = torch.zeros(layout.num_params, device=device)
        super().__init__(module.to(device), layout, self.state_S[: layout.num_params], grads_P)
        params = dict(module.named_parameters())
        buffers = list(module.named_buffers(remove_duplicate=False))
        for entry in self.layout.entries:
            view = entry.view(self.ints_I if entry.role == "int_buffer" else self.state_S)
            if entry.name in params:
                param = params[entry.name]
                view.copy_(param.data)
                param.data = view
                if entry.role == "param":
                    param.grad = entry.view(self.grads_P)
                continue
            buffer = module.get_buffer(entry.name)
            view.copy_(buffer)
            for name, other in buffers:
                if other is buffer:  # one buffer may have several names
                    owner, _, leaf = name.rpartition(".")
                    setattr(module.get_submodule(owner), leaf, view)

        if device.type == "cuda":
            for layer in unaligned_norms(module):
                leave_out_cudnn(layer)

    def load(self, state_S: Tensor, ints_I: Tensor | None = None) -> None:
        """Overwrite the model's numbers; `ints_I` may be None where the model has none."""
        self.state_S.copy_(state_S)
        if self.layout.num_int_buffers:
            assert ints_I is not None
            self.ints_I.copy_(ints_I)

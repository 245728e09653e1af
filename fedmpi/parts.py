"""A contiguous part of a flat model, such as the layers on a device: the same memory under a layout of its own.

Parameters lie in the order of the module's children, and so do buffers, behind all parameters. A part of a model
without buffers is one piece of the model's state; otherwise a piece of the parameters, and others of what lies behind.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from fedmpi.flat import Entry, FlatModel, FlatVectors, Layout


@dataclass(frozen=True)
class LayoutPart:
    """Where a part of a model lies in the model's vectors.

    Parameters
    ----------
    layout : Layout
        The part's own, as `fedmpi.flat.layout_of` says it of the part alone: its sizes, its schema.
    params : slice
        Of the model's parameters, gradients and the like.
    state : tuple of slice
        Of the model's state: the pieces that make the part's state, in its order.
    ints : slice
        Of the model's integers.
    """

    layout: Layout
    params: slice
    state: tuple[slice, ...]
    ints: slice

    def take(self, state_S: Tensor) -> Tensor:
        """Return the part's state (its parameters, then its floating buffers), shape (layout.num_state,).

        A view of the model's `state_S` if the part is one piece of it, as where there are no buffers; otherwise a copy.
        """
        pieces = [state_S[piece] for piece in self.state]
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces or [state_S[:0]])

    def put(self, part_S: Tensor, state_S: Tensor) -> None:
        """Overwrite the part in the model's `state_S` by `part_S`, shape (layout.num_state,)."""
        assert part_S.shape == (self.layout.num_state,)
        begin = 0
        for piece in self.state:
            end = begin + piece.stop - piece.start
            state_S[piece].copy_(part_S[begin:end])
            begin = end


def layout_part(layout: Layout, children: Collection[str]) -> LayoutPart:
    """Return where some neighbouring children of a module lie.

    Parameters
    ----------
    layout : Layout
        Of the module.
    children : collection of str
        Their names, those without parameters among them or not.

    Raises
    ------
    ValueError
        If other children lie between them.
    """
    own = [entry for entry in layout.entries if entry.name.partition(".")[0] in children]
    params, ints = _pieces(own, "param"), _pieces(own, "int_buffer")
    if len(params) > 1 or len(ints) > 1:
        raise ValueError(f"a part must be children that follow each other, got {', '.join(children)}")
    entries, num_state, num_ints = [], 0, 0
    for entry in own:
        if entry.role == "int_buffer":
            entries.append(dataclasses.replace(entry, offset=num_ints))
            num_ints += entry.numel
        else:
            entries.append(dataclasses.replace(entry, offset=num_state))
            num_state += entry.numel
    num_params = sum(entry.numel for entry in own if entry.role == "param")
    names = {entry.name for entry in own}
    maskable = tuple(name for name in layout.maskable if name in names)
    part = Layout(tuple(entries), num_params, num_state, num_ints, maskable)
    nothing = slice(0, 0)
    return LayoutPart(part, [*params, nothing][0], tuple(_pieces(own, "param", "buffer")), [*ints, nothing][0])


def _pieces(entries: Iterable[Entry], *roles: str) -> list[slice]:
    """Return where the tensors of some roles lie, those that touch as one."""
    pieces: list[slice] = []
    for entry in entries:
        if entry.role not in roles or not entry.numel:
            continue
        start, stop = entry.offset, entry.offset + entry.numel
        if pieces and pieces[-1].stop == start:
            start = pieces.pop().start
        pieces.append(slice(start, stop))
    return pieces


class FlatPart(FlatVectors):
    """A part of a flat model, in the model's own memory: a step, a gradient or `load` on it changes the part alone.

    Parameters
    ----------
    model : FlatModel
    module : torch.nn.Module
        Some neighbouring children of the model's module under their own names, as `fedmpi.models.split.split` returns.

    Attributes
    ----------
    part : LayoutPart
        Where the part lies in the model's vectors.
    params_P, grads_P, momentum_P, second_moment_P : Tensor, shape (layout.num_params,), float32
        Views of the model's; `layout` is the part's own.
    ints_I : Tensor, shape (layout.num_int_buffers,), int64
        A view of the model's.

    Raises
    ------
    ValueError
        If the module's tensors are not the model's, or other children lie between them.
    """

    def __init__(self, model: FlatModel, module: nn.Module) -> None:
        self.part = layout_part(model.layout, [name for name, _ in module.named_children()])
        own = {name: id(param) for name, param in module.named_parameters()}
        if any(own.get(name) != id(param) for name, param in model.module.named_parameters() if name in own) or (
            own.keys() - {entry.name for entry in self.part.layout.entries}
        ):
            raise ValueError("the parameters of a part must be the model's, under the same names")
        self._model = model
        # `.data`, for autograd takes a write through the model's vector for one to every buffer: the other part, whose
        # backward pass may still be to come, would then be said to have been changed.
        self._state_S = model.state_S.data
        self.ints_I = model.ints_I[self.part.ints]
        params = self.part.params
        super().__init__(module, self.part.layout, self._state_S[params], model.grads_P[params])

    @property
    def state_S(self) -> Tensor:
        """Its parameters, then its floating buffers, shape (layout.num_state,), float32: a copy if it has buffers."""
        return self.part.take(self._state_S)

    @cached_property
    def momentum_P(self) -> Tensor:
        """See `FlatVectors`."""
        return self._model.momentum_P[self.part.params]

    @cached_property
    def second_moment_P(self) -> Tensor:
        """See `FlatVectors`."""
        return self._model.second_moment_P[self.part.params]

    def load(self, state_S: Tensor, ints_I: Tensor | None = None) -> None:
        """Overwrite the part's numbers; `ints_I` may be None where it has none."""
        self.part.put(state_S, self._state_S)
        if self.layout.num_int_buffers:
            assert ints_I is not None
            self.ints_I.copy_(ints_I)

"""On a GPU, a step of SGD as one launch: a CUDA graph, recorded once for each size of batch and replayed.

A small network's step is many short kernels. Launching them one by one from Python takes several times as long as they
do. What a graph computes is what the launches would: the same kernels in the same order, on the same memory, since the
model's vectors stay where they are. That is tried on the batch at hand before a graph is used, and where a bit differs,
or the step cannot be recorded, the launches stay.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from fedmpi.config import TrainConfig
from fedmpi.flat import FlatModel

Step: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""``f(x, y)`` that takes one step in place and returns its loss, detached."""

MOST_GRAPHS = 32
"""Sizes of batches that one model has graphs for; others are launched."""
_SEEN_BEFORE = 3
"""Steps that a size takes before it is recorded: libraries set themselves up, and a rare size is not worth a graph."""
_PURE_PACKAGES = ("torch", "fedmpi")

_KEPT: WeakKeyDictionary[FlatModel, dict[bool, StepGraphs]] = WeakKeyDictionary()
"""Of each model, the graphs of steps without and with the optimizer's update."""


def step_by_graph(model: FlatModel, cfg: TrainConfig, step: Step, *, updates: bool) -> Step:
    """Return a function that does what `step` does, by graphs where that is possible.

    Parameters
    ----------
    model : FlatModel
        `step` changes its vectors and those of its optimizer, and nothing else.
    cfg : TrainConfig
        Settings of the optimizer; a graph holds for those that it was recorded with.
    step : callable
    updates : bool
        Whether the step ends with the optimizer's update; else it leaves the gradients for it. A model may take steps
        of both kinds in turn.

    Returns
    -------
    callable
        `step` itself on a CPU, for Adam, whose step depends on how many came before it, and for modules of other
        packages, whose Python code may do other things from call to call.
    """
    if not has_graphs(model.device) or cfg.optimizer != "sgd" or not is_pure(model.module):
        return step
    # Of a backward pass alone, graphs hold for any settings.
    settings = (cfg.lr, cfg.momentum, cfg.weight_decay, cfg.nesterov, cfg.clip_norm) if updates else ()
    kinds = _KEPT.setdefault(model, {})
    graphs = kinds.get(updates)
    if graphs is None or graphs.settings != settings:
        graphs = kinds[updates] = StepGraphs(settings)
    return lambda x, y: graphs.take(model, step, x, y)


def has_graphs(device: torch.device) -> bool:
    """Return whether steps on a device can be recorded."""
    return device.type == "cuda"


def is_pure(module: nn.Module) -> bool:
    """Return whether a module and all in it, hooks too, are torch's or fedmpi's, which do the same at every call."""

    def is_foreign(code: object) -> bool:
        return getattr(code, "__module__", None) is None or code.__module__.partition(".")[0] not in _PURE_PACKAGES

    return not any(
        is_foreign(type(part)) or "forward" in vars(part) or any(map(is_foreign, _hooks_of(part)))
        for part in module.modules()
    )


def _hooks_of(part: nn.Module) -> Iterator[object]:
    for hooks in (part._forward_pre_hooks, part._forward_hooks, part._backward_pre_hooks, part._backward_hooks):
        yield from hooks.values()


class StepGraphs:
    """The graphs of one model's steps, by size of batch.

    Parameters
    ----------
    settings : tuple
        Of the optimizer.
    """

    def __init__(self, settings: tuple[object, ...]) -> None:
        self.settings = settings
        self._graphs: dict[tuple[torch.Size, torch.Size], _StepGraph | None] = {}
        self._seen: Counter[tuple[torch.Size, torch.Size]] = Counter()

    @property
    def num_graphs(self) -> int:
        """How many sizes are replayed by now."""
        return sum(graph is not None for graph in self._graphs.values())

    def take(self, model: FlatModel, step: Step, x: Tensor, y: Tensor) -> Tensor:
        """Take a step and return its loss, which is valid until the next."""
        size = (x.shape, y.shape)
        if size not in self._graphs:
            if self._seen[size] < _SEEN_BEFORE or len(self._graphs) == MOST_GRAPHS:
                self._seen[size] += 1
                return step(x, y)
            # They share the memory of the first: of what one keeps there, nothing is read once another is replayed.
            pool = next((graph.pool for graph in self._graphs.values() if graph is not None), None)
            self._graphs[size] = _record(model, step, x, y, pool)
        graph = self._graphs[size]
        return graph.replay(x, y) if graph is not None else step(x, y)


class _StepGraph:
    """One step, recorded; its inputs and its loss lie where they lay then."""

    def __init__(self, step: Step, x: Tensor, y: Tensor, pool: Any) -> None:
        self._x, self._y = x.clone(), y.clone()  # clones keep the order of a tensor's dimensions in memory
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, pool=pool):
            self._loss = step(self._x, self._y)
        self.pool = self._graph.pool()

    def replay(self, x: Tensor, y: Tensor) -> Tensor:
        self._x.copy_(x)
        self._y.copy_(y)
        self._graph.replay()
        return self._loss


def _record(model: FlatModel, step: Step, x: Tensor, y: Tensor, pool: Any) -> _StepGraph | None:
    """Record a step, or return None if that fails or a replay would not have the bits of the launches.

    The model, its gradients and momentum and the random state are afterwards as they were.
    """
    numbers = [model.state_S, model.grads_P, model.momentum_P, model.ints_I]
    before, random = [tensor.clone() for tensor in numbers], torch.cuda.get_rng_state(model.device)

    def restore() -> None:
        for tensor, old in zip(numbers, before, strict=True):
            tensor.copy_(old)
        torch.cuda.set_rng_state(random, model.device)

    def results(take: Step) -> list[Tensor]:
        loss = take(x, y)
        found = [loss.clone(), *(tensor.clone() for tensor in numbers)]
        after = torch.cuda.get_rng_state(model.device)
        restore()
        return [*found, after]

    launched = results(step)
    try:
        graph = _StepGraph(step, x, y, pool)
        replayed = results(graph.replay)
    except RuntimeError:  # what waits for the GPU, say, cannot be recorded
        restore()
        return None
    same = all(torch.equal(_bits(a), _bits(b)) for a, b in zip(launched, replayed, strict=True))
    return graph if same else None


def _bits(tensor: Tensor) -> Tensor:
    return tensor.view(torch.int32) if tensor.dtype == torch.float32 else tensor

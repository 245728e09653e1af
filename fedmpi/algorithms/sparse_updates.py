"""Uplinks that carry a part of a client's update: the k largest numbers, with an error memory for the others.

Stich, Cordonnier, Jaggi: "Sparsified SGD with Memory", NeurIPS 2018, as federated clients use it::

    client k:  wanted = (w_k - w_t) + e_k          e_k = 0 before its first round
               sent   = top-k of wanted            exact, ties to the lowest index
               e_k    = wanted - sent
    server:    w_{t+1} = w_t + sum_k n_k sent_k / sum_k n_k

Buffers are not steps: they travel as they are and take the mean weighted by samples.
"""

from __future__ import annotations

from typing import Literal, Self, TypeGuard

import torch
from pydantic import Field, model_validator
from torch import Tensor

from fedmpi.algorithms.averaging import WeightedMean, dense_ints
from fedmpi.algorithms.base import AlgorithmConfig, GlobalModel
from fedmpi.compress.feedback import ErrorMemory
from fedmpi.compress.sparsify import Sparsified, sparsify
from fedmpi.compress.topk import counts_by_segment, num_kept
from fedmpi.errors import NonFiniteError
from fedmpi.flat import FlatModel, Layout
from fedmpi.wire.message import Message, dense, message, sparse
from fedmpi.wire.values import Dense, Sparse

MEMORY = "memory"
"""Name of the error memory in a client's state."""


class UplinkConfig(AlgorithmConfig):
    """What a client sends of its model; part of the settings of FedAvg and its kin."""

    compress: Literal["none", "topk"] = Field(
        "none", description="none: the trained model; topk: the largest numbers of its update"
    )
    density: float | None = Field(
        None, gt=0, le=1, description="share of the update that is sent, 0.01 by default; only with compress=topk"
    )
    scope: Literal["model", "tensor"] | None = Field(
        None,
        description="the largest of the whole model, by default, or as many of each tensor; only with compress=topk",
    )
    error_feedback: bool | None = Field(
        None,
        description="add what was not sent to the client's next update, as is done by default; only with compress=topk",
    )

    @model_validator(mode="after")
    def _fill_in(self) -> Self:
        settings = {"density": 0.01, "scope": "model", "error_feedback": True}
        for name, default in settings.items():
            if self.compress == "none" and getattr(self, name) is not None:
                raise ValueError(f"{name} has no meaning with compress=none; take compress=topk or leave it out")
            if self.compress == "topk" and getattr(self, name) is None:
                object.__setattr__(self, name, default)
        return self


def sends_topk(config: AlgorithmConfig) -> TypeGuard[UplinkConfig]:
    """Return whether an algorithm's settings ask for sparse updates; those of others than FedAvg's kin do not."""
    return isinstance(config, UplinkConfig) and config.compress == "topk"


@message("update", "up")
class UpdateUp(Message):
    """The largest numbers of a client's update, its buffers, and how many samples it was trained on."""

    num_samples: int
    int_buffers: Dense | None = dense("int_buffers", dtype="int64")
    buffers: Dense | None = dense("buffers")
    update: Sparse = sparse("params")


class TopKUplink:
    """A client's side: chooses what to send of an update, and remembers the rest.

    Parameters
    ----------
    config : UplinkConfig
    layout : Layout
    """

    def __init__(self, config: UplinkConfig, layout: Layout) -> None:
        assert config.density is not None
        self._offsets = layout.schema().segments["params"] if config.scope == "tensor" else None
        self._k = (
            num_kept(layout.num_params, config.density)
            if self._offsets is None
            else counts_by_segment(self._offsets, config.density)
        )
        self._num_params = layout.num_params
        self._has_memory = bool(config.error_feedback)

    def state(self, device: torch.device) -> dict[str, Tensor]:
        """Return what a client keeps from round to round, as it is before its first."""
        return {MEMORY: torch.zeros(self._num_params, device=device)} if self._has_memory else {}

    def message(self, model: FlatModel, start_P: Tensor, num_samples: int, client_state: dict[str, Tensor]) -> UpdateUp:
        """Return the uplink of a model that was trained from `start_P`, and keep in `client_state` what it leaves out.

        An update with NaN or infinity has no largest numbers: these are sent, for the server to find.
        """
        wanted_P = model.params_P - start_P
        memory = ErrorMemory(client_state[MEMORY]) if self._has_memory else None
        if memory is not None:
            wanted_P = memory.add(wanted_P)
        try:
            part = sparsify(wanted_P, self._k, self._offsets)
        except NonFiniteError:
            indices_K = wanted_P.isfinite().logical_not_().nonzero().squeeze(1)
            part = Sparsified(indices_K, wanted_P[indices_K])
        if memory is not None:
            memory.keep(wanted_P, part.indices_K, part.sent_K)
        buffers_B = model.state_S[self._num_params :]
        return UpdateUp(
            num_samples=num_samples,
            int_buffers=dense_ints(model.ints_I),
            buffers=Dense.of(buffers_B) if buffers_B.numel() else None,
            update=part.value(self._num_params),
        )


class SparseMean(WeightedMean):
    """Sum of sparse updates weighted by sample counts, divided once; of buffers the same."""

    def __init__(self, layout: Layout) -> None:
        super().__init__(layout)
        self._num_params = layout.num_params

    def add(self, up: Message) -> None:
        assert isinstance(up, UpdateUp)
        self._count(up.num_samples, up.int_buffers)
        # Every index stands once, so that the order of this addition does not matter.
        indices_K = torch.from_numpy(up.update.indices)
        self._sum_S.index_add_(0, indices_K, up.update.tensor_values().double(), alpha=up.num_samples)
        if up.buffers is not None:
            self._sum_S[self._num_params :].add_(up.buffers.tensor(), alpha=up.num_samples)

    def mean_into(self, model: GlobalModel) -> None:
        """Add the mean update to `model` and write the mean buffers over its own; without any, leave it as it is."""
        start_P = model.state_S[: self._num_params].clone()
        super().mean_into(model)
        if self.total_samples:
            torch.add(start_P, self._sum_S[: self._num_params], out=model.state_S[: self._num_params])

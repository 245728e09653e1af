"""FedDST: federated training of a sparse model whose mask moves, so that clients find a good one together.

Bibikar, Vikalo, Wang, Chen: "Federated Dynamic Sparse Training: Computing Less, Communicating Less, Yet Learning
Better", AAAI 2022, Algorithm 1::

    server, round r:  send theta_r, m_r to each client k of the cohort
    client k:         E epochs of SGD on theta * m; in a round of readjustment, half-way through them,
                      drop the share alpha_r of each layer's active weights that are smallest,
                      grow as many inactive ones where the gradient is largest, from zero
    server:           theta_i = sum_k n_k theta_k,i m_k,i / sum_k n_k m_k,i
                      after a readjustment, keep the k_l largest of each layer

with alpha_r = alpha / 2 (1 + cos(pi r / R_end)) before R_end, 0 from then on, and a readjustment in the rounds
1, 1 + interval, 1 + 2 interval, ... in which alpha_r > 0. The initial mask keeps each layer's largest initial weights.

``feddst_released`` does what the authors' released code does in the places where that is not the paper's text: it
readjusts after the last step, so that what has grown is sent as zero and pruned; it grows weights that are active
already; it loses weights to ties among zeros; alpha does not decay. Its settings are those of `FedDSTReleasedConfig`.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional as F

from fedmpi.algorithms.base import Algorithm, AlgorithmConfig, ClientContext, ServerContext
from fedmpi.algorithms.budgets import Distribution
from fedmpi.algorithms.masking import (
    Counts,
    Growth,
    MaskSpace,
    Readjusted,
    compile_choice,
    num_staying,
    readjust,
    reprune,
    reprune_released,
)
from fedmpi.algorithms.sparse_client import Keeper, MaskInUse, SparseClient
from fedmpi.algorithms.sparse_messages import (
    SparseConfig,
    check_budgets,
    counts_of,
    empty_warnings,
    mask_sizes,
    message_classes,
)
from fedmpi.algorithms.sparse_server import SparseServer
from fedmpi.config import RunConfig
from fedmpi.data.shard import Shard
from fedmpi.errors import ConfigError, NonFiniteError
from fedmpi.flat import Layout
from fedmpi.models.initial import InitialModel
from fedmpi.train.optimizer import forget_at
from fedmpi.wire.message import Message


class FedDSTConfig(SparseConfig):
    """Settings of FedDST."""

    alpha: float = Field(0.01, ge=0, le=1, description="share of each layer's active weights that moves; 0 never moves")
    interval: int = Field(
        15,
        ge=1,
        description="weights move in the rounds 1, 1 + interval, 1 + 2 interval, ..., counted from 0, before end_round",
    )
    end_round: int | None = Field(
        None,
        ge=0,
        description="R_end, the round, counted from 0, from which on no weight moves; by default half of the run's",
    )
    final_density: float | None = Field(
        None,
        gt=0,
        le=1,
        description="density after the last readjustment, reached in steps at each; by default that of the start",
    )
    readjust_epoch: int | Literal["middle", "last"] = Field(
        "middle",
        description="local epoch, from 0, after which weights move; middle leaves half of the epochs to train what has "
        "grown, last none",
    )
    growth: Growth = Field(
        "inactive",
        description="where weights grow: where none is active, or pruned_stay: not where one has just been dropped, or "
        "all: anywhere, at the cost of the active weights that are chosen",
    )
    decay: Literal["cosine", "none"] = Field("cosine", description="how alpha falls until end_round")
    reprune: Literal["union", "all"] = Field(
        "union",
        description="what the server keeps the largest of: the weights that some client kept, ties by their votes; or "
        "all weights, of which those that no client kept are then left out",
    )
    client_weight: Literal["samples", "batches"] = Field(
        "samples", description="what a client weighs: its samples, or twice its batches an epoch"
    )

    @model_validator(mode="after")
    def _check(self) -> FedDSTConfig:
        if self.final_density is not None and not self.alpha:
            raise ValueError("final_density needs alpha > 0: the density changes when weights move")
        if isinstance(self.readjust_epoch, int) and self.readjust_epoch < 0:
            raise ValueError(f"readjust_epoch must be at least 0, got {self.readjust_epoch}")
        return self

    def last_round(self, num_rounds: int) -> int:
        """Return R_end."""
        return self.end_round if self.end_round is not None else num_rounds // 2

    def alpha_at(self, round_idx: int, num_rounds: int) -> float:
        """Return alpha_r, whether or not weights move in this round."""
        end = self.last_round(num_rounds)
        if round_idx >= end:
            return 0.0
        return self.alpha if self.decay == "none" else self.alpha / 2 * (1 + math.cos(math.pi * round_idx / end))

    def moves(self, round_idx: int) -> bool:
        """Return whether weights move in a round, if alpha is not 0 in it."""
        return round_idx >= 1 and (round_idx - 1) % self.interval == 0

    def last_move(self, num_rounds: int) -> int:
        """Return the last round in which weights move, if they do in any."""
        return 1 + max(0, self.last_round(num_rounds) - 2) // self.interval * self.interval

    def counts_at(self, round_idx: int, space: MaskSpace, layout: Layout, num_rounds: int) -> Counts:
        """Return how many weights each layer keeps after a round of readjustment."""
        if self.final_density is None:
            return counts_of(self, space, layout)
        share = min(1.0, round_idx / self.last_move(num_rounds))
        return counts_of(self, space, layout, self.density + (self.final_density - self.density) * share)


class FedDSTReleasedConfig(FedDSTConfig):
    """Settings under which FedDST does what its authors' released code does."""

    mu: float = Field(
        0.0, ge=0, description="see feddst; a real term, which in the authors' code has no gradient and so does nothing"
    )
    layer_distribution: Distribution = Field("erk_released", description="see feddst")
    readjust_epoch: int | Literal["middle", "last"] = Field("last", description="see feddst")
    growth: Growth = Field("all", description="see feddst")
    decay: Literal["cosine", "none"] = Field("none", description="see feddst")
    reprune: Literal["union", "all"] = Field("all", description="see feddst")
    client_weight: Literal["samples", "batches"] = Field("batches", description="see feddst")


class FedDSTServer(SparseServer):
    """Says when weights move, and keeps the largest of what the clients kept."""

    config: FedDSTConfig

    def __init__(self, config: FedDSTConfig, ctx: ServerContext) -> None:
        super().__init__(config, ctx)
        self.config = config

    def alpha(self, round_idx: int) -> float:
        return self.config.alpha_at(round_idx, self.ctx.num_rounds) if self.config.moves(round_idx) else 0.0

    def next_mask(self, round_idx: int) -> Tensor | None:
        if not self.alpha(round_idx):
            return None
        counts = self.config.counts_at(round_idx, self.space, self.ctx.layout, self.ctx.num_rounds)
        prune = reprune if self.config.reprune == "union" else reprune_released
        params_P = self.model.state_S[: self.space.num_params]
        return prune(self.space, params_P, self.mean.votes_P, counts)


class FedDSTClient(SparseClient):
    """Moves weights in the rounds in which the server says so."""

    config: FedDSTConfig

    def __init__(self, config: FedDSTConfig, ctx: ClientContext) -> None:
        super().__init__(config, ctx)
        self.config = config
        num_epochs = ctx.train_config.local_epochs
        named = {"middle": -(-num_epochs // 2) - 1, "last": num_epochs - 1}
        epoch = config.readjust_epoch
        self._epoch = named[epoch] if isinstance(epoch, str) else epoch

    def weight(self, shard: Shard) -> int:
        if self.config.client_weight == "samples":
            return shard.num_samples
        return 2 * -(-shard.num_samples // self.ctx.train_config.batch_size)

    def train(self, round_idx: int, client_id: int, shard: Shard, used: MaskInUse, alpha: float) -> Message:
        if not alpha:
            return super().train(round_idx, client_id, shard, used, alpha)
        keeper = Keeper(used.factor_P)
        moved = used.mask_P

        def after_epoch(epoch_idx: int, x: Tensor, y: Tensor) -> None:
            nonlocal moved
            if epoch_idx == self._epoch:
                moved = self._readjust(round_idx, used.mask_P, alpha, x, y)
                keeper.factor_P = moved.to(torch.float32)

        self.fit(round_idx, client_id, shard, keeper, after_epoch=after_epoch)
        return self.uplink(self.weight(shard), used, moved)

    def _readjust(self, round_idx: int, mask_P: Tensor, alpha: float, x: Tensor, y: Tensor) -> Tensor:
        """Move weights by the gradient of the data loss alone on the last batch; return the mask."""
        model, num_rounds = self.ctx.model, self.ctx.num_rounds
        buffers_B, ints_I = model.state_S[self.space.num_params :].clone(), model.ints_I.clone()
        model.grads_P.zero_()
        # Looking at a batch again leaves no trace in running statistics, nor in the random numbers of later steps.
        with torch.random.fork_rng([model.device] if model.device.type == "cuda" else []):
            F.cross_entropy(model.module(x), y).backward()  # type: ignore[no-untyped-call]
        model.state_S[self.space.num_params :].copy_(buffers_B)
        model.ints_I.copy_(ints_I)
        counts = self.config.counts_at(round_idx, self.space, model.layout, num_rounds)
        try:
            result = readjust(self.space, model.params_P, model.grads_P, mask_P, counts, alpha, self.config.growth)
        except NonFiniteError:
            return mask_P  # a diverged model is the server's to find, in what is sent
        _start_anew(model.params_P, result)
        forget_at(model, self.ctx.train_config, result.grown_P)
        return result.mask_P


def _start_anew(params_P: Tensor, result: Readjusted) -> None:
    params_P.mul_(result.mask_P)
    params_P.masked_fill_(result.grown_P, 0.0)


def check(config: AlgorithmConfig, initial: InitialModel, run: RunConfig) -> list[str]:
    """Return warnings about FedDST's settings.

    Raises
    ------
    ConfigError
        If there is nothing to mask, a density cannot be shared out, or the epoch of readjustment is not in the run.
    """
    assert isinstance(config, FedDSTConfig)
    warnings = check_budgets(config, initial, run)
    if isinstance(config.readjust_epoch, int) and config.readjust_epoch >= run.train.local_epochs:
        raise ConfigError(
            f"algorithm.readjust_epoch must be below train.local_epochs={run.train.local_epochs}, as epochs count from "
            f"0, got {config.readjust_epoch}"
        )
    if config.final_density is not None:
        space = MaskSpace(initial.layout)
        counts = counts_of(config, space, initial.layout, config.final_density, "final_density")
        warnings += empty_warnings(config.final_density, space, counts, "final_density")
    end = config.last_round(run.rounds)
    if config.alpha and (end < 2 or run.rounds < 2):
        warnings.append(
            f"algorithm.end_round={end} of rounds={run.rounds}: no weight ever moves, as the first round that moves "
            "any is the second, if it is before end_round"
        )
    elif config.alpha and 1 + config.interval >= min(end, run.rounds):
        warnings.append(
            f"algorithm.interval={config.interval} with end_round={end} of rounds={run.rounds}: weights move in one "
            "round alone, the second"
        )
    if config.final_density is not None and config.last_move(run.rounds) >= run.rounds:
        warnings.append(
            f"algorithm.end_round={end} is beyond rounds={run.rounds}: final_density={config.final_density:g} is not "
            "reached"
        )
    alpha = config.alpha_at(1, run.rounds)  # the first that is used, and the largest
    if alpha and config.final_density is None and not _moves_any(config, initial, alpha):
        warnings.append(
            f"algorithm.alpha={config.alpha:g} is less than half a weight of every layer: none moves, though clients "
            "send masks as if some did"
        )
    last = config.readjust_epoch == "last" or config.readjust_epoch == run.train.local_epochs - 1
    # With the released code's own server that is what its profile is for.
    if config.alpha and (last or run.train.local_epochs == 1) and config.reprune == "union":
        warnings.append("algorithm.readjust_epoch is the last local epoch: what grows is sent before it was trained")
    return warnings


def _moves_any(config: FedDSTConfig, initial: InitialModel, alpha: float) -> bool:
    """Return whether the share `alpha` of some layer is a weight; also if there is no layer in which any can move."""
    space = MaskSpace(initial.layout)
    counts = counts_of(config, space, initial.layout)
    moves = counts < space.sizes
    return not moves.any() or bool((num_staying(counts, alpha) < counts)[moves].any())


def _algorithm(name: str, config: type[FedDSTConfig]) -> Algorithm:
    return Algorithm(
        name,
        config,
        FedDSTServer,
        FedDSTClient,
        sizes=mask_sizes,
        messages=message_classes,
        check=check,
        cycle=None,
        warm_up=compile_choice,
    )


ALGORITHM = _algorithm("feddst", FedDSTConfig)
RELEASED = _algorithm("feddst_released", FedDSTReleasedConfig)

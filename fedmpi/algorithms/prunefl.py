"""PruneFL: the mask follows what a weight's gradient is worth against the time that the weight takes.

Jiang, Wang, Valls, Ko, Lee, Leung, Tassiulas: "Model Pruning Enables Efficient Federated Learning on Edge Devices",
IEEE TNNLS 2022, sections III and IV::

    round 0:             one client trains the dense model alone, reconfiguring it now and then, until its size has
                         changed by less than a tenth five times in a row; its mask is the first
    rounds 1, 2, ...     federated averaging under the mask; in every `reconfigure_every`-th round, clients also send
                         I_j = mean over their steps of g_j^2, for all j, and the server reconfigures
    reconfigure:         K = all but the smallest share d of each layer's active weights, which always stay
                         candidates = all others, by I_j / t_j, the largest first
                         add them to K while  I_j / t_j > sum_K I / (c + sum_K t)

over the weights j that masks may leave out, with t_j the time that a round takes longer with j, and c the time that it
takes without any of them; what is never masked counts in c alone. d = `removable` 2^(-r / half_life) in round r. What
is added anew starts from zero.

The density is a result here. It hangs on c against N_w t: the more of a round's time no weight can save, the more
weights pay. By default ``t_l = comm_s + 6 compute_s_per_op samples_per_round uses_l``, where a forward pass uses each
weight of layer l `uses_l` times a sample, the backward pass counts twice, and each use is two operations. The authors
measured t and c instead: for LEAF's network for FEMNIST and rounds of 5 steps of 20 samples, c = 6.2464 s and ::

    layer_times: [5.5616e-6, 4.1056e-5, 6.5253e-6, 6.4528e-6]     # 5.5616e-6 + 5 [0, 7.0989e-6, 1.9273e-7, 1.7823e-7]

The defaults are theirs as far as they carry over: c, `comm_s`, the 100 samples, and for an operation what their second
convolution took, a fifth of what their fully connected layers did. Another network on another device needs its own.

The authors' code differs. It adds a round's gradients up before it squares them, in every round since the last
reconfiguration, which clients keep; here those of the round itself count, each step's squared, and clients keep
nothing. The gradients of biases and of layers that are never pruned count in its sum over K. It waits with the first
client's reconfigurations for an accuracy above chance, takes ten batches for an iteration, and sees the first change of
size between the first two reconfigurations, where here it is that from the dense model. What the authors of FedDST
call PruneFL has another rule, which makes the model dense.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from fedmpi.algorithms.base import Algorithm, AlgorithmConfig, ClientContext, Conversation, ServerContext
from fedmpi.algorithms.masking import MaskSpace, compile_choice
from fedmpi.algorithms.pruning_rule import is_steady, reconfigure
from fedmpi.algorithms.sparse_client import Keeper, MaskInUse, SparseClient
from fedmpi.algorithms.sparse_messages import SparseModelUp, mask_sizes, message_classes
from fedmpi.algorithms.sparse_server import SparseServer
from fedmpi.config import RunConfig
from fedmpi.data.shard import Shard
from fedmpi.errors import ConfigError, NonFiniteError
from fedmpi.flat import FlatModel
from fedmpi.models.initial import InitialModel
from fedmpi.models.operations import Uses
from fedmpi.train.local import LocalStats, seed_torch
from fedmpi.train.optimizer import forget_at, make_step
from fedmpi.wire.message import Message, Schema, dense, message
from fedmpi.wire.values import Dense

_OPS_PER_USE = 6


class PruneFLConfig(AlgorithmConfig):
    """Settings of PruneFL."""

    removable: float = Field(
        0.3, ge=0, lt=1, description="share of each layer's active weights, the smallest, that may go at once"
    )
    half_life: float = Field(10_000.0, gt=0, description="rounds after which that share has halved")
    reconfigure_every: int = Field(
        50, ge=1, description="rounds from one reconfiguration to the next: rounds 0, 50, 100, ... counted from 0"
    )
    initial_iterations: int = Field(1000, ge=1, description="steps of the first client's training, at most")
    initial_interval: int = Field(50, ge=1, description="steps from one of its reconfigurations to the next")
    constant_s: float = Field(6.2464, gt=0, description="c, seconds of a round that no weight adds to")
    comm_s: float = Field(5.5616e-6, gt=0, description="seconds a round to send one weight")
    compute_s_per_op: float = Field(3e-10, ge=0, description="seconds an operation takes a client")
    samples_per_round: int = Field(100, ge=1, description="samples that a client trains on in a round, for its time")
    layer_times: list[Annotated[float, Field(gt=0)]] | None = Field(
        None,
        description="t_l of each layer, seconds that a weight adds to a round, in place of what the three settings "
        "above come to",
    )

    def reconfigures(self, round_idx: int) -> bool:
        """Return whether the server reconfigures after a round, the first client's stage apart."""
        return round_idx > 0 and round_idx % self.reconfigure_every == 0

    def removable_at(self, round_idx: int) -> float:
        """Return d in a round."""
        return float(self.removable * 0.5 ** (round_idx / self.half_life))

    def times(self, space: MaskSpace, uses: Mapping[str, Uses]) -> np.ndarray:
        """Return t_l, (L,) float64, seconds."""
        if self.layer_times is not None:
            return np.array(self.layer_times, np.float64)
        per_use_s = _OPS_PER_USE * self.compute_s_per_op * self.samples_per_round
        return np.array([self.comm_s + per_use_s * uses[entry.name].times for entry in space.weights], np.float64)


@message("sparse-importance", "up")
class ImportanceUp(SparseModelUp):
    """A client's trained weights and, of all that a mask may leave out, in stored order, the mean squared gradients."""

    importance: Dense = dense("weights")

    def num_params(self, schema: Schema) -> int:
        return super().num_params(schema) + self.importance.numel

    def num_kept(self, schema: Schema) -> int:
        return super().num_kept(schema) + self.importance.num_kept

    def paper_nbits(self, schema: Schema) -> float:
        """As the model's, and 32 bits for each weight that masks may leave out."""
        return super().paper_nbits(schema) + self.importance.paper_nbits


class PruneFLServer(SparseServer):
    """Has one client prune the dense model, which is version 0 of the mask, and reconfigures what it came to."""

    config: PruneFLConfig

    def __init__(self, config: PruneFLConfig, ctx: ServerContext) -> None:
        super().__init__(config, ctx)
        self.config = config
        self._importance_N = torch.zeros(self.space.num_weights, dtype=torch.float64)

    @property
    def is_first_stage(self) -> bool:
        """Whether no client has pruned the model yet: in round 0, and on if that client was lost."""
        return self.mask.version == 0

    def wants_importance(self, round_idx: int) -> bool:
        """Return whether clients send importances in a round."""
        return self.config.reconfigures(round_idx) and not self.is_first_stage

    def first_mask(self) -> Tensor:
        return self.space.full()

    def choose(self, round_idx: int, cohort: Sequence[int]) -> Sequence[int]:
        return sorted(cohort)[:1] if self.is_first_stage else cohort

    def begin_round(self, round_idx: int, cohort: Sequence[int]) -> None:
        super().begin_round(round_idx, cohort)
        self._importance_N.zero_()

    def converse(self, round_idx: int, client_id: int) -> Conversation:
        wanted = ImportanceUp if self.wants_importance(round_idx) else self.up_types
        yield from super().converse(round_idx, client_id)
        return wanted

    def aggregate(self, round_idx: int, client_id: int, result: Message) -> None:
        super().aggregate(round_idx, client_id, result)
        if isinstance(result, ImportanceUp):
            self._importance_N.add_(result.importance.tensor(), alpha=result.weight)

    def next_mask(self, round_idx: int) -> Tensor | None:
        if self.is_first_stage:
            return self.mean.votes_P > 0
        if not self.wants_importance(round_idx):
            return None
        return reconfigure(
            self.space,
            self.model.state_S[: self.space.num_params],
            self._importance_N / self.mean.total,
            torch.from_numpy(self.mask.array),
            times_L=self.config.times(self.space, self.ctx.weight_uses()),
            constant_s=self.config.constant_s,
            removable=self.config.removable_at(round_idx),
        )

    def change_mask(self, mask_P: Tensor | None) -> None:
        if mask_P is not None and self.is_first_stage:
            self.new_version(mask_P)  # even where it keeps all: it says that a client has pruned
        super().change_mask(mask_P)


class _Squares:
    """Mean over steps of the squared gradients; called when those of a step are complete."""

    def __init__(self, model: FlatModel, space: MaskSpace) -> None:
        self._is_weight_P = space.is_weight(model.device)
        self._sum_P = torch.zeros_like(model.grads_P)
        self._num_steps = 0

    def __call__(self, model: FlatModel) -> None:
        self._sum_P.addcmul_(model.grads_P, model.grads_P)
        self._num_steps += 1

    def take_mean(self) -> Tensor:
        """Return the mean of the weights that masks may leave out, (N_w,) float32, in stored order; start anew."""
        mean_N = self._sum_P[self._is_weight_P] / max(1, self._num_steps)
        self._sum_P.zero_()
        self._num_steps = 0
        return mean_N


class PruneFLClient(SparseClient):
    """Prunes the dense model, where it is the first; later trains under the mask, and says what gradients are worth."""

    config: PruneFLConfig

    def __init__(self, config: PruneFLConfig, ctx: ClientContext) -> None:
        super().__init__(config, ctx)
        self.config = config

    def first_mask(self, initial: InitialModel) -> Tensor:
        return self.space.full()

    def train(self, round_idx: int, client_id: int, shard: Shard, used: MaskInUse, alpha: float) -> Message:
        if used.known.version == 0:
            mask_P = used.mask_P if self.ctx.dry_run else self._prune_first(round_idx, client_id, shard, used.mask_P)
            return self.uplink(self.weight(shard), used, mask_P)
        if not self.config.reconfigures(round_idx):
            return super().train(round_idx, client_id, shard, used, alpha)
        squares = _Squares(self.ctx.model, self.space)
        self.fit(round_idx, client_id, shard, Keeper(used.factor_P), after_backward=squares)
        up = self.uplink(self.weight(shard), used)
        return ImportanceUp(**vars(up), importance=Dense.of(squares.take_mean()))

    def _prune_first(self, round_idx: int, client_id: int, shard: Shard, mask_P: Tensor) -> Tensor:
        """Train the model that is loaded on one client's data, reconfiguring it; return the mask, (P,) bool.

        A loop of its own, as `train_local` goes through ``train.local_epochs`` whole epochs and cannot end at a step of
        an algorithm's choice.
        """
        model, cfg, config = self.ctx.model, self.ctx.train_config, self.config
        rng = self.rng(round_idx, client_id, "batches")
        model.module.train()
        seed_torch(model.device, int(rng.integers(2**63)))  # as `train_local` does
        step, keep, squares = make_step(model, cfg), Keeper(mask_P.to(torch.float32)), _Squares(model, self.space)
        num_epochs = -(-config.initial_iterations // -(-shard.num_samples // cfg.batch_size))
        batches = shard.batches(cfg.batch_size, num_epochs, rng)
        sizes = [int(torch.count_nonzero(mask_P))]
        loss_sum, num_samples, num_steps, num_passes = 0.0, 0, 0, 0
        for x, y in islice(batches, config.initial_iterations):
            model.grads_P.zero_()
            loss = F.cross_entropy(model.module(x), y)
            loss.backward()  # type: ignore[no-untyped-call]
            squares(model)
            if cfg.clip_norm is not None:
                model.grads_P.mul_(keep.factor_P)  # as `fit` does: the norm is that by the active weights
            step()
            keep(model)
            loss_sum += loss.item() * y.numel()
            num_samples += y.numel()
            num_passes += len(y)
            num_steps += 1
            self.ctx.progress()
            if num_steps % config.initial_interval == 0:
                try:
                    mask_P = self._reconfigure(squares.take_mean(), mask_P)
                except NonFiniteError:
                    break  # a diverged model is the server's to find, in what is sent
                keep.factor_P = mask_P.to(torch.float32)
                keep(model)
                sizes.append(int(torch.count_nonzero(mask_P)))
                if is_steady(sizes):
                    break
        self.ctx.stats.append(LocalStats(num_steps, num_samples, loss_sum / max(1, num_samples)))
        self.ctx.count_passes(forward=num_passes, backward=num_passes)
        return mask_P

    def _reconfigure(self, importance_N: Tensor, mask_P: Tensor) -> Tensor:
        """Return the mask after a reconfiguration, on the device; what has grown starts without momentum, too."""
        model = self.ctx.model
        new_P = reconfigure(
            self.space,
            model.params_P.cpu(),
            importance_N.cpu(),
            mask_P.cpu(),
            times_L=self.config.times(self.space, self.ctx.weight_uses()),
            constant_s=self.config.constant_s,
            removable=self.config.removable,
        ).to(model.device)
        forget_at(model, self.ctx.train_config, new_P & ~mask_P)
        return new_P


def check(config: AlgorithmConfig, initial: InitialModel, run: RunConfig) -> list[str]:
    """Return warnings about PruneFL's settings.

    Raises
    ------
    ConfigError
        If the model has nothing to mask, or another number of layers than there are times.
    """
    assert isinstance(config, PruneFLConfig)
    space = MaskSpace(initial.layout)
    if config.layer_times is not None and len(config.layer_times) != len(space.weights):
        names = ", ".join(entry.name for entry in space.weights)
        raise ConfigError(
            f"algorithm.layer_times must have a time for each of the model's {len(space.weights)} layers ({names}), "
            f"got {len(config.layer_times)}"
        )
    warnings = []
    if config.reconfigure_every >= run.rounds:
        warnings.append(
            f"algorithm.reconfigure_every={config.reconfigure_every} of rounds={run.rounds}: after the first round "
            "the mask stays as it is"
        )
    if config.initial_interval > config.initial_iterations:
        warnings.append(
            f"algorithm.initial_interval={config.initial_interval} is above initial_iterations="
            f"{config.initial_iterations}: the first client prunes nothing"
        )
    replaced = ("comm_s", "compute_s_per_op", "samples_per_round")
    idle = [name for name in replaced if getattr(config, name) != PruneFLConfig.model_fields[name].default]
    if config.layer_times is not None and idle:
        warnings.append(f"algorithm.{idle[0]} does nothing with algorithm.layer_times, which stands for it")
    return warnings


def all_messages(config: AlgorithmConfig) -> tuple[type[Message], ...]:
    """Return what PruneFL sends."""
    return (*message_classes(config), ImportanceUp)


ALGORITHM = Algorithm(
    "prunefl",
    PruneFLConfig,
    PruneFLServer,
    PruneFLClient,
    sizes=mask_sizes,
    messages=all_messages,
    check=check,
    cycle=None,
    warm_up=compile_choice,
)

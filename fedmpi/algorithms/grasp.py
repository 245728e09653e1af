"""GraSP: a mask chosen before training, so that the gradient keeps its strength; scored on the data of clients.

Wang, Zhang, Grosse: "Picking Winning Tickets Before Training by Preserving Gradient Flow", ICLR 2020, Algorithm 1, with
clients in the place of the data set::

    server, round 0:  send theta_0, dense, to the first clients of the cohort
    client k:         L_k = mean over its data of the cross-entropy of f(x) / T
                      z = grad L_k;  H = its Hessian;  s_k = theta * (H z), each by its own
    server:           s = sum_k n_k s_k / sum_k n_k
                      m keeps the round(density N_w) largest s of the whole model, which drops the largest -theta * H z
                      theta_1 = theta_0 * m
    rounds 1, ...     RandomMask's, under m

over the weights that masks may leave out. The signed score counts, not its magnitude: a weight whose removal would
raise the norm of the gradient goes first. Scaling the loss scales all scores alike and changes nothing.

Nothing is trained in the round of scores, so that it has no training loss. Where all its clients are lost, the next
round is one, too. A layer may be left empty: `num_empty_layers` in the ledger says how many are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F

from fedmpi.algorithms.base import Algorithm, AlgorithmConfig, ClientContext, Conversation, ServerContext
from fedmpi.algorithms.masking import MaskSpace
from fedmpi.algorithms.sparse_client import MaskInUse, SparseClient
from fedmpi.algorithms.sparse_messages import DensityConfig, mask_sizes, message_classes
from fedmpi.algorithms.sparse_server import SparseServer
from fedmpi.compress.topk import num_kept
from fedmpi.config import RunConfig
from fedmpi.data.shard import Shard
from fedmpi.errors import ConfigError, ProtocolError
from fedmpi.flat import FlatModel
from fedmpi.models.initial import InitialModel
from fedmpi.wire.message import Message, dense, message
from fedmpi.wire.values import Dense


class GraSPConfig(DensityConfig):
    """Settings of GraSP."""

    score_clients: int = Field(
        1, ge=1, description="clients of the first round's cohort, the lowest ids first, whose scores are averaged"
    )
    temperature: float = Field(200.0, gt=0, description="T, what the logits are divided by for the scores")


@message("grasp-scores", "up")
class GraSPScores(Message):
    """A client's scores of all weights that a mask may leave out, in stored order, and how much they weigh."""

    weight: int
    scores: Dense = dense("weights")


class GraSPServer(SparseServer):
    """Has some clients score the dense model, which is version 0 of the mask; the best weights are version 1."""

    config: GraSPConfig

    def __init__(self, config: GraSPConfig, ctx: ServerContext) -> None:
        super().__init__(config, ctx)
        self.config = config
        self._scores_N: Tensor | None = None
        self._num_samples = 0

    @property
    def is_scoring(self) -> bool:
        """Whether no mask has been chosen yet."""
        return self.mask.version == 0

    def first_mask(self) -> Tensor:
        return self.space.full()

    def choose(self, round_idx: int, cohort: Sequence[int]) -> Sequence[int]:
        return sorted(cohort)[: self.config.score_clients] if self.is_scoring else cohort

    def begin_round(self, round_idx: int, cohort: Sequence[int]) -> None:
        super().begin_round(round_idx, cohort)
        self._scores_N, self._num_samples = None, 0

    def converse(self, round_idx: int, client_id: int) -> Conversation:
        wanted = GraSPScores if self.is_scoring else self.up_types
        yield from super().converse(round_idx, client_id)
        return wanted

    def aggregate(self, round_idx: int, client_id: int, result: Message) -> None:
        if not isinstance(result, GraSPScores):
            super().aggregate(round_idx, client_id, result)
            return
        if result.weight < 1:
            raise ProtocolError(f"a client's scores must have a weight of at least 1, got {result.weight}")
        if self._scores_N is None:
            self._scores_N = torch.zeros(self.space.num_weights, dtype=torch.float64)
        self._scores_N.add_(result.scores.tensor(), alpha=result.weight)
        self._num_samples += result.weight
        self._held[client_id] = self.mask.version

    def end_round(self, round_idx: int) -> Mapping[str, float]:
        if self._scores_N is None:
            return super().end_round(round_idx)
        before = self.mask
        count = num_kept(self.space.num_weights, self.config.density)
        # A new version even where it keeps all: it says that the scores are there.
        self.new_version(highest_mask(self.space, (self._scores_N / self._num_samples).numpy(), count))
        self.change_mask(None)
        return self.scalars(before)


class GraSPClient(SparseClient):
    """Scores the dense model, and trains under the mask once there is one."""

    config: GraSPConfig

    def __init__(self, config: GraSPConfig, ctx: ClientContext) -> None:
        super().__init__(config, ctx)
        self.config = config

    def first_mask(self, initial: InitialModel) -> Tensor:
        return self.space.full()

    def train(self, round_idx: int, client_id: int, shard: Shard, used: MaskInUse, alpha: float) -> Message:
        if used.known.version:
            return super().train(round_idx, client_id, shard, used, alpha)
        scores_N = torch.zeros(self.space.num_weights)
        if not self.ctx.dry_run:
            scores_N = grasp_scores(
                self.ctx.model,
                shard,
                self.ctx.train_config.batch_size,
                self.config.temperature,
                lambda: self.rng(round_idx, client_id, "batches"),
                self.ctx.progress,
            )
        return GraSPScores(weight=self.weight(shard), scores=Dense.of(scores_N))


def highest_mask(space: MaskSpace, scores_N: np.ndarray, count: int) -> Tensor:
    """Return the mask that keeps the weights of the highest scores over the whole model, (P,) bool, on the CPU.

    Parameters
    ----------
    space : MaskSpace
    scores_N : numpy.ndarray, shape (N_w,), float64
        Of all weights in stored order, signed. Of equal ones those of the lowest index are kept.
    count : int
        How many, from 1 to N_w.
    """
    least = scores_N.size - count
    threshold = np.partition(scores_N, least)[least]
    chosen_N = scores_N > threshold
    ties = np.flatnonzero(scores_N == threshold)
    chosen_N[ties[: count - np.count_nonzero(chosen_N)]] = True
    mask_P = space.full()
    mask_P[space.is_weight(mask_P.device)] = torch.from_numpy(chosen_N)
    return mask_P


def grasp_scores(
    model: FlatModel,
    shard: Shard,
    batch_size: int,
    temperature: float,
    new_rng: Callable[[], np.random.Generator],
    progress: Callable[[], None],
) -> Tensor:
    """Return theta * (H z) of the weights that masks may leave out, with z the gradient of the mean loss over the data.

    In float64: scores are products of small derivatives, of which the order counts; and a layer's own kernels for
    float32, which have no second derivative, are not in the way. The model is left as it was.

    Parameters
    ----------
    model : FlatModel
        In the mode in which it trains.
    shard : Shard
    batch_size : int
    temperature : float
    new_rng : callable
        Returns the generator that decides the batches, anew: both passes over the data see the same.
    progress : callable
        Called after each batch.

    Returns
    -------
    Tensor, shape (N_w,), float32, in stored order, on the model's device

    Raises
    ------
    ConfigError
        If the model cannot be differentiated twice in float64.
    """
    module, layout = model.module, model.layout
    tensors = {
        name: tensor.detach().double() if tensor.is_floating_point() else tensor.clone()
        for name, tensor in (*module.named_parameters(), *module.named_buffers())
    }
    weights = [tensors[entry.name].requires_grad_() for entry in layout.maskable_entries]
    z = [torch.zeros_like(weight) for weight in weights]

    def gradients(x: Tensor, y: Tensor, *, create_graph: bool) -> tuple[Tensor, ...]:
        logits = functional_call(module, tensors, (x.double() if x.is_floating_point() else x,))
        loss = F.cross_entropy(logits / temperature, y) * (len(y) / shard.num_samples)
        return torch.autograd.grad(loss, weights, create_graph=create_graph, materialize_grads=True)

    try:
        with torch.backends.cudnn.flags(enabled=False):  # cuDNN's recurrent layers have no second derivative
            for x, y in shard.batches(batch_size, 1, new_rng()):
                torch._foreach_add_(z, gradients(x, y, create_graph=False))
                progress()
            for x, y in shard.batches(batch_size, 1, new_rng()):
                grads = gradients(x, y, create_graph=True)
                product = torch.stack([(a * b).sum() for a, b in zip(z, grads, strict=True)]).sum()
                # Into the weights' own gradients: asked for those of some tensors, torch passes by what has no second
                # derivative as if it were constant; this raises.
                product.backward()  # type: ignore[no-untyped-call]
                progress()
    except RuntimeError as error:
        raise ConfigError(
            f"algorithm.name=grasp needs second derivatives in float64, and the model gave none: {error}"
        ) from error
    scores_P = torch.zeros(layout.num_params, device=model.device)
    for entry, weight in zip(layout.maskable_entries, weights, strict=True):
        if weight.grad is not None:
            entry.view(scores_P).copy_(weight.detach() * weight.grad)
    return torch.cat([scores_P[entry.offset : entry.offset + entry.numel] for entry in layout.maskable_entries])


def check(config: AlgorithmConfig, initial: InitialModel, run: RunConfig) -> list[str]:
    """Return warnings about GraSP's settings.

    Raises
    ------
    ConfigError
        If the model has nothing to mask.
    """
    assert isinstance(config, GraSPConfig)
    MaskSpace(initial.layout)
    warnings = []
    drawn = run.participation.clients_per_round
    if config.score_clients > drawn:
        warnings.append(
            f"algorithm.score_clients={config.score_clients}, but only participation.clients_per_round={drawn} are "
            "drawn: those score"
        )
    if run.rounds == 1:
        warnings.append("rounds=1: the first round chooses the mask, and none follows to train in")
    return warnings


def all_messages(config: AlgorithmConfig) -> tuple[type[Message], ...]:
    """Return what GraSP sends."""
    return (*message_classes(config), GraSPScores)


ALGORITHM = Algorithm(
    "grasp",
    GraSPConfig,
    GraSPServer,
    GraSPClient,
    sizes=mask_sizes,
    messages=all_messages,
    check=check,
    cycle=None,
)

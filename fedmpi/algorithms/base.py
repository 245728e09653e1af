"""The two halves of an algorithm, and what each may use. No MPI, no ledger, no placement here or below.

The halves talk in conversations. The server's side is a generator that yields a message to send it, and a message
class (or a tuple of them) to wait for one of that kind; the client's side is plain blocking code on a `Channel`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Protocol, TypeAlias, TypeVar, overload

import numpy as np
import torch
from torch import Tensor

from fedmpi.config import NamedSection, RunConfig, TrainConfig
from fedmpi.data.shard import Shard
from fedmpi.flat import FlatModel, Layout
from fedmpi.models.initial import InitialModel
from fedmpi.models.operations import Uses, count_operations
from fedmpi.models.spec import ModelSpec
from fedmpi.rng import stream
from fedmpi.train.local import LocalStats, train_local
from fedmpi.wire.known import Known
from fedmpi.wire.message import Message, Schema

StateDict: TypeAlias = dict[str, Tensor | int | float | str]
"""What a half keeps: tensors and plain numbers, no objects, so that it can be sent and stored."""

MessageTypes: TypeAlias = type[Message] | tuple[type[Message], ...]
Result: TypeAlias = Message | MessageTypes
Conversation: TypeAlias = Generator[Message | MessageTypes, Message | None, Result]


class AlgorithmConfig(NamedSection):
    """Settings of an algorithm that has none; others derive from it."""

    model_config = {"extra": "forbid"}


@dataclass
class Work:
    """Floating point operations counted so far, a multiplication with its addition being two."""

    ops: float = 0.0


@dataclass(frozen=True)
class GlobalModel:
    """The model that a run is judged by.

    Parameters
    ----------
    state_S : Tensor, shape (num_state,), float32
        Parameters, then floating buffers.
    ints_I : Tensor, shape (num_int_buffers,), int64
    """

    state_S: Tensor
    ints_I: Tensor

    def state_dict(self) -> StateDict:
        """Return both vectors by name, as a server half that keeps nothing else does."""
        return {"state": self.state_S, "int_buffers": self.ints_I}

    def load_state_dict(self, state: StateDict) -> None:
        """Take over a `state_dict`, in place."""
        for key, target in self.state_dict().items():
            source = state[key]
            assert isinstance(source, Tensor) and isinstance(target, Tensor)
            target.copy_(source)


@dataclass(frozen=True)
class ServerContext:
    """What a server half may use.

    Parameters
    ----------
    seed : int
    layout : Layout
    initial : InitialModel
    send_seed : bool
        In the first round, send the initial model's seed in its place.
    known : Known
        Where the half keeps what messages are coded against. It is not kept between rounds for the half: what
        `ServerHalf.load_state_dict` takes over must be enough to fill it again.
    num_rounds : int
        Rounds of the run.
    weight_uses : callable
        Returns how one sample's forward and backward pass use each layer's weights, by the tensor's name; see
        `fedmpi.models.operations`.
    warn : callable
        ``f(words)`` shows a warning to the user, among the lines of the rounds.
    spec : ModelSpec, optional
        The run's network, for halves that compute with it.
    train_config : TrainConfig
    device : torch.device
        Where a half that trains should: that of the rank that holds the conversation.
    schema : Schema, optional
        For decoding bytes of messages that the half has kept; see `Message.received`.
    stats : list of LocalStats
        What a conversation has trained on the server's side: it adds to the list, and the round's training loss is made
        of that and of what clients train.
    dry_run : bool
        Messages are wanted, training is not.
    work : Work
        See `count_ops`.
    """

    seed: int
    layout: Layout
    initial: InitialModel
    send_seed: bool
    known: Known = field(default_factory=Known)
    num_rounds: int = 1
    weight_uses: Callable[[], Mapping[str, Uses]] = dict
    warn: Callable[[str], None] = lambda words: None
    spec: ModelSpec | None = None
    train_config: TrainConfig = field(default_factory=TrainConfig)
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    schema: Schema | None = None
    stats: list[LocalStats] = field(default_factory=list)
    dry_run: bool = False
    work: Work = field(default_factory=Work)

    def count_ops(self, num_ops: float) -> None:
        """Count operations that the half does, for the round's virtual time.

        In a conversation they are of that client's turn; elsewhere they are the round's own, after all turns.
        """
        self.work.ops += num_ops


@dataclass
class ClientContext:
    """What a client half may use: one model, shared by all clients that the rank plays.

    Parameters
    ----------
    seed : int
    model : FlatModel
    train_config : TrainConfig
    initial_model : callable
        Returns the `InitialModel` of a seed.
    progress : callable
        To be called now and then by code that computes for long, as `train_local` does.
    stats : list of LocalStats
        What the client whose turn it is has trained: `ClientHalf.train_local` adds to it, a loop of one's own should
        too, and the round's training loss is made of it.
    dry_run : bool
        Messages are wanted, training is not: `ClientHalf.train_local` returns at once, and a loop of one's own should.
    known : Known
        Where the half keeps what messages are coded against: of all clients that the rank plays, so by version.
    num_rounds, weight_uses, spec
        As in `ServerContext`.
    max_samples : int
        Samples of the client that has most.
    work : Work
        What the client whose turn it is has counted; see `count_ops`.
    counts_ops : bool
        Whether anybody wants to know, so that working out what to count is worth its time.
    """

    seed: int
    model: FlatModel
    train_config: TrainConfig
    initial_model: Callable[[int], InitialModel]
    progress: Callable[[], None]
    stats: list[LocalStats] = field(default_factory=list)
    dry_run: bool = False
    known: Known = field(default_factory=Known)
    num_rounds: int = 1
    weight_uses: Callable[[], Mapping[str, Uses]] = dict
    spec: ModelSpec | None = None
    max_samples: int = 0
    work: Work = field(default_factory=Work)
    counts_ops: bool = False

    def count_ops(self, num_ops: float) -> None:
        """Count operations that the client does in this turn, for the round's virtual time."""
        self.work.ops += num_ops

    def count_passes(self, *, forward: int = 0, backward: int = 0) -> None:
        """Count so many samples' forward and backward passes through the whole model, as if it were dense.

        Masked weights count too, as dense kernels multiply by them.
        """
        if not self.counts_ops:
            return
        numels = {entry.name: entry.numel for entry in self.model.layout.entries}
        uses = self.weight_uses()
        kept = [numels[name] for name in uses]
        ops = count_operations(kept, list(uses.values()), kept)
        self.count_ops(forward * ops.forward + backward * ops.backward)


class ServerHalf(ABC):
    """The server's side of an algorithm.

    What a conversation starts from is a function of the state at `begin_round` and the client alone: conversations
    of a round start in any order, several at once, and maybe on another rank, which is sent `state_dict` first. What
    one of them makes on the server goes into its result, and into the state in `aggregate`.

    Parameters
    ----------
    config : AlgorithmConfig
    ctx : ServerContext
    """

    reads_evaluation: bool = False
    """Finish a round's evaluation, and call `evaluated`, before the next round begins."""

    is_sequential: bool = False
    """Hold a round's conversations one after the other, in ascending client_id, on rank 0: each begins when the one
    before has been aggregated, and may start from what that changed."""

    def __init__(self, config: AlgorithmConfig, ctx: ServerContext) -> None:
        self.ctx = ctx

    def choose(self, round_idx: int, cohort: Sequence[int]) -> Sequence[int]:
        """Return which of the clients drawn for a round take part; all of them here."""
        return cohort

    def begin_round(self, round_idx: int, cohort: Sequence[int]) -> None:
        """Prepare a round; `cohort` is in ascending order."""

    @abstractmethod
    def converse(self, round_idx: int, client_id: int) -> Conversation:
        """Hold the conversation with one client.

        Returns
        -------
        Message or message class or tuple of message classes
            The result for `aggregate`: a message, or the class of the client's next message, which then waits
            encoded until its turn.
        """

    @abstractmethod
    def aggregate(self, round_idx: int, client_id: int, result: Message) -> None:
        """Take in the result of one conversation; called in ascending client_id. Its arrays are views: copy to keep."""

    @abstractmethod
    def end_round(self, round_idx: int) -> Mapping[str, float]:
        """Make the new global model; return scalars for the ledger."""

    def evaluated(self, round_idx: int, loss: float, accuracy: float) -> None:
        """Learn the test figures of the model after `round_idx`; see `reads_evaluation`."""

    @abstractmethod
    def global_model(self) -> GlobalModel:
        """Return the model after the last round; valid until the next `end_round`."""

    @abstractmethod
    def state_dict(self) -> StateDict:
        """Return all that the half must keep between rounds."""

    @abstractmethod
    def load_state_dict(self, state: StateDict) -> None:
        """Take over a `state_dict`."""

    def shared_state(self) -> StateDict:
        """Return what ranks that hold conversations are sent each round, for `load_state_dict`; all of it here.

        What only some conversations need goes into their `brief` instead.
        """
        return self.state_dict()

    def brief(self, round_idx: int, client_id: int) -> StateDict:
        """Return what another rank needs to hold this conversation, beside `shared_state`; nothing here."""
        return {}

    def take_brief(self, round_idx: int, client_id: int, brief: StateDict) -> None:
        """Take over a `brief` that was not empty, on the rank that will hold the conversation."""

    def close(self) -> None:
        """Give back what is not memory, such as files; called on rank 0 when the run has ended."""


class ExchangeServer(ServerHalf):
    """Server half with the usual conversation: one message down, one message up."""

    up_types: MessageTypes

    @abstractmethod
    def downlink(self, round_idx: int, client_id: int) -> Message:
        """Return the message for one client. The same object for many clients is encoded once."""

    def converse(self, round_idx: int, client_id: int) -> Conversation:
        yield self.downlink(round_idx, client_id)
        return self.up_types


M = TypeVar("M", bound=Message)
N = TypeVar("N", bound=Message)


class Channel(Protocol):
    """The client's end of a conversation."""

    @overload
    def recv(self, first: type[M], /) -> M: ...
    @overload
    def recv(self, first: type[M], second: type[N], /) -> M | N: ...
    @overload
    def recv(self, *expected: type[Message]) -> Message: ...
    def recv(self, *expected: type[Message]) -> Message:
        """Wait for a message of one of these classes; its arrays are views, valid until the turn ends."""

    def send(self, message: Message) -> None:
        """Send a message; its values may change as soon as this returns."""


class ClientHalf(ABC):
    """The client's side of an algorithm; one object plays all clients of a rank in turn.

    Parameters
    ----------
    config : AlgorithmConfig
    ctx : ClientContext

    Attributes
    ----------
    client_state : dict of str to Tensor
        The tensors that `declare_state` names, with the content they had when this client last took part.
    """

    def __init__(self, config: AlgorithmConfig, ctx: ClientContext) -> None:
        self.ctx = ctx
        self.client_state: dict[str, Tensor] = {}

    def declare_state(self) -> dict[str, Tensor]:
        """Return the tensors that each client keeps from round to round, with their initial content; none here."""
        return {}

    @abstractmethod
    def run(self, round_idx: int, client_id: int, shard: Shard, channel: Channel) -> None:
        """Play one client in one round."""

    def train_local(
        self,
        round_idx: int,
        client_id: int,
        shard: Shard,
        *,
        extra_loss: Callable[[Tensor], Tensor] | None = None,
        after_backward: Callable[[FlatModel], None] | None = None,
        after_step: Callable[[FlatModel], None] | None = None,
        after_epoch: Callable[[int, Tensor, Tensor], None] | None = None,
    ) -> LocalStats:
        """Train the model on the client's data with the client's own random stream; see `train.local.train_local`."""
        if self.ctx.dry_run:
            return LocalStats(0, 0, 0.0)
        stats = train_local(
            self.ctx.model,
            shard,
            self.ctx.train_config,
            rng=self.rng(round_idx, client_id, "batches"),
            extra_loss=extra_loss,
            after_backward=after_backward,
            after_step=after_step,
            after_epoch=after_epoch,
            progress=self.ctx.progress,
        )
        self.ctx.stats.append(stats)
        num_passes = shard.num_samples * self.ctx.train_config.local_epochs
        self.ctx.count_passes(forward=num_passes, backward=num_passes)
        return stats

    def rng(self, round_idx: int, client_id: int, purpose: str) -> np.random.Generator:
        """Return the client's stream for a purpose in a round."""
        return stream(self.ctx.seed, round_idx, client_id, purpose)


class ExchangeClient(ClientHalf):
    """Client half with the usual conversation: one message down, train, one message up."""

    down_types: ClassVar[tuple[type[Message], ...]]

    @abstractmethod
    def train(self, round_idx: int, client_id: int, down: Message, shard: Shard) -> Message:
        """Take the downlink, train, return the uplink."""

    def run(self, round_idx: int, client_id: int, shard: Shard, channel: Channel) -> None:
        channel.send(self.train(round_idx, client_id, channel.recv(*self.down_types), shard))


@dataclass(frozen=True)
class Algorithm:
    """What a name in ``algorithm.name`` stands for.

    Parameters
    ----------
    name : str
        As the ledger and the summary show it.
    config, server, client : classes
    sizes : callable, optional
        ``f(config, layout)`` returning the sizes that its messages name beside those of the layout.
    model_sizes : callable, optional
        ``f(config, spec, run)`` returning such sizes as follow from the run's network, a `ModelSpec`, and the run's
        configuration; it raises `ConfigError` for a network that the algorithm cannot train.
    messages : callable, optional
        ``f(config)`` returning the message classes that it sends, so that their codecs are compiled before the first
        round; those of others are when they are first used.
    check : callable, optional
        ``f(config, initial, run)`` returning warnings about the settings for this model and this run, in words; it
        raises `ConfigError` for settings that cannot be.
    cycle : int, None or callable
        After how many rounds, the first left aside, what is sent repeats, so that a dry run can tell all from those;
        None if it does not. Where that hangs on the settings, ``f(config)`` returning it.
    warm_up : callable, optional
        ``f(config)`` compiling what else it will need, such as `fedmpi.compress.topk.warm_up`.
    check_server : callable, optional
        ``f(config)`` raising `FedmpiError` if the server lacks what it will need of its machine, such as a folder that
        can be written; called on rank 0 alone, before anything is made.
    """

    name: str
    config: type[AlgorithmConfig]
    server: Callable[..., ServerHalf]
    client: Callable[..., ClientHalf]
    sizes: Callable[[AlgorithmConfig, Layout], Mapping[str, int]] | None = None
    model_sizes: Callable[[AlgorithmConfig, ModelSpec, RunConfig], Mapping[str, int]] | None = None
    messages: Callable[[AlgorithmConfig], Sequence[type[Message]]] | None = None
    check: Callable[[AlgorithmConfig, InitialModel, RunConfig], list[str]] | None = None
    cycle: Callable[[AlgorithmConfig], int | None] | int | None = 1
    warm_up: Callable[[AlgorithmConfig], None] | None = None
    check_server: Callable[[AlgorithmConfig], None] | None = None

    def schema(
        self, config: AlgorithmConfig, layout: Layout, spec: ModelSpec | None = None, run: RunConfig | None = None
    ) -> Schema:
        """Return the sizes that this algorithm's messages may name."""
        schema = layout.schema()
        extra = dict(self.sizes(config, layout)) if self.sizes else {}
        if self.model_sizes is not None and spec is not None and run is not None:
            extra |= self.model_sizes(config, spec, run)
        return replace(schema, sizes={**schema.sizes, **extra})

    def rounds_until_repeated(self, config: AlgorithmConfig) -> int | None:
        """Return `cycle`, worked out for these settings."""
        return self.cycle(config) if callable(self.cycle) else self.cycle

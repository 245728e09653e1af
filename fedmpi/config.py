"""What can be set in a run and in a pre-training: sections, each key with type, default, range and meaning.

Sections whose settings belong to code that a name selects (``algorithm``, ``model``) are kept as given here and
validated by that code's own ``Config`` once the name is resolved. `fedmpi.configfile` reads the file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field


class Section(BaseModel):
    """A part of the configuration: frozen, unknown keys refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)


class NamedSection(Section):
    """A section whose ``name`` selects code that validates the other keys with its own `Section`."""

    model_config = ConfigDict(extra="allow", frozen=True)

    name: str


class SyntheticConfig(Section):
    """Settings of the generated data set ``synthetic``."""

    num_train: int = Field(2000, ge=1, description="training images")
    num_test: int = Field(500, ge=1, description="test images")
    num_classes: int = Field(10, ge=2, le=1000, description="classes")
    height: int = Field(28, ge=1, le=512, description="pixels")
    width: int = Field(28, ge=1, le=512, description="pixels")
    channels: int = Field(1, ge=1, le=16, description="channels")
    noise: float = Field(64.0, ge=0, description="standard deviation of the pixel noise, in grey levels of 255")


class TextConfig(Section):
    """How a text becomes samples, for data sets of text."""

    sequence_length: int = Field(80, ge=2, le=10_000, description="characters a sample; the next one of each is learnt")
    test_fraction: float = Field(
        0.2, gt=0, lt=1, description="end of each role's text that is kept for testing, where the files do not say"
    )


class ConvertConfig(Section):
    """Another shape for images; what is not set stays as the data set has it."""

    height: int | None = Field(None, ge=1, le=512, description="pixels, by bilinear interpolation")
    width: int | None = Field(None, ge=1, le=512, description="pixels, likewise")
    channels: int | None = Field(
        None,
        ge=1,
        le=16,
        description="channels: grey is repeated; red, green and blue become grey as .299 R + .587 G + .114 B",
    )


class DataConfig(Section):
    """Which data, where they lie, and what is done to them on the device."""

    name: str = Field("fashion_mnist_mini", description="data set; `fedmpi list` names them")
    root: Path | None = Field(None, description="folder of the files; where it is set, no other is looked in")
    augment: Literal["none", "crop_flip"] = Field(
        "none",
        description="crop_flip: random crop after padding by 4, then a horizontal flip with probability 1/2; images "
        "only",
    )
    classes: tuple[Annotated[int, Field(ge=0)], ...] | None = Field(
        None,
        min_length=2,
        description="labels whose samples are kept, of training and test data, and numbered anew from 0 in this order; "
        "by default all; images only",
    )
    convert: ConvertConfig | None = Field(None, description="only with data sets of images")
    synthetic: SyntheticConfig | None = Field(None, description="only with data.name=synthetic")
    text: TextConfig | None = Field(None, description="only with data sets of text")


class IidPartition(Section):
    """Shuffle, then deal the samples out evenly."""

    name: Literal["iid"] = "iid"
    num_clients: int = Field(100, ge=1, description="clients in the pool")


EmptyClients = Literal["error", "drop"]
_EMPTY_CLIENTS = "what becomes of clients that get no sample: stop, or leave them out and number the others anew"


class DirichletPartition(Section):
    """Split every class over the clients in shares drawn from Dirichlet(beta)."""

    name: Literal["dirichlet"] = "dirichlet"
    num_clients: int = Field(100, ge=1, description="clients in the pool")
    beta: float = Field(0.3, gt=0, description="concentration: small is uneven")
    empty_clients: EmptyClients = Field("error", description=_EMPTY_CLIENTS)


class ShardsPartition(Section):
    """Sort by label, cut into shards of equal size, deal ``shards_per_client`` to each client at random."""

    name: Literal["shards"] = "shards"
    num_clients: int = Field(100, ge=1, description="clients in the pool")
    shards_per_client: int = Field(2, ge=1, description="shards each client holds")
    samples_per_shard: int | None = Field(
        None, ge=1, description="size of a shard; by default all samples are dealt out"
    )


class ClassRunsPartition(Section):
    """FedPM's non-iid split (Isik et al. 2023): unequal clients, each with a run of consecutive classes."""

    name: Literal["class_runs"] = "class_runs"
    num_clients: int = Field(100, ge=1, description="clients in the pool")
    classes_per_client: int = Field(2, ge=1, description="classes a client's samples are spread over, or a few more")
    empty_clients: EmptyClients = Field("error", description=_EMPTY_CLIENTS)


class QuantityPartition(Section):
    """Shuffle, then give the clients shares of all samples drawn from Dirichlet(beta): only the amounts differ."""

    name: Literal["quantity"] = "quantity"
    num_clients: int = Field(100, ge=1, description="clients in the pool")
    beta: float = Field(0.5, gt=0, description="concentration: small is uneven")
    empty_clients: EmptyClients = Field("error", description=_EMPTY_CLIENTS)


class NaturalPartition(Section):
    """One client for each writer or role, where the data set knows them."""

    name: Literal["natural"] = "natural"
    num_clients: int | None = Field(
        None, ge=1, description="clients in the pool, drawn at random from those there are; by default all"
    )
    min_samples: int = Field(1, ge=1, description="writers or roles with fewer training samples are left out")


PartitionConfig = Annotated[
    IidPartition | DirichletPartition | ShardsPartition | ClassRunsPartition | QuantityPartition | NaturalPartition,
    Field(discriminator="name"),
]


class TrainConfig(Section):
    """Local training on a client."""

    local_epochs: int = Field(1, ge=1, description="passes over the client's data a round")
    batch_size: int = Field(32, ge=1, description="samples a step; the last step of an epoch may be smaller")
    optimizer: Literal["sgd", "adam"] = Field("sgd", description="its state starts at zero at each client's work")
    lr: float = Field(0.05, gt=0, description="learning rate")
    momentum: float = Field(0.9, ge=0, lt=1, description="SGD's momentum, or Adam's beta_1")
    nesterov: bool = Field(False, description="step along the momentum that the next step will see; only with sgd")
    weight_decay: float = Field(0.0, ge=0, description="L2 term added to the gradient")
    clip_norm: float | None = Field(None, gt=0, description="largest Euclidean norm of the gradient")
    adam_beta2: float = Field(0.999, ge=0, lt=1, description="decay of the squared gradient; only with adam")
    adam_eps: float = Field(1e-8, gt=0, description="term added to the denominator; only with adam")


class ParticipationConfig(Section):
    """Who takes part in a round."""

    clients_per_round: int = Field(10, ge=1, description="clients drawn without replacement each round")
    sampling: Literal["uniform", "by_size"] = Field(
        "uniform",
        description="by_size: with probabilities in proportion to the clients' numbers of samples; as averages weight "
        "by samples too, size then counts twice",
    )
    availability: float = Field(
        1.0, gt=0, le=1, description="probability that a client is at hand in a round; only those are drawn from"
    )
    availability_spread: float = Field(
        0.0,
        ge=0,
        le=1,
        description="each client's own probability is drawn once, uniformly from availability -+ spread, cut to [0, 1]",
    )
    dropout: float = Field(
        0.0, ge=0, lt=1, description="probability that a drawn client is lost after it has received its first message"
    )


class EvaluateConfig(Section):
    """Test of the global model."""

    every: int = Field(5, ge=0, description="rounds between tests, the last round always; 0 is never")
    batch_size: int = Field(500, ge=1, description="test samples a batch; part of the result's rounding")


class ServerConfig(Section):
    """The server's side."""

    initial_model: Literal["auto", "seed", "full"] = Field(
        "auto",
        description="what the first round's downlink carries: the seed of the initial model, or the model. auto: the "
        "seed, but the model where model.weights or model.pretrained gives numbers of it",
    )
    host: Literal["rank0", "player", "peer"] = Field(
        "rank0",
        description="where the server's side of a conversation runs: on rank 0, on the worker that plays the client, "
        "or on the next worker",
    )
    hold_nbytes: int = Field(
        1_000_000_000, ge=0, description="bytes of replies that may wait for their turn to be added"
    )
    max_in_flight: int = Field(
        8, ge=1, description="messages of one client that may wait for the server; beyond them the client does"
    )
    nonfinite: Literal["stop", "drop"] = Field(
        "stop",
        description="what a reply with NaN or infinity in it does: stop the run, or be left out and noted in `faults`",
    )


class CommConfig(Section):
    """How buffers move between ranks."""

    timeout_s: float = Field(
        1800.0, gt=0, description="seconds without any message after which a waiting rank gives up"
    )
    chunk_nbytes: int = Field(2**31 - 1, ge=64, le=2**31 - 1, description="largest single MPI transfer")
    limit_nbytes: int = Field(2**36, ge=4096, description="largest message or state accepted from another rank")
    doorbell: bool = Field(True, description="wake waiting ranks of the same node through a UNIX socket")


class PlacementConfig(Section):
    """Devices, threads and node-local folders."""

    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto takes a GPU where one is visible")
    server_device: Literal["cpu", "cuda"] = Field(
        "cpu",
        description="where rank 0 computes beside workers, if its algorithm does, as in split learning; cuda shares "
        "the GPU that fewest workers have",
    )
    clients_per_gpu: int = Field(
        1, ge=1, description="workers, each playing one client at a time, that may share a GPU"
    )
    threads: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
        1, description="torch threads a rank on a CPU; part of the result. auto: cores of the node / ranks on it"
    )
    min_ranks: int = Field(1, ge=1, description="fewer ranks than this are refused, as when mpirun was forgotten")
    state_dir: Path | None = Field(
        None, description="node-local folder of client state; {rank} is replaced. Default: a fresh temporary folder"
    )


class LedgerConfig(Section):
    """The HDF5 ledger."""

    flush_s: float = Field(1.0, gt=0, description="seconds between flushes; a killed run loses at most the rows since")
    save_model: bool = Field(True, description="store the final model")


class WireConfig(Section):
    """How values become bytes: the codec of each kind of value, ``auto`` for the smallest. Nothing is ever lost."""

    dense: Literal["auto", "raw", "planes", "delta"] = Field(
        "raw",
        description="vectors of numbers: as they are, or byte planes coded; delta: against numbers that the receiver "
        "holds, where the algorithm has some (else raw)",
    )
    mask: Literal["auto", "bits", "byte-rans", "gap-rans", "golomb", "zstd", "prior", "change", "ranks", "layers"] = (
        Field(
            "auto",
            description="masks. bits: 1 bit a position. prior, change, ranks and layers need an algorithm whose masks "
            "have a prior, a base, a base, tensors (else auto)",
        )
    )
    sparse: Literal[
        "auto", "bits", "byte-rans", "gap-rans", "golomb", "zstd", "uint32", "int64", "gaps", "ranks", "layers"
    ] = Field(
        "auto",
        description="positions of sparse values. uint32, int64: 4 or 8 bytes an index, as papers often assume. ranks, "
        "layers need an algorithm whose values have a base, tensors (else auto)",
    )
    values: Literal["auto", "raw", "planes"] = Field("auto", description="numbers at the positions of a set or a mask")
    quantized: Literal["auto", "packed", "order0", "context"] = Field(
        "auto", description="quantized numbers: packed, or entropy coded alone or in the context of their neighbours"
    )


DevicePreset = Literal["microcontroller", "raspberry_pi_4", "phone", "jetson", "desktop_cpu", "workstation_gpu"]


class TimeConfig(Section):
    """Links and devices that each round's virtual time is worked out for. Without this section there is none."""

    link: Literal["lan_1g", "wifi_100m", "home_50m_10m", "lte_20m_5m", "nb_slow"] | None = Field(
        None,
        description="preset of the clients' links, an assumption and no measurement; without one the three numbers "
        "below are needed",
    )
    up_bits_per_s: float | None = Field(None, gt=0, description="bandwidth from a client, in the preset's place")
    down_bits_per_s: float | None = Field(None, gt=0, description="bandwidth to a client, in the preset's place")
    latency_s: float | None = Field(None, ge=0, description="seconds a message beside its bytes, in the preset's place")
    device: DevicePreset | Annotated[float, Field(gt=0)] = Field(
        ...,
        description="the clients' devices: a preset, which is an assumption, or operations a second (a multiplication "
        "with its addition is two)",
    )
    server: DevicePreset | Annotated[float, Field(gt=0)] = Field(
        ..., description="the same of the server, for one conversation"
    )
    link_spread: float = Field(
        0.0,
        ge=0,
        le=5,
        description="standard deviation of the logarithm of each client's own factor on its bandwidths, drawn once; "
        "median 1",
    )
    device_spread: float = Field(
        0.0, ge=0, le=5, description="the same of each client's own factor on its operations a second"
    )


class RunConfig(Section):
    """Everything that decides a run."""

    seed: int = Field(0, ge=0, le=2**63 - 1, description="the root of all randomness")
    rounds: int = Field(..., ge=1, description="federated rounds")
    data: DataConfig = DataConfig()
    partition: PartitionConfig = IidPartition()
    model: NamedSection = NamedSection(name="cnn")
    algorithm: NamedSection = NamedSection(name="fedavg")
    train: TrainConfig = TrainConfig()
    participation: ParticipationConfig = ParticipationConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    server: ServerConfig = ServerConfig()
    wire: WireConfig = WireConfig()
    comm: CommConfig = CommConfig()
    placement: PlacementConfig = PlacementConfig()
    ledger: LedgerConfig = LedgerConfig()
    time: TimeConfig | None = Field(None, description="null: no virtual time")


class PretrainConfig(Section):
    """Central training by `fedmpi pretrain`, which has `seed`, `data`, `model`, `placement.device` and `.threads` too.

    The defaults are those of EcoFed's experiments.
    """

    epochs: int = Field(100, ge=1, description="passes over the training data")
    batch_size: int = Field(128, ge=1, description="samples a step; the last step of an epoch may be smaller")
    lr: float = Field(0.01, gt=0, description="learning rate of SGD at the start")
    lr_drops: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = Field(
        (0.5, 0.8), description="parts of the epochs after each of which the learning rate is multiplied by lr_factor"
    )
    lr_factor: float = Field(0.1, gt=0, le=1, description="see lr_drops")
    momentum: float = Field(0.9, ge=0, lt=1, description="SGD's momentum")
    nesterov: bool = Field(True, description="step along the momentum that the next step will see")
    weight_decay: float = Field(5e-4, ge=0, description="L2 term added to the gradient")
    keep: Literal["best", "last"] = Field(
        "best",
        description="which epoch's model is written. best: of the highest training accuracy, which is counted during "
        "the epoch, on augmented samples and before each step; of equals the first",
    )
    test_every: int = Field(
        5, ge=0, description="epochs between tests, for the log alone; 0 is never. The model that is written is tested"
    )


class PretrainPlacementConfig(Section):
    """Where `fedmpi pretrain` computes."""

    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto takes a GPU where one is visible")
    threads: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
        1, description="torch threads on a CPU; part of the result. auto: all cores"
    )


class PretrainRunConfig(Section):
    """Everything that decides a pre-training."""

    seed: int = Field(0, ge=0, le=2**63 - 1, description="the root of all randomness")
    data: DataConfig = DataConfig()
    model: NamedSection = NamedSection(name="cnn")
    pretrain: PretrainConfig = PretrainConfig()
    placement: PretrainPlacementConfig = PretrainPlacementConfig()

"""What every rank derives from the configuration alone: data, partition, model, algorithm."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path

from fedmpi.algorithms import registry as algorithms
from fedmpi.algorithms.base import Algorithm, AlgorithmConfig
from fedmpi.config import DataConfig, RunConfig
from fedmpi.data.datasets import Dataset, load_dataset
from fedmpi.data.partition import Partition, make_partition
from fedmpi.data.source import data_hash
from fedmpi.engine.participation import Participation
from fedmpi.errors import ConfigError
from fedmpi.models import registry as models
from fedmpi.models.initial import InitialModel, initial_model
from fedmpi.models.operations import Uses, weight_uses
from fedmpi.models.pretrained import PretrainedInfo, describe
from fedmpi.models.registry import ModelConfig
from fedmpi.models.spec import ModelSpec
from fedmpi.rng import ANY, stream_seed
from fedmpi.wire.message import Schema
from fedmpi.wire.warm import warm_up


@dataclass(frozen=True)
class Setup:
    """The parts of a run, the same on every rank."""

    config: RunConfig
    algorithm: Algorithm
    algorithm_config: AlgorithmConfig
    model_config: ModelConfig
    dataset: Dataset
    partition: Partition
    participation: Participation
    initial: InitialModel
    schema: Schema
    num_rounds: int  # of the run, also where a dry run's configuration has fewer
    warnings: list[str] = field(default_factory=list)
    pretrained: PretrainedInfo | None = None
    dry_run: bool = False

    @property
    def model(self) -> ModelSpec:
        """The run's network."""
        return ModelSpec(self.model_config, self.dataset.shape, self.dataset.num_classes)

    def build_initial(self, init_seed: int) -> InitialModel:
        """Return the model of a seed; that of the run's own seed is kept."""
        if init_seed == self.initial.init_seed:
            return self.initial
        return initial_model(self.model_config, self.dataset.shape, self.dataset.num_classes, init_seed)

    def weight_uses(self) -> dict[str, Uses]:
        """Return how one sample's forward and backward pass use each layer's weights."""
        return weight_uses(self.model.build(self.initial.init_seed), self.dataset.shape)

    def warm_up(self) -> None:
        """Compile what the algorithm needs, the codecs of its messages and its own, and what the model needs."""
        if self.algorithm.messages is not None:
            warm_up(self.algorithm.messages(self.algorithm_config), self.config.wire)
        if self.algorithm.warm_up is not None:
            self.algorithm.warm_up(self.algorithm_config)
        models.warm_up(self.model_config)

    def check_server(self) -> None:
        """Raise `FedmpiError` if this rank, which will be rank 0, lacks what the algorithm's server needs."""
        if self.algorithm.check_server is not None:
            self.algorithm.check_server(self.algorithm_config)

    def cohort(self, round_idx: int) -> list[int]:
        """Return the round's clients in ascending order."""
        return self.participation.cohort(round_idx)

    def num_samples(self, client_id: int) -> int:
        """Return the size of a client's data."""
        return int(self.partition.offsets[client_id + 1] - self.partition.offsets[client_id])


def resolve(config: RunConfig) -> RunConfig:
    """Return the configuration with the algorithm's and the model's own settings validated and filled in."""
    _, algorithm_config = algorithms.resolve(config.algorithm)
    return config.model_copy(update={"algorithm": algorithm_config, "model": models.resolve(config.model)})


def _about_source(info: PretrainedInfo, path: Path | None, dataset: Dataset, data: DataConfig) -> list[str]:
    if info.metadata and info.data_hash == data_hash(dataset):  # of a file that says nothing, no sample need be read
        return [f"{path} was trained on the very samples of this run, not on others"]
    shared = shared_classes(info, data)
    if shared is None:
        return []
    return [f"{path} was trained on data.name={data.name} too: samples of {shared} may be among the clients'"]


def shared_classes(pretrained: PretrainedInfo, data: DataConfig) -> str | None:
    """Return, in words, the classes of this data set that weights were trained on too; None if there are none."""
    source = json.loads(pretrained.metadata.get("data", "{}"))
    if source.get("name") != data.name:
        return None
    theirs: set[int] | None = set(source["classes"]) if source.get("classes") is not None else None
    ours = set(data.classes) if data.classes is not None else None
    if theirs is None and ours is None:
        return "all classes"
    if theirs is not None and ours is not None:
        both = sorted(theirs & ours)
    else:
        both = sorted(theirs or ours or ())  # the other has all
    return f"classes {both}" if both else None


def prepare(config: RunConfig) -> Setup:
    """Load the data, split it, build the initial model.

    Raises
    ------
    ConfigError, DataError
    """
    algorithm, algorithm_config = algorithms.resolve(config.algorithm)
    model_config = models.resolve(config.model)
    dataset = load_dataset(config.data, config.seed)
    partition = make_partition(
        config.partition, dataset.train_labels, dataset.num_classes, config.seed, dataset.train_groups
    )
    if partition.num_clients < config.participation.clients_per_round:
        raise ConfigError(
            f"participation.clients_per_round must be at most the {partition.num_clients} clients that the partition "
            f"has, got {config.participation.clients_per_round}"
        )
    participation = Participation(config.participation, partition.sizes, config.seed)
    init_seed = stream_seed(config.seed, ANY, ANY, "initial model") & 0x7FFFFFFF
    initial = initial_model(model_config, dataset.shape, dataset.num_classes, init_seed)
    if initial.from_file and config.server.initial_model == "seed":
        raise ConfigError(
            "server.initial_model must be auto or full with model.weights or model.pretrained, whose numbers no seed "
            "stands for, got 'seed'"
        )
    spec = ModelSpec(model_config, dataset.shape, dataset.num_classes)
    schema = replace(algorithm.schema(algorithm_config, initial.layout, spec, config), wire=config.wire)
    warnings = algorithm.check(algorithm_config, initial, config) if algorithm.check is not None else []
    warnings += model_config.idle_settings()
    paths = {"model.weights": model_config.weights, "model.pretrained": model_config.pretrained}
    sources = {key: describe(path, key=key) for key, path in paths.items() if path is not None}
    for key, info in sources.items():
        warnings += _about_source(info, paths[key], dataset, config.data)
    pretrained = sources.get("model.pretrained")
    return Setup(
        config,
        algorithm,
        algorithm_config,
        model_config,
        dataset,
        partition,
        participation,
        initial,
        schema,
        config.rounds,
        warnings,
        pretrained,
    )

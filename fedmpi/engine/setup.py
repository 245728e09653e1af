"""What every rank derives from the configuration alone: data, partition, model, algorithm."""

from __future__ import annotations

from dataclasses import dataclass

from fedmpi.algorithms import registry as algorithms
from fedmpi.algorithms.base import Algorithm, AlgorithmConfig
from fedmpi.config import RunConfig
from fedmpi.data.datasets import Dataset, load_dataset
from fedmpi.data.partition import Partition, make_partition
from fedmpi.models import registry as models
from fedmpi.models.initial import InitialModel, initial_model
from fedmpi.models.registry import ImageShape, ModelConfig
from fedmpi.rng import ANY, stream, stream_seed
from fedmpi.wire.message import Schema


@dataclass(frozen=True)
class Setup:
    """The parts of a run, the same on every rank."""

    config: RunConfig
    algorithm: Algorithm
    algorithm_config: AlgorithmConfig
    model_config: ModelConfig
    dataset: Dataset
    partition: Partition
    shape: ImageShape
    initial: InitialModel
    schema: Schema

    def build_initial(self, init_seed: int) -> InitialModel:
        """Return the model of a seed; that of the run's own seed is kept."""
        if init_seed == self.initial.init_seed:
            return self.initial
        return initial_model(self.model_config, self.shape, self.dataset.num_classes, init_seed)

    def cohort(self, round_idx: int) -> list[int]:
        """Return the round's clients in ascending order: drawn uniformly without replacement."""
        rng = stream(self.config.seed, round_idx, ANY, "cohort")
        count = self.config.participation.clients_per_round
        return sorted(rng.choice(self.partition.num_clients, count, replace=False).tolist())

    def num_samples(self, client_id: int) -> int:
        """Return the size of a client's data."""
        return int(self.partition.offsets[client_id + 1] - self.partition.offsets[client_id])


def resolve(config: RunConfig) -> RunConfig:
    """Return the configuration with the algorithm's and the model's own settings validated and filled in."""
    _, algorithm_config = algorithms.resolve(config.algorithm)
    return config.model_copy(update={"algorithm": algorithm_config, "model": models.resolve(config.model)})


def prepare(config: RunConfig) -> Setup:
    """Load the data, split it, build the initial model.

    Raises
    ------
    ConfigError, DataError
    """
    algorithm, algorithm_config = algorithms.resolve(config.algorithm)
    model_config = models.resolve(config.model)
    dataset = load_dataset(config.data, config.seed)
    partition = make_partition(config.partition, dataset.train_labels, dataset.num_classes, config.seed)
    shape = ImageShape(*dataset.train_images.shape[1:])
    init_seed = stream_seed(config.seed, ANY, ANY, "initial model") & 0x7FFFFFFF
    initial = initial_model(model_config, shape, dataset.num_classes, init_seed)
    schema = algorithm.schema(algorithm_config, initial.layout)
    return Setup(config, algorithm, algorithm_config, model_config, dataset, partition, shape, initial, schema)

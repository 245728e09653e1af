"""Which network a run trains: all it takes to build one more."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from fedmpi.data.shapes import InputShape
from fedmpi.models.registry import ModelConfig, build_model


@dataclass(frozen=True)
class ModelSpec:
    """The network of a run, without its numbers.

    Parameters
    ----------
    config : ModelConfig
    shape : ImageShape or TextShape
        Of one sample.
    num_classes : int
    """

    config: ModelConfig
    shape: InputShape
    num_classes: int

    def build(self, init_seed: int = 0) -> nn.Module:
        """Return a new module on the CPU, whose initial weights depend on `init_seed` alone."""
        return build_model(self.config, self.shape, self.num_classes, init_seed)

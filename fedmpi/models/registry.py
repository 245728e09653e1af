"""From a configuration's ``model`` section to a module."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn

from fedmpi.config import NamedSection, validate
from fedmpi.errors import ConfigError


class ImageShape(NamedTuple):
    """What goes in: height and width in pixels, channels."""

    height: int
    width: int
    channels: int


class ModelConfig(NamedSection):
    """Settings of a model that has none."""

    model_config = {"extra": "forbid"}


Builder = Callable[..., nn.Module]
_MODELS: dict[str, tuple[type[ModelConfig], Builder]] = {}
_HOMES = ("fedmpi.models.vision",)


def register(name: str, config_class: type[ModelConfig] = ModelConfig) -> Callable[[Builder], Builder]:
    """Register a builder ``f(config, shape, num_classes) -> Module`` under a name."""

    def decorate(builder: Builder) -> Builder:
        _MODELS[name] = (config_class, builder)
        return builder

    return decorate


def resolve(section: NamedSection) -> ModelConfig:
    """Validate the ``model`` section by the settings of the model that it names.

    Raises
    ------
    ConfigError
        For an unknown name or setting.
    """
    for home in _HOMES:
        importlib.import_module(home)
    if section.name not in _MODELS:
        raise ConfigError(f"model.name must be one of {', '.join(sorted(_MODELS))}, got {section.name!r}")
    config: ModelConfig = validate(_MODELS[section.name][0], section.model_dump(), "model")
    return config


def build_model(config: ModelConfig, shape: ImageShape, num_classes: int, init_seed: int) -> nn.Module:
    """Build a module whose initial weights depend on `init_seed` alone; torch's global state is left as it was."""
    builder = _MODELS[config.name][1]
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(init_seed)
        return builder(config, shape, num_classes)

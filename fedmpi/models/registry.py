"""From a configuration's ``model`` section to a module: a registered model, or the user's own by import path."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeAlias

import torch
from pydantic import Field
from torch import nn

from fedmpi.config import NamedSection
from fedmpi.configfile import validate
from fedmpi.data.shapes import ImageShape, InputShape, TextShape
from fedmpi.errors import ConfigError
from fedmpi.models import custom
from fedmpi.plugin import is_plugin
from fedmpi.problems import did_you_mean


class ModelConfig(NamedSection):
    """Settings that every model has."""

    model_config = {"extra": "forbid"}

    weights: Path | None = Field(
        None,
        description="file of initial weights: torch.save of a state_dict, or .safetensors; names and shapes must be "
        "the model's, and fp16, bf16 and fp64 become float32",
    )
    pretrained: Path | None = Field(
        None,
        description="file of weights, such as `fedmpi pretrain` writes, from which the first units alone are taken; a "
        "sequence of layers is needed",
    )
    pretrained_units: int = Field(2, ge=1, description="how many units; only with model.pretrained")

    def idle_settings(self) -> list[str]:
        """Return warnings about settings that somebody has set and that do nothing."""
        if self.pretrained is None and self._differs("pretrained_units"):
            return ["model.pretrained_units does nothing without model.pretrained"]
        return []

    def _differs(self, key: str) -> bool:
        # Not whether it was given: a run's own configuration file gives all.
        return bool(getattr(self, key) != type(self).model_fields[key].default)


Builder = Callable[..., nn.Module]
Takes: TypeAlias = type[ImageShape] | type[TextShape]
_WORDS: dict[type, str] = {ImageShape: "images", TextShape: "text"}
_HOMES = ("fedmpi.models.vision", "fedmpi.models.resnet", "fedmpi.models.splitnets", "fedmpi.models.text")


@dataclass(frozen=True)
class Registered:
    """A model that the package has.

    Parameters
    ----------
    config : type of ModelConfig
    builder : callable
        ``f(config, shape, num_classes) -> Module``; the first line of its docstring is the model's description.
    takes : type
        The shapes it is built for.
    warm_up : callable, optional
        ``f()`` compiling what its module will need on a CPU.
    """

    config: type[ModelConfig]
    builder: Builder
    takes: Takes
    warm_up: Callable[[], None] | None = None


class ModelDescription(NamedTuple):
    """What a list of models says of one; `takes` is "images" or "text"."""

    name: str
    summary: str
    config: type[ModelConfig]
    takes: str


_MODELS: dict[str, Registered] = {}


def register(
    name: str,
    config_class: type[ModelConfig] = ModelConfig,
    takes: Takes = ImageShape,
    warm_up: Callable[[], None] | None = None,
) -> Callable[[Builder], Builder]:
    """Register a builder ``f(config, shape, num_classes) -> Module`` under a name."""

    def decorate(builder: Builder) -> Builder:
        _MODELS[name] = Registered(config_class, builder, takes, warm_up)
        return builder

    return decorate


def _models() -> dict[str, Registered]:
    for home in _HOMES:
        importlib.import_module(home)
    return _MODELS


def describe_models() -> list[ModelDescription]:
    """Return every registered model, by name."""
    return [
        ModelDescription(name, (inspect.getdoc(m.builder) or "").partition("\n")[0], m.config, _WORDS[m.takes])
        for name, m in sorted(_models().items())
    ]


def resolve(section: NamedSection) -> ModelConfig:
    """Validate the ``model`` section by the settings of the model that it names.

    Those of a model of the user's own are the parameters of its signature; see `fedmpi.models.custom`.

    Raises
    ------
    ConfigError
        For an unknown name or setting, or a name of the user's that is no model.
    """
    values = section.model_dump()
    if is_plugin(section.name):
        config_class = custom.settings_class(section.name, ModelConfig, values)
    elif section.name in _models():
        config_class = _MODELS[section.name].config
    else:
        raise ConfigError(
            f"model.name must be one of {', '.join(sorted(_MODELS))}, or path/to/file.py:NAME or package.module:NAME, "
            f"got {section.name!r}{did_you_mean(section.name, _MODELS)}"
        )
    config: ModelConfig = validate(config_class, values, "model")
    return config


def build_model(config: ModelConfig, shape: InputShape, num_classes: int, init_seed: int) -> nn.Module:
    """Build a module whose initial weights depend on `init_seed` alone; torch's global state is left as it was.

    Raises
    ------
    ConfigError
        If the model takes another sort of data, or cannot be built with these settings for this shape.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(init_seed)
        if is_plugin(config.name):
            settings = {key: getattr(config, key) for key in type(config).model_fields}
            settings = {key: value for key, value in settings.items() if key not in ModelConfig.model_fields}
            return custom.build(config.name, settings, shape, num_classes)
        model = _MODELS[config.name]
        if not isinstance(shape, model.takes):
            got = _WORDS[type(shape)]
            fitting = ", ".join(description.name for description in describe_models() if description.takes == got)
            raise ConfigError(
                f"model.name={config.name} takes {_WORDS[model.takes]}, but the data are {got}: models for {got} are "
                f"{fitting}, or one of your own (path/to/file.py:NAME or package.module:NAME)"
            )
        return model.builder(config, shape, num_classes)


def warm_up(config: ModelConfig) -> None:
    """Compile what a model of the package will need, so that no client's training counts it."""
    model = _MODELS.get(config.name)
    if model is not None and model.warm_up is not None:
        model.warm_up()

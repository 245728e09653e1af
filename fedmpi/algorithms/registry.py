"""From ``algorithm.name`` to an algorithm: a registered name, an installed entry point, or a file of the user's."""

from __future__ import annotations

import importlib
import importlib.metadata

from fedmpi.algorithms.base import Algorithm, AlgorithmConfig
from fedmpi.config import NamedSection
from fedmpi.configfile import validate
from fedmpi.errors import ConfigError
from fedmpi.plugin import is_plugin, load_plugin
from fedmpi.problems import did_you_mean

BUILT_IN = (
    "ecofed",
    "fedavg",
    "fedavgm",
    "feddst",
    "feddst_released",
    "fedgkt",
    "fedprox",
    "grasp",
    "lgl",
    "magnitude",
    "prunefl",
    "randommask",
    "splitfed",
)
ENTRY_POINTS = "fedmpi.algorithms"


def find(name: str) -> Algorithm:
    """Return the algorithm of a name, or of ``path/to/file.py:NAME`` where NAME is an `Algorithm`.

    Raises
    ------
    ConfigError
        If there is none, or its file cannot be imported.
    """
    if name in BUILT_IN:
        found = importlib.import_module(f"fedmpi.algorithms.{name}").ALGORITHM
        assert isinstance(found, Algorithm)
        return found
    if is_plugin(name):
        return _checked(load_plugin(name, "algorithm.name"), name)
    points = importlib.metadata.entry_points(group=ENTRY_POINTS)
    if name in points.names:
        try:
            return _checked(points[name].load(), name)
        except (ImportError, AttributeError) as error:
            where = points[name].value
            raise ConfigError(
                f"algorithm.name={name}: loading {where} failed: {type(error).__name__}: {error}"
            ) from error
    known = sorted({*BUILT_IN, *points.names})
    raise ConfigError(
        f"algorithm.name must be one of {', '.join(known)}, or path/to/file.py:NAME or package.module:NAME, "
        f"got {name!r}{did_you_mean(name, known)}"
    )


def describe_algorithms() -> list[tuple[str, str]]:
    """Return name and first line of documentation of each algorithm that can be named, installed ones too."""
    found = [(name, importlib.import_module(f"fedmpi.algorithms.{name}").__doc__ or "") for name in BUILT_IN]
    for point in importlib.metadata.entry_points(group=ENTRY_POINTS):
        found.append((point.name, f"installed: {point.value}"))
    return [(name, doc.split("\n")[0]) for name, doc in found]


def resolve(section: NamedSection) -> tuple[Algorithm, AlgorithmConfig]:
    """Return the algorithm that a configuration's section names, and its validated settings."""
    algorithm = find(section.name)
    config: AlgorithmConfig = validate(algorithm.config, section.model_dump(), "algorithm")
    return algorithm, config


def _checked(found: object, name: str) -> Algorithm:
    if not isinstance(found, Algorithm):
        raise ConfigError(f"algorithm.name={name} must name an Algorithm, got {type(found).__name__}")
    return found

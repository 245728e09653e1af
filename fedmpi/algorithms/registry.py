"""From ``algorithm.name`` to an algorithm: a registered name, an installed entry point, or a file of the user's."""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from fedmpi.algorithms.base import Algorithm, AlgorithmConfig
from fedmpi.config import NamedSection, validate
from fedmpi.errors import ConfigError

BUILT_IN = ("fedavg", "fedavgm", "fedprox")
ENTRY_POINTS = "fedmpi.algorithms"


def find(name: str) -> Algorithm:
    """Return the algorithm of a name, or of ``path/to/file.py:Name`` where Name is an `Algorithm`.

    Raises
    ------
    ConfigError
        If there is none, or its file cannot be imported.
    """
    if name in BUILT_IN:
        found = importlib.import_module(f"fedmpi.algorithms.{name}").ALGORITHM
        assert isinstance(found, Algorithm)
        return found
    path, colon, attribute = name.rpartition(":")
    if colon and path.endswith(".py"):
        return _checked(getattr(_import_file(Path(path)), attribute, None), name)
    points = importlib.metadata.entry_points(group=ENTRY_POINTS)
    if name in points.names:
        try:
            return _checked(points[name].load(), name)
        except (ImportError, AttributeError) as error:
            where = points[name].value
            raise ConfigError(
                f"algorithm.name={name}: loading {where} failed: {type(error).__name__}: {error}"
            ) from error
    known = ", ".join(sorted({*BUILT_IN, *points.names}))
    raise ConfigError(f"algorithm.name must be one of {known}, or path/to/file.py:Name, got {name!r}")


def resolve(section: NamedSection) -> tuple[Algorithm, AlgorithmConfig]:
    """Return the algorithm that a configuration's section names, and its validated settings."""
    algorithm = find(section.name)
    config: AlgorithmConfig = validate(algorithm.config, section.model_dump(), "algorithm")
    return algorithm, config


def _checked(found: object, name: str) -> Algorithm:
    if not isinstance(found, Algorithm):
        raise ConfigError(f"algorithm.name={name} must name an Algorithm, got {type(found).__name__}")
    return found


def _import_file(path: Path) -> ModuleType:
    # Once a process, and files of one name in two folders apart: a message class must stay the same object.
    module_name = f"fedmpi_user_{path.stem}_{hashlib.blake2b(str(path.resolve()).encode(), digest_size=4).hexdigest()}"
    if module_name in sys.modules:
        return sys.modules[module_name]
    spec = importlib.util.spec_from_file_location(module_name, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise ConfigError(f"algorithm.name: there is no file {path}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[module_name]
        raise ConfigError(f"algorithm.name: importing {path} failed: {type(error).__name__}: {error}") from error
    return module

"""A model of the user's own: an nn.Module class, or a function that returns a module, by import path.

It is called with keywords only: `num_classes` and `shape` where its signature has parameters of these names, and the
other keys of the ``model`` section, each of which must be a parameter too. Initial weights that it draws with torch
follow the run's seed; other sources of randomness would give every rank another model.
"""

from __future__ import annotations

import inspect
import math
import sys
import types
from collections.abc import Collection, Sequence
from inspect import Parameter
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import TypeAdapter, ValidationError, create_model
from torch import nn

from fedmpi.config import NamedSection
from fedmpi.data.shapes import InputShape
from fedmpi.errors import ConfigError, FedmpiError
from fedmpi.plugin import error_words, load_plugin

_C = TypeVar("_C", bound=NamedSection)
_FROM_DATA = ("num_classes", "shape")
_BY_KEYWORD = (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)
_VARIADIC = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)
_PLAIN = (int, float, str, bool, list, tuple, types.NoneType)


def settings_class(name: str, base: type[_C], given: Collection[str]) -> type[_C]:
    """Return the settings that a model of the user's takes: `base` with a field for each parameter of its signature.

    A parameter whose default is not plain (a number, word, list or None) becomes a field only if it is `given`, so
    that what a run writes down can be read back. One whose name is taken (`name`, `weights`, a name that begins with
    an underscore) cannot be set and keeps its default.

    Raises
    ------
    ConfigError
        If `name` is no class of modules and no function, or needs what cannot be given by keyword.
    """
    fields: dict[str, Any] = {}
    for key, parameter in _signature(_load(name), name).parameters.items():
        if key in _FROM_DATA or parameter.kind in _VARIADIC:
            continue
        required = parameter.default is Parameter.empty
        taken = key in base.model_fields or hasattr(base, key) or key.startswith("_")
        if taken or parameter.kind not in _BY_KEYWORD:
            if required:
                why = "its name is taken in a configuration" if taken else "it cannot be given by keyword"
                raise ConfigError(
                    f"model.name={name}: parameter {key!r} has no default, and {why}: change the signature"
                )
        elif required:
            fields[key] = (_field_type(parameter.annotation), ...)
        elif _is_plain_value(parameter.default):
            fields[key] = (_field_type(parameter.annotation, parameter.default), parameter.default)
        elif key in given:
            fields[key] = (Any, ...)
    made: type[_C] = create_model("OwnModelConfig", __base__=base, **fields)
    return made


def build(name: str, settings: dict[str, Any], shape: InputShape, num_classes: int) -> nn.Module:
    """Call the user's class or function.

    Raises
    ------
    ConfigError
        If it raises, or returns something else than a module.
    """
    found = _load(name)
    parameters = _signature(found, name).parameters
    from_data = {"num_classes": num_classes, "shape": shape}
    keywords = {key: value for key, value in from_data.items() if key in parameters}
    try:
        module = found(**keywords, **settings)
    except FedmpiError:
        raise
    except Exception as error:
        words = error_words(error, source_file(name))
        raise ConfigError(f"model.name={name}: building it failed: {words}") from error
    if not isinstance(module, nn.Module):
        raise ConfigError(f"model.name={name} must make an nn.Module, got {type(module).__name__}")
    return module


def source_file(name: str) -> str:
    """Return the file that a model of the user's was loaded from, or nothing if Python does not know."""
    module = sys.modules.get(getattr(inspect.unwrap(_load(name)), "__module__", ""))
    return getattr(module, "__file__", None) or ""


def _load(name: str) -> Any:
    found = load_plugin(name, "model.name")
    if isinstance(found, nn.Module):
        raise ConfigError(
            f"model.name={name} is a module that is already built, whose weights cannot follow the seed: name its "
            "class, or a function that returns it"
        )
    if not callable(found) or (isinstance(found, type) and not issubclass(found, nn.Module)):
        what = f"the class {found.__name__}" if isinstance(found, type) else type(found).__name__
        raise ConfigError(f"model.name={name} must name an nn.Module class or a function that returns one, got {what}")
    return found


def _signature(found: Any, name: str) -> inspect.Signature:
    try:
        return inspect.signature(found, eval_str=True)
    except Exception:  # annotations are evaluated, and may be anything
        pass
    try:
        return inspect.signature(found)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"model.name={name}: its signature cannot be read: {error}") from error


def _is_plain_value(value: Any) -> bool:
    if type(value) in (list, tuple):
        return all(_is_plain_value(item) for item in value)
    return type(value) in _PLAIN and not (isinstance(value, float) and not math.isfinite(value))


def _is_plain_type(annotation: Any) -> bool:
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return all(_is_plain_value(arg) for arg in args)
    if origin in (Union, types.UnionType, list, tuple, Sequence):
        return all(arg is Ellipsis or _is_plain_type(arg) for arg in args)
    return any(annotation is plain for plain in _PLAIN)


def _field_type(annotation: Any, default: Any = Parameter.empty) -> Any:
    """Return the type that a key's value is held to: the annotation if it is plain and the default is of it."""
    if annotation is Parameter.empty or not _is_plain_type(annotation):
        return Any
    if default is None:
        return annotation | None
    if default is not Parameter.empty:
        try:
            TypeAdapter(annotation).validate_python(default)
        except ValidationError:
            return Any
    return annotation

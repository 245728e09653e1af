"""All settings of a configuration in words, read from the classes that check them."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin

import yaml
from pydantic.fields import FieldInfo

from fedmpi.algorithms.registry import BUILT_IN, describe_algorithms, find
from fedmpi.config import NamedSection, PretrainConfig, RunConfig, Section
from fedmpi.models.registry import describe_models
from fedmpi.problems import leaves, names_of, sections_of

_TYPES = {int: "whole number", float: "number", bool: "true or false", str: "word", Path: "path"}
_MANY = {int: "whole numbers", float: "numbers", str: "words", Path: "paths"}


@dataclass(frozen=True)
class Setting:
    """One key: all parts are words for a reader."""

    key: str
    kind: str
    default: str | None
    allowed: str
    meaning: str


@dataclass(frozen=True)
class Part:
    """Settings that belong together.

    Parameters
    ----------
    title : str
        A section's dotted key, or ``partition.name=shards`` for the settings that go with a name.
    about : str
    settings : tuple of Setting
    """

    title: str
    about: str
    settings: tuple[Setting, ...]


def all_parts(algorithms: Iterable[str] = BUILT_IN) -> list[Part]:
    """Return all settings, with those of the named algorithms and of the package's models."""
    plain = {name: field for name, field in RunConfig.model_fields.items() if not sections_of(field.annotation)}
    parts = [Part("run", "Keys that stand in no section.", tuple(_setting("", n, f) for n, f in plain.items()))]
    for name, field in RunConfig.model_fields.items():
        members = sections_of(field.annotation)
        if name == "algorithm":
            kinds = _algorithms(algorithms)
            parts += _named(name, field, "What is trained, and what is sent.", kinds, _OWN_ALGORITHM)
        elif name == "model":
            kinds = [(m.name, f"{_sentence(m.summary)} Takes {m.takes}.", m.config) for m in describe_models()]
            parts += _named(name, field, "The network.", kinds, _OWN_MODEL)
        elif len(members) > 1:
            kinds = [(known, _about(member), member) for member in members for known in names_of(member)]
            parts += _named(name, field, "How the training samples are dealt to the clients.", kinds, "")
        elif members:
            parts += _section(name, members[0])
    return parts


def pretrain_parts() -> list[Part]:
    """Return the settings that only a pre-training has."""
    return list(_section("pretrain", PretrainConfig))


_OWN_ALGORITHM = ", an installed entry point, or an `Algorithm` as path/to/file.py:NAME or package.module:NAME"
_OWN_MODEL = ", or a module of one's own as path/to/file.py:NAME or package.module:NAME"


def _section(key: str, section: type[Section]) -> Iterator[Part]:
    """Return a section's settings, and those of the sections in it."""
    inner = []
    settings = []
    for name, field in section.model_fields.items():
        members = sections_of(field.annotation)
        if members:
            inner += [(f"{key}.{name}", field.description or "", member) for member in members]
        else:
            settings.append(_setting(key, name, field))
    yield Part(key, _about(section), tuple(settings))
    for path, when, member in inner:
        for part in _section(path, member):
            yield Part(part.title, f"{part.about} {_sentence(when)}".strip(), part.settings)


def _named(
    key: str, field: FieldInfo, about: str, kinds: list[tuple[str, str, type[Section]]], more: str
) -> Iterator[Part]:
    """Return a section whose settings go with its name: the name, then the settings of each."""
    assert isinstance(field.default, Section)
    usual = field.default.model_dump()["name"]
    names = ", ".join(name for name, _, _ in kinds)
    meaning = "decides which other keys there are" + ("; to be given where the section is" if _must(field) else "")
    settings = {
        name: [_setting(key, n, f) for n, f in section.model_fields.items() if n != "name"]
        for name, _, section in kinds
    }
    # What all names have in common is said once.
    common = [setting for setting in next(iter(settings.values())) if all(setting in own for own in settings.values())]
    yield Part(key, about, (Setting(f"{key}.name", "word", usual, f"one of {names}{more}", meaning), *common))
    for name, what, _ in kinds:
        own = tuple(setting for setting in settings[name] if setting not in common)
        yield Part(f"{key}.name={name}", what if own else f"{what} No settings of its own.", own)


def _must(field: FieldInfo) -> bool:
    return isinstance(field.annotation, type) and issubclass(field.annotation, NamedSection)


def _algorithms(names: Iterable[str]) -> list[tuple[str, str, type[Section]]]:
    described = dict(describe_algorithms())
    configs = {name: find(name).config for name in names}
    own = "An algorithm of one's own."
    return [(name, described.get(name) or _about(config) or own, config) for name, config in configs.items()]


def _about(section: type[Section]) -> str:
    return _first_paragraph(section.__doc__)


def _first_paragraph(text: str | None) -> str:
    return " ".join(inspect.cleandoc(text or "").partition("\n\n")[0].split()).replace("``", "`")


def _sentence(words: str) -> str:
    return words[:1].upper() + words[1:].rstrip(".") + "." if words else ""


def _setting(section: str, name: str, field: FieldInfo) -> Setting:
    return Setting(
        key=f"{section}.{name}" if section else name,
        kind=_kind(field.annotation),
        default=None if field.is_required() else _written(field.get_default(call_default_factory=True)),
        allowed=_allowed(field),
        meaning=field.description or "",
    )


def _written(value: object) -> str:
    """Write a value as a user would in the file."""
    if isinstance(value, float):
        return f"{value:g}" if float(f"{value:g}") == value else repr(value)
    plain = str(value) if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value
    return yaml.safe_dump(plain, default_flow_style=True, width=1000).strip().removesuffix("...").strip()


def _kind(annotation: Any) -> str:
    """Say what kind of value an annotation takes."""
    if get_origin(annotation) in (tuple, list):
        return "list of " + _MANY.get(leaves(annotation)[0], "values")
    found = []
    for leaf in leaves(annotation):
        if get_origin(leaf) is Literal:
            found.append("word" if len(get_args(leaf)) > 1 else str(get_args(leaf)[0]))
        elif leaf not in (NoneType, Ellipsis):
            found.append(_TYPES.get(leaf, "value"))
    if any(get_origin(arg) in (tuple, list) for arg in get_args(annotation)):
        found = [next(_kind(arg) for arg in get_args(annotation) if get_origin(arg) in (tuple, list))]
    return " or ".join([*found, *(["null"] if NoneType in get_args(annotation) else [])])


def _allowed(field: FieldInfo) -> str:
    """Say which values a field takes: its choices, its limits, the length of its list."""
    limits: dict[str, Any] = {}
    for item in [*field.metadata, *(m for arg in get_args(field.annotation) for m in getattr(arg, "__metadata__", ()))]:
        for constraint in item.metadata if isinstance(item, FieldInfo) else [item]:
            for name in ("gt", "ge", "lt", "le", "min_length", "max_length"):
                if getattr(constraint, name, None) is not None:
                    limits[name] = getattr(constraint, name)
    said = [_interval(limits)]
    for name, word in (("min_length", "at least"), ("max_length", "at most")):
        if name in limits:
            said.append(f"{word} {limits[name]} in it")
    choices = [leaf for leaf in leaves(field.annotation) if get_origin(leaf) is Literal and len(get_args(leaf)) > 1]
    said += [f"one of {', '.join(map(str, get_args(leaf)))}" for leaf in choices]
    return ", ".join(part for part in said if part)


def _interval(limits: dict[str, Any]) -> str:
    low = next(((name, limits[name]) for name in ("gt", "ge") if name in limits), None)
    high = next(((name, limits[name]) for name in ("lt", "le") if name in limits), None)
    if low and high:
        return (
            f"in {'(' if low[0] == 'gt' else '['}{_number(low[1])}, {_number(high[1])}{')' if high[0] == 'lt' else ']'}"
        )
    signs = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
    return " ".join(f"{signs[name]} {_number(value)}" for name, value in filter(None, (low, high)))


def _number(value: float) -> str:
    """Write a limit; large powers of two as such."""
    if isinstance(value, int) and value > 10**6:
        for more, tail in ((0, ""), (1, " - 1")):
            if (value + more) & (value + more - 1) == 0:
                return f"2^{(value + more).bit_length() - 1}{tail}"
    return f"{value:g}" if isinstance(value, float) else str(value)

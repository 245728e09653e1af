"""Why a configuration is refused, in its own terms: dotted key, rule, value, and what may have been meant."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import NoneType
from typing import Annotated, Any, NamedTuple, get_args, get_origin

from pydantic_core import ErrorDetails

from fedmpi.config import Section

_NO_SECTION = ("model_type", "model_attributes_type", "dict_type")
_RULES = {
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "int_parsing_size": "a whole number of fewer digits",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "a word",
    "path_type": "a path",
    "tuple_type": "a list",
    "list_type": "a list",
    **dict.fromkeys(_NO_SECTION, "a section of keys"),
    "greater_than": "above {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "below {lt}",
    "less_than_equal": "at most {le}",
    "literal_error": "{expected}",
    "union_tag_invalid": "one of {expected_tags}",
    "too_short": "a list of at least {min_length} values",
    "too_long": "a list of at most {max_length} values",
}
_ALIKE = 0.6
"""Likeness, from 0 to 1, from which on one name is taken for a slip of another."""


class Problem(NamedTuple):
    """What is wrong with one key: its dotted name ("" for the whole), and a line that names it too."""

    key: str
    text: str


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean X?"`` for the known word nearest to `word`, or nothing if none is near."""
    by_lower = {name.lower(): name for name in known}
    near = difflib.get_close_matches(word.lower(), by_lower, 1, _ALIKE)
    return f"; did you mean {by_lower[near[0]]}?" if near else ""


def find_problems(
    section: type[Section], values: Mapping[str, Any], errors: Sequence[ErrorDetails], where: str
) -> list[Problem]:
    """Return what is wrong with `values`, a line a key.

    Parameters
    ----------
    section : type of Section
        What the values are for.
    values : mapping
    errors : sequence of pydantic's errors
        What it says about them.
    where : str
        Dotted key of the section, "" for a whole configuration.
    """
    at = [where] if where else []
    mistyped = {key: (rule, value) for key, rule, value in _mistyped_below(section, values, where)}
    rules: dict[str, tuple[list[str], str]] = {}
    for key, (rule, flag) in mistyped.items():
        if isinstance(flag, bool):
            rules[key] = ([rule], _spell(flag))
    flagged = set(rules)
    found: list[Problem] = []
    for error in errors:
        owner, names = _locate(section, error["loc"])
        key, kind = ".".join(at + names), error["type"]
        if kind == "invalid_key":
            place = ".".join(at + names[:-1])
            text = f"{place + ': ' if place else ''}a key must be a word, got {_spell(error['input'])}{_why(error)}"
            found.append(Problem(place, text))
        elif kind == "extra_forbidden":
            hint = _hint(section, owner, at, names, values)
            found.append(Problem(key, f"{key}: unknown key (value {_spell(error['input'])}); {hint}"))
        elif kind == "missing":
            found.append(Problem(key, f"{key}: required, and not given"))
        elif kind == "union_tag_not_found":
            found.append(Problem(f"{key}.name", f"{key}.name: required, and not given"))
        elif kind == "value_error":
            found.append(Problem(key, f"{key}: {error['ctx']['error']}"))
        elif kind not in _RULES:
            found.append(Problem(key, f"{key}: {error['msg']}, got {_spell(error['input'])}"))
        else:
            value = _spell(error["input"])
            if kind == "union_tag_invalid":
                key, tag = f"{key}.name", str(error["ctx"]["tag"])
                names_known = [name.strip().strip("'") for name in error["ctx"]["expected_tags"].split(",")]
                value = repr(tag) + did_you_mean(tag, names_known)
            elif kind == "literal_error" and isinstance(error["input"], str):
                value += did_you_mean(error["input"], re.findall(r"'([^']*)'", error["ctx"]["expected"]))
            elif kind in _NO_SECTION and isinstance(error["input"], str) and _has_name(section, error["loc"]):
                value += f"; did you mean {key}.name={error['input']}?"
            # A value that fits neither side of a union gets one line, and one that was flagged as true or false none.
            if key not in flagged:
                rules.setdefault(key, ([], value))[0].append(_RULES[kind].format(**_limits(error)))
    for key, (rule, given) in mistyped.items():
        # What pydantic refuses as well has its line already.
        if key not in rules:
            quoted = " (in quotes it is a word: leave them out)" if isinstance(given, str) else ""
            rules[key] = ([rule], _spell(given) + quoted)
    return found + [
        Problem(key, f"{key} must be {' or '.join(parts)}, got {value}") for key, (parts, value) in rules.items()
    ]


def _limits(error: ErrorDetails) -> dict[str, Any]:
    limits = error.get("ctx", {})
    return {k: int(v) if isinstance(v, float) and v.is_integer() else v for k, v in limits.items()}


def _spell(value: object) -> str:
    """Write a value as YAML has it, where that is not as Python does."""
    if isinstance(value, bool):
        return str(value).lower()
    return "null" if value is None else repr(value)


def _why(error: ErrorDetails) -> str:
    """Say where a key that is true or false comes from: nobody types it."""
    return " (as YAML reads on, off, yes and no too)" if isinstance(error["input"], bool) else ""


def leaves(annotation: Any) -> list[Any]:
    """Return the plain types that an annotation is made of; a `Literal` counts as one."""
    if get_origin(annotation) is Annotated:
        return leaves(get_args(annotation)[0])
    args = [] if str(annotation).startswith("typing.Literal") else get_args(annotation)
    return [leaf for arg in args for leaf in leaves(arg)] if args else [annotation]


def sections_of(annotation: Any) -> list[type[Section]]:
    """Return the sections that an annotation allows: one, several that their ``name`` tells apart, or none."""
    return [leaf for leaf in leaves(annotation) if isinstance(leaf, type) and issubclass(leaf, Section)]


def names_of(section: type[Section]) -> tuple[str, ...]:
    """Return the names that select a section among several; empty for one that is not selected by name."""
    return get_args(section.model_fields["name"].annotation) if "name" in section.model_fields else ()


def _mistyped_below(section: type[Section], values: Mapping[str, Any], where: str) -> Iterator[tuple[str, str, Any]]:
    """Find what pydantic lets pass, as dotted key, rule and value: true as 1, 1 as true, and numbers in quotes.

    YAML reads `on` and `yes` as true, and Python counts true as 1.
    """
    for name, value in values.items():
        field = section.model_fields.get(str(name))
        if field is not None:
            yield from _mistyped(field.annotation, value, f"{where}.{name}" if where else str(name))


def _mistyped(annotation: Any, value: Any, key: str) -> Iterator[tuple[str, str, Any]]:
    kinds = leaves(annotation)
    takes_number = int in kinds or float in kinds
    if isinstance(value, bool):
        if takes_number and bool not in kinds:
            yield key, "a number", value
    elif isinstance(value, (list, tuple)):
        for place, item in enumerate(value):
            yield from _mistyped(annotation, item, f"{key}.{place}")
    elif isinstance(value, Mapping):
        members = sections_of(annotation)
        for member in members:
            if len(members) == 1 or value.get("name") in names_of(member):
                yield from _mistyped_below(member, value, key)
    elif isinstance(value, str):
        words = [word for kind in kinds for word in get_args(kind)]
        takes_words = any(kind not in (int, float, bool, NoneType, Ellipsis) and not get_args(kind) for kind in kinds)
        if (takes_number or bool in kinds) and not takes_words and value not in words:
            yield key, _rule(kinds), value
    elif isinstance(value, (int, float)) and bool in kinds and not takes_number and Any not in kinds:
        yield key, "true or false", value


def _rule(kinds: Sequence[Any]) -> str:
    numbers = "a number" if float in kinds else "a whole number" if int in kinds else ""
    words = [repr(word) for kind in kinds for word in get_args(kind)]
    return " or ".join(part for part in (numbers, "true or false" if bool in kinds else "", *words) if part)


def _has_name(section: type[Section], loc: tuple[int | str, ...]) -> bool:
    """Return whether a key of a section is a section in which a `name` selects the rest."""
    field = section.model_fields.get(str(loc[0])) if len(loc) == 1 else None
    return field is not None and any("name" in member.model_fields for member in sections_of(field.annotation))


def _locate(section: type[Section], loc: tuple[int | str, ...]) -> tuple[type[Section], list[str]]:
    """Return the section in which an error is, and its key as the user typed it.

    Pydantic puts the tag of a union between the key and its field, and the side of a plain union behind the key.
    """
    owner, names = section, []
    annotation: Any = section
    for part in loc:
        members = sections_of(annotation)
        if len(members) > 1:
            annotation = next(member for member in members if part in names_of(member))
        elif members:
            owner = members[0]
            names.append(str(part))
            field = owner.model_fields.get(str(part))
            annotation = None if field is None else field.annotation
        elif isinstance(part, int):  # a place in a list
            names.append(str(part))
    return owner, names


def _hint(root: type[Section], owner: type[Section], at: list[str], names: list[str], values: Mapping[str, Any]) -> str:
    """Return what an unknown key may have been meant for, or else the keys that there are."""
    *parents, leaf = names
    path = ".".join(at + parents)
    known = list(_known_keys(root, at))
    others = [member for key, member, _ in known if key == ".".join(at + names)]
    if others:
        return f"{leaf} goes with {path}.name={' or '.join(name for member in others for name in names_of(member))}"
    near = [key for key, member, _ in known if member is owner]
    for among in (near, [key for key, _, _ in known]):
        score, best = max((_likeness(leaf, key, text), key) for key, _, text in known if key in among)
        if score >= _ALIKE:
            return f"did you mean {best}?"
    keys = [name for name in owner.model_fields if name != "name"]
    if not keys and "name" in values:
        return f"{path}.name={values['name']} has no settings"
    return f"the keys {'of ' + path if path else 'of a configuration'} are {', '.join(keys)}"


def _known_keys(section: type[Section], at: list[str]) -> Iterator[tuple[str, type[Section], str]]:
    """Go through all keys below a section: dotted key, the section that it is in, its description."""
    for name, field in section.model_fields.items():
        yield ".".join([*at, name]), section, field.description or ""
        for member in sections_of(field.annotation):
            yield from _known_keys(member, [*at, name])


def _likeness(leaf: str, key: str, description: str) -> float:
    """Return how like a known key an unknown one is: by its name, or by the first words of what it means."""
    name = key.rpartition(".")[2]
    meaning = re.split(r"[,;:(]", description)[0]
    pairs = ((leaf, name), (leaf.replace("_", " "), meaning))
    return max(difflib.SequenceMatcher(None, a.lower(), b.lower()).ratio() for a, b in pairs)

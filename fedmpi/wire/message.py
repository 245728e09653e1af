"""Typed messages: a frozen dataclass of values and numbers, with a kind and a direction.

A message class is its own schema: both ends hold it, so neither names nor shapes travel. ::

    @message("model", "up")
    class ModelUp(Message):
        num_samples: int
        state: Dense = dense("state")
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeVar, dataclass_transform, get_args, get_type_hints

import numpy as np

from fedmpi.wire.codecs.base import FieldSpec
from fedmpi.wire.values import DENSE_DTYPES, Value

Direction = Literal["down", "up"]


@dataclass(frozen=True)
class Schema:
    """What both ends know before any message: the sizes that field declarations name, and the model's layout.

    Parameters
    ----------
    sizes : mapping of str to int
        Such as ``{"params": 7850, "state": 7850, "int_buffers": 0}``.
    layout_id : int
        32-bit hash of the model's layout; in every frame, and checked.
    """

    sizes: Mapping[str, int]
    layout_id: int
    _specs: dict[type[Message], tuple[FieldSpec, ...]] = dataclasses.field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def specs(self, message_class: type[Message]) -> tuple[FieldSpec, ...]:
        """Return what a receiver knows of each value field of a message class; kept from call to call."""
        specs = self._specs.get(message_class)
        if specs is None:
            specs = self._specs[message_class] = tuple(
                FieldSpec(
                    f"{message_class.__name__}.{field.name}",
                    np.dtype(field.dtype),
                    self.size(field.numel),
                    field.at_most,
                )
                for field in message_class.value_fields
            )
        return specs

    def size(self, name: int | str) -> int:
        """Resolve a field's declared size; KeyError where the run has no size of that name."""
        return name if isinstance(name, int) else self.sizes[name]


@dataclass(frozen=True)
class ValueField:
    """Declaration of a field that holds a value."""

    name: str
    value_class: type[Value]
    dtype: str
    numel: int | str
    at_most: bool
    optional: bool


@dataclass(frozen=True)
class NumberField:
    """Declaration of a field that holds a Python int or float."""

    name: str
    number_class: type[int] | type[float]


def dense(numel: int | str, *, dtype: str = "float32", at_most: bool = False) -> Any:
    """Declare a `Dense` field.

    Parameters
    ----------
    numel : int or str
        Its length, or the name of a size in the run's `Schema`.
    dtype : str
        numpy name of its dtype.
    at_most : bool
        Accept shorter vectors too, as the last batch of an epoch is.
    """
    return dataclasses.field(metadata={"value": (dtype, numel, at_most)})


class Message:
    """Base of all messages; see `message`."""

    kind: ClassVar[str]
    kind_id: ClassVar[int]
    direction: ClassVar[Direction]
    value_fields: ClassVar[tuple[ValueField, ...]]
    number_fields: ClassVar[tuple[NumberField, ...]]

    def values(self) -> list[Value]:
        """Return the values that are present, in the order of their declaration."""
        found = (getattr(self, field.name) for field in self.value_fields)
        return [value for value in found if value is not None]

    def nonfinite_field(self) -> str | None:
        """Return the name of the first field that holds NaN or infinity, None if all is finite."""
        for value_field in self.value_fields:
            value: Value | None = getattr(self, value_field.name)
            if value is not None and not value.is_finite():
                return value_field.name
        return next((f.name for f in self.number_fields if not math.isfinite(getattr(self, f.name))), None)

    def num_params(self, schema: Schema) -> int:
        """Return the number of numbers that the message conveys to its receiver."""
        return sum(value.numel for value in self.values())

    def num_kept(self, schema: Schema) -> int:
        """Return how many of them it carries itself."""
        return sum(value.numel for value in self.values())

    def paper_nbits(self, schema: Schema) -> float:
        """Return the size that the paper's own accounting would state: by default 32 bits a number conveyed."""
        return 32.0 * self.num_params(schema)


KINDS: dict[int, type[Message]] = {}

M = TypeVar("M", bound=Message)


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(dense,))
def message(kind: str, direction: Direction) -> Callable[[type[M]], type[M]]:
    """Make a class of fields a message.

    Parameters
    ----------
    kind : str
        Its name in the ledger, at most 32 ASCII characters.
    direction : {"down", "up"}
        From server to client, or back.

    Raises
    ------
    TypeError
        If a field is neither a value nor a number, or another class has this kind and direction.
    """
    if not (kind.isascii() and 0 < len(kind) <= 32):
        raise TypeError(f"a message kind is 1 to 32 ASCII characters, got {kind!r}")

    def decorate(cls: type[M]) -> type[M]:
        cls = dataclass(frozen=True, kw_only=True, eq=False)(cls)
        cls.kind, cls.direction = kind, direction
        # Two bytes derived from the name: a user's own messages need no central list of numbers.
        cls.kind_id = int.from_bytes(hashlib.blake2b(f"{direction}:{kind}".encode(), digest_size=2).digest(), "little")
        other = KINDS.get(cls.kind_id)
        if other is not None and _identity(other) != _identity(cls):
            raise TypeError(
                f"message {cls.__qualname__} ({direction} {kind!r}) has the number of {other.__qualname__} "
                f"({other.direction} {other.kind!r}); choose another kind"
            )
        hints = get_type_hints(cls)
        values, numbers = [], []
        for field in dataclasses.fields(cls):  # type: ignore[arg-type]
            hint = hints[field.name]
            optional = type(None) in get_args(hint)
            plain = next(iter(arg for arg in get_args(hint) if arg is not type(None)), None) if optional else hint
            if isinstance(plain, type) and issubclass(plain, Value) and "value" in field.metadata:
                dtype, numel, at_most = field.metadata["value"]
                if dtype not in DENSE_DTYPES:
                    known = ", ".join(DENSE_DTYPES)
                    raise TypeError(f"{cls.__qualname__}.{field.name}: dtype must be one of {known}, got {dtype!r}")
                values.append(ValueField(field.name, plain, dtype, numel, at_most, optional))
            elif plain in (int, float) and not optional:
                numbers.append(NumberField(field.name, plain))
            else:
                raise TypeError(f"{cls.__qualname__}.{field.name}: a field is a declared value, an int or a float")
        cls.value_fields, cls.number_fields = tuple(values), tuple(numbers)
        KINDS[cls.kind_id] = cls
        return cls

    return decorate


def _identity(cls: type[Message]) -> tuple[str, ...]:
    """Return what a class keeps when its module is imported again."""
    return cls.__module__, cls.__qualname__, cls.kind, cls.direction

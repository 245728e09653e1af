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

from fedmpi.config import WireConfig
from fedmpi.wire.codecs.base import FieldSpec
from fedmpi.wire.known import Known
from fedmpi.wire.values import (
    DENSE_DTYPES,
    PAPER_NBITS,
    Counts,
    Dense,
    Labels,
    Mask,
    MaskedValues,
    Quantized,
    Sparse,
    Value,
)

Direction = Literal["down", "up"]


@dataclass(frozen=True)
class Schema:
    """What an end knows before a message comes: sizes, the model's layout, and what it holds.

    Parameters
    ----------
    sizes : mapping of str to int
        Such as ``{"params": 7850, "state": 7850, "int_buffers": 0}``.
    layout_id : int
        32-bit hash of the model's layout; in every frame, and checked.
    segments : mapping of str to numpy.ndarray
        For sizes that are made of tensors, where these begin, and the end: ``{"params": [0, 7840, 7850]}``.
    wire : WireConfig
        How to encode. Decoding does not ask it.
    known : Known
        What this end holds.
    """

    sizes: Mapping[str, int]
    layout_id: int
    segments: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict, repr=False)
    wire: WireConfig = dataclasses.field(default_factory=WireConfig)
    known: Known = dataclasses.field(default_factory=Known, repr=False, compare=False)
    _specs: dict[type[Message], tuple[FieldSpec, ...]] = dataclasses.field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def specs(self, message_class: type[Message]) -> tuple[FieldSpec, ...]:
        """Return what a receiver knows of each value field of a message class; kept from call to call."""
        specs = self._specs.get(message_class)
        if specs is None:
            specs = self._specs[message_class] = tuple(
                self._spec(f"{message_class.__name__}.{field.name}", field.declared)
                for field in message_class.value_fields
            )
        return specs

    def _spec(self, where: str, declared: Declared) -> FieldSpec:
        return FieldSpec(
            where,
            declared.dtype,
            tuple(self.size(length) for length in declared.shape),
            declared.at_most,
            self.segments.get(str(declared.shape[0])) if declared.per_tensor else None,
            declared.base,
            declared.prior,
            self.size(declared.num_classes),
            self.size(declared.max_kept),
        )

    def size(self, name: int | str) -> int:
        """Resolve a field's declared size; KeyError where the run has no size of that name."""
        return name if isinstance(name, int) else self.sizes[name]

    def of_one_half(self) -> Schema:
        """Return the schema of one half of an algorithm: the same, but it holds nothing yet."""
        return dataclasses.replace(self, known=Known())


@dataclass(frozen=True)
class Declared:
    """What a field's declaration says of its value; see the functions that declare fields."""

    value_class: type[Value]
    shape: tuple[int | str, ...]
    dtype: str = ""
    at_most: bool = False
    per_tensor: bool = False
    base: str = ""
    prior: str = ""
    num_classes: int | str = 0
    max_kept: int | str = 0


@dataclass(frozen=True)
class ValueField:
    """A field that holds a value."""

    name: str
    declared: Declared
    optional: bool


@dataclass(frozen=True)
class NumberField:
    """A field that holds a Python int or float.

    Parameters
    ----------
    name : str
    number_class : int or float
    dtype : {"int", "float64", "float32"}
        How it travels.
    """

    name: str
    number_class: type[int] | type[float]
    dtype: str


def dense(numel: int | str, *, dtype: str = "float32", at_most: bool = False, base: str = "") -> Any:
    """Declare a `Dense` field.

    Parameters
    ----------
    numel : int or str
        Its length, or the name of a size in the run's `Schema`.
    dtype : str
        Name of its dtype, one of `DENSE_DTYPES`.
    at_most : bool
        Accept shorter vectors too, as the last batch of an epoch is.
    base : str
        Name under which both ends hold a vector that it may be sent against (a `KnownVector`).
    """
    return _declare(Dense, (numel,), dtype=dtype, at_most=at_most, base=base)


def mask(numel: int | str, *, per_tensor: bool = True, prior: str = "", base: str = "") -> Any:
    """Declare a `Mask` field.

    Parameters
    ----------
    numel : int or str
        Its length, or the name of a size in the run's `Schema`.
    per_tensor : bool
        Let each of the model's tensors have a density of its own, where `numel` names a size made of tensors.
    prior : str
        Name under which both ends hold the probability of each bit (`KnownProbabilities`).
    base : str
        Name under which both ends hold earlier masks (`KnownMask`).
    """
    return _declare(Mask, (numel,), per_tensor=per_tensor, prior=prior, base=base)


def sparse(
    numel: int | str,
    *,
    dtype: str = "float32",
    per_tensor: bool = True,
    at_most: bool = False,
    base: str = "",
    max_kept: int | str = 0,
) -> Any:
    """Declare a `Sparse` field.

    Parameters
    ----------
    numel : int or str
        Number of positions, or the name of a size in the run's `Schema`.
    dtype : str
        Name of its values' dtype; "" for values that are `Quantized`.
    per_tensor : bool
        Let each of the model's tensors have a density of its own, where `numel` names a size made of tensors.
    at_most : bool
        Accept fewer positions too.
    base : str
        Name under which both ends hold a mask that the positions may be near to (a `KnownMask`).
    max_kept : int or str
        The most positions that it may keep, or the name of a size in the run's `Schema`; 0 for no limit. A receiver
        refuses more before it makes room for them.
    """
    return _declare(Sparse, (numel,), dtype=dtype, per_tensor=per_tensor, at_most=at_most, base=base, max_kept=max_kept)


def masked_values(numel: int | str, *, mask: str, dtype: str = "float32") -> Any:
    """Declare a `MaskedValues` field.

    Parameters
    ----------
    numel : int or str
        Number of positions, or the name of a size in the run's `Schema`.
    mask : str
        Where the mask is: in the field of this name before this one, if it is there, else with both ends.
    dtype : str
        Name of its values' dtype; "" for values that are `Quantized`.
    """
    return _declare(MaskedValues, (numel,), dtype=dtype, base=mask)


def quantized(shape: int | str | tuple[int | str, ...], *, at_most: bool = False) -> Any:
    """Declare a `Quantized` field.

    Parameters
    ----------
    shape : int, str or tuple of int and str
        Its shape, in numbers or names of sizes in the run's `Schema`.
    at_most : bool
        Accept a smaller first dimension too, as the last batch of an epoch has.
    """
    return _declare(Quantized, shape if isinstance(shape, tuple) else (shape,), at_most=at_most)


def labels(numel: int | str, *, num_classes: int | str, at_most: bool = False) -> Any:
    """Declare a `Labels` field.

    Parameters
    ----------
    numel, num_classes : int or str
        How many labels, and of how many classes; or names of sizes in the run's `Schema`.
    at_most : bool
        Accept fewer labels too.
    """
    return _declare(Labels, (numel,), num_classes=num_classes, at_most=at_most)


def counts(numel: int | str, *, at_most: bool = False) -> Any:
    """Declare a `Counts` field; `numel` and `at_most` as for `labels`."""
    return _declare(Counts, (numel,), at_most=at_most)


def single() -> Any:
    """Declare a float that travels in 4 bytes, as float32; a number that float32 does not have is refused."""
    return dataclasses.field(metadata={"number": "float32"})


def _declare(value_class: type[Value], shape: tuple[int | str, ...], **facts: Any) -> Any:
    return dataclasses.field(metadata={"value": Declared(value_class, shape, **facts)})


class Message:
    """Base of all messages; see `message`."""

    kind: ClassVar[str]
    kind_id: ClassVar[int]
    direction: ClassVar[Direction]
    value_fields: ClassVar[tuple[ValueField, ...]]
    number_fields: ClassVar[tuple[NumberField, ...]]
    is_simulation: ClassVar[bool] = False
    """The real system would not send it: it serves the simulation, has no row and counts with its traffic."""
    received: np.ndarray | None = None
    """The frame that a decoded message came as, (wire_nbytes,) uint8: a view, copy to keep. None where it was made."""

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
        return sum(value.num_kept for value in self.values())

    def paper_nbits(self, schema: Schema) -> float:
        """Return the size that the paper's own accounting would state.

        By default what papers count for each value, and 32 bits for each number conveyed that no value carries.
        """
        values = self.values()
        elsewhere = self.num_params(schema) - sum(value.numel for value in values)
        return float(sum(value.paper_nbits for value in values) + PAPER_NBITS * elsewhere)


KINDS: dict[int, type[Message]] = {}

M = TypeVar("M", bound=Message)


@dataclass_transform(
    frozen_default=True,
    kw_only_default=True,
    field_specifiers=(dense, mask, sparse, masked_values, quantized, labels, counts, single),
)
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
            declared = field.metadata.get("value")
            if isinstance(plain, type) and issubclass(plain, Value) and declared is not None:
                values.append(_value_field(f"{cls.__qualname__}.{field.name}", field.name, plain, declared, optional))
            elif plain in (int, float) and not optional and (plain is float or "number" not in field.metadata):
                dtype = "int" if plain is int else field.metadata.get("number", "float64")
                numbers.append(NumberField(field.name, plain, dtype))
            else:
                raise TypeError(f"{cls.__qualname__}.{field.name}: a field is a declared value, an int or a float")
        cls.value_fields, cls.number_fields = tuple(values), tuple(numbers)
        KINDS[cls.kind_id] = cls
        return cls

    return decorate


def _value_field(where: str, name: str, plain: type[Value], declared: Declared, optional: bool) -> ValueField:
    if plain is not declared.value_class:
        raise TypeError(f"{where}: a {plain.__name__} is declared as a {declared.value_class.__name__}")
    # Only sparse and masked values may be quantized, and then have no dtype.
    allowed = {Dense: DENSE_DTYPES, Sparse: (*DENSE_DTYPES, ""), MaskedValues: (*DENSE_DTYPES, "")}.get(plain)
    if allowed is not None and declared.dtype not in allowed:
        raise TypeError(f"{where}: dtype must be one of {', '.join(DENSE_DTYPES)}, got {declared.dtype!r}")
    return ValueField(name, declared, optional)


def _identity(cls: type[Message]) -> tuple[str, ...]:
    """Return what a class keeps when its module is imported again."""
    return cls.__module__, cls.__qualname__, cls.kind, cls.direction

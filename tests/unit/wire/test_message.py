"""Message declarations: what a class may say, and what is refused when it is defined."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from fedmpi.wire.codecs.base import FieldSpec
from fedmpi.wire.message import KINDS, Declared, Message, NumberField, Schema, ValueField, dense, message, sparse
from fedmpi.wire.values import Dense, Sparse


@pytest.fixture(autouse=True)
def kinds() -> Iterator[None]:
    """Leave no message of these tests behind."""
    before = dict(KINDS)
    yield
    KINDS.clear()
    KINDS.update(before)


def declare(kind: str, direction: Any = "up", name: str = "Made", **fields: Any) -> type[Message]:
    """Make a message class; each field is its type, or a pair of its type and its declaration."""
    annotations = {key: value[0] if isinstance(value, tuple) else value for key, value in fields.items()}
    defaults = {key: value[1] for key, value in fields.items() if isinstance(value, tuple)}
    body = {"__annotations__": annotations, "__module__": __name__, "__qualname__": name, **defaults}
    return message(kind, direction)(type(name, (Message,), body))


def test_a_class_becomes_its_own_schema() -> None:
    cls = declare("t-schema", "down", a=int, v=(Dense, dense("params")), b=float,
                  o=(Dense | None, dense(4, dtype="int64", at_most=True)))  # fmt: skip
    assert (cls.kind, cls.direction) == ("t-schema", "down")
    assert cls.number_fields == (NumberField("a", int, "int"), NumberField("b", float, "float64"))
    assert cls.value_fields == (
        ValueField("v", Declared(Dense, ("params",), "float32"), False),
        ValueField("o", Declared(Dense, (4,), "int64", at_most=True), True),
    )
    assert KINDS[cls.kind_id] is cls


def test_the_number_of_a_kind_follows_from_direction_and_name() -> None:
    up, down = declare("t-number", "up"), declare("t-number", "down")
    assert up.kind_id == int.from_bytes(hashlib.blake2b(b"up:t-number", digest_size=2).digest(), "little")
    assert up.kind_id != down.kind_id


def test_messages_are_frozen_and_take_keywords_only() -> None:
    cls: Any = declare("t-frozen", a=int)
    with pytest.raises(dataclasses.FrozenInstanceError):
        cls(a=1).a = 2
    with pytest.raises(TypeError):
        cls(1)


@pytest.mark.parametrize("kind", ["", "x" * 33, "modèle"])
def test_a_kind_is_a_short_ascii_name(kind: str) -> None:
    with pytest.raises(TypeError, match="a message kind is 1 to 32 ASCII characters"):
        message(kind, "up")
    declare("x" * 32)


@pytest.mark.parametrize(
    "field",
    [str, bool, list[int], int | None, float | None, Dense, Dense | None, np.ndarray, (int, dense("params")),
     int | float, Any],
)  # fmt: skip
def test_a_field_that_is_neither_a_number_nor_a_declared_value(field: Any) -> None:
    if isinstance(field, tuple):
        cls = declare("t-field", f=field)
        assert cls.number_fields == (NumberField("f", int, "int"),)
        assert cls.value_fields == ()
        return
    with pytest.raises(TypeError, match=r"Made\.f: a field is a declared value, an int or a float"):
        declare("t-field", f=field)


def test_a_refused_class_is_not_registered() -> None:
    before = dict(KINDS)
    with pytest.raises(TypeError, match="a field is a declared value"):
        declare("t-refused", f=str)
    assert before == KINDS


def test_two_classes_of_one_kind_collide() -> None:
    declare("t-taken", name="First")
    with pytest.raises(TypeError, match=r"message Second \(up 't-taken'\) has the number of First \(up 't-taken'\)"):
        declare("t-taken", name="Second")


def test_two_kinds_of_one_number_collide() -> None:
    seen: dict[int, str] = {}
    for number in range(100_000):
        kind = f"t-{number}"
        kind_id = int.from_bytes(hashlib.blake2b(f"up:{kind}".encode(), digest_size=2).digest(), "little")
        if kind_id in seen:
            break
        seen[kind_id] = kind
    declare(seen[kind_id], name="First")
    with pytest.raises(TypeError, match=f"{kind!r}.*has the number of First .*{seen[kind_id]!r}.*choose another kind"):
        declare(kind, name="Other")


def test_a_file_that_is_imported_again_may_define_its_message_again() -> None:
    first, second = declare("t-again"), declare("t-again")
    assert first.kind_id == second.kind_id
    assert KINDS[first.kind_id] is second


def test_classes_of_one_name_in_two_modules_collide() -> None:
    first = declare("t-modules")
    body = {"__module__": "another.module", "__qualname__": first.__qualname__}
    with pytest.raises(TypeError, match=r"'t-modules'.*choose another kind"):
        message("t-modules", "up")(type("Made", (Message,), body))
    assert KINDS[first.kind_id] is first


def test_specs_resolve_sizes_by_name() -> None:
    cls = declare("t-specs", v=(Dense, dense("params")), w=(Dense, dense(3, dtype="uint8", at_most=True)))
    schema = Schema({"params": 12}, 1)
    assert schema.specs(cls) == (
        FieldSpec("Made.v", "float32", (12,), False),
        FieldSpec("Made.w", "uint8", (3,), True),
    )
    assert schema.specs(cls) is schema.specs(cls)
    assert Schema({"params": 13}, 1).specs(cls)[0].numel == 13
    with pytest.raises(KeyError, match="params"):
        Schema({}, 1).specs(cls)


def test_the_most_that_sparse_values_keep_is_a_number_or_a_size() -> None:
    cls = declare(
        "t-kept",
        a=(Sparse, sparse("params")),
        b=(Sparse, sparse("params", max_kept=5)),
        c=(Sparse, sparse("params", max_kept="budget")),
    )
    specs = Schema({"params": 12, "budget": 7}, 1).specs(cls)
    assert [spec.max_kept for spec in specs] == [0, 5, 7]
    with pytest.raises(KeyError, match="budget"):
        Schema({"params": 12}, 1).specs(cls)


def test_figures_of_a_message() -> None:
    cls = declare("t-figures", a=int, v=(Dense, dense(3)), o=(Dense | None, dense(2)))
    schema = Schema({}, 0)
    vector, short = Dense(np.zeros(3, np.float32)), Dense(np.zeros(2, np.float32))
    both, one = cls(a=1, v=vector, o=short), cls(a=1, v=vector, o=None)
    assert (both.values(), one.values()) == ([vector, short], [vector])
    assert (both.num_params(schema), one.num_params(schema)) == (5, 3)
    assert (both.num_kept(schema), one.num_kept(schema)) == (5, 3)
    assert (both.paper_nbits(schema), one.paper_nbits(schema)) == (160.0, 96.0)

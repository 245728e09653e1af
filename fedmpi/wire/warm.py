"""Compiling before it counts: the first use of a kernel takes seconds, of one in the cache a fraction of one."""

from __future__ import annotations

from collections.abc import Iterable

from fedmpi.config import WireConfig
from fedmpi.wire.codecs.base import format_of
from fedmpi.wire.message import Message
from fedmpi.wire.values import Dense, MaskedValues, Quantized, Sparse


def warm_up(classes: Iterable[type[Message]], wire: WireConfig) -> None:
    """Compile, or load from the cache, what messages of these classes need.

    Vectors that are sent as they are need nothing. Processes that compile the same kernels at once each do all the
    work: let one go first, and the others find its results in the cache (``NUMBA_CACHE_DIR``, by default beside the
    code).
    """
    declared = [field.declared for cls in classes for field in cls.value_fields]
    needed = {found.value_class for found in declared}
    if any(found.value_class in (Sparse, MaskedValues) and not found.dtype for found in declared):
        needed.add(Quantized)
    if wire.dense == "raw":
        needed.discard(Dense)
    for value_class in sorted(needed, key=lambda cls: cls.__name__):
        format_of(value_class).warm_up()

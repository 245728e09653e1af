"""Arrays of .npy files, and the kind of value that one is sent as."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from fedmpi.errors import ConfigError, DataError
from fedmpi.problems import did_you_mean
from fedmpi.wire.values import DENSE_DTYPES

ACCEPTS = {"mask": ("prior", "base"), "sparse": ("base", "dtype"), "quantized": ("bits",), "dense": ("base", "dtype")}
"""Kinds of values, and which options may be given with each."""

MAX_BITS = 8
"""Bits of quantized numbers."""

_BFLOAT16 = "bfloat16"  # numpy has none: a file holds its bit patterns as uint16
_DTYPES = tuple(dtype for dtype in DENSE_DTYPES if dtype != _BFLOAT16)


class Options(NamedTuple):
    """What may be given beside an array; see `fedmpi.weigh.report.weigh`."""

    prior: Path | None = None
    base: Path | None = None
    bits: int | None = None
    dtype: str | None = None


def check_words(kind: str | None, options: Options) -> None:
    """Raise ConfigError for what is wrong whatever the files hold."""
    if options.bits is not None and not 1 <= options.bits <= MAX_BITS:
        raise ConfigError(f"--bits must be from 1 to {MAX_BITS}, got {options.bits}")
    if kind is not None and kind not in ACCEPTS:
        raise ConfigError(f"--kind must be one of {', '.join(ACCEPTS)}, got {kind!r}{did_you_mean(kind, ACCEPTS)}")
    if options.dtype not in (None, _BFLOAT16):
        raise ConfigError(f"--dtype can only be {_BFLOAT16}, got {options.dtype!r}: a file says any other itself")


def load_array(path: Path) -> np.ndarray:
    """Return the array of a .npy file, contiguous, in the machine's byte order; nothing in it is ever unpickled.

    Raises
    ------
    DataError
        If there is no such file, or it is not one whole array.
    """
    mapped = _map_array(path)
    return np.array(mapped, mapped.dtype.newbyteorder("="), order="C")


def _map_array(path: Path) -> np.ndarray:
    try:
        # Mapped, a file that claims to hold more than it does fails before anything is allocated.
        with np.errstate(over="ignore"):
            mapped: np.ndarray = np.lib.format.open_memmap(path, mode="r")
        return mapped
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from None
    except Exception as error:  # a header is a Python expression, and is wrong in as many ways
        raise DataError(f"{path} is not a whole .npy file of numbers: {error}") from None


def name_dtype(path: Path, array: np.ndarray, options: Options) -> str:
    """Return the name of the dtype of an array's numbers; raises ConfigError if it cannot be the one asked for."""
    held = str(array.dtype)
    if options.dtype is None:
        return held
    if held != "uint16":
        raise ConfigError(f"{path}: --dtype {_BFLOAT16} goes with a file of its bit patterns as uint16, got {held}")
    return options.dtype


def choose_kind(path: Path, array: np.ndarray, dtype: str, kind: str | None, options: Options) -> str:
    """Return the kind of value that an array is sent as: the one asked for, or the one that all else suggests.

    Parameters
    ----------
    path : Path
        Of the array, for messages.
    array : numpy.ndarray
    dtype : str
        As `name_dtype` returns it.
    kind : {"mask", "sparse", "quantized", "dense"}, optional
    options : Options
        Checked by `check_words`.

    Raises
    ------
    ConfigError
        If the array's dtype does not fit the kind, or any.
    DataError
        If the file of `options.base` is missing or broken.
    """
    is_float = dtype == _BFLOAT16 or (array.dtype.kind == "f" and dtype in _DTYPES)
    is_whole = array.dtype.kind in "iu" and not is_float
    fits = {
        "mask": dtype == "bool",
        "sparse": is_float,
        "quantized": is_whole or (is_float and dtype != _BFLOAT16),
        "dense": dtype in DENSE_DTYPES,
    }
    kinds = [name for name in ACCEPTS if fits[name]]
    if not kinds:
        allowed = f"bool, {', '.join(_DTYPES)} or whole numbers of at most {MAX_BITS} bits"
        raise ConfigError(f"{path}: an array to be sent is {allowed}, got {dtype}")
    if kind is None:
        kind = _kind_of_floats(array, options) if is_float else kinds[0]
    if kind not in kinds:
        way_out = ""
        if is_whole and kind == "dense":
            way_out = f": {way_to_dense(array)}"
        elif is_float and kind == "quantized":
            way_out = ": convert it to float32 to have it rounded"
        raise ConfigError(f"{path}: {dtype} can be sent as {' or '.join(kinds)}, not as {kind}{way_out}")
    return kind


def _kind_of_floats(array: np.ndarray, options: Options) -> str:
    if options.bits is not None:
        return "quantized"
    if options.base is not None:
        return "sparse" if _map_array(options.base).dtype == np.bool_ else "dense"
    num_kept = np.count_nonzero(nonzero(array.reshape(-1)))
    return "sparse" if array.size and 2 * num_kept <= array.size else "dense"


def way_to_dense(array: np.ndarray) -> str:
    """Return how whole numbers, of which quantized ones are too few bits, can be sent as dense ones."""
    if str(array.dtype) in _DTYPES:
        return "try --kind dense"
    wanted = "int32" if np.can_cast(array.dtype, np.int32) else "int64"
    if array.size and int(array.max()) > np.iinfo(wanted).max:
        return f"--kind dense takes {wanted} at most, which cannot hold them"
    patterns = f", or say --dtype {_BFLOAT16} if they are its bit patterns" if array.dtype == np.uint16 else ""
    return f"convert to {wanted}, which --kind dense takes{patterns}"


def nonzero(vector: np.ndarray) -> np.ndarray:
    """Return where any bit of a float is not 0; -0.0 is a number like others, or the round trip would lose a sign."""
    bits: np.ndarray = vector.view(f"u{vector.itemsize}") != 0
    return bits

"""CIFAR-10 and CIFAR-100 in their pickles, of which nothing is run."""

from __future__ import annotations

import os
import pickle
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedmpi.data.arrays import Arrays, check_split, read_bytes
from fedmpi.errors import DataError


@dataclass(frozen=True)
class CifarLayout:
    """How one of the two sets lies in its files; the last of the batches is the test set."""

    title: str
    folder: str
    archive: str
    batches: tuple[str, ...]
    label_key: str


CIFAR10 = CifarLayout(
    "CIFAR-10",
    "cifar-10-batches-py",
    "cifar-10-python.tar.gz",
    (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"),
    "labels",
)
CIFAR100 = CifarLayout("CIFAR-100", "cifar-100-python", "cifar-100-python.tar.gz", ("train", "test"), "fine_labels")


def cifar_files(layout: CifarLayout, folder: Path) -> list[Path]:
    """Return the batch files of `folder`, or the archive alone; `DataError` if it holds neither."""
    for base in (folder / layout.folder, folder):
        files = [base / name for name in layout.batches]
        if all(os.path.isfile(path) for path in files):
            return files
    if os.path.isfile(folder / layout.archive):
        return [folder / layout.archive]
    raise DataError(f"{folder}: no {layout.folder}/ with {', '.join(layout.batches)}, no {layout.archive}")


def read_cifar(layout: CifarLayout, files: Sequence[Path], num_classes: int) -> Arrays:
    """Read the files that `cifar_files` returns, without running anything that their pickles ask for.

    Raises
    ------
    DataError
        If a file is damaged, a batch is missing from the archive, a pickle names anything but a uint8 array, images
        and labels differ in number, or a label is out of range.
    """
    batches = {}
    for name, where, raw in _blobs(layout, files):
        images, labels = _batch(layout, where, raw, num_classes)
        check_split(where, where, images, labels, num_classes)
        batches[name] = images, labels
    missing = [name for name in layout.batches if name not in batches]
    if missing:
        raise DataError(f"{files[0]}: expected {len(layout.batches)} batches, got none named {', '.join(missing)}")
    *train, test = (batches[name] for name in layout.batches)
    return Arrays(np.concatenate([b[0] for b in train]), np.concatenate([b[1] for b in train]), *test)


def _blobs(layout: CifarLayout, files: Sequence[Path]) -> Iterator[tuple[str, str, bytes]]:
    """Yield each batch's name, the words to blame it with, and its bytes."""
    if len(files) > 1:
        for path in files:
            yield path.name, str(path), read_bytes(path)
        return
    wanted = {f"{layout.folder}/{name}": name for name in layout.batches}
    try:
        # Read as a stream: going back to a member would unpack the whole archive again.
        with tarfile.open(files[0], "r|gz") as archive:
            for member in archive:
                content = archive.extractfile(member) if member.name in wanted and member.isfile() else None
                if content is not None:
                    yield wanted[member.name], f"{files[0]} ({member.name})", content.read()
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        raise DataError(f"{files[0]}: expected a whole gzipped tar archive, got a damaged one ({error})") from error


def _batch(
    layout: CifarLayout, where: str, raw: bytes, num_classes: int
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    try:
        batch = _ArrayUnpickler(BytesIO(raw), encoding="bytes").load()
    except Exception as error:  # A damaged pickle can raise nearly anything.
        raise DataError(f"{where}: expected a pickle of a {layout.title} batch, got one that fails: {error}") from error
    if not isinstance(batch, dict):
        raise DataError(f"{where}: expected a dictionary, got {type(batch).__name__}")
    # Python 2 wrote the keys as byte strings, Python 3 writes text.
    pixels, labels = (batch.get(key, batch.get(key.encode())) for key in ("data", layout.label_key))
    rows = pixels.values if isinstance(pixels, _PickledArray) else None
    if rows is None or rows.ndim != 2 or rows.shape[1] != 3 * 32 * 32:
        got = type(pixels).__name__ if rows is None else f"shape {rows.shape}"
        raise DataError(f"{where}: expected 'data' to be an array of (images, 3072) bytes, got {got}")
    if not isinstance(labels, list):
        raise DataError(f"{where}: expected '{layout.label_key}' to be a list, got {type(labels).__name__}")
    bad = [label for label in labels if type(label) is not int or not 0 <= label < num_classes]
    if bad:
        raise DataError(f"{where}: expected labels from 0 to {num_classes - 1}, got {bad[0]!r}")
    images = np.ascontiguousarray(rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
    return images, np.array(labels, np.int64)


class _PickledDtype:
    """Stands in for numpy.dtype while unpickling; bytes are all that CIFAR needs."""

    def __init__(self, code: object, *_: object) -> None:
        if code not in ("u1", b"u1"):
            raise pickle.UnpicklingError(f"an array of dtype {code!r}, not of bytes")

    def __setstate__(self, state: object) -> None:
        """Ignore byte order and alignment: a byte has none."""


class _PickledArray:
    """Stands in for a numpy array while unpickling, so that no pickle reaches numpy's own, trusting, __setstate__."""

    values: NDArray[np.uint8] | None = None

    def __init__(self, *_: object) -> None:
        """Take what `numpy._reconstruct` takes; the content comes with the state."""

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, is_fortran, raw = state
        if not isinstance(dtype, _PickledDtype) or not isinstance(raw, bytes):
            raise pickle.UnpicklingError("an array whose content is not bytes")
        self.values = np.frombuffer(raw, np.uint8).reshape(shape, order="F" if is_fortran else "C")


class _ArrayUnpickler(pickle.Unpickler):
    """An unpickler of lists, dictionaries, numbers, strings and byte arrays that refuses every other class."""

    def find_class(self, module: str, name: str) -> Any:
        # Both stand-ins define __setstate__: without it a pickle could set attributes of the classes themselves.
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "_reconstruct":
            return _PickledArray
        if (module, name) == ("numpy", "dtype"):
            return _PickledDtype
        if (module, name) == ("numpy", "ndarray"):
            return "numpy.ndarray"  # only ever an argument of _reconstruct
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is refused")

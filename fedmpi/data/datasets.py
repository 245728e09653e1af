"""Data sets by name: where their files lie, and arrays that all ranks of a node share. Nothing is downloaded."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import tempfile
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedmpi.config import DataConfig, SyntheticConfig
from fedmpi.data.formats import Arrays, cifar10_files, idx_files, read_cifar10, read_idx_set
from fedmpi.errors import ConfigError, DataError
from fedmpi.rng import ANY, stream


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images and labels of one data set.

    Attributes
    ----------
    name : str
        As in ``data.name``.
    train_images, test_images : numpy.ndarray
        (N, H, W, C) uint8. Usually memory-mapped copy-on-write: ranks of a node share the pages.
    train_labels, test_labels : numpy.ndarray
        (N,) int64, from 0 to ``num_classes - 1``.
    num_classes : int
        Number of classes.
    mean, std : tuple of float
        Per channel, of pixels scaled to [0, 1].
    """

    name: str
    train_images: NDArray[np.uint8]
    train_labels: NDArray[np.int64]
    test_images: NDArray[np.uint8]
    test_labels: NDArray[np.int64]
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True)
class _FileSet:
    """What is known of a data set that comes in files."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    how_to_get: str
    find: Callable[[Path], list[Path]] = idx_files
    read: Callable[[Sequence[Path], int], Arrays] = read_idx_set
    system_folder: Path | None = None
    in_cache: bool = True
    num_classes: int = 10


_UNUSABLE = (OSError, ValueError, EOFError)  # what numpy.load raises for files that are missing or damaged
_FASHION_MNIST_STATS = ((0.2860,), (0.3530,))
_FILE_SETS = {
    "mnist": _FileSet((0.1307,), (0.3081,), "put MNIST's four IDX files, plain or .gz, into {cache}"),
    "fashion_mnist": _FileSet(
        *_FASHION_MNIST_STATS,
        "`apt install dataset-fashion-mnist`, or put the four IDX files, plain or .gz, into {cache}",
        system_folder=Path("/usr/share/datasets/fashion-mnist"),
    ),
    "fashion_mnist_mini": _FileSet(
        *_FASHION_MNIST_STATS,
        "it is a part of fedmpi, found when data.root is not set; if it is gone, install fedmpi again",
        system_folder=Path(__file__).parent / "fashion_mnist_mini",
        in_cache=False,
    ),
    "cifar10": _FileSet(
        (0.4914, 0.4822, 0.4465),
        (0.2023, 0.1994, 0.2010),
        "put cifar-10-python.tar.gz (the python version) or its cifar-10-batches-py folder into {cache}",
        find=cifar10_files,
        read=read_cifar10,
    ),
}


def load_dataset(cfg: DataConfig, seed: int) -> Dataset:
    """Load the data set that `cfg` names.

    Files are looked for in ``data.root`` and nowhere else if it is set, otherwise in ``cache_dir()/NAME`` and then in
    the system's folder. ``synthetic`` is made anew in memory.

    Parameters
    ----------
    cfg : DataConfig
        The section ``data``.
    seed : int
        The run's seed; decides the images of ``synthetic`` and nothing else.

    Raises
    ------
    ConfigError
        If the name is unknown.
    DataError
        If the files are missing (the text lists each place and says how to get them) or damaged.
    """
    if cfg.name == "synthetic":
        synthetic = cfg.synthetic or SyntheticConfig()
        half = (0.5,) * synthetic.channels
        return Dataset(cfg.name, *_make_synthetic(synthetic, seed), synthetic.num_classes, mean=half, std=half)
    if cfg.name not in _FILE_SETS:
        known = ", ".join(sorted([*_FILE_SETS, "synthetic"]))
        raise ConfigError(f"data.name must be one of {known}, got {cfg.name!r}")
    file_set = _FILE_SETS[cfg.name]
    files = _find_files(cfg, file_set)
    arrays = _shared_arrays(cfg.name, files, lambda: file_set.read(files, file_set.num_classes))
    return Dataset(cfg.name, *arrays, file_set.num_classes, file_set.mean, file_set.std)


def cache_dir() -> Path:
    """Return ``$FEDMPI_CACHE``, else ``$XDG_CACHE_HOME/fedmpi``, else ``~/.cache/fedmpi``; it need not exist."""
    if override := os.environ.get("FEDMPI_CACHE"):
        return Path(override)
    # os.path.expanduser, as Path.home() raises for a user without a home.
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "fedmpi"


def _find_files(cfg: DataConfig, file_set: _FileSet) -> list[Path]:
    cache = cache_dir() / cfg.name
    if cfg.root is not None:
        places = [cfg.root]
    else:
        places = [cache] if file_set.in_cache else []
        places += [file_set.system_folder] if file_set.system_folder else []
    failures = []
    for place in places:
        try:
            return file_set.find(place)
        except DataError as error:
            failures.append(str(error))
    looked = "".join(f"\n  {failure}" for failure in failures)
    how = file_set.how_to_get.format(cache=cache)
    raise DataError(f"data set {cfg.name} not found; looked in:{looked}\nTo get it: {how}; or set data.root")


def _shared_arrays(name: str, files: Sequence[Path], decode: Callable[[], Arrays]) -> Arrays:
    """Return the arrays of `files`, memory-mapped from decoded copies that are written by whoever comes first."""
    key = hashlib.blake2b(b"1", digest_size=8)  # 1: version of what is stored
    for path in files:
        status = path.stat()
        key.update(f"\0{path.resolve()}\0{status.st_size}\0{status.st_mtime_ns}".encode())
    arrays = None
    for base in _array_folders():
        folder = base / f"{name}-{key.hexdigest()}"
        try:
            return _open_arrays(folder)
        except _UNUSABLE:
            arrays = arrays or decode()
        with suppress(OSError):  # Not writable, or full: sharing saves memory, but a run can do without.
            return _publish(folder, arrays)
    return arrays or decode()


def _array_folders() -> Iterator[Path]:
    yield cache_dir() / "arrays"
    with suppress(OSError):
        yield _private_tmp()


def _private_tmp() -> Path:
    """Return this user's own folder under the temporary folder; `OSError` if somebody else could write there."""
    folder = Path(tempfile.gettempdir()) / f"fedmpi-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise PermissionError(f"{folder} is not a folder of this user alone")
    return folder


def _open_arrays(folder: Path) -> Arrays:
    # Copy-on-write rather than read-only: the pages are shared all the same, and torch.from_numpy does not warn.
    return Arrays(*(np.asarray(np.load(folder / f"{field}.npy", mmap_mode="c")) for field in Arrays._fields))


def _publish(folder: Path, arrays: Arrays) -> Arrays:
    """Write `arrays` beside `folder`, rename them into place in one step, and open what lies there then.

    A folder that another process has put there meanwhile is kept: replacing files that are mapped on another node
    would kill that node's ranks on a network file system.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}")
    temporary.mkdir()
    try:
        for field in Arrays._fields:
            np.save(temporary / f"{field}.npy", getattr(arrays, field))
        try:
            os.replace(temporary, folder)
        except OSError:
            try:
                return _open_arrays(folder)
            except _UNUSABLE:  # It appears in one step: what is there and cannot be opened is damaged.
                shutil.rmtree(folder)
                os.replace(temporary, folder)
        return _open_arrays(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _make_synthetic(cfg: SyntheticConfig, seed: int) -> Arrays:
    """Make images that are a smooth pattern of their class plus noise; classes are balanced to within one image."""
    rng = stream(seed, ANY, ANY, "synthetic data")
    # A pattern is a sum of the lowest 4 x 4 cosines of the image.
    coefficients = rng.standard_normal((cfg.num_classes, 4, 4, cfg.channels))
    rows, columns = (
        np.cos(np.pi * np.arange(4)[:, np.newaxis] * (np.arange(size) + 0.5) / size) for size in (cfg.height, cfg.width)
    )
    patterns = (127.5 + 16 * np.einsum("kuvc,uh,vw->khwc", coefficients, rows, columns)).astype(np.float32)

    def make(num_images: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        labels = rng.permutation(np.arange(num_images, dtype=np.int64) % cfg.num_classes)
        images = np.empty((num_images, *patterns.shape[1:]), np.uint8)
        for start in range(0, num_images, 1024):  # In parts, as the noise takes four times the images' memory.
            part = patterns[labels[start : start + 1024]]
            part += np.float32(cfg.noise) * rng.standard_normal(part.shape, dtype=np.float32)
            images[start : start + 1024] = np.rint(part).clip(0, 255)
        return images, labels

    return Arrays(*make(cfg.num_train), *make(cfg.num_test))

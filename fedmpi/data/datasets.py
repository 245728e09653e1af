"""Data sets by name: where their files lie, and how they are loaded. Nothing is downloaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedmpi.config import DataConfig, SyntheticConfig, TextConfig
from fedmpi.data.arrays import Arrays
from fedmpi.data.catalog import FILE_SETS, TEXT_DATASETS, FileSet, ImageSet, TextSet
from fedmpi.data.convert import can_convert_channels, convert_statistics, converted_shape, select_and_convert
from fedmpi.data.shapes import ImageShape, InputShape, TextShape
from fedmpi.data.shared import cache_dir, shared_arrays
from fedmpi.data.synthetic import make_synthetic
from fedmpi.errors import ConfigError, DataError
from fedmpi.problems import did_you_mean

__all__ = [
    "TEXT_DATASETS",
    "Dataset",
    "DatasetInfo",
    "cache_dir",
    "cache_folder",
    "check_data_config",
    "describe_datasets",
    "expected_files",
    "load_dataset",
]


@dataclass(frozen=True, eq=False)
class Dataset:
    """Samples and labels of one data set.

    Attributes
    ----------
    name : str
        As in ``data.name``.
    train_inputs, test_inputs : numpy.ndarray
        Images (N, H, W, C) uint8, or sequences of characters (N, T) uint8. Usually memory-mapped copy-on-write: ranks
        of a node share the pages.
    train_labels, test_labels : numpy.ndarray
        (N,) int64 for images, (N, T) int64 for text: the next character at each place; from 0 to ``num_classes - 1``.
    num_classes : int
        Number of classes, or of characters.
    mean, std : tuple of float
        Per channel, of pixels scaled to [0, 1]; empty for text.
    train_groups : numpy.ndarray or None
        (N,) int64, the writer or role of each training sample as an index into `group_names`, if the data know it.
    group_names : tuple of str
    """

    name: str
    train_inputs: NDArray[np.uint8]
    train_labels: NDArray[np.int64]
    test_inputs: NDArray[np.uint8]
    test_labels: NDArray[np.int64]
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    train_groups: NDArray[np.int64] | None = None
    group_names: tuple[str, ...] = ()

    @property
    def shape(self) -> InputShape:
        """What one sample looks like."""
        if self.train_inputs.ndim == 2:
            return TextShape(self.train_inputs.shape[1])
        return ImageShape(*self.train_inputs.shape[1:])


class DatasetInfo(NamedTuple):
    """One line of the list of data sets; `where` says in which folder it is, or how to get it."""

    name: str
    description: str
    where: str


def load_dataset(cfg: DataConfig, seed: int) -> Dataset:
    """Load the data set that `cfg` names.

    Files are looked for in ``data.root`` and nowhere else if it is set, otherwise in ``cache_dir()/NAME`` and then in
    the system's folder. ``synthetic`` is made anew in memory. Of images only ``data.classes`` are kept, in the shape
    that ``data.convert`` asks for.

    Parameters
    ----------
    cfg : DataConfig
        The section ``data``.
    seed : int
        The run's seed; decides the images of ``synthetic`` and nothing else.

    Raises
    ------
    ConfigError
        If the name is unknown, a setting does not go with it, or no sample has one of ``data.classes``.
    DataError
        If the files are missing (the text lists each place and says how to get them) or damaged.
    """
    check_data_config(cfg)
    if cfg.name == "synthetic":
        synthetic = cfg.synthetic or SyntheticConfig()
        half = (0.5,) * synthetic.channels
        shape = ImageShape(synthetic.height, synthetic.width, synthetic.channels)
        arrays = make_synthetic(synthetic, seed)
        if _is_changed(cfg, shape):
            arrays = select_and_convert(arrays, synthetic.num_classes, cfg.classes, converted_shape(shape, cfg.convert))
        return _image_dataset(cfg, arrays, synthetic.num_classes, half, half)
    file_set = FILE_SETS[cfg.name]
    files = _find_files(cfg, file_set)
    try:
        if isinstance(file_set, TextSet):
            text = cfg.text or TextConfig()
            arrays = shared_arrays(cfg.name, files, text.model_dump_json(), lambda: file_set.read(files, text))
            return _dataset(cfg.name, arrays, file_set.num_classes, (), ())
        arrays = _shared_images(cfg, file_set, files)
    except DataError as error:
        raise DataError(f"{error}\nHow to get {cfg.name}: {_how_to_get(cfg.name)}") from error
    return _image_dataset(cfg, arrays, file_set.num_classes, file_set.mean, file_set.std)


def check_data_config(cfg: DataConfig) -> None:
    """Raise `ConfigError` if the name is unknown, or a setting does not go with it; reads no file."""
    if cfg.name != "synthetic" and cfg.name not in FILE_SETS:
        known = sorted([*FILE_SETS, "synthetic"])
        raise ConfigError(
            f"data.name must be one of {', '.join(known)}, got {cfg.name!r}{did_you_mean(cfg.name, known)}"
        )
    texts = ", ".join(sorted(TEXT_DATASETS))
    if cfg.text is not None and cfg.name not in TEXT_DATASETS:
        raise ConfigError(f"data.text goes with data sets of text ({texts}) only, got data.name={cfg.name}; remove it")
    if cfg.synthetic is not None and cfg.name != "synthetic":
        raise ConfigError(f"data.synthetic goes with data.name=synthetic only, got data.name={cfg.name}; remove it")
    if cfg.augment != "none" and cfg.name in TEXT_DATASETS:
        raise ConfigError(f"data.augment must be none for a data set of text ({cfg.name}), got {cfg.augment!r}")
    for key in ("classes", "convert"):
        if getattr(cfg, key) is not None and cfg.name in TEXT_DATASETS:
            raise ConfigError(f"data.{key} goes with data sets of images only, got data.name={cfg.name}; remove it")
    _check_classes(cfg)
    _check_channels(cfg)


def _check_classes(cfg: DataConfig) -> None:
    if cfg.classes is None:
        return
    synthetic = cfg.synthetic or SyntheticConfig()
    num_classes = synthetic.num_classes if cfg.name == "synthetic" else FILE_SETS[cfg.name].num_classes
    for place, label in enumerate(cfg.classes):
        if label >= num_classes:
            raise ConfigError(
                f"data.classes must be labels of data.name={cfg.name}, which are 0 to {num_classes - 1}, got {label}"
            )
        if label in cfg.classes[:place]:
            raise ConfigError(f"data.classes must name each label once, got {label} again; leave one of the two out")


def _check_channels(cfg: DataConfig) -> None:
    if cfg.convert is None or cfg.convert.channels is None:
        return
    file_set = FILE_SETS.get(cfg.name)
    synthetic = cfg.synthetic or SyntheticConfig()
    num_from = file_set.shape.channels if isinstance(file_set, ImageSet) else synthetic.channels
    if not can_convert_channels(num_from, cfg.convert.channels):
        ways = f"{num_from} or 1" if num_from == 3 else str(num_from)
        raise ConfigError(
            f"data.convert.channels must be {ways} for data.name={cfg.name}, whose images have {num_from}, got "
            f"{cfg.convert.channels}; only grey becomes any number"
        )


def describe_datasets() -> list[DatasetInfo]:
    """Return what there is to choose from, sorted by name, looking at names of files only."""
    lines = [DatasetInfo("synthetic", "generated images of any size and number of classes", "made in memory")]
    for name, file_set in FILE_SETS.items():
        folder = next((place for place in _places(name, file_set) if _is_in(file_set, place)), None)
        where = f"to get it: {_how_to_get(name)}" if folder is None else f"in {folder}"
        lines.append(DatasetInfo(name, file_set.description, where))
    return sorted(lines)


def expected_files(name: str) -> tuple[str, ...]:
    """Return the names (or patterns) of the files that a data set is handed out as, relative to `cache_folder`.

    Empty for ``synthetic``; `ConfigError` if the name is unknown.
    """
    check_data_config(DataConfig(name=name))
    return () if name == "synthetic" else FILE_SETS[name].file_names


def cache_folder(name: str) -> Path:
    """Return the folder of the user's cache in which a data set's files are looked for; it need not exist."""
    return cache_dir() / name


def _dataset(name: str, arrays: Arrays, num_classes: int, mean: tuple[float, ...], std: tuple[float, ...]) -> Dataset:
    return Dataset(name, *arrays[:4], num_classes, mean, std, arrays.train_groups, arrays.group_names)


def _image_dataset(
    cfg: DataConfig, arrays: Arrays, num_classes: int, mean: tuple[float, ...], std: tuple[float, ...]
) -> Dataset:
    if cfg.classes is not None:
        num_classes = len(cfg.classes)
        for split, labels in (("training", arrays.train_labels), ("test", arrays.test_labels)):
            if len(labels) == 0:
                raise ConfigError(
                    f"data.classes must have {split} images in data.name={cfg.name}, got {list(cfg.classes)}, which "
                    "none of them is of; name others"
                )
    channels = arrays.train_inputs.shape[3]
    return _dataset(
        cfg.name, arrays, num_classes, convert_statistics(mean, channels), convert_statistics(std, channels)
    )


def _is_changed(cfg: DataConfig, shape: ImageShape) -> bool:
    return cfg.classes is not None or converted_shape(shape, cfg.convert) != shape


def _shared_images(cfg: DataConfig, file_set: ImageSet, files: Sequence[Path]) -> Arrays:
    """Return the images of files as `cfg` wants them; those with other settings share the decoded files."""

    def decoded() -> Arrays:
        return shared_arrays(cfg.name, files, "", lambda: _read_images(file_set, files))

    if not _is_changed(cfg, file_set.shape):
        return decoded()
    shape = converted_shape(file_set.shape, cfg.convert)
    return shared_arrays(
        cfg.name,
        files,
        f"classes {cfg.classes} shape {tuple(shape)}",
        lambda: select_and_convert(decoded(), file_set.num_classes, cfg.classes, shape),
    )


def _read_images(file_set: ImageSet, files: Sequence[Path]) -> Arrays:
    arrays = file_set.read(files, file_set.num_classes)
    if (got := arrays.train_inputs.shape[1:]) != file_set.shape:
        raise DataError(f"{files[0]}: expected images of shape {tuple(file_set.shape)}, got {got}")
    return arrays


def _how_to_get(name: str) -> str:
    return FILE_SETS[name].how_to_get.format(cache=cache_folder(name))


def _places(name: str, file_set: FileSet) -> list[Path]:
    """Return the folders that are looked in when ``data.root`` is not set."""
    places = [cache_folder(name)] if file_set.in_cache else []
    return places + ([file_set.system_folder] if file_set.system_folder else [])


def _is_in(file_set: FileSet, place: Path) -> bool:
    try:
        return bool(file_set.find(place))
    except DataError:
        return False


def _find_files(cfg: DataConfig, file_set: FileSet) -> list[Path]:
    places = [cfg.root] if cfg.root is not None else _places(cfg.name, file_set)
    failures = []
    for place in places:
        try:
            return file_set.find(place)
        except DataError as error:
            failures.append(str(error))
    looked = "".join(f"\n  {failure}" for failure in failures)
    how = _how_to_get(cfg.name)
    root = "set data.root" if cfg.root is None else "leave out data.root, which is the only place looked in, or mend it"
    raise DataError(f"data set {cfg.name} not found; looked in:{looked}\nTo get it: {how}; or {root}")

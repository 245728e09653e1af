"""What is known of each data set that comes in files: their names, who finds and reads them, how to get them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from fedmpi.config import TextConfig
from fedmpi.data.arrays import Arrays
from fedmpi.data.cifar import CIFAR10, CIFAR100, cifar_files, read_cifar
from fedmpi.data.idx import EMNIST_ARCHIVE, IDX_NAMES, emnist_files, idx_files, read_emnist, read_idx_set
from fedmpi.data.leaf import leaf_files, read_femnist
from fedmpi.data.plays import play_files
from fedmpi.data.shapes import ImageShape
from fedmpi.data.text import NUM_CHARACTERS, read_text, text_files


@dataclass(frozen=True, kw_only=True)
class FileSet:
    """What is known of a data set that comes in files; `file_names` is what it is handed out as."""

    description: str
    how_to_get: str
    file_names: tuple[str, ...]
    find: Callable[[Path], list[Path]]
    num_classes: int
    system_folder: Path | None = None
    in_cache: bool = True


@dataclass(frozen=True, kw_only=True)
class ImageSet(FileSet):
    """Images of one shape; `read` takes the files and the number of classes."""

    shape: ImageShape
    mean: tuple[float, ...]
    std: tuple[float, ...]
    read: Callable[[Sequence[Path], int], Arrays]


@dataclass(frozen=True, kw_only=True)
class TextSet(FileSet):
    """Text by role; `read` takes the files and how to cut them."""

    num_classes: int = NUM_CHARACTERS
    read: Callable[[Sequence[Path], TextConfig], Arrays] = read_text


def _mnist_like(
    description: str, how_to_get: str, mean: float, std: float, system_folder: Path | None = None, in_cache: bool = True
) -> ImageSet:
    return ImageSet(
        description=description,
        how_to_get=how_to_get,
        file_names=tuple(f"{name}.gz" for name in IDX_NAMES),
        find=idx_files,
        num_classes=10,
        system_folder=system_folder,
        in_cache=in_cache,
        shape=ImageShape(28, 28, 1),
        mean=(mean,),
        std=(std,),
        read=read_idx_set,
    )


def _emnist(split: str, num_classes: int, description: str, mean: float, std: float) -> ImageSet:
    return ImageSet(
        description=description,
        how_to_get=f"`fedmpi fetch emnist_{split}`, or put NIST's {EMNIST_ARCHIVE} (EMNIST in the IDX format), its "
        f"gzip folder or the four files emnist-{split}-*, plain or .gz, into {{cache}}",
        file_names=(EMNIST_ARCHIVE,),
        find=partial(emnist_files, split),
        num_classes=num_classes,
        shape=ImageShape(28, 28, 1),
        mean=(mean,),
        std=(std,),
        read=partial(read_emnist, split),
    )


FILE_SETS: dict[str, ImageSet | TextSet] = {
    "mnist": _mnist_like(
        "70,000 handwritten digits",
        "`fedmpi fetch mnist`, or put MNIST's four IDX files, plain or .gz, into {cache}",
        0.1307,
        0.3081,
    ),
    "fashion_mnist": _mnist_like(
        "70,000 grey images of clothing, 10 classes",
        "`fedmpi fetch fashion_mnist` or `apt install dataset-fashion-mnist`, or put the four IDX files, plain or .gz, "
        "into {cache}",
        0.2860,
        0.3530,
        Path("/usr/share/datasets/fashion-mnist"),
    ),
    "fashion_mnist_mini": _mnist_like(
        "7,000 images of Fashion-MNIST that ship with fedmpi",
        "it is a part of fedmpi, found when data.root is not set; if it is gone, install fedmpi again",
        0.2860,
        0.3530,
        Path(__file__).parent / "fashion_mnist_mini",
        in_cache=False,
    ),
    "emnist_balanced": _emnist("balanced", 47, "131,600 handwritten digits and letters, 47 classes", 0.1751, 0.3332),
    "emnist_byclass": _emnist("byclass", 62, "814,255 handwritten digits and letters, 62 classes", 0.1736, 0.3317),
    "femnist": ImageSet(
        description="LEAF's handwritten digits and letters by writer, 62 classes",
        how_to_get="make it with LEAF (data/femnist/preprocess.sh -s niid --sf 1.0 -k 0 -t sample) and put its train "
        "and test folders, or all_data*.json, into {cache}",
        file_names=("train/*.json", "test/*.json"),
        find=leaf_files,
        num_classes=62,
        shape=ImageShape(28, 28, 1),
        mean=(0.9637,),
        std=(0.1592,),
        read=read_femnist,
    ),
    "cifar10": ImageSet(
        description="60,000 colour images, 10 classes",
        how_to_get="`fedmpi fetch cifar10`, or put cifar-10-python.tar.gz (the python version) or its "
        "cifar-10-batches-py folder into {cache}",
        file_names=(CIFAR10.archive,),
        find=partial(cifar_files, CIFAR10),
        num_classes=10,
        shape=ImageShape(32, 32, 3),
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2023, 0.1994, 0.2010),
        read=partial(read_cifar, CIFAR10),
    ),
    "cifar100": ImageSet(
        description="60,000 colour images, 100 classes",
        how_to_get="`fedmpi fetch cifar100`, or put cifar-100-python.tar.gz (the python version) or its "
        "cifar-100-python folder into {cache}",
        file_names=(CIFAR100.archive,),
        find=partial(cifar_files, CIFAR100),
        num_classes=100,
        shape=ImageShape(32, 32, 3),
        mean=(0.507, 0.487, 0.441),
        std=(0.267, 0.256, 0.276),
        read=partial(read_cifar, CIFAR100),
    ),
    "shakespeare": TextSet(
        description="plays by role, to learn the next character: LEAF's files or plays in plain text",
        how_to_get="put LEAF's train and test folders of Shakespeare, or plays as .txt (such as Project Gutenberg's), "
        "into {cache}; play_mini is one that ships with fedmpi",
        file_names=("*.txt",),
        find=text_files,
    ),
    "play_mini": TextSet(
        description="As You Like It by role, to learn the next character; ships with fedmpi",
        how_to_get="it is a part of fedmpi, found when data.root is not set; if it is gone, install fedmpi again",
        file_names=("asyoulik.txt.gz",),
        find=play_files,
        system_folder=Path(__file__).parent / "play_mini",
        in_cache=False,
    ),
}

TEXT_DATASETS = frozenset(name for name, file_set in FILE_SETS.items() if isinstance(file_set, TextSet))
"""The names of the data sets of text."""

"""Data sets by name: the shipped one, where files are looked for, and the arrays that ranks share."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np
import pytest

from fedmpi.config import DataConfig, SyntheticConfig
from fedmpi.data import datasets, formats
from fedmpi.data.datasets import Dataset, load_dataset
from fedmpi.errors import ConfigError, DataError

DEBIAN = Path("/usr/share/datasets/fashion-mnist")
MINI_SHA256 = "d0ecf5b92f1aca3a6ef7ca5e087eb2c13361c6006245ac245e146f27918d29cf"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep every test away from the user's cache and temporary folder."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    monkeypatch.setenv("FEDMPI_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stand in for the folder of Debian's Fashion-MNIST; it does not exist yet."""
    spec = dataclasses.replace(datasets._FILE_SETS["fashion_mnist"], system_folder=tmp_path / "system")
    monkeypatch.setitem(datasets._FILE_SETS, "fashion_mnist", spec)
    return tmp_path / "system"


def write_set(folder: Path, value: int) -> Path:
    """Write a small set whose pixels all are `value`."""
    folder.mkdir(parents=True)
    for name, num_images in zip(formats.IDX_NAMES[::2], (4, 2), strict=True):
        formats.write_idx_gz(folder / f"{name}.gz", np.full((num_images, 3, 3), value, np.uint8))
    for name, num_images in zip(formats.IDX_NAMES[1::2], (4, 2), strict=True):
        formats.write_idx_gz(folder / f"{name}.gz", np.arange(num_images, dtype=np.uint8))
    return folder


def digest(dataset: Dataset) -> str:
    """Return the SHA-256 over the four arrays."""
    sha = hashlib.sha256()
    for field in formats.Arrays._fields:
        sha.update(getattr(dataset, field).tobytes())
    return sha.hexdigest()


def fashion(root: Path | None = None) -> Dataset:
    return load_dataset(DataConfig(name="fashion_mnist", root=root), seed=0)


def test_mini_is_real_balanced_and_unchanged() -> None:
    mini = load_dataset(DataConfig(), seed=0)
    assert mini.name == "fashion_mnist_mini"
    assert mini.train_images.shape == (6000, 28, 28, 1)
    assert mini.test_images.shape == (1000, 28, 28, 1)
    assert np.bincount(mini.train_labels).tolist() == [600] * 10
    assert np.bincount(mini.test_labels).tolist() == [100] * 10
    assert (mini.num_classes, mini.mean, mini.std) == (10, (0.2860,), (0.3530,))
    assert abs(mini.train_images.mean() / 255 - 0.2860) < 0.01
    assert abs(mini.train_images.std() / 255 - 0.3530) < 0.01
    assert digest(mini) == MINI_SHA256


def test_mini_ships_with_its_licence_and_is_small() -> None:
    folder = Path(datasets.__file__).parent / "fashion_mnist_mini"
    assert "Copyright (c) 2017 Zalando SE" in (folder / "LICENSE").read_text()
    assert sum(path.stat().st_size for path in folder.iterdir()) < 4_000_000


@pytest.mark.skipif(not DEBIAN.is_dir(), reason="Debian's dataset-fashion-mnist is not installed")
def test_mini_is_the_beginning_of_every_class_of_the_whole() -> None:
    whole, mini = fashion(), load_dataset(DataConfig(), seed=0)
    assert whole.train_images.shape == (60000, 28, 28, 1)
    assert whole.test_images.shape == (10000, 28, 28, 1)
    for class_idx in range(10):
        for part, count in (("train", 600), ("test", 100)):
            of_whole = getattr(whole, f"{part}_images")[getattr(whole, f"{part}_labels") == class_idx]
            of_mini = getattr(mini, f"{part}_images")[getattr(mini, f"{part}_labels") == class_idx]
            assert np.array_equal(of_whole[:count], of_mini)


def test_the_cache_comes_before_the_system(cache: Path, system: Path) -> None:
    write_set(system, 1)
    assert (fashion().train_images == 1).all()
    write_set(cache / "fashion_mnist", 2)
    assert (fashion().train_images == 2).all()


def test_a_cache_that_lacks_a_file_is_passed_over(cache: Path, system: Path) -> None:
    write_set(system, 1)
    (write_set(cache / "fashion_mnist", 2) / "t10k-labels-idx1-ubyte.gz").unlink()
    assert (fashion().train_images == 1).all()


def test_root_is_the_only_place_if_set(tmp_path: Path, cache: Path, system: Path) -> None:
    write_set(system, 1)
    write_set(cache / "fashion_mnist", 2)
    assert (fashion(write_set(tmp_path / "root", 3)).train_images == 3).all()
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError) as caught:
        fashion(tmp_path / "empty")
    assert str(tmp_path / "empty") in str(caught.value)
    assert f"{system}:" not in str(caught.value)
    with pytest.raises(DataError, match="fashion_mnist_mini not found"):
        load_dataset(DataConfig(root=tmp_path / "empty"), seed=0)


def test_missing_files_list_each_place_and_the_way_out(cache: Path, system: Path) -> None:
    with pytest.raises(DataError) as caught:
        fashion()
    text = str(caught.value)
    assert f"{cache / 'fashion_mnist'}: no train-images-idx3-ubyte[.gz], train-labels" in text
    assert f"{system}: no train-images-idx3-ubyte[.gz], train-labels" in text
    assert "apt install dataset-fashion-mnist" in text
    assert "data.root" in text


@pytest.mark.parametrize(("name", "hint"), [("mnist", "four IDX files"), ("cifar10", "cifar-10-python.tar.gz")])
def test_missing_files_of_sets_without_a_package(cache: Path, name: str, hint: str) -> None:
    with pytest.raises(DataError, match=hint) as caught:
        load_dataset(DataConfig(name=name), seed=0)
    assert str(cache / name) in str(caught.value)


def test_a_damaged_file_is_an_error_and_not_passed_over(cache: Path, system: Path) -> None:
    write_set(system, 1)
    damaged = write_set(cache / "fashion_mnist", 2) / "train-labels-idx1-ubyte.gz"
    damaged.write_bytes(damaged.read_bytes()[:-4])
    with pytest.raises(DataError, match="whole gzip stream") as caught:
        fashion()
    assert str(damaged) in str(caught.value)


def test_unknown_name_lists_the_known() -> None:
    with pytest.raises(ConfigError, match=r"one of cifar10, fashion_mnist, .*, synthetic, got 'imagenet'"):
        load_dataset(DataConfig(name="imagenet"), seed=0)


def test_cache_dir(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    monkeypatch.setenv("FEDMPI_CACHE", "/override")
    assert datasets.cache_dir() == Path("/override")
    monkeypatch.delenv("FEDMPI_CACHE")
    assert datasets.cache_dir() == Path("/xdg/fedmpi")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert datasets.cache_dir() == Path("/home/somebody/.cache/fedmpi")


def is_mapped(values: np.ndarray) -> bool:
    return isinstance(values.base, np.memmap)


def test_arrays_are_decoded_once_and_mapped(cache: Path, system: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_set(system, 1)
    first = fashion()

    def must_not_run(*_: object) -> formats.Arrays:
        raise AssertionError("decoded a second time")

    spec = dataclasses.replace(datasets._FILE_SETS["fashion_mnist"], read=must_not_run)
    monkeypatch.setitem(datasets._FILE_SETS, "fashion_mnist", spec)
    second = fashion()
    assert digest(first) == digest(second)
    assert all(is_mapped(getattr(d, field)) for d in (first, second) for field in formats.Arrays._fields)
    (folder,) = (cache / "arrays").iterdir()
    assert folder.name.startswith("fashion_mnist-")
    assert sorted(path.name for path in folder.iterdir()) == sorted(f"{field}.npy" for field in formats.Arrays._fields)


def test_writing_to_an_array_stays_in_this_process(system: Path) -> None:
    write_set(system, 1)
    images = fashion().train_images
    images[:] = 9
    assert (fashion().train_images == 1).all()


def test_torch_takes_the_arrays_without_a_warning(system: Path) -> None:
    import torch

    write_set(system, 1)
    dataset = fashion()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for field in formats.Arrays._fields:
            torch.from_numpy(getattr(dataset, field))


def test_changed_source_files_are_decoded_anew(cache: Path, system: Path) -> None:
    write_set(system, 1)
    fashion()
    path = system / "train-images-idx3-ubyte.gz"
    formats.write_idx_gz(path, np.full((4, 3, 3), 5, np.uint8))
    os.utime(path, ns=(10**18, 10**18))  # a coarse clock could give both the same time
    assert (fashion().train_images == 5).all()
    assert len(list((cache / "arrays").iterdir())) == 2


def test_damaged_arrays_are_replaced(cache: Path, system: Path) -> None:
    write_set(system, 1)
    fashion()
    (folder,) = (cache / "arrays").iterdir()
    for content in (b"", b"rubbish", (folder / "train_images.npy").read_bytes()[:-1]):
        (folder / "train_images.npy").write_bytes(content)
        dataset = fashion()
        assert is_mapped(dataset.train_images)
        assert (dataset.train_images == 1).all()
        assert (np.load(folder / "train_images.npy") == 1).all()
    (folder / "test_labels.npy").unlink()
    assert fashion().test_labels.tolist() == [0, 1]
    assert (folder / "test_labels.npy").is_file()
    assert list((cache / "arrays").iterdir()) == [folder]


@pytest.fixture
def broken_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the cache folder one that not even root can write to: a part of its path is a file."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("FEDMPI_CACHE", str(tmp_path / "file" / "cache"))


@pytest.mark.usefixtures("broken_cache")
def test_without_a_cache_the_arrays_lie_in_a_private_temporary_folder(tmp_path: Path, system: Path) -> None:
    write_set(system, 1)
    dataset = fashion()
    assert is_mapped(dataset.train_images)
    folder = tmp_path / "tmp" / f"fedmpi-{os.getuid()}"
    assert folder.stat().st_mode & 0o777 == 0o700
    (arrays,) = folder.iterdir()
    assert (np.load(arrays / "train_images.npy") == 1).all()


@pytest.mark.usefixtures("broken_cache")
@pytest.mark.parametrize("trouble", ["no temporary folder", "others may write", "link"])
def test_without_any_folder_the_arrays_lie_in_memory(
    tmp_path: Path, system: Path, monkeypatch: pytest.MonkeyPatch, trouble: str
) -> None:
    write_set(system, 1)
    folder = tmp_path / "tmp" / f"fedmpi-{os.getuid()}"
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    if trouble == "no temporary folder":
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "file"))
    elif trouble == "others may write":
        folder.mkdir()
        folder.chmod(0o777)
    else:
        folder.symlink_to(tmp_path / "elsewhere")
    dataset = fashion()
    assert not is_mapped(dataset.train_images)
    assert (dataset.train_images == 1).all()
    assert dataset.train_labels.tolist() == [0, 1, 2, 3]
    assert all(getattr(dataset, field).flags.writeable for field in formats.Arrays._fields)
    assert not list((tmp_path / "elsewhere").iterdir())
    assert not folder.is_dir() or not list(folder.iterdir())


def test_a_full_disk_leaves_nothing_behind(cache: Path, system: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_set(system, 1)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    assert (fashion().train_images == 1).all()
    assert not list((cache / "arrays").iterdir())


def test_the_first_to_publish_wins(cache: Path) -> None:
    """Files that another process may have mapped by now are not replaced."""
    images, labels = np.ones((1, 2, 2, 1), np.uint8), np.zeros(1, np.int64)
    arrays = formats.Arrays(images, labels, images, labels)
    datasets._publish(cache / "set", arrays)
    inode = (cache / "set" / "train_images.npy").stat().st_ino
    again = datasets._publish(cache / "set", arrays)
    assert is_mapped(again.train_images)
    assert (cache / "set" / "train_images.npy").stat().st_ino == inode
    assert list(cache.iterdir()) == [cache / "set"]


def test_processes_may_race(cache: Path) -> None:
    program = (
        "from fedmpi.config import DataConfig\nfrom fedmpi.data.datasets import load_dataset\n"
        "print('ready', flush=True)\ninput()\nprint(load_dataset(DataConfig(), 0).train_images.sum())"
    )
    command, pipe = [sys.executable, "-c", program], subprocess.PIPE
    processes = [subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) for _ in range(4)]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    results = {process.communicate(timeout=60)[0] for process in processes}
    assert [process.returncode for process in processes] == [0] * 4
    assert results == {f"{load_dataset(DataConfig(), 0).train_images.sum()}\n"}
    assert len(list((cache / "arrays").iterdir())) == 1


def synthetic(seed: int = 0, **settings: float) -> Dataset:
    return load_dataset(DataConfig(name="synthetic", synthetic=SyntheticConfig.model_validate(settings)), seed)


def test_synthetic_has_the_form_asked_for() -> None:
    dataset = synthetic(num_train=31, num_test=7, num_classes=3, height=5, width=9, channels=2)
    assert dataset.train_images.shape == (31, 5, 9, 2)
    assert dataset.test_images.shape == (7, 5, 9, 2)
    assert dataset.train_images.dtype == np.uint8
    assert dataset.train_labels.dtype == np.int64
    assert sorted(np.bincount(dataset.train_labels)) == [10, 10, 11]
    assert sorted(np.bincount(dataset.test_labels)) == [2, 2, 3]
    assert (dataset.num_classes, dataset.mean, dataset.std) == (3, (0.5, 0.5), (0.5, 0.5))


def test_synthetic_depends_on_the_seed_alone() -> None:
    assert digest(synthetic(seed=1)) == digest(synthetic(seed=1))
    assert digest(synthetic(seed=1)) != digest(synthetic(seed=2))


def test_synthetic_can_be_learned_and_more_noise_makes_it_harder() -> None:
    def accuracy(noise: float) -> float:
        dataset = synthetic(noise=noise)
        train, test = (
            images.reshape(len(images), -1) / 255.0 for images in (dataset.train_images, dataset.test_images)
        )
        centres = np.stack([train[dataset.train_labels == c].mean(axis=0) for c in range(10)])
        nearest = ((test[:, np.newaxis] - centres) ** 2).sum(axis=2).argmin(axis=1)
        return float((nearest == dataset.test_labels).mean())

    assert accuracy(64) > 0.95
    assert accuracy(5000) < 0.9


def test_synthetic_without_noise_is_one_smooth_image_a_class() -> None:
    dataset = synthetic(noise=0, num_train=40)
    for class_idx in range(10):
        images = dataset.train_images[dataset.train_labels == class_idx]
        assert (images == images[0]).all()
        assert abs(np.diff(images[0].astype(int), axis=0)).max() < 64
    assert len(np.unique(dataset.train_images.reshape(40, -1), axis=0)) == 10


def test_neither_torch_nor_mpi_is_imported() -> None:
    program = (
        "import sys, fedmpi.data.datasets, fedmpi.data.partition\nprint(sorted({'torch', 'mpi4py'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"

"""Data sets by name: the shipped one, where files are looked for, and the arrays that ranks share."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import tomllib
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedmpi.config import DataConfig, SyntheticConfig, TextConfig
from fedmpi.data import catalog, datasets, fetch, idx, shared
from fedmpi.data.arrays import Arrays
from fedmpi.data.datasets import Dataset, load_dataset
from fedmpi.data.shapes import ImageShape, TextShape
from fedmpi.data.text import decode
from fedmpi.errors import ConfigError, DataError

DEBIAN = Path("/usr/share/datasets/fashion-mnist")
ROOT = Path(__file__).parents[3]
FIELDS = Arrays._fields[:4]
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
    spec = dataclasses.replace(catalog.FILE_SETS["fashion_mnist"], system_folder=tmp_path / "system")
    monkeypatch.setitem(catalog.FILE_SETS, "fashion_mnist", spec)
    return tmp_path / "system"


def write_set(folder: Path, value: int) -> Path:
    """Write a small set whose pixels all are `value`."""
    folder.mkdir(parents=True)
    for name, num_images in zip(idx.IDX_NAMES[::2], (4, 2), strict=True):
        idx.write_idx_gz(folder / f"{name}.gz", np.full((num_images, 28, 28), value, np.uint8))
    for name, num_images in zip(idx.IDX_NAMES[1::2], (4, 2), strict=True):
        idx.write_idx_gz(folder / f"{name}.gz", np.arange(num_images, dtype=np.uint8))
    return folder


def digest(dataset: Dataset) -> str:
    """Return the SHA-256 over the four arrays."""
    sha = hashlib.sha256()
    for field in FIELDS:
        sha.update(getattr(dataset, field).tobytes())
    return sha.hexdigest()


def fashion(root: Path | None = None) -> Dataset:
    return load_dataset(DataConfig(name="fashion_mnist", root=root), seed=0)


def test_mini_is_real_balanced_and_unchanged() -> None:
    mini = load_dataset(DataConfig(), seed=0)
    assert mini.name == "fashion_mnist_mini"
    assert mini.train_inputs.shape == (6000, 28, 28, 1)
    assert mini.test_inputs.shape == (1000, 28, 28, 1)
    assert np.bincount(mini.train_labels).tolist() == [600] * 10
    assert np.bincount(mini.test_labels).tolist() == [100] * 10
    assert (mini.num_classes, mini.mean, mini.std) == (10, (0.2860,), (0.3530,))
    assert abs(mini.train_inputs.mean() / 255 - 0.2860) < 0.01
    assert abs(mini.train_inputs.std() / 255 - 0.3530) < 0.01
    assert digest(mini) == MINI_SHA256


def test_mini_ships_with_its_licence_and_is_small() -> None:
    folder = Path(datasets.__file__).parent / "fashion_mnist_mini"
    assert "Copyright (c) 2017 Zalando SE" in (folder / "LICENSE").read_text()
    assert sum(path.stat().st_size for path in folder.iterdir()) < 4_000_000


@pytest.mark.skipif(not DEBIAN.is_dir(), reason="Debian's dataset-fashion-mnist is not installed")
def test_mini_is_the_beginning_of_every_class_of_the_whole() -> None:
    whole, mini = fashion(), load_dataset(DataConfig(), seed=0)
    assert whole.train_inputs.shape == (60000, 28, 28, 1)
    assert whole.test_inputs.shape == (10000, 28, 28, 1)
    for class_idx in range(10):
        for part, count in (("train", 600), ("test", 100)):
            of_whole = getattr(whole, f"{part}_inputs")[getattr(whole, f"{part}_labels") == class_idx]
            of_mini = getattr(mini, f"{part}_inputs")[getattr(mini, f"{part}_labels") == class_idx]
            assert np.array_equal(of_whole[:count], of_mini)


def test_the_cache_comes_before_the_system(cache: Path, system: Path) -> None:
    write_set(system, 1)
    assert (fashion().train_inputs == 1).all()
    write_set(cache / "fashion_mnist", 2)
    assert (fashion().train_inputs == 2).all()


def test_a_cache_that_lacks_a_file_is_passed_over(cache: Path, system: Path) -> None:
    write_set(system, 1)
    (write_set(cache / "fashion_mnist", 2) / "t10k-labels-idx1-ubyte.gz").unlink()
    assert (fashion().train_inputs == 1).all()


def test_root_is_the_only_place_if_set(tmp_path: Path, cache: Path, system: Path) -> None:
    write_set(system, 1)
    write_set(cache / "fashion_mnist", 2)
    assert (fashion(write_set(tmp_path / "root", 3)).train_inputs == 3).all()
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


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("mnist", "four IDX files"),
        ("cifar10", "cifar-10-python.tar.gz"),
        ("cifar100", "cifar-100-python.tar.gz"),
        ("emnist_balanced", "NIST's gzip.zip"),
        ("emnist_byclass", "emnist-byclass-"),
        ("femnist", "preprocess.sh"),
        ("shakespeare", "Project Gutenberg"),
    ],
)
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


def test_an_error_in_a_file_says_how_to_get_the_set(cache: Path, system: Path) -> None:
    (write_set(system, 1) / "train-labels-idx1-ubyte.gz").write_bytes(b"rubbish")
    with pytest.raises(DataError, match=r"\nHow to get fashion_mnist: `fedmpi fetch fashion_mnist`"):
        fashion()


def test_images_of_another_shape_are_refused(system: Path) -> None:
    write_set(system, 1)
    for name, num_images in (("train-images-idx3-ubyte.gz", 4), ("t10k-images-idx3-ubyte.gz", 2)):
        idx.write_idx_gz(system / name, np.zeros((num_images, 32, 32), np.uint8))
    with pytest.raises(DataError, match=r"train-images.*expected images of shape \(28, 28, 1\), got \(32, 32, 1\)"):
        fashion()


def test_unknown_name_lists_the_known() -> None:
    with pytest.raises(ConfigError, match=r"one of cifar10, cifar100, .*, synthetic, got 'imagenet'$"):
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

    def must_not_run(*_: object) -> Arrays:
        raise AssertionError("decoded a second time")

    spec = dataclasses.replace(catalog.FILE_SETS["fashion_mnist"], read=must_not_run)
    monkeypatch.setitem(catalog.FILE_SETS, "fashion_mnist", spec)
    second = fashion()
    assert digest(first) == digest(second)
    assert all(is_mapped(getattr(d, field)) for d in (first, second) for field in FIELDS)
    (folder,) = (cache / "arrays").iterdir()
    assert folder.name.startswith("fashion_mnist-")
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        [*(f"{field}.npy" for field in FIELDS), "group_names.json"]
    )


def test_writing_to_an_array_stays_in_this_process(system: Path) -> None:
    write_set(system, 1)
    images = fashion().train_inputs
    images[:] = 9
    assert (fashion().train_inputs == 1).all()


def test_torch_takes_the_arrays_without_a_warning(system: Path) -> None:
    import torch

    write_set(system, 1)
    dataset = fashion()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for field in FIELDS:
            torch.from_numpy(getattr(dataset, field))


def test_changed_source_files_are_decoded_anew(cache: Path, system: Path) -> None:
    write_set(system, 1)
    fashion()
    path = system / "train-images-idx3-ubyte.gz"
    idx.write_idx_gz(path, np.full((4, 28, 28), 5, np.uint8))
    os.utime(path, ns=(10**18, 10**18))  # a coarse clock could give both the same time
    assert (fashion().train_inputs == 5).all()
    assert len(list((cache / "arrays").iterdir())) == 2


def test_damaged_arrays_are_replaced(cache: Path, system: Path) -> None:
    write_set(system, 1)
    fashion()
    (folder,) = (cache / "arrays").iterdir()
    for content in (b"", b"rubbish", (folder / "train_inputs.npy").read_bytes()[:-1]):
        (folder / "train_inputs.npy").write_bytes(content)
        dataset = fashion()
        assert is_mapped(dataset.train_inputs)
        assert (dataset.train_inputs == 1).all()
        assert (np.load(folder / "train_inputs.npy") == 1).all()
    for name in ("test_labels.npy", "group_names.json"):
        (folder / name).unlink()
        assert fashion().test_labels.tolist() == [0, 1]
        assert (folder / name).is_file()
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
    assert is_mapped(dataset.train_inputs)
    folder = tmp_path / "tmp" / f"fedmpi-{os.getuid()}"
    assert folder.stat().st_mode & 0o777 == 0o700
    (arrays,) = folder.iterdir()
    assert (np.load(arrays / "train_inputs.npy") == 1).all()


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
    assert not is_mapped(dataset.train_inputs)
    assert (dataset.train_inputs == 1).all()
    assert dataset.train_labels.tolist() == [0, 1, 2, 3]
    assert all(getattr(dataset, field).flags.writeable for field in FIELDS)
    assert not list((tmp_path / "elsewhere").iterdir())
    assert not folder.is_dir() or not list(folder.iterdir())


def test_a_full_disk_leaves_nothing_behind(cache: Path, system: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_set(system, 1)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    assert (fashion().train_inputs == 1).all()
    assert not list((cache / "arrays").iterdir())


def test_the_first_to_publish_wins(cache: Path) -> None:
    """Files that another process may have mapped by now are not replaced."""
    images, labels = np.ones((1, 2, 2, 1), np.uint8), np.zeros(1, np.int64)
    arrays = Arrays(images, labels, images, labels)
    shared._publish(cache / "set", arrays)
    inode = (cache / "set" / "train_inputs.npy").stat().st_ino
    again = shared._publish(cache / "set", arrays)
    assert is_mapped(again.train_inputs)
    assert (cache / "set" / "train_inputs.npy").stat().st_ino == inode
    assert list(cache.iterdir()) == [cache / "set"]


def test_processes_may_race(cache: Path) -> None:
    program = (
        "from fedmpi.config import DataConfig\nfrom fedmpi.data.datasets import load_dataset\n"
        "print('ready', flush=True)\ninput()\nprint(load_dataset(DataConfig(), 0).train_inputs.sum())"
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
    assert results == {f"{load_dataset(DataConfig(), 0).train_inputs.sum()}\n"}
    assert len(list((cache / "arrays").iterdir())) == 1


def synthetic(seed: int = 0, **settings: float) -> Dataset:
    return load_dataset(DataConfig(name="synthetic", synthetic=SyntheticConfig.model_validate(settings)), seed)


def test_synthetic_has_the_form_asked_for() -> None:
    dataset = synthetic(num_train=31, num_test=7, num_classes=3, height=5, width=9, channels=2)
    assert dataset.train_inputs.shape == (31, 5, 9, 2)
    assert dataset.test_inputs.shape == (7, 5, 9, 2)
    assert dataset.train_inputs.dtype == np.uint8
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
            images.reshape(len(images), -1) / 255.0 for images in (dataset.train_inputs, dataset.test_inputs)
        )
        centres = np.stack([train[dataset.train_labels == c].mean(axis=0) for c in range(10)])
        nearest = ((test[:, np.newaxis] - centres) ** 2).sum(axis=2).argmin(axis=1)
        return float((nearest == dataset.test_labels).mean())

    assert accuracy(64) > 0.95
    assert accuracy(5000) < 0.9


def test_synthetic_without_noise_is_one_smooth_image_a_class() -> None:
    dataset = synthetic(noise=0, num_train=40)
    for class_idx in range(10):
        images = dataset.train_inputs[dataset.train_labels == class_idx]
        assert (images == images[0]).all()
        assert abs(np.diff(images[0].astype(int), axis=0)).max() < 64
    assert len(np.unique(dataset.train_inputs.reshape(40, -1), axis=0)) == 10


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            {"text": TextConfig()},
            "data.text goes with data sets of text .*play_mini, shakespeare.* got data.name=fashion",
        ),
        ({"name": "synthetic", "text": TextConfig()}, "data.text goes with"),
        ({"synthetic": SyntheticConfig()}, "data.synthetic goes with data.name=synthetic only"),
        ({"name": "play_mini", "augment": "crop_flip"}, "data.augment must be none .*play_mini.*, got 'crop_flip'"),
    ],
)
def test_settings_that_do_not_go_with_the_name(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load_dataset(DataConfig(**settings), seed=0)


def play(cache: Path, **settings: float) -> Dataset:
    return load_dataset(DataConfig(name="play_mini", text=TextConfig.model_validate(settings)), seed=0)


def test_the_play_is_as_you_like_it(cache: Path) -> None:
    dataset = load_dataset(DataConfig(name="play_mini"), seed=0)
    assert (dataset.shape, dataset.num_classes, dataset.mean, dataset.std) == (TextShape(80), 86, (), ())
    assert dataset.train_inputs.dtype == np.uint8
    assert dataset.train_labels.dtype == dataset.test_labels.dtype == np.int64
    assert dataset.train_labels.shape == dataset.train_inputs.shape == (1096, 80)
    assert dataset.test_labels.shape == dataset.test_inputs.shape == (258, 80)
    assert dataset.train_groups is not None
    assert len(dataset.group_names) == 26  # A Lord says too little for one window
    assert list(dataset.group_names) == sorted(dataset.group_names)
    sizes = dict(zip(dataset.group_names, np.bincount(dataset.train_groups).tolist(), strict=True))
    assert min(sizes.values()) > 0
    assert sizes["ROSALIND"] == 292
    first = dataset.train_inputs[dataset.train_groups == dataset.group_names.index("ORLANDO")][0]
    assert decode(first).startswith("As I remember, Adam, it was upon this fashion\nbequeathed")
    assert max(dataset.train_inputs.max(), dataset.test_inputs.max()) < 85  # nothing outside the alphabet


def test_the_play_ships_small_and_says_where_it_is_from() -> None:
    folder = Path(datasets.__file__).parent / "play_mini"
    assert sum(path.stat().st_size for path in folder.iterdir()) < 60_000
    text = gzip.decompress((folder / "asyoulik.txt.gz").read_bytes())
    readme = (folder / "README.md").read_text()
    assert hashlib.sha256(text).hexdigest() in readme
    assert "public domain" in readme


def test_all_that_ships_is_package_data() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    patterns = settings["tool"]["setuptools"]["package-data"]["fedmpi"]
    for name in ("play_mini", "fashion_mnist_mini"):
        assert f"data/{name}/*" in patterns


def test_groups_are_shared_too_and_each_way_to_cut_has_its_own_copy(cache: Path) -> None:
    first, again = (play(cache, sequence_length=80) for _ in range(2))
    assert is_mapped(again.train_groups)
    assert np.array_equal(first.train_groups, again.train_groups)
    assert first.group_names == again.group_names
    assert play(cache, sequence_length=40).shape == TextShape(40)
    assert len(play(cache, sequence_length=80, test_fraction=0.5).test_inputs) > len(first.test_inputs)
    assert play(cache, sequence_length=80).shape == TextShape(80)
    folders = list((cache / "arrays").iterdir())
    assert len(folders) == 3
    for folder in folders:
        (folder / "train_groups.npy").unlink()
    assert np.array_equal(play(cache, sequence_length=80).train_groups, first.train_groups)


def test_text_too_short_for_the_windows(cache: Path) -> None:
    with pytest.raises(DataError, match="at least one test window of 10001 characters"):
        play(cache, sequence_length=10_000, test_fraction=0.01)


def test_femnist_by_name(cache: Path) -> None:
    folder = cache / "femnist"
    folder.mkdir(parents=True)
    data = {"w": {"x": [[1.0] * 784] * 5, "y": [0, 61, 2, 3, 4]}}
    (folder / "all_data_0.json").write_text(json.dumps({"users": ["w"], "num_samples": [5], "user_data": data}))
    dataset = load_dataset(DataConfig(name="femnist"), seed=0)
    assert dataset.train_labels.tolist() == [0, 61, 2, 3]
    assert dataset.test_labels.tolist() == [4]
    assert (dataset.num_classes, dataset.shape, dataset.group_names) == (62, ImageShape(28, 28, 1), ("w",))


def test_a_play_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "play.txt").write_text("Ann:\n" + "abc " * 30 + "\n\nBob:\n" + "de " * 40 + "\n")
    root = DataConfig(name="shakespeare", root=tmp_path, text=TextConfig(sequence_length=10))
    assert load_dataset(root, seed=0).group_names == ("Ann", "Bob")
    (tmp_path / "play.txt").write_text("No one speaks here.\n")
    with pytest.raises(DataError, match=r"play.txt: expected a play .*`Role Name:`.*got none\nHow to get shakespeare"):
        load_dataset(root, seed=0)


def test_describe_datasets_says_what_is_there(cache: Path, system: Path) -> None:
    described = {name: (what, where) for name, what, where in datasets.describe_datasets()}
    assert list(described) == sorted([*catalog.FILE_SETS, "synthetic"])
    assert all(what and "\n" not in what + where for what, where in described.values())
    assert described["play_mini"][1] == f"in {Path(datasets.__file__).parent / 'play_mini'}"
    assert described["fashion_mnist"][1].startswith("to get it: `fedmpi fetch")
    assert str(cache / "cifar100") in described["cifar100"][1]
    write_set(system, 1)
    (cache / "cifar100").mkdir(parents=True)
    (cache / "cifar100" / "cifar-100-python.tar.gz").touch()  # found, not read
    described = {name: (what, where) for name, what, where in datasets.describe_datasets()}
    assert described["fashion_mnist"][1] == f"in {system}"
    assert described["cifar100"][1] == f"in {cache / 'cifar100'}"


def test_what_fetch_gets_is_what_is_looked_for(cache: Path) -> None:
    for name, remotes in fetch.SOURCES.items():
        if name in catalog.TEXT_DATASETS:
            continue
        assert tuple(remote.name for remote in remotes) == datasets.expected_files(name)
        datasets.cache_folder(name).mkdir(parents=True)
        for remote in remotes:
            (datasets.cache_folder(name) / remote.name).touch()
        assert catalog.FILE_SETS[name].find(datasets.cache_folder(name))
    assert datasets.expected_files("synthetic") == ()
    with pytest.raises(ConfigError, match="must be one of"):
        datasets.expected_files("imagenet")


def test_neither_torch_nor_mpi_is_imported() -> None:
    program = (
        "import sys, fedmpi.data.datasets, fedmpi.data.partition\nprint(sorted({'torch', 'mpi4py'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_a_name_that_is_nearly_one() -> None:
    with pytest.raises(ConfigError, match=r"got 'mnits'; did you mean mnist\?$"):
        load_dataset(DataConfig(name="mnits"), 0)

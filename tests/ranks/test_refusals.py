"""What cannot start on several ranks is said once, by rank 0, and every rank ends with the same status, quietly."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from agreement import meet
from support import ALGORITHMS, write_config

from fedmpi.cli import main
from fedmpi.data.idx import IDX_NAMES, write_idx_gz

OWN_NET = """
import os
if os.environ["BAD"] == os.environ["PMI_RANK"]:
    raise ImportError("no such package here")
from torch import nn

def Net(num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(144, num_classes))
"""


class Ranks:
    """The ranks of a test, each of which runs the same command in its own process."""

    def __init__(self, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
        from mpi4py import MPI

        self.comm = MPI.COMM_WORLD
        self.folder = folder / f"rank{self.comm.rank}"
        self.folder.mkdir()
        self.out = folder / "out"
        self._capfd = capfd

    def refused(self, *arguments: object, status: int, words: str) -> None:
        """Run a configuration: this status on every rank, one error of these words, and no output."""
        self._capfd.readouterr()
        meet()
        try:
            found = main(["run", *map(str, arguments), "-o", str(self.out)])
        except SystemExit as exit_:  # as a usage error ends
            found = int(str(exit_.code))
        meet()
        printed, error = self._capfd.readouterr()
        assert (found, printed) == (status, ""), error
        if self.comm.rank == 0:
            assert error.count("fedmpi: error: ") == 1
            assert re.search(f"^fedmpi: error: {words}", error, re.MULTILINE), error
        else:
            assert error == ""
        assert not self.out.exists()


@pytest.mark.ranks(3, timeout=120)
def test_what_cannot_start_is_said_once_and_quietly(
    shared_folder: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ranks = Ranks(shared_folder, capfd)
    rank, folder = ranks.comm.rank, ranks.folder
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    config = write_config(folder)
    ranks.refused(config, "data.name=mnist", f"data.root={folder}", status=3, words="data set mnist not found")
    ranks.refused(config, "placement.device=cuda", status=4, words=".*sees no GPU")
    ranks.refused(config, "train.lr=0", status=2, words=r".*train\.lr must be above 0, got 0")
    ranks.refused(
        config, "--overwirte", status=2, words="unrecognized arguments: --overwirte; did you mean --overwrite"
    )

    # As on a cluster whose nodes do not share a folder: one rank looks elsewhere.
    mnist = folder / "mnist"
    mnist.mkdir()
    for name, count in zip(IDX_NAMES, (60, 60, 20, 20), strict=True):
        write_idx_gz(mnist / f"{name}.gz", np.zeros((count, 28, 28) if "images" in name else count, np.uint8))
    here = write_config(folder, data={"name": "mnist"}, partition={"name": "iid", "num_clients": 6}, name="mnist.yaml")
    monkeypatch.setenv("FEDMPI_CACHE", str(folder if rank != 2 else folder / "absent"))
    ranks.refused(here, status=3, words=r"rank 2 on \S+: data set mnist not found")
    monkeypatch.undo()

    monkeypatch.chdir(folder if rank != 1 else folder.parent)
    ranks.refused(config.name, status=2, words=rf"rank 1 on \S+: cannot read the configuration {config.name}")

    # The replay buffer is rank 0's: that another cannot write where it goes does not matter.
    ecofed = ["algorithm.name=ecofed", "algorithm.replay_dir=file/new", f"model={{name: {ALGORITHMS}/splitnet.py:Net}}"]
    (folder / "file").touch()
    monkeypatch.chdir(folder if rank == 0 else folder.parent)
    ranks.refused(config, *ecofed, status=6, words="the replay buffer cannot be written to file/new: Not a directory")
    monkeypatch.chdir(folder if rank != 0 else folder.parent)
    assert main(["run", *map(str, (config, *ecofed)), "rounds=1", "-o", str(folder / "replayed")]) == 0

    # As where a package is missing on one node: the others have read theirs and wait in MPI.
    for bad, words in ((0, "model.name"), (2, r"rank 2 on \S+: model.name")):
        own = folder / f"own{bad}.py"
        own.write_text(OWN_NET)
        monkeypatch.setenv("BAD", str(bad))
        ranks.refused(config, f"model.name={own}:Net", status=2, words=f"{words}.*no such package here")

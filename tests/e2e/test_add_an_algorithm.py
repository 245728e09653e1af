"""The algorithm in docs/add_an_algorithm.md, taken from the page as it stands there and run as a user would."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support import digests, run_ranks, write_config

from fedmpi.ledger.reader import Ledger
from fedmpi.wire.values import DENSE_DTYPES

PAGE = (Path(__file__).parents[2] / "docs" / "add_an_algorithm.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
pytestmark = pytest.mark.usefixtures("launches")
Here = Callable[..., tuple[int, str, str]]


def fedmpi(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a process of its own, as other files with the same messages must."""
    command = [sys.executable, "-m", "fedmpi", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, cwd=folder)


def several(folder: Path, *commands: list[str]) -> list[tuple[int, str]]:
    """Run commands one after the other in one other process; return the status and the words of each."""
    code = (
        "import json, sys; from fedmpi.cli import main\n"
        "for words in json.loads(sys.argv[1]):\n"
        "    status = main(words); print(flush=True); print(f'\\nstatus {status}', file=sys.stderr, flush=True)"
    )
    command = [sys.executable, "-c", code, json.dumps(commands)]
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=120, check=True, cwd=folder
    )
    parts = re.split(r"^status (\d+)$", done.stdout, flags=re.MULTILINE)
    return [(int(status), words) for words, status in zip(parts[::2], parts[1::2], strict=False)]


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page's file: one for all tests, as a process takes a kind of message from one file alone."""
    path = tmp_path_factory.mktemp("page") / "half.py"
    path.write_text("\n\n".join(BLOCKS))
    return path


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, half: Path) -> Path:
    """Make, and go to, a folder with half.py and a configuration whose model nobody has trained yet."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "half.py").write_text(half.read_text())
    write_config(tmp_path, rounds=12, evaluate={"every": 1}, name="run.yaml")
    return tmp_path


def test_the_file_is_short_and_whole() -> None:
    assert len(BLOCKS) == 3
    lines = [line for line in BLOCKS[0].splitlines() if line.strip()]
    assert 20 < len(lines) < 40
    assert max(map(len, BLOCKS[0].splitlines())) <= 120
    assert {"HalfServer", "HalfClient"} <= {getattr(node, "name", "") for node in ast.parse(BLOCKS[0]).body}


@pytest.mark.parametrize("name", ["FEEDBACK", pytest.param("HALF", marks=pytest.mark.slow)])
def test_one_process_and_three_ranks_agree_and_it_learns(folder: Path, half: Path, name: str, here: Here) -> None:
    settings = [f"algorithm.name={half}:{name}", "algorithm.server_lr=0.9"]
    status, _, errors = here("run", "run.yaml", *settings, "-o", "one")
    assert status == 0, errors
    config, out = str(folder / "run.yaml"), str(folder / "three")
    outcome = run_ranks(3, ["-m", "fedmpi", "run", config, *settings, "-o", out], timeout=90)
    assert outcome.status == 0, outcome.output
    assert digests(folder / "one") == digests(folder / "three")

    with Ledger(folder / "three" / "ledger.h5") as ledger:
        messages, rounds = ledger.messages, ledger.rounds
    assert rounds["test_accuracy"][-1] > rounds["test_accuracy"][0] + 0.2
    assert rounds["train_loss"][-1] < 0.7 * rounds["train_loss"][0]
    assert (rounds["change_norm"] > 0).all()
    # Its own message, half the size of float32, and FedAvg's on the way down.
    ups = messages["direction"] == "up"
    assert set(messages["kind"][ups]) == {"change"}
    assert set(messages["kind"][~ups]) == {"seed", "model"}
    assert np.count_nonzero(ups) == 12 * 5
    num_state = messages["num_params"][ups][0]
    assert set(messages["payload_nbytes"][ups] - 2 * num_state) <= {1, 2}  # num_samples, in a byte or two
    assert messages["wire_nbytes"][ups].sum() < 0.52 * messages["dense_nbytes"][ups].sum()
    assert re.search(r"up +change +60 .* 0\.5\d+ ", outcome.output), outcome.output


def test_its_setting_and_its_client_state_have_an_effect(folder: Path, half: Path, here: Here) -> None:
    losses, models = {}, set()
    for run, name, server_lr in (("whole", "HALF", 1), ("tenth", "HALF", 0.1), ("feedback", "FEEDBACK", 1)):
        arguments = [f"algorithm.name={half}:{name}", f"algorithm.server_lr={server_lr}", "rounds=4", "-o", run]
        status, _, errors = here("run", "run.yaml", *arguments)
        assert status == 0, errors
        models.add(digests(folder / run)[0])
        with Ledger(folder / run / "ledger.h5") as ledger:
            losses[run] = ledger.rounds["test_loss"][-1]
    assert losses["whole"] < losses["tenth"]
    assert len(models) == 3


def test_a_change_beyond_half_precision(folder: Path) -> None:
    """It stops the first, as the page says; the second sends what fits, and keeps no infinity for the next round."""
    text = (folder / "half.py").read_text()
    huge = text.replace("self.ctx.model.state_S - start_S", "1e9 * (self.ctx.model.state_S - start_S)")
    assert huge.count("1e9") == 2
    (folder / "half.py").write_text(huge)
    settings = ["algorithm.server_lr=1e-12", "rounds=4", "-o"]
    done = fedmpi(folder, "run", "run.yaml", "algorithm.name=half.py:HALF", *settings, "stops")
    assert (done.returncode, "'change' holds NaN or infinity" in done.stderr) == (5, True), done.stderr
    done = fedmpi(folder, "run", "run.yaml", "algorithm.name=half.py:FEEDBACK", *settings, "goes_on")
    assert done.returncode == 0, done.stderr


def test_the_page_names_all_dtypes() -> None:
    named = re.search(r"The dtypes are (.*?)\.", PAGE, re.DOTALL)
    assert named is not None
    assert set(re.findall(r"`(\w+)`", named[1])) == set(DENSE_DTYPES)


def test_what_the_page_says_of_its_settings(folder: Path) -> None:
    (folder / "half.py").write_text(BLOCKS[0])  # a whole file by itself
    name = "algorithm.name=half.py:HALF"
    wrong, mistyped, listed, dry = several(
        folder,
        ["run", "run.yaml", name, "algorithm.server_lr=0"],
        ["run", "run.yaml", name, "algorithm.sever_lr=1"],
        ["config", name],
        ["run", "run.yaml", name, "--dry-run", "-o", "none"],
    )
    assert wrong[0] == 2 and "algorithm.server_lr must be above 0, got 0" in wrong[1]
    assert mistyped[0] == 2 and "did you mean algorithm.server_lr?" in mistyped[1]
    assert listed[0] == 0 and "algorithm.server_lr=1" in listed[1]
    assert dry[0] == 0 and re.search(r"up +change ", dry[1])
    assert not (folder / "none" / "ledger.h5").exists()


def test_the_mask_that_is_drawn_anew(folder: Path, half: Path, here: Here) -> None:
    settings = [f"algorithm.name={half}:REDRAWN", "algorithm.every=4", "algorithm.density=0.3"]
    status, _, errors = here("run", "run.yaml", *settings, "-o", "out")
    assert status == 0, errors
    with Ledger(folder / "out" / "ledger.h5") as ledger:
        rounds = ledger.rounds
    assert rounds["mask_version"].tolist() == [0] * 3 + [1] * 4 + [2] * 4 + [3]
    assert len(set(rounds["weight_density"].tolist())) == 1
    assert (rounds["mask_num_grown"][[3, 7, 11]] > 0).all()
    assert rounds["train_loss"][-1] < rounds["train_loss"][0]

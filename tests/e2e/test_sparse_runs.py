"""Runs that send the largest numbers of updates: the ledger's columns add up, and codecs change bytes, nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import ALGORITHMS, digests, run_here, small_config

from fedmpi.comm.local import LocalCommunicator
from fedmpi.ledger.check import Check
from fedmpi.ledger.reader import Ledger

TOPK = {"name": "fedavg", "compress": "topk", "density": 0.1}
SECTION_ROWS = 4  # numbers, int_buffers, buffers, update


def go(folder: Path, name: str, **changes: Any) -> Path:
    """Run in one process; return the output folder."""
    config = small_config(folder, model={"name": "mlp", "hidden": [64]}, **{"algorithm": TOPK, **changes})
    assert run_here(config, folder / name, LocalCommunicator()) == 0
    assert Check(folder / name / "ledger.h5").problems == []
    return folder / name


def ups(out: Path) -> dict[str, np.ndarray]:
    with Ledger(out / "ledger.h5") as ledger:
        messages = ledger.messages
        chosen = messages["direction"] == "up"
        return {name: column[chosen] for name, column in messages.items()}


def test_the_columns_of_a_sparse_update_add_up(tmp_path: Path) -> None:
    up = ups(go(tmp_path, "out"))
    num_params = 144 * 64 + 64 + 64 * 10 + 10
    k = round(0.1 * num_params)
    assert set(up["num_params"]) == {num_params} and set(up["num_kept"]) == {k}
    assert set(up["dense_nbytes"]) == {4 * num_params} and set(up["paper_nbits"]) == {64.0 * k}
    assert (up["header_nbytes"] + up["payload_nbytes"] == up["wire_nbytes"]).all()
    # Beside positions and numbers there is only the number of samples, a varint of one or two bytes.
    rest = up["payload_nbytes"] - up["index_nbytes"] - up["value_nbytes"]
    assert set(rest) <= {1, 2}
    assert (up["bound_nbits"] / 8 < up["wire_nbytes"]).all()
    # The frame, lane states and frequency tables: some hundred bytes, whatever the size.
    assert (up["wire_nbytes"] < 1.03 * up["bound_nbits"] / 8 + 250).all()
    assert all("+" in codec for codec in up["codec"])


@pytest.mark.parametrize(
    ("sparse", "index_nbytes"), [("uint32", 4), ("int64", 8), ("bits", None), ("golomb", None), ("layers", None)]
)
def test_codecs_change_the_bytes_and_nothing_else(tmp_path: Path, sparse: str, index_nbytes: int | None) -> None:
    auto, fixed = go(tmp_path, "auto"), go(tmp_path, sparse, wire={"sparse": sparse, "values": "raw"})
    assert digests(auto)[0] == digests(fixed)[0]
    up, small = ups(fixed), ups(auto)
    assert set(up["codec"]) == {f"{sparse}+raw"}
    assert (up["value_nbytes"] == 4 * up["num_kept"]).all()
    if index_nbytes is not None:
        # The varint of the length of the positions' bytes is one of theirs.
        assert set(up["index_nbytes"] - index_nbytes * up["num_kept"]) == {2}
    assert (small["wire_nbytes"] <= up["wire_nbytes"]).all()
    assert (small["bound_nbits"] == up["bound_nbits"]).all()


def test_an_algorithm_with_every_kind_of_value(tmp_path: Path) -> None:
    out = go(tmp_path, "out", algorithm={"name": f"{ALGORITHMS / 'kinds.py'}:KINDS"})
    plain = {"dense": "raw", "mask": "bits", "sparse": "int64", "values": "raw", "quantized": "packed"}
    fixed = go(tmp_path, "fixed", algorithm={"name": f"{ALGORITHMS / 'kinds.py'}:KINDS"}, wire=plain)
    tight = go(tmp_path, "tight", algorithm={"name": f"{ALGORITHMS / 'kinds.py'}:KINDS"}, wire={"dense": "auto"})
    assert digests(out)[0] == digests(fixed)[0] == digests(tight)[0]
    # The yardstick is what was sent, whatever it was coded against: a prior, a base, or nothing.
    bounds = [ups(folder)["bound_nbits"].tolist() for folder in (out, fixed, tight)]
    assert bounds[0] == bounds[1] == bounds[2]
    sums = [ups(folder)["wire_nbytes"].sum() for folder in (tight, out, fixed)]
    assert sums == sorted(sums) and len(set(sums)) == 3


def test_the_first_use_of_codecs_is_timed_as_such(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    go(tmp_path, "out")
    (row,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("  compile "))
    assert float(row.split()[1]) > 0

"""The analysis scripts, on small ledgers."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from fedmpi.ledger.writer import LedgerWriter

pytest.importorskip("matplotlib")

SCRIPT = Path(__file__).parents[2] / "analysis" / "accuracy_vs_bytes.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("accuracy_vs_bytes", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write(path: Path, algorithm: str, nbytes: int, every: int = 2, status: str = "done") -> Path:
    config = f"algorithm:\n  name: {algorithm}  # set\n"
    writer = LedgerWriter(path, attrs={}, config_yaml=config, flush_s=1.0)
    for i in range(12):
        accuracy = 0.9 - 0.8 / (i + 1) if every and i % every == 0 else np.nan
        writer.add_round(
            {"round_idx": i, "num_clients": 2, "test_accuracy": accuracy, "down_nbytes": nbytes, "up_nbytes": nbytes}
            | {"cum_down_nbytes": nbytes * (i + 1), "cum_up_nbytes": 2 * nbytes * (i + 1)}
        )
    writer.finish(status, {})
    return path


def test_plot(script, tmp_path):
    runs = [("fedavg", 10**6), ("fedpm", 40_000), ("fedpm", 30_000)]
    ledgers = [write(tmp_path / f"{i}.h5", name, nbytes) for i, (name, nbytes) in enumerate(runs)]
    out = tmp_path / "out.png"
    assert script.main([*map(str, ledgers), "-o", str(out)]) == 0
    assert out.read_bytes().startswith(b"\x89PNG")


def test_curve(script, tmp_path):
    curve = script.read_curve(write(tmp_path / "a.h5", "fedavg", 10**6))
    assert curve.label == "fedavg"
    np.testing.assert_allclose(curve.sent_mb, [3, 9, 15, 21, 27, 33])
    np.testing.assert_allclose(curve.accuracy_percent[0], 10)
    assert script.read_curve(write(tmp_path / "b.h5", "x", 1, status="stopped")).label == "x (unfinished)"


def test_nothing_to_plot(script, tmp_path, capsys):
    with pytest.raises(SystemExit, match=r"evaluate\.every"):
        script.main([str(write(tmp_path / "a.h5", "fedavg", 1, every=0)), "-o", str(tmp_path / "o.png")])
    assert script.main([str(tmp_path / "none"), "-o", str(tmp_path / "o.png")]) == 6
    assert "no such file" in capsys.readouterr().err

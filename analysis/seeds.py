"""Runs that differ in their seeds alone, put together: what accuracy they had after how much was sent up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from curves import Array, Curve
from pictures import PictureError, alike, differences

# Settings, and sections of them, that make no other configuration: repeats differ in the seed, machines in the rest.
NOT_TOLD_APART = ("seed", "data.root", "placement", "comm", "ledger")
METRICS = {"test": "test accuracy", "client": "mean client accuracy"}
COUNTS = {"wire": "as measured on the wire", "paper": "as the paper counts"}
# A dense message's header and counts, at most: N dense rounds are to fit the cap of N dense rounds.
FRAME_NBYTES = 64


class Run(NamedTuple):
    """A run's tests: rounds, accuracy in [0, 1], and by count the upload so far in bytes, (num_tests,) each.

    The accuracy is what the tests so far come to: the best of them, or the mean of the last K. `num_params` is 0 if no
    message was sent yet, `num_clients` the number of clients that hold data, `data_note` what a reader must know of
    the data, mostly nothing.
    """

    path: Path
    settings: Mapping[str, Any]
    rounds: Array
    accuracy: Array
    upload_nbytes: Mapping[str, Array]
    num_rounds: int
    num_params: int
    num_clients: int
    done: bool
    data_note: str

    @property
    def seed(self) -> Any:
        """The run's seed."""
        return self.settings.get("seed")

    def num_tests(self, count: str, cap_nbytes: float) -> int:
        """Return the number of tests under a cap."""
        return int(np.sum(self.upload_nbytes[count] <= cap_nbytes))


class Row(NamedTuple):
    """Runs that differ in their seeds alone, and what they are called."""

    label: str
    runs: Sequence[Run]

    @property
    def unfinished(self) -> str:
        """Which runs are not over, in words; empty if all are."""
        return "; ".join(
            f"seed {one.seed}: {one.num_rounds} of {one.settings.get('rounds')} rounds"
            for one in self.runs
            if not one.done
        )

    @property
    def num_rounds(self) -> int:
        """The rounds that each of its runs has when it is over."""
        return int(self.runs[0].settings.get("rounds") or self.runs[0].num_rounds)


def so_far(accuracy: Array, mean_of: int | None) -> Array:
    """Return the best of the tests up to each, or with `mean_of` the mean of the last so many, shape (num_tests,)."""
    if mean_of is None:
        best: Array = np.maximum.accumulate(accuracy)
        return best
    return np.array([accuracy[max(0, end - mean_of) : end].mean() for end in range(1, len(accuracy) + 1)])


def run_of(curve: Curve, metric: str, mean_of: int | None) -> Run:
    """Return what a run's tests came to; raises PictureError if they have no such accuracy."""
    columns, facts = curve.columns, curve.facts
    accuracy = columns[f"{metric}_accuracy"]
    tested = ~np.isnan(accuracy)
    if not tested.any() and not np.isnan(columns["test_accuracy"]).all():
        raise PictureError(
            f"{curve.path}: expected the mean over clients of the accuracy on their own classes "
            f"(rounds/client_accuracy), got none in any round; runs of before that column and runs on text have none: "
            f"take --metric test"
        )
    upload_nbytes = {"wire": columns["cum_up_nbytes"], "paper": columns["cum_up_paper_nbits"] / 8}
    return Run(
        curve.path,
        curve.settings,
        columns["round_idx"][tested],
        so_far(accuracy[tested], mean_of),
        {count: nbytes[tested] for count, nbytes in upload_nbytes.items()},
        facts["num_rounds"],
        facts["num_params"],
        facts["num_clients"],
        facts["status"] == "done",
        str(facts.get("data_note") or ""),
    )


def rows_of(curves: Sequence[Curve], metric: str, mean_of: int | None = None) -> list[Row]:
    """Put those runs together that differ in their seeds alone, in ascending order of these.

    Raises
    ------
    PictureError
        If data sets or partitions differ, if the same run is there twice, if no run has a test, or none of `metric`.
    """
    runs = [run_of(curve, metric, mean_of) for curve in curves]
    check_one_task(runs)
    if not any(len(one.accuracy) for one in runs):
        raise PictureError(f"nothing to show: no round was tested in {', '.join(str(one.path) for one in runs)}")
    together: dict[str, list[Run]] = {}
    for one in runs:
        others = together.setdefault(repr(sorted(told_apart(one).items())), [])
        twice = next((other for other in others if other.seed == one.seed), None)
        if twice is not None:
            raise PictureError(f"{twice.path} and {one.path} are runs of the same settings and seed; give one of them")
        others.append(one)
    groups = [sorted(group, key=lambda one: int(one.seed or 0)) for group in together.values()]
    labels = [str(group[0].settings.get("algorithm.name", group[0].path.stem)) for group in groups]
    for same in alike(labels):
        words = differences([told_apart(groups[i][0]) for i in same], fewest=False)
        for i, setting in zip(same, words, strict=True):
            labels[i] += f": {setting.replace('algorithm.', '')}" if setting else ""
    return [Row(label, group) for label, group in zip(labels, groups, strict=True)]


def told_apart(one: Run) -> dict[str, Any]:
    """Return the settings that make a row."""
    return {key: value for key, value in one.settings.items() if tells_apart(key)}


def tells_apart(key: str) -> bool:
    """Return whether runs that differ in a setting are of different configurations."""
    return key not in NOT_TOLD_APART and key.partition(".")[0] not in NOT_TOLD_APART


def check_one_task(runs: Sequence[Run]) -> None:
    """Raise PictureError if the runs do not all have the same data and partition."""
    first = runs[0]
    for other in runs[1:]:
        for key in dict.fromkeys([*first.settings, *other.settings]):
            ours, theirs = first.settings.get(key), other.settings.get(key)
            if key.startswith(("data.", "partition.")) and tells_apart(key) and ours != theirs:
                raise PictureError(
                    f"runs of one table have the same data and partition, but {key} is {ours} in {first.path} and "
                    f"{theirs} in {other.path}; make a table of each"
                )


def dense_round_nbytes(runs: Sequence[Run]) -> int:
    """Return what the clients of one round would send up as plain float32; raises PictureError if runs disagree."""
    # A run that was cut off before its first message has no say.
    sizes = {(int(one.settings.get("participation.clients_per_round") or 0), one.num_params): one for one in runs}
    sizes = {size: one for size, one in sizes.items() if all(size)}
    if len(sizes) != 1:
        found = "; ".join(f"{n} of {size} in {one.path}" for (n, size), one in sizes.items()) or "no message"
        raise PictureError(
            f"a cap that is a share of dense rounds needs runs with equally many clients a round and parameters, got "
            f"{found}; give caps in bytes, such as --caps 500MB,2GB"
        )
    ((clients_per_round, num_params),) = sizes
    return clients_per_round * (4 * num_params + FRAME_NBYTES)


def title(rows: Sequence[Row]) -> str:
    """Return data set, partition and numbers of clients, and what is noted of the data."""
    runs = [one for row in rows for one in row.runs]
    settings = runs[0].settings
    clients = " or ".join(f"{n:,}" for n in sorted({one.num_clients for one in runs}))
    a_round = " or ".join(map(str, sorted({str(one.settings.get("participation.clients_per_round")) for one in runs})))
    notes = "".join(f" ({note})" for note in dict.fromkeys(one.data_note for one in runs) if note)
    return f"{settings.get('data.name')}{notes}, {settings.get('partition.name')}: {clients} clients, {a_round} a round"

"""Placement: what each rank gets on one host and on several, with and without GPUs, and what is refused."""

from __future__ import annotations

import json
import os
import platform
from dataclasses import replace

import pytest

from fedmpi.comm.placement import Place, RankFacts, check_num_ranks, gather_facts, place_ranks, place_row
from fedmpi.config import PlacementConfig
from fedmpi.errors import PlacementError

CPU = PlacementConfig(device="cpu")
AUTO = PlacementConfig()


def facts(hosts: str, cores: int = 8, gpus: tuple[str, ...] = (), **changes: object) -> list[RankFacts]:
    """Return facts of ranks on hosts named by a letter each."""
    pairs = [(name.split()[0], name.split()[-1]) for name in gpus]
    same = {"cores": list(range(cores)), "gpus": pairs, "bell": "", "config_id": "c0ffee", "versions": "v1"}
    return [RankFacts(**{"rank": r, "pid": 100 + r, "host": host, **same, **changes}) for r, host in enumerate(hosts)]


def place(given: list[RankFacts], config: PlacementConfig) -> tuple[list[Place], list[str]]:
    places, warnings = place_ranks(given, config)
    assert [(p.rank, p.pid, p.host) for p in places] == [(f.rank, f.pid, f.host) for f in given]
    return places, warnings


def test_one_process_is_both() -> None:
    (only,), warnings = place(facts("a", cores=2), CPU)
    assert (only.role, only.local_rank, only.device, only.device_name) == ("both", 0, "cpu", platform.machine())
    assert (only.threads, only.num_local, only.num_cores, only.core_to_spare) == (1, 1, 2, True)
    assert warnings == []


def test_several_hosts_in_blocks() -> None:
    places, _ = place(facts("aaabb"), CPU)
    assert [p.role for p in places] == ["server", *["worker"] * 4]
    assert [p.local_rank for p in places] == [0, 1, 2, 0, 1]
    assert [p.num_local for p in places] == [3, 3, 3, 2, 2]


def test_several_hosts_dealt_in_turn() -> None:
    places, _ = place(facts("abcabca"), CPU)
    assert [p.local_rank for p in places] == [0, 0, 0, 1, 1, 1, 2]
    assert [p.num_local for p in places] == [3, 2, 2, 3, 2, 2, 3]


def test_gpus_are_dealt_to_workers_and_the_server_takes_none() -> None:
    places, warnings = place(facts("aaabb", gpus=("H200 1", "A100 2")), AUTO)
    assert [(p.device, p.device_name) for p in places] == [
        ("cpu", platform.machine()), ("cuda:0", "H200"), ("cuda:1", "A100"), ("cuda:0", "H200"), ("cuda:1", "A100"),
    ]  # fmt: skip
    assert warnings == []


def test_one_process_takes_the_gpu() -> None:
    (only,), _ = place(facts("a", gpus=("H200",)), AUTO)
    assert (only.role, only.device) == ("both", "cuda:0")


def test_one_gpu_bound_to_each_task() -> None:
    """All are cuda:0; the UUIDs tell them apart."""
    given = facts("aaa")
    given[1:] = [replace(given[i], gpus=[("H200", f"GPU-{i}")]) for i in (1, 2)]
    places, warnings = place(given, AUTO)
    assert [(p.device, p.device_uuid) for p in places] == [("cpu", ""), ("cuda:0", "GPU-1"), ("cuda:0", "GPU-2")]
    assert warnings == []


def test_workers_with_several_gpus_each_take_the_least_used() -> None:
    """Rank 1 is bound to a GPU that the others see as their second."""
    given = facts("aaaa", gpus=("H200 GPU-a", "H200 GPU-b", "H200 GPU-c"))
    given[1] = replace(given[1], gpus=[("H200", "GPU-b")])
    places, _ = place(given, AUTO)
    assert [p.device_uuid for p in places] == ["", "GPU-b", "GPU-a", "GPU-c"]
    assert [p.device for p in places] == ["cpu", "cuda:0", "cuda:0", "cuda:2"]


def test_more_workers_than_gpus_only_when_asked_for() -> None:
    given = facts("aaaab", gpus=("H200 GPU-a", "H200 GPU-b"))
    with pytest.raises(PlacementError) as caught:
        place_ranks(given, AUTO)
    assert str(caught.value) == (
        "a: 3 workers for 2 GPUs (placement.clients_per_gpu=1). Start fewer ranks, let them share with "
        "placement.clients_per_gpu=2, or keep off the GPUs with placement.device=cpu"
    )
    places, warnings = place(given, PlacementConfig(clients_per_gpu=2))
    assert [p.device for p in places] == ["cpu", "cuda:0", "cuda:1", "cuda:0", "cuda:0"]
    assert len(warnings) == 1
    assert warnings[0].startswith("a: up to 2 workers share a GPU")
    with pytest.raises(PlacementError, match=r"a: 3 workers for 1 GPU .*clients_per_gpu=3"):
        place_ranks(facts("aaaa", gpus=("H200 GPU-a",)), PlacementConfig(clients_per_gpu=2))


def test_too_few_ranks() -> None:
    check_num_ranks(3, PlacementConfig(min_ranks=3))
    with pytest.raises(PlacementError, match=r"min_ranks=3, but there are 2; start it with `fedmpi launch -n 3`"):
        check_num_ranks(2, PlacementConfig(min_ranks=3))


def test_cpu_is_cpu_where_there_is_a_gpu() -> None:
    places, warnings = place(facts("aaa", gpus=("H200",)), CPU)
    assert {p.device for p in places} == {"cpu"}
    assert warnings == []


def test_auto_takes_what_each_host_has() -> None:
    given = facts("aab", gpus=("H200",))
    given[2:] = facts("aab")[2:]
    places, _ = place(given, AUTO)
    assert [p.device for p in places] == ["cpu", "cuda:0", "cpu"]


def test_cuda_without_a_gpu_is_refused_in_words() -> None:
    with pytest.raises(PlacementError) as caught:
        place_ranks(facts("ab", visible="3"), PlacementConfig(device="cuda"))
    assert str(caught.value) == (
        "placement.device=cuda, but rank 1 on b sees no GPU (CUDA_VISIBLE_DEVICES: 3); "
        "placement.device=cpu runs without"
    )
    assert caught.value.exit_status == 4


def test_the_server_needs_no_gpu() -> None:
    given = [facts("ab")[0], facts("ab", gpus=("H200",))[1]]
    places, _ = place(given, PlacementConfig(device="cuda"))
    assert [p.device for p in places] == ["cpu", "cuda:0"]


def test_a_server_that_computes_shares_the_least_used_gpu() -> None:
    config = PlacementConfig(server_device="cuda", clients_per_gpu=2)
    for hosts, wanted in (("aaa", "cuda:2"), ("aaaa", "cuda:0"), ("ab", "cuda:0")):
        places, _ = place(facts(hosts, gpus=("H200 GPU-a", "H200 GPU-b", "H200 GPU-c")), config)
        assert (places[0].role, places[0].device) == ("server", wanted)
    assert place(facts("aa", gpus=("H200 GPU-a",)), PlacementConfig(server_device="cuda"))[0][0].device == "cuda:0"
    words = "placement.server_device=cuda, but rank 0 on a sees no GPU"
    with pytest.raises(PlacementError, match=words):
        place_ranks(facts("aa"), PlacementConfig(device="cpu", server_device="cuda"))
    with pytest.raises(PlacementError, match=words):
        place_ranks(facts("a"), PlacementConfig(server_device="cuda"))


def test_threads_as_asked() -> None:
    places, warnings = place(facts("aaa"), PlacementConfig(device="cpu", threads=4))
    assert {p.threads for p in places} == {4}
    assert warnings == []  # 2 workers x 4 threads on 8 cores


def test_threads_that_share_cores_are_pointed_out() -> None:
    _, warnings = place(facts("aaaabb", cores=4), PlacementConfig(device="cpu", threads=2))
    assert warnings == ["a: 3 workers x 2 threads share 4 cores"]
    _, warnings = place(facts("aaaa", cores=2, gpus=("H200 GPU-a", "H200 GPU-b", "H200 GPU-c")), AUTO)
    assert warnings == []  # their work is on GPUs


def test_auto_threads_are_the_cores_of_the_host_over_its_ranks() -> None:
    places, warnings = place(facts("aaabb", cores=7), PlacementConfig(device="cpu", threads="auto"))
    assert [p.threads for p in places] == [2, 2, 2, 3, 3]
    assert len(warnings) == 1
    assert warnings[0].startswith("placement.threads=auto took 2: ")
    places, _ = place(facts("aaa", cores=2), PlacementConfig(device="cpu", threads="auto"))
    assert {p.threads for p in places} == {1}


def test_cores_bound_to_each_rank_are_counted_together() -> None:
    given = [RankFacts(r, r, "a", [2 * r, 2 * r + 1], [], "", "c", "v") for r in range(4)]
    places, warnings = place_ranks(given, PlacementConfig(device="cpu", threads="auto"))
    assert [p.cores for p in places] == ["0-1", "2-3", "4-5", "6-7"]
    assert {(p.num_cores, p.threads, p.core_to_spare) for p in places} == {(8, 2, True)}
    assert len(warnings) == 1


def test_a_core_to_spare() -> None:
    assert all(p.core_to_spare for p in place(facts("aaa", cores=3), CPU)[0])
    assert not any(p.core_to_spare for p in place(facts("aaa", cores=2), CPU)[0])


@pytest.mark.parametrize(
    ("cores", "text"),
    [
        ([0, 1, 2, 5], "0-2,5"), ([3], "3"), ([], ""), ([0, 2, 4], "0,2,4"), ([8, 9, 12, 13, 14], "8-9,12-14"),
        (list(range(128)), "0-127"), ([0, 1, 64, 65], "0-1,64-65"),
    ],
)  # fmt: skip
def test_core_ranges(cores: list[int], text: str) -> None:
    assert place_ranks([RankFacts(0, 1, "a", cores, [], "", "c", "v")], CPU)[0][0].cores == text


def test_another_configuration_is_refused() -> None:
    given = [*facts("ab"), *facts("abc", config_id="bad")[2:]]
    with pytest.raises(PlacementError, match=r"^rank 2 on c has read another configuration than rank 0$"):
        place_ranks(given, CPU)


def test_other_versions_are_refused() -> None:
    given = [*facts("a"), *facts("ab", versions="fedmpi 0, torch 1")[1:]]
    with pytest.raises(PlacementError, match=r"^rank 1 on b runs fedmpi 0, torch 1, rank 0 v1$"):
        place_ranks(given, CPU)


def test_a_rank_knows_itself_and_its_facts_can_travel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    own = gather_facts(3, "bell", "abc", is_worker=True)
    assert own.visible == "empty"
    assert (own.rank, own.pid, own.bell, own.config_id) == (3, os.getpid(), "bell", "abc")
    assert own.cores == sorted(os.sched_getaffinity(0))
    assert f"Python {platform.python_version()}" in own.versions
    assert RankFacts(**json.loads(json.dumps(own.__dict__))) == own


def test_a_place_is_a_row_of_plain_values() -> None:
    (only,), _ = place(facts("a"), CPU)
    row = place_row(only)
    assert Place(**row) == only
    assert {type(value) for value in row.values()} == {int, str}

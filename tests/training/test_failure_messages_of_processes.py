"""How processes tell each other why they fail, with a store in this process in the place of the group's."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from torch import distributed as dist

from litpeft.training import failure_messages, processes
from litpeft.training.failure_messages import (
    from_other_ranks,
    publish,
    publish_from_rank_zero,
    rank_zero_reported,
)

LOST = RuntimeError("[gloo] Connection closed by peer [127.0.0.1]")


class Group:
    """A process group whose store is a dictionary, seen by one of its processes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.store = dist.HashStore()
        self.ended, self.slept, self.now = 0, 0.0, 0.0
        self.rank, self.count, self.backend = 0, 3, "gloo"
        monkeypatch.setattr(processes, "rank", lambda: self.rank)
        monkeypatch.setattr(processes, "world_size", lambda: self.count)
        monkeypatch.setattr(failure_messages, "_get_default_store", lambda: self.store)
        monkeypatch.setattr(failure_messages, "fail_early", lambda message: None)
        stand_in = SimpleNamespace(get_backend=lambda: self.backend, destroy_process_group=self.end, Store=dist.Store)
        monkeypatch.setattr(failure_messages, "dist", stand_in)
        monkeypatch.setattr(failure_messages, "time", SimpleNamespace(sleep=self.sleep, monotonic=lambda: self.now))

    def sleep(self, seconds: float) -> None:
        self.slept += seconds
        self.now += seconds

    def end(self) -> None:
        self.ended += 1


@pytest.fixture
def group(monkeypatch: pytest.MonkeyPatch) -> Group:
    return Group(monkeypatch)


def test_the_message_of_another_process_is_its_reason(group: Group) -> None:
    group.rank = 2
    publish("no space left.")
    assert from_other_ranks(LOST) == "another process ended without a message"  # its own message is none of another
    group.rank = 1
    assert from_other_ranks(RuntimeError("anything")) == "process 2: no space left."
    group.rank = 0
    assert from_other_ranks(LOST) == "process 2: no space left."


@pytest.mark.parametrize(
    ("text", "lost"),
    [("Connection closed by peer", True), ("Connection reset by peer", True), ("Broken pipe", True), ("bad shape", False)],
)  # fmt: skip
def test_a_lost_connection_without_a_message_is_another_process(text: str, lost: bool, group: Group) -> None:
    assert from_other_ranks(RuntimeError(text)) == ("another process ended without a message" if lost else None)


def test_a_run_of_one_process_has_no_other(group: Group) -> None:
    group.count = 1
    publish("a message")
    assert from_other_ranks(LOST) is None
    publish_from_rank_zero("a message")
    assert (group.ended, group.slept) == (0, 0)


def test_the_first_process_waits_until_the_others_have_read(group: Group) -> None:
    for rank in (1, 2):
        group.store.set(f"litpeft/heard/{rank}", "yes")
    publish_from_rank_zero("no space left.")
    assert (group.ended, group.slept) == (1, 0)
    assert group.store.get("litpeft/last_word/0") == b"no space left."


def test_but_not_for_ever(group: Group) -> None:
    group.store.set("litpeft/heard/1", "yes")
    publish_from_rank_zero("no space left.")
    assert group.slept == pytest.approx(3.0, abs=0.1)
    group.backend, group.slept = "nccl", 0.0
    publish_from_rank_zero("no space left.")
    assert (group.ended, group.slept) == (1, 0)


def test_another_process_says_nothing_if_the_first_one_does(group: Group) -> None:
    group.rank = 1
    group.store.set("litpeft/last_word/0", "no space left.")
    assert rank_zero_reported("my message") is True
    assert group.store.get("litpeft/heard/1") == b"yes"
    assert (group.ended, group.slept) == (1, pytest.approx(3.0, abs=0.1))  # time for the first one to exit


def test_another_process_speaks_where_the_first_one_is_silent(group: Group) -> None:
    group.rank, group.backend = 1, "nccl"
    assert rank_zero_reported("my message") is False
    assert (group.ended, group.slept) == (0, pytest.approx(10.0, abs=0.1))


def test_a_store_that_is_gone_means_that_the_first_process_has_exited(
    group: Group, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(*_: object) -> bool:
        raise RuntimeError("connection closed")

    group.rank = 1
    monkeypatch.setattr(failure_messages, "_get_default_store", lambda: SimpleNamespace(check=gone, set=gone))
    assert rank_zero_reported("my message") is True


@pytest.mark.parametrize(
    ("variables", "silent"),
    [
        ({}, False), ({"RANK": "0", "LOCAL_RANK": "0"}, False), ({"RANK": "1", "LOCAL_RANK": "1"}, True),
        ({"SLURM_PROCID": "3", "SLURM_LOCALID": "2"}, True), ({"LOCAL_RANK": "1"}, False), ({"RANK": "4"}, False),
    ],
)  # fmt: skip
def test_before_the_group_exists_one_process_of_each_machine_speaks(
    variables: dict[str, str], silent: bool, group: Group, monkeypatch: pytest.MonkeyPatch
) -> None:
    group.count = 1
    for name in ("RANK", "SLURM_PROCID", "LOCAL_RANK", "SLURM_LOCALID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert rank_zero_reported("my message") is silent
    assert group.slept == 3.0


@pytest.mark.parametrize("answer", [True, False])
def test_the_meeting_of_the_start_decides_while_it_lasts(
    answer: bool, group: Group, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    monkeypatch.setattr(failure_messages, "fail_early", lambda message: (told.append(message), answer)[1])
    assert rank_zero_reported("my message") is answer
    assert (told, group.slept) == (["my message"], 0)

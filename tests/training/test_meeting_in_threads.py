"""The meeting of the processes of a run, each of them a thread here: all start, or each ends with the first message."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from litpeft.errors import UserError
from litpeft.training import meeting
from litpeft.training.meeting import Meeting, fail_early, open_meeting, wait_for_all

POLL_SECONDS = meeting.POLL_SECONDS  # seconds between two looks of a process that waits
LOST = "the first process of the run ended before all had started; see its output."


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(meeting, "POLL_SECONDS", 0.01)
    for name in ("TORCHELASTIC_USE_AGENT_STORE", "TORCHELASTIC_RESTART_COUNT"):
        monkeypatch.delenv(name, raising=False)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def process(port: int, rank: int, count: int) -> Meeting:
    place = {"main_address": "127.0.0.1", "main_port": port}
    return Meeting(SimpleNamespace(global_rank=lambda: rank, world_size=lambda: count, **place))


def together(*each: Callable[[], Any]) -> list[Any]:
    """Return what each function returns, or the text of its error, when all run at the same time."""
    results: list[Any] = [None] * len(each)

    def run(place: int) -> None:
        try:
            results[place] = each[place]()
        except UserError as error:
            results[place] = str(error)

    threads = [threading.Thread(target=run, args=(place,)) for place in range(len(each))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not any(thread.is_alive() for thread in threads)
    return results


def test_nobody_goes_on_before_all_are_here(port: int) -> None:
    first, second, third = (process(port, rank, 3) for rank in range(3))
    assert not first.over
    early = threading.Thread(target=together, args=(first.wait, second.wait))
    early.start()
    early.join(0.2)
    assert early.is_alive()
    assert not first.over
    third.wait()
    early.join(30)
    assert [each.over for each in (first, second, third)] == [True] * 3
    third.wait()  # over
    assert third.fail("too late") is False


def test_who_waits_looks_again_in_less_than_a_second(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meeting, "POLL_SECONDS", POLL_SECONDS)  # not the one of the other tests
    first, second = (process(port, rank, 2) for rank in range(2))
    early = threading.Thread(target=first.wait)
    early.start()
    early.join(0.05)
    second.wait()
    early.join(1.0)
    assert first.over
    assert second.over


def test_the_others_end_with_the_message_of_the_process_that_failed(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meeting, "READ_SECONDS", 0.3)
    first, second, third = (process(port, rank, 3) for rank in range(3))
    said = "process 1: a file is missing."
    assert together(first.wait, lambda: second.fail("a file is missing."), third.wait)[::2] == [said, said]


def test_of_two_messages_the_first_is_told(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meeting, "READ_SECONDS", 0.3)
    first, second, third = (process(port, rank, 3) for rank in range(3))
    store = first._connected(5)
    store.set(meeting.FAILED, "process 2: the first message")
    results = together(first.wait, lambda: second.fail("the second message"), third.wait)
    assert results[::2] == ["process 2: the first message"] * 2


def test_a_process_that_failed_is_told_whether_the_first_one_reports_it(port: int) -> None:
    first, second = (process(port, rank, 2) for rank in range(2))
    assert together(lambda: first.fail("one"), lambda: second.fail("two")) == [False, True]


def test_where_nobody_reports_a_process_says_it_itself(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meeting, "READ_SECONDS", 0.3)
    first, second = (process(port, rank, 2) for rank in range(2))
    assert together(first.wait, lambda: second.fail("two")) == ["process 1: two", False]
    assert first.fail("one") is False  # and does not wait for ever for others that read it


def test_without_the_first_process_there_is_no_meeting(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meeting, "CONNECT", meeting.timedelta(seconds=0.3))
    monkeypatch.setattr(meeting, "READ_SECONDS", 0.1)
    alone = process(port, 1, 2)
    assert alone.fail("a message") is False
    assert together(alone.wait) == [LOST]


def test_a_process_that_ends_before_the_first_one_has_started_does_not_wait_for_it(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python waits for the threads of a process at its end, but for daemons."""
    monkeypatch.setattr(meeting, "CONNECT", meeting.timedelta(seconds=0.3))
    before = set(threading.enumerate())
    process(port, 1, 2)
    started = set(threading.enumerate()) - before
    assert started
    assert all(thread.daemon for thread in started)
    for thread in started:
        thread.join(30)


class Gone:
    """A store whose process has ended."""

    def add(self, *_: Any) -> int:
        raise RuntimeError("connection closed")

    check = add


def test_a_store_that_ends_with_the_first_process_is_said(port: int) -> None:
    second = process(port, 1, 2)
    second._store = Gone()
    assert together(second.wait) == [LOST]
    assert second.fail("a message") is False


def test_a_run_of_one_process_meets_nobody(port: int) -> None:
    alone = process(port, 0, 1)
    assert alone.over
    alone.wait()
    assert alone.fail("a message") is False


def test_with_the_store_of_torchrun_the_first_process_serves_none(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    served: list[bool] = []
    monkeypatch.setattr(Meeting, "_connect", lambda self, serve: served.append(serve))
    at_once = lambda target, args, daemon: SimpleNamespace(start=lambda: target(*args))  # noqa: E731
    monkeypatch.setattr(meeting, "threading", SimpleNamespace(Thread=at_once))
    for value, rank, serves in (("True", 0, False), ("False", 0, True), (None, 0, True), (None, 1, False)):
        if value is not None:
            monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", value)
        else:
            monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
        process(port, rank, 2)
        assert served.pop() is serves


def test_a_restarted_run_does_not_read_what_the_one_before_left(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    first = process(port, 0, 2)
    first._connected(5).set(meeting.FAILED, "process 1: before the restart")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    again, other = (process(port, rank, 2) for rank in range(2))
    assert together(again.wait, other.wait) == [None, None]


def test_without_a_launcher_there_is_no_meeting(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TorchElasticEnvironment", "SLURMEnvironment"):
        monkeypatch.setattr(meeting, name, SimpleNamespace(detect=lambda: False))
    open_meeting()
    wait_for_all()
    assert fail_early("a message") is None


@pytest.mark.parametrize("launcher", ["TorchElasticEnvironment", "SLURMEnvironment"])
def test_processes_of_torchrun_and_srun_meet(launcher: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Launched:
        def __new__(cls) -> Any:
            return "the environment"

        @staticmethod
        def detect() -> bool:
            return True

    told: list[str] = []
    made = SimpleNamespace(
        over=False, wait=lambda: told.append("waits"), fail=lambda message: told.append(message) or True
    )
    for name in ("TorchElasticEnvironment", "SLURMEnvironment"):
        monkeypatch.setattr(meeting, name, Launched if name == launcher else SimpleNamespace(detect=lambda: False))
    monkeypatch.setattr(meeting, "Meeting", lambda environment: made if environment == "the environment" else None)
    try:
        open_meeting()
        wait_for_all()
        assert fail_early("a message") is True
        assert told == ["waits", "a message"]
        made.over = True
        assert fail_early("another") is None
    finally:
        monkeypatch.undo()
        meeting._meeting = None

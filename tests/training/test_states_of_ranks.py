"""What each process saves comes back to it; processes beyond those of the saved run get what the first one saved."""

from __future__ import annotations

from typing import Any

import pytest
from torch import distributed as dist

from litpeft.training import processes


@pytest.fixture
def as_rank(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that makes this process one of several, which have these values."""

    def become(rank: int, values: list[Any]) -> None:
        monkeypatch.setattr(dist, "is_initialized", lambda: True)
        monkeypatch.setattr(dist, "get_world_size", lambda: len(values))
        monkeypatch.setattr(dist, "get_rank", lambda: rank)
        monkeypatch.setattr(dist, "all_gather_object", lambda found, value: found.__setitem__(slice(None), values))

    return become


@pytest.mark.parametrize("count", [2, 3])
def test_each_process_gets_its_own_state_back(count: int, as_rank: Any) -> None:
    states = [{"peak": rank * 10} for rank in range(count)]
    as_rank(0, states)
    saved = processes.state_of_all_ranks(states[0])
    assert saved == {"peak": 0, "others": states[1:]}
    for rank in range(count):
        as_rank(rank, states)
        assert processes.state_of_this_rank(saved) == {"peak": rank * 10}


def test_more_processes_than_before_start_from_the_first_ones_state(as_rank: Any) -> None:
    saved = {"peak": 1, "others": [{"peak": 2}]}
    for rank, expected in ((0, 1), (1, 2), (2, 1), (3, 1)):
        as_rank(rank, [{}] * 4)
        assert processes.state_of_this_rank(saved) == {"peak": expected}


def test_one_process_saves_its_state_alone() -> None:
    assert processes.state_of_all_ranks({"peak": 1}) == {"peak": 1}
    assert processes.state_of_this_rank({"peak": 1}) == {"peak": 1}
    assert processes.state_of_this_rank({"peak": 1, "others": [{"peak": 2}]}) == {"peak": 1}
    assert processes.gather_from_ranks(5) == [5]

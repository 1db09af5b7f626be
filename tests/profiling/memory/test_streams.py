"""FSDP2's streams in a trace: numbered, one of them current inside a with block, also after an error."""

from __future__ import annotations

import pytest
import torch

from litpeft.profiling.memory import MemoryTracker
from litpeft.profiling.memory.streams import MAIN, Streams


def test_a_stream_is_current_inside_its_block_only() -> None:
    streams = Streams()
    first, second = streams.Stream(), streams.Stream(priority=-1)
    assert (first.number, second.number, streams.current_stream().number) == (1, 2, MAIN)
    with streams.stream(first):
        assert streams.current_stream() == first
        with streams.stream(second):
            assert streams.current == 2
        with pytest.raises(KeyError), streams.stream(second):
            {}[streams.current_stream()]  # an error
        assert streams.current == 1
    assert streams.current == MAIN == 0


def test_a_tensor_belongs_to_the_stream_in_which_it_was_created() -> None:
    streams = Streams()
    tracker = MemoryTracker(torch.device("meta"), streams)
    with tracker:
        kept = [torch.empty(8, device="meta")]
        with streams.stream(streams.Stream()):
            kept.append(torch.empty(8, device="meta"))
        kept.append(torch.empty(8, device="meta"))
    assert tracker.streams() == [0, 1, 0]


def test_waiting_for_a_stream_or_an_event_returns_at_once() -> None:
    streams = Streams()
    stream, event = streams.Stream(), streams.Event()
    assert event.record(stream) is event
    stream.record_event(event).wait(stream)
    stream.wait_event(event)
    stream.wait_stream(streams.current_stream())
    assert streams.current == MAIN

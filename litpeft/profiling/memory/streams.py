"""FSDP2's streams in a trace: nothing runs in them, but each has blocks of its own in torch's caching allocator."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

MAIN = 0  # number of the stream of forward, backward and the optimizer


class Streams:
    """What FSDP2 uses of `torch.cuda`: numbered streams, one of which is current.

    Attributes:
        current: number of the stream in which tensors are created now.
    """

    def __init__(self) -> None:
        self.current, self._count = MAIN, MAIN
        self.Event = _Event

    def Stream(self, priority: int = 0) -> Any:
        """Return a new stream."""
        self._count += 1
        return _Stream(self._count)

    def current_stream(self) -> Any:
        """Return the current stream."""
        return _Stream(self.current)

    @contextmanager
    def stream(self, stream: Any) -> Iterator[None]:
        """Make a stream current inside the with block."""
        before, self.current = self.current, stream.number
        try:
            yield
        finally:
            self.current = before


class _Event:
    def record(self, *_: Any) -> _Event:
        return self

    def wait(self, *_: Any) -> None: ...


@dataclass(frozen=True)
class _Stream:
    number: int

    def wait_stream(self, stream: Any) -> None: ...

    def wait_event(self, event: Any) -> None: ...

    def record_event(self, *_: Any) -> _Event:
        return _Event()

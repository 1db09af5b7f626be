"""Keep the memory of freed tensors from step to step on a CPU, instead of asking the system for it again.

The C library of Linux returns large blocks to the system when they are freed, and the system fills each page of a new
block with zeros. A step frees and allocates the same tensors as the step before: thousands of pages for a small model.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # numbers of the parameters in malloc.h
KEPT = 1 << 30  # bytes: blocks up to this size, and this much free memory, stay with the process
LARGEST_OF_ITS_OWN = 32 << 20  # bytes: the largest block for which the C library itself raises its limits


@contextmanager
def kept_from_step_to_step(device: str) -> Iterator[None]:
    """Context manager: keep freed memory inside the with block if the model is on a CPU; then return what is free.

    Does nothing where the C library is not GNU's.

    Args:
        device: type of the model's device.
    """
    library = _gnu_library() if device == "cpu" else None
    if library is None:
        yield
        return
    library.mallopt(TRIM_THRESHOLD, KEPT)
    library.mallopt(MMAP_THRESHOLD, KEPT)
    try:
        yield
    finally:
        library.mallopt(MMAP_THRESHOLD, LARGEST_OF_ITS_OWN)
        library.mallopt(TRIM_THRESHOLD, 2 * LARGEST_OF_ITS_OWN)
        library.malloc_trim(0)


def _gnu_library() -> Any:
    """Return the C library of this process if it has the functions; else None."""
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):
            library = ctypes.CDLL(None)
            _ = library.gnu_get_libc_version, library.mallopt, library.malloc_trim
            return library
    return None

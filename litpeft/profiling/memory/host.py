"""Resident memory of this process on the host."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

RSS_UNIT = 1 if sys.platform == "darwin" else 1024  # getrusage(2): bytes on macOS, kibibytes elsewhere
PROC = Path("/proc/self")


def rss_bytes() -> int | None:
    """Return the resident memory in bytes now; None if unknown."""
    statm = PROC / "statm"
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if statm.exists() else None


def peak_rss_bytes() -> int | None:
    """Return the peak resident memory in bytes since the process started or the counter was reset; None if unknown.

    Linux's VmHWM and not getrusage, whose value a process inherits from its parent.
    """
    status = PROC / "status"
    found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text()) if status.exists() else None
    if found:
        return int(found[1]) * 1024
    try:
        import resource  # POSIX only
    except ImportError:
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * RSS_UNIT


def reset_peak_rss() -> bool:
    """Reset the kernel's peak counter to the current value and return True; False if that is not possible."""
    try:
        (PROC / "clear_refs").write_text("5")
    except OSError:  # not Linux, or not permitted in this container
        return False
    return True

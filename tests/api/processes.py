"""Processes that import litpeft."""

from __future__ import annotations

import subprocess
import sys


def modules_after(code: str) -> set[str]:
    """Return the names of the modules that a new process has after some code."""
    ending = "; import sys; print('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code + ending], capture_output=True, text=True, check=True)
    return set(done.stdout.split())

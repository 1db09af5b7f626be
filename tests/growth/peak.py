"""Run a command of litpeft and print its peak memory in bytes on the last line (Linux)."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from litpeft.__main__ import main

if __name__ == "__main__":
    code = main(sys.argv[1:])
    status = Path("/proc/self/status").read_text()  # getrusage would have the peak of the parent, too
    print(1024 * int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]), end="")
    sys.exit(code)

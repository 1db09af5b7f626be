"""Run a command of litpeft and print its peak memory in bytes on the last line."""

from __future__ import annotations

import resource
import sys

from litpeft.__main__ import main

if __name__ == "__main__":
    code = main(sys.argv[1:])
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024), end="")
    sys.exit(code)

"""The curves of a run: `curves.jsonl`, one line per logged step. Does not import torch.

A line has `step` (optimizer steps so far), `tokens` (training tokens so far, without padding), `seconds` (training time
so far) and `values` by name; NaN and infinite values are null. The first line of a file that a run has written from its
start has step 0 and no values.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

FILE_NAME = "curves.jsonl"


def start(run_dir: Path) -> None:
    """Write the first line of a new file."""
    (run_dir / FILE_NAME).write_text(_line(0, 0, 0.0, {}), encoding="utf-8")


def append(run_dir: Path, step: int, tokens: int, seconds: float, values: Mapping[str, float]) -> None:
    """Write a line, to be read by other processes at once."""
    with (run_dir / FILE_NAME).open("a", encoding="utf-8") as file:
        file.write(_line(step, tokens, seconds, values))


def read_lines(run_dir: Path) -> Iterator[dict[str, Any]]:
    """Yield the lines of a file in order; a line that is damaged, or not yet written to its end, is left out."""
    try:
        file = (run_dir / FILE_NAME).open(encoding="utf-8", errors="replace")
    except OSError:  # a run of an older version
        return
    with file:
        for text in file:
            try:
                line = json.loads(text)
            except (ValueError, RecursionError):
                continue
            if isinstance(line, dict) and isinstance(line.get("step"), int) and isinstance(line.get("values"), dict):
                yield line


def _line(step: int, tokens: int, seconds: float, values: Mapping[str, float]) -> str:
    finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
    return json.dumps({"step": step, "tokens": tokens, "seconds": round(seconds, 6), "values": finite}) + "\n"

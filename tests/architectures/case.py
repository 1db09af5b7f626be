"""Run one combination of the matrix in a folder of its own and return its figures, or what failed."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path
from typing import Any

import torch

from tests.architectures.check import check
from tests.architectures.models import ENCODERS, VISION
from tests.architectures.vision import check_vision
from tests.conftest import write_tiny_bert, write_tiny_llama


def run_case(kind: str, adapter: str) -> dict[str, Any] | str:
    """Return the figures of one combination, or the error in one line."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name, open(os.devnull, "w") as nowhere:
        folder = Path(name)
        with contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
            try:
                if kind in VISION:
                    return check_vision(kind, adapter, folder)
                tokenizer = write_tiny_bert(folder / "bert")
                if kind not in ENCODERS:
                    tokenizer = write_tiny_llama(folder / "llama", tokenizer)
                return check(kind, adapter, folder / "case", tokenizer)
            except Exception as error:
                return f"{type(error).__name__}: {' '.join(str(error).split())}"

"""Data of every kind become what was approved: what is told, facts, batches, and the sentence for each mistake.

The files in `approved/` are to be read by a person. After a change that is meant, write them anew and read the
difference: `python -m tests.data.test_approved`.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
from pathlib import Path

import pytest

from litpeft.errors import naming_options
from tests.data.made_data import CASES

APPROVED = Path(__file__).parent.resolve() / "approved"
FIGURES = re.compile(r"\d+\.\d{7,}(e-?\d+)?")


def lines_of(case: str) -> list[str]:
    """Return the lines of a case, made in the working directory; numbers have six digits."""
    with naming_options():
        text = "\n".join(CASES[case]()).replace(os.getcwd(), "FOLDER")
    return FIGURES.sub(lambda number: f"{float(number[0]):.6g}", text).splitlines()


@pytest.mark.parametrize("case", CASES)
def test_data_become_what_was_approved(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert lines_of(case) == (APPROVED / f"{case}.txt").read_text(encoding="utf-8").splitlines()


def main() -> int:
    """Write the files anew."""
    start = os.getcwd()
    for case in CASES:
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
            found = lines_of(case)
            os.chdir(start)
        (APPROVED / f"{case}.txt").write_text("\n".join(found) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

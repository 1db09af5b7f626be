"""The notebooks in docs run from top to bottom in an empty folder, and show what the committed ones show."""

from __future__ import annotations

from pathlib import Path

import pytest

nbclient = pytest.importorskip("nbclient", reason="the package nbclient is not installed")
nbformat = pytest.importorskip("nbformat", reason="the package nbformat is not installed")

NOTEBOOKS = sorted((Path(__file__).parents[2] / "docs" / "notebooks").glob("*.ipynb"))
pytestmark = pytest.mark.slow  # a kernel imports torch


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    book = nbformat.read(path, as_version=4)
    expected = [kinds(cell) for cell in book.cells]
    nbclient.NotebookClient(book, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert [kinds(cell) for cell in book.cells] == expected


def kinds(cell: dict) -> list[str]:
    """Return the kinds of a cell's results; printed lines differ between machines."""
    return sorted({kind for each in cell.get("outputs", ()) for kind in each.get("data", ())})

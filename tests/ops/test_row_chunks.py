"""Tensors are split into the same rows, as many as keep a chunk of the first one small."""

from __future__ import annotations

import pytest
import torch

from litpeft.ops.row_chunks import CHUNK, split_rows


@pytest.mark.parametrize(("device", "most"), [("cpu", CHUNK), ("meta", 64 * CHUNK)])  # meta stands for a GPU
@pytest.mark.parametrize(("parts", "more", "rows"), [(2, 0, 2), (2, 1, 1), (1, 0, 1), (5, 0, 5), (None, 0, 5)])
def test_a_chunk_of_the_first_tensor_has_a_bounded_number_of_numbers(
    parts: int | None, more: int, rows: int, device: str, most: int
) -> None:
    width = most // parts + more if parts else 0
    wide, narrow = torch.empty(5, width, device=device), torch.arange(5)
    chunks = list(split_rows(wide, narrow))
    assert [len(part) for part, _ in chunks] == [rows] * (5 // rows) + [5 % rows] * (5 % rows > 0)
    assert torch.cat([part for _, part in chunks]).tolist() == list(range(5))
    assert len(list(split_rows(narrow, wide))) == 1

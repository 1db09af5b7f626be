"""The file of curves of a run."""

from __future__ import annotations

from pathlib import Path

from litpeft.runs.curve_file import FILE_NAME, append, read_lines, start


def test_lines_are_read_back_and_damaged_ones_are_left_out(tmp_path: Path) -> None:
    assert list(read_lines(tmp_path)) == []
    start(tmp_path)
    append(tmp_path, 10, 640, 1.25, {"train_loss": 0.5, "lr": 1e-4, "odd": float("nan")})
    with (tmp_path / FILE_NAME).open("ab") as file:
        file.write(b'[1]\n{"step": "x", "values": {}}\n\xff\n' + b"[" * 100_000 + b'\n{"step": 20, "tokens": 12')
    assert list(read_lines(tmp_path)) == [
        {"step": 0, "tokens": 0, "seconds": 0.0, "values": {}},
        {"step": 10, "tokens": 640, "seconds": 1.25, "values": {"train_loss": 0.5, "lr": 1e-4, "odd": None}},
    ]

"""Which base weights a model was loaded from, told cheaply: a checkpoint fits no other."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

from litpeft.errors import UserError
from litpeft.hub.hub import local_or_hub

BLOCK = 4096  # bytes; three of each tensor are read


def base_fingerprint(model_name: str) -> str | None:
    """A hash of what a model's weight files hold, for few reads: 14 GB in 300 tensors are 4 MB of them.

    Of safetensors files it takes the header (names, shapes and dtypes of all tensors) and of each tensor the first, the
    middle and the last 4 KiB; of files of another format three such blocks of each 64 MiB, and the size. Names of
    files and folders do not count: a copy is the same base.

    It catches other weights of the same architecture (another pretraining, seed or fine-tuning, in which nearly every
    number differs), another dtype, another architecture, files that were cut short. It does not catch a change that
    lies between the blocks, such as a flipped bit or a single edited row of a large tensor.

    Args:
        model_name: as `model.model_name`.

    Returns:
        None where no weight files are found, as for a task that draws its own weights.
    """
    folder = _folder(model_name)
    files = _weight_files(folder) if folder is not None else []
    parts = sorted(part for file in files for part in (_tensors(file) if file.suffix == ".safetensors" else _raw(file)))
    if not parts:
        return None
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


def _folder(model_name: str) -> Path | None:
    try:
        path = local_or_hub(model_name, "model.model_name")
    except UserError:
        return None
    if os.path.isdir(path):
        return Path(path)
    from transformers.utils import cached_file  # from the cache alone: what has just been loaded lies there

    config = cached_file(path, "config.json", local_files_only=True, _raise_exceptions_for_missing_entries=False)
    return Path(config).parent if config else None


def _weight_files(folder: Path) -> list[Path]:
    """Those that transformers reads: the shards that an index names, else the one file."""
    for stem in ("model.safetensors", "pytorch_model.bin"):
        if (index := folder / f"{stem}.index.json").is_file():
            names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
            return [folder / name for name in sorted(names)]
        if (folder / stem).is_file():
            return [folder / stem]
    return []


def _tensors(file: Path) -> Iterator[str]:
    """One line a tensor; see https://huggingface.co/docs/safetensors/index#format for the header."""
    with open(file, "rb") as opened:
        size = int.from_bytes(opened.read(8), "little")
        header = json.loads(opened.read(size))
        header.pop("__metadata__", None)
        for name, told in header.items():
            begin, end = (8 + size + offset for offset in told["data_offsets"])
            yield f"{name} {told['dtype']} {told['shape']} {_blocks(opened, begin, end)}"


def _raw(file: Path) -> Iterator[str]:
    size, step = file.stat().st_size, 64 * 2**20
    with open(file, "rb") as opened:
        for begin in range(0, size, step):
            yield f"{size} {begin} {_blocks(opened, begin, min(size, begin + step))}"


def _blocks(opened: object, begin: int, end: int) -> str:
    digest = hashlib.sha256()
    last = max(begin, end - BLOCK)
    for start in sorted({begin, (begin + last) // 2, last}):
        opened.seek(start)
        digest.update(opened.read(min(BLOCK, end - start)))
    return digest.hexdigest()

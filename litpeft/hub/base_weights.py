"""A cheap fingerprint of base weights; a checkpoint can only be loaded onto the base it was trained on."""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from litpeft.errors import UserError
from litpeft.hub.hub import local_or_hub

if TYPE_CHECKING:
    from torch import Tensor

BLOCK = 4096  # bytes; three blocks of each tensor are read


def base_fingerprint(model_name: str) -> str | None:
    """Return a hash of samples of a model's weight files; None if there are no weight files.

    The hash covers the header of a safetensors file (names, shapes and dtypes of all tensors) and the first, middle and
    last 4 KiB of each tensor; for other formats, the size and three blocks of each 64 MiB. For 14 GB in 300 tensors
    this reads 4 MB. Names of files and folders do not matter, so a copy has the same fingerprint.

    It detects another pretraining, random seed, fine-tuning, dtype or architecture, and truncated files. It does not
    detect a change between the blocks, such as a flipped bit or one edited row of a large tensor.

    Args:
        model_name: the model's name, as in `model.model_name`.
    """
    files = weight_files(model_name)
    parts = sorted(part for file in files for part in (_tensors(file) if file.suffix == ".safetensors" else _raw(file)))
    if not parts:
        return None
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


def weight_files(model_name: str) -> list[Path]:
    """Return the weight files of a model on this machine; an empty list if it has none here, or only some shards.

    Args:
        model_name: the model's name, as in `model.model_name`.
    """
    folder = _folder(model_name)
    files = _weight_files(folder) if folder is not None else []
    return files if all(file.is_file() for file in files) else []


def tensors_without_data(files: list[Path]) -> dict[str, Tensor]:
    """Return the tensors of weight files by name, as meta tensors: only the headers of the files are read.

    Raises:
        SafetensorError, OSError, pickle.UnpicklingError: a file is damaged.
    """
    import torch
    from transformers.modeling_utils import load_state_dict

    tensors: dict[str, Tensor] = {}
    for file in files:
        if file.suffix == ".safetensors":
            tensors |= load_state_dict(str(file), map_location="meta")
        else:  # files older than torch 1.6 are no zip files and cannot be memory-mapped
            zipped = zipfile.is_zipfile(file)
            tensors |= torch.load(file, map_location="meta", weights_only=True, mmap=zipped)
    return tensors


def _folder(model_name: str) -> Path | None:
    try:
        path = local_or_hub(model_name, "model.model_name")
    except UserError:
        return None
    if os.path.isdir(path):
        return Path(path)
    from transformers.utils import cached_file  # from the cache only: the model has just been loaded

    config = cached_file(path, "config.json", local_files_only=True, _raise_exceptions_for_missing_entries=False)
    return Path(config).parent if config else None


def _weight_files(folder: Path) -> list[Path]:
    """Return the files that transformers reads: the shards listed in an index, or the single file."""
    for stem in ("model.safetensors", "pytorch_model.bin"):
        if (index := folder / f"{stem}.index.json").is_file():
            names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
            return [folder / name for name in sorted(names)]
        if (folder / stem).is_file():
            return [folder / stem]
    return []


def _tensors(file: Path) -> Iterator[str]:
    """Yield one line per tensor; https://huggingface.co/docs/safetensors/index#format describes the header."""
    with open(file, "rb") as stream:
        size = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(size))
        header.pop("__metadata__", None)
        for name, entry in header.items():
            start, end = (8 + size + offset for offset in entry["data_offsets"])
            yield f"{name} {entry['dtype']} {entry['shape']} {_hash_of_blocks(stream, start, end)}"


def _raw(file: Path) -> Iterator[str]:
    size, step = file.stat().st_size, 64 * 2**20
    with open(file, "rb") as stream:
        for start in range(0, size, step):
            yield f"{size} {start} {_hash_of_blocks(stream, start, min(size, start + step))}"


def _hash_of_blocks(stream: BinaryIO, start: int, end: int) -> str:
    """Hash the first, the middle and the last block between two positions of a file."""
    digest = hashlib.sha256()
    last = max(start, end - BLOCK)
    for position in sorted({start, (start + last) // 2, last}):
        stream.seek(position)
        digest.update(stream.read(min(BLOCK, end - position)))
    return digest.hexdigest()

"""Tokenise once: tables of token ids on disk, found again by what they were made of."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
from transformers import PreTrainedTokenizerBase

FORMAT = 1  # raise it when the columns of a cached table change


def default_cache_dir() -> Path:
    """`$LITPEFT_CACHE`, else `litpeft` in the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("LITPEFT_CACHE") or Path(base) / "litpeft")


def fingerprint(*parts: Any) -> str:
    """A name for a table: the hash of everything that it depends on."""
    text = json.dumps([FORMAT, *parts], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def file_fingerprint(path: str | Path) -> str:
    """The hash of a file's bytes: a copy or a touched file is the same text."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """The hash of all that a tokenizer does: its rules and vocabulary, not the name that it was loaded by."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        rules: Any = [tokenizer.get_vocab(), tokenizer.special_tokens_map]
    else:
        rules = json.loads(backend.to_str())
        rules.pop("truncation"), rules.pop("padding")  # what the last call asked for, no property of the tokenizer
    return fingerprint(type(tokenizer).__name__, rules)


def cached_table(
    folder: Path, make: Callable[[], tuple[datasets.Dataset, dict[str, Any]]]
) -> tuple[datasets.Dataset, dict[str, Any]]:
    """The table and its facts in `folder`, made by `make` if it is not there yet.

    It appears whole or not at all: it is written beside its place and renamed, so a killed process leaves nothing that
    is taken for a table, and of two that make the same one, the first to finish wins.
    """
    if not (folder / "facts.json").is_file():
        table, facts = make()
        folder.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=".making-", dir=folder.parent))
        try:
            table.save_to_disk(str(scratch / "table"))
            (scratch / "facts.json").write_text(json.dumps(facts))
            try:
                scratch.rename(folder)
            except OSError:
                if not (folder / "facts.json").is_file():
                    raise
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return datasets.load_from_disk(str(folder / "table")), json.loads((folder / "facts.json").read_text())

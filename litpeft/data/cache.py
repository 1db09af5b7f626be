"""Tokenise once: tables of token ids on disk, found again by what they were made of."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
from transformers import PreTrainedTokenizerBase

from litpeft.errors import first_sentence
from litpeft.runs.atomic_write import damage, remove_folder, whole_folder

FORMAT = 1  # raise it when the columns of a cached table change


def fingerprint(*parts: Any) -> str:
    """A name for a table: the hash of everything that it depends on."""
    text = json.dumps([FORMAT, *parts], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


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

    It appears whole or not at all, so a killed process leaves nothing that is taken for a table; of two that make the
    same one, the first to finish wins. One that is no longer what was written, or no table, is made again.
    """
    if folder.exists():
        harm = damage(folder)
        try:
            if harm is None:
                return _read(folder)
        except Exception as error:  # sums that fit, and no table: what bytes of other origin raise is of many kinds
            harm = first_sentence(error)
        print(f"litpeft: the table {folder}: {harm}; it is made again.", file=sys.stderr)
        remove_folder(folder)
    table, facts = make()
    with whole_folder(folder, replace=False) as scratch:
        table.save_to_disk(str(scratch / "table"))
        (scratch / "facts.json").write_text(json.dumps(facts), encoding="utf-8")
    return _read(folder)


def _read(folder: Path) -> tuple[datasets.Dataset, dict[str, Any]]:
    return datasets.load_from_disk(str(folder / "table")), json.loads((folder / "facts.json").read_text("utf-8"))

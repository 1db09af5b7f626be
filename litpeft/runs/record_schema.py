"""What kinds of values a run record and the files beside it hold: others are refused where they are read.

All that reads a record (tables, tests, pages, resuming) takes them as they are here. Any of them may be null but those
whose name ends in `!`, which must be there.
"""

from __future__ import annotations

import math
from typing import Any

NUMBER, WHOLE, TEXT, FLAG = "a number", "a whole number", "text", "true or false"
LARGEST = 1e100  # of any number: its square, and a sum of such, is a float too
ANY = "anything"
OTHERS = ...  # in a mapping: what its other names hold

EVALUATION = {
    **{"step!": WHOLE, "seconds": NUMBER, "skipped": {OTHERS: TEXT}},
    "results!": {
        OTHERS: {
            **{"scores!": {OTHERS: NUMBER}, "standard_errors": {OTHERS: NUMBER}, "items": WHOLE, "num_fewshot": ANY},
            **{"fingerprint": TEXT, "tasks": [TEXT]},
        }
    },
}
PHASE = {OTHERS: ANY, "tensor_bytes": {OTHERS: NUMBER}, "peak_tensor_bytes": NUMBER}
RECORD = {
    OTHERS: NUMBER,
    **dict.fromkeys(("version", "seed", "steps", "val_step", "trainable_params", "total_params"), WHOLE),
    **dict.fromkeys(("adapter_bytes", "model_bytes", "effective_batch_size", "sampled_steps"), WHOLE),
    **dict.fromkeys(("status", "error", "started_at", "experiment", "run_name", "adapter", "task", "model_name"), TEXT),
    **dict.fromkeys(("data", "optimizer", "scheduler", "precision", "val_examples", "checkpoint", "selection"), TEXT),
    **{"processes": WHOLE, "strategy": TEXT, "peaks_by_process": [{OTHERS: NUMBER}]},
    **{name: {OTHERS: ANY} for name in ("adapter_options", "config", "machine", "git", "packages")},
    "adapter_summary": {OTHERS: ANY, "quantised": {"layers!": WHOLE, "params!": WHOLE, "bytes!": WHOLE}},
    "data_summary": {
        **{OTHERS: ANY, "rows": {OTHERS: WHOLE}, "label_names": [TEXT]},
        "tables": {OTHERS: {OTHERS: ANY, "fingerprint": TEXT}},
    },
    "optimizer_settings": [{OTHERS: ANY, "lr": NUMBER, "initial_lr": NUMBER}],
    "memory_phases": {OTHERS: PHASE},
    "tracked_steps": [WHOLE],
    "new_tensors": [TEXT],
    "step_split_seconds_p50": {OTHERS: NUMBER},
    "step_split_seconds_p95": {OTHERS: NUMBER},
    "energy_joules_by_source": {OTHERS: NUMBER},
    "validations": [{OTHERS: NUMBER}],
    "benchmarks": [EVALUATION],
    "other_metrics": {OTHERS: NUMBER},
}
VAL_EXAMPLES = {OTHERS: ANY, "step!": WHOLE, "table!": TEXT, "loss!": [NUMBER], "correct": [NUMBER]}
ITEMS = {OTHERS: {OTHERS: [NUMBER], "fingerprint": TEXT}}
SWEEP = {
    **{OTHERS: ANY, "experiment!": ANY, "question": TEXT, "target": {OTHERS: ANY}},
    "trials!": [{"name!": ANY, "label!": ANY, "axes": {OTHERS: ANY}}],
    "published": {"source": TEXT, "note": TEXT, "rows": [{OTHERS: ANY, "label!": ANY}]},
}


def misfit(value: Any, shape: Any, at: str = "") -> str | None:
    """What of a value is not of this shape, in words; None where all is.

    Args:
        value: as JSON gives it.
        shape: a kind of value; a list of a shape; or a mapping from names to shapes.
        at: where the value stands.
    """
    if value is None or shape is ANY:
        return None
    place = at or "it"
    if isinstance(shape, list):
        if not isinstance(value, list):
            return f"{place} must be a list"
        items = (_misfit_of_item(item, shape[0], f"{at}[{i}]") for i, item in enumerate(value))
        return next(filter(None, items), None)
    if isinstance(shape, dict):
        return (
            _misfit_of_mapping(value, shape, at) if isinstance(value, dict) else f"{place} must hold names and values"
        )
    kinds = {NUMBER: (int, float), WHOLE: int, TEXT: str, FLAG: bool}[shape]
    if not isinstance(value, kinds) or (isinstance(value, bool) and shape is not FLAG):
        return f"{place} must be {shape}, not {type(value).__name__}"
    if isinstance(value, str) and not is_utf8(value):
        return f"{place} holds half a character, which is not UTF-8"
    if isinstance(value, (int, float)) and not abs(value) < LARGEST:
        return f"{place} must be {shape}, and is {'no number' if math.isnan(value) else 'too large'}"
    return None


def _misfit_of_item(value: Any, shape: Any, at: str) -> str | None:
    """Of one of many, in a list or a mapping: one that must hold something is not null."""
    if value is None and isinstance(shape, dict):
        return f"{at} must hold names and values"
    return misfit(value, shape, at)


def is_utf8(text: str) -> bool:
    """JSON's escapes can write half of a pair of surrogates, which neither a tokenizer nor a file takes."""
    return text.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in text)


def _misfit_of_mapping(value: dict[str, Any], shape: dict[Any, Any], at: str) -> str | None:
    known = {name.removesuffix("!"): (kind, name.endswith("!")) for name, kind in shape.items() if name is not OTHERS}
    for name, (_, needed) in known.items():
        if needed and value.get(name) is None:
            return f"{at or 'it'} lacks {name}"
    for name, item in value.items():
        if not is_utf8(str(name)):  # a name in YAML may be a number
            return f"a name in {at or 'it'} holds half a character, which is not UTF-8"
        place = f"{at}.{name}".lstrip(".")
        others = shape.get(OTHERS, ANY)
        told = misfit(item, known[name][0], place) if name in known else _misfit_of_item(item, others, place)
        if told:
            return told
    return None

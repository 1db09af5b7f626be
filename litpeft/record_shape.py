"""What kinds of values a run record and the files beside it hold: others are refused where they are read.

All that reads a record (tables, tests, pages, resuming) takes them as they are here. Any of them may be null but those
whose name ends in `!`, which must be there.
"""

from __future__ import annotations

import math
from typing import Any

NUMBER, WHOLE, TEXT, FLAG = "a number", "a whole number", "text", "true or false"
ANY = "anything"
OTHERS = ...  # in a mapping: what its other names hold

EVALUATION = {
    **{"step!": WHOLE, "seconds!": NUMBER, "skipped!": {OTHERS: TEXT}},
    "results!": {
        OTHERS: {
            **{"scores!": {OTHERS: NUMBER}, "standard_errors!": {OTHERS: NUMBER}, "items": WHOLE, "num_fewshot": ANY},
            **{"fingerprint!": TEXT, "tasks!": [TEXT]},
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
        return next((told for i, item in enumerate(value) if (told := misfit(item, shape[0], f"{at}[{i}]"))), None)
    if isinstance(shape, dict):
        return (
            _misfit_of_mapping(value, shape, at) if isinstance(value, dict) else f"{place} must hold names and values"
        )
    kinds = {NUMBER: (int, float), WHOLE: int, TEXT: str, FLAG: bool}[shape]
    if not isinstance(value, kinds) or (isinstance(value, bool) and shape is not FLAG):
        return f"{place} must be {shape}, not {type(value).__name__}"
    if isinstance(value, str) and not is_utf8(value):
        return f"{place} holds half a character, which is not UTF-8"
    if isinstance(value, (int, float)) and not abs(value) < 2**1023:  # all that a float can hold
        return f"{place} must be {shape}, and is {'no number' if math.isnan(value) else 'too large'}"
    return None


def is_utf8(text: str) -> bool:
    """JSON's escapes can write half of a pair of surrogates, which neither a tokenizer nor a file takes."""
    return text.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in text)


def _misfit_of_mapping(value: dict[str, Any], shape: dict[Any, Any], at: str) -> str | None:
    known = {name.removesuffix("!"): (kind, name.endswith("!")) for name, kind in shape.items() if name is not OTHERS}
    for name, (_, needed) in known.items():
        if needed and value.get(name) is None:
            return f"{at or 'it'} lacks {name}"
    for name, item in value.items():
        if not is_utf8(name):
            return f"a name in {at or 'it'} holds half a character, which is not UTF-8"
        kind = known[name][0] if name in known else shape.get(OTHERS, ANY)
        if told := misfit(item, kind, f"{at}.{name}".lstrip(".")):
            return told
    return None

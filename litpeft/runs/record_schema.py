"""Types of the values in run records and related files, and a check of a value against them.

A value may be null or missing unless its name in the schema ends in `!`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

NUMBER, WHOLE, TEXT, FLAG = "a number", "a whole number", "text", "true or false"
LARGEST = 1e100  # limit of any number, so that sums of squares do not overflow
NUMBER_TYPES, WHOLE_TYPES = {float, int, type(None)}, {int, type(None)}
ANY = "anything"
OTHERS = ...  # in a mapping: schema of the values of all names that are not listed

EVALUATION = {
    **{"step!": WHOLE, "seconds": NUMBER, "skipped": {OTHERS: TEXT}},
    "results!": {
        OTHERS: {
            **{"scores!": {OTHERS: NUMBER}, "standard_errors": {OTHERS: NUMBER}, "items": WHOLE, "num_fewshot": ANY},
            **{"fingerprint": TEXT, "tasks": [TEXT], "items_of": {OTHERS: WHOLE}},
        }
    },
}
PHASE = {OTHERS: ANY, "tensor_bytes": {OTHERS: NUMBER}, "peak_tensor_bytes": NUMBER}
RECORD = {
    OTHERS: NUMBER,
    **dict.fromkeys(("version", "seed", "steps", "val_step", "trainable_params", "total_params"), WHOLE),
    **dict.fromkeys(("adapter_bytes", "model_bytes", "effective_batch_size", "sampled_steps", "skipped_steps"), WHOLE),
    **dict.fromkeys(("status", "error", "started_at", "experiment", "run_name", "adapter", "task", "model_name"), TEXT),
    **dict.fromkeys(("data", "optimizer", "scheduler", "precision", "val_examples", "checkpoint", "selection"), TEXT),
    "kernels": TEXT,
    **{"processes": WHOLE, "strategy": TEXT, "base": TEXT, "tf32": FLAG, "peaks_by_process": [{OTHERS: NUMBER}]},
    **{name: {OTHERS: ANY} for name in ("adapter_options", "config", "machine", "git", "packages")},
    "adapter_summary": {OTHERS: ANY, "quantised": {"layers!": WHOLE, "params!": WHOLE, "bytes!": WHOLE}},
    "data_summary": {
        **{OTHERS: ANY, "rows": {OTHERS: WHOLE}, "label_names": [TEXT]},
        "tables": {OTHERS: {OTHERS: ANY, "fingerprint": TEXT}},
    },
    "optimizer_settings": [{OTHERS: ANY, "lr": NUMBER, "initial_lr": NUMBER}],
    "memory_phases": {OTHERS: PHASE},
    "tracked_steps": [WHOLE],
    "stream": {OTHERS: WHOLE},
    "new_tensors": [TEXT],
    "head_labels": {"matched_by!": TEXT, "names!": {OTHERS: TEXT}},
    "step_split_seconds_p50": {OTHERS: NUMBER},
    "step_split_seconds_p95": {OTHERS: NUMBER},
    "energy_joules_by_source": {OTHERS: NUMBER},
    "validations": [{OTHERS: NUMBER}],
    "benchmarks": [EVALUATION],
    "other_metrics": {OTHERS: NUMBER},
    "merged_evaluation": {"adapter": {OTHERS: NUMBER}, "merged": {OTHERS: NUMBER}},
    **{"main_metrics": [TEXT], "metric_directions": {OTHERS: TEXT}, "confusion_matrix": TEXT, "image_grid": TEXT},
}
VAL_EXAMPLES = {
    OTHERS: ANY,
    "step!": WHOLE,
    "table!": TEXT,
    "loss!": [NUMBER],
    "correct": [NUMBER],
    "wrong": [{OTHERS: ANY}],
}
ITEMS = {OTHERS: {OTHERS: [NUMBER], "fingerprint": TEXT}}
TUNED = {
    **{OTHERS: ANY, "metric": TEXT, "seeds": [WHOLE], "chosen": {OTHERS: ANY}, "edges": {OTHERS: TEXT}},
    "tried": [{"values!": {OTHERS: ANY}, "mean": NUMBER, "runs": WHOLE}],
}
SWEEP = {
    **{OTHERS: ANY, "experiment!": ANY, "question": TEXT, "target": {OTHERS: ANY}},
    "trials!": [{"name!": ANY, "label!": ANY, "axes": {OTHERS: ANY}, "tuned": TUNED}],
    "published": {"source": TEXT, "note": TEXT, "rows": [{OTHERS: ANY, "label!": ANY}]},
}


def acceptor(schema: Any) -> Callable[[Any], bool]:
    """Return a function that is True only for values that match a schema; where it is False, `schema_error` decides.

    The function is for values parsed from JSON, and takes a tenth of the time of `schema_error`.
    """
    if schema is ANY:
        return lambda value: True
    if schema in ([NUMBER], [WHOLE]):
        kinds = NUMBER_TYPES if schema == [NUMBER] else WHOLE_TYPES
        return lambda value: value is None or (type(value) is list and _are_numbers(value, kinds))
    if schema == {OTHERS: NUMBER}:
        return lambda value: (
            value is None
            or (type(value) is dict and _are_numbers(value.values(), NUMBER_TYPES) and "".join(value).isascii())
        )
    if isinstance(schema, list):
        item = _item_acceptor(schema[0])
        return lambda value: value is None or (type(value) is list and all(map(item, value)))
    if isinstance(schema, dict):
        return _mapping_acceptor(schema)
    if schema == NUMBER:
        return lambda value: value is None or (type(value) in (float, int) and -LARGEST < value < LARGEST)
    if schema == WHOLE:
        return lambda value: value is None or (type(value) is int and -LARGEST < value < LARGEST)
    if schema == FLAG:
        return lambda value: value is None or type(value) is bool
    return lambda value: value is None or (type(value) is str and is_utf8(value))


def _are_numbers(values: Collection[Any], kinds: set[type]) -> bool:
    """Return whether all values are null or finite numbers of these types, and their sum is not too large."""
    try:
        return set(map(type, values)) <= kinds and sum(map(abs, filter(None, values))) < LARGEST  # False with a NaN
    except OverflowError:  # a whole number of hundreds of digits
        return False


def _item_acceptor(schema: Any) -> Callable[[Any], bool]:
    accepts = acceptor(schema)
    return (lambda value: value is not None and accepts(value)) if isinstance(schema, dict) else accepts


def _mapping_acceptor(schema: dict[Any, Any]) -> Callable[[Any], bool]:
    named = {name.removesuffix("!"): acceptor(kind) for name, kind in schema.items() if name is not OTHERS}
    needed = [name.removesuffix("!") for name in schema if name is not OTHERS and name.endswith("!")]
    other = _item_acceptor(schema.get(OTHERS, ANY))

    def accepts(value: Any) -> bool:
        if type(value) is not dict:
            return value is None
        if any(value.get(name) is None for name in needed):
            return False
        items = value.items()
        return all(type(name) is str and name.isascii() and named.get(name, other)(each) for name, each in items)

    return accepts


def schema_error(value: Any, schema: Any, at: str = "") -> str | None:
    """Return in what a value differs from a schema, as a phrase; None if it matches.

    Args:
        value: value parsed from JSON or YAML.
        schema: a type (`NUMBER`, ...), a list that holds the schema of its items, or a mapping from names to schemas.
        at: dotted path of the value, for the phrase.
    """
    if value is None or schema is ANY:
        return None
    place = at or "it"
    if isinstance(schema, list):
        if not isinstance(value, list):
            return f"{place} must be a list"
        items = (_item_error(item, schema[0], f"{at}[{i}]") for i, item in enumerate(value))
        return next(filter(None, items), None)
    if isinstance(schema, dict):
        return _mapping_error(value, schema, at) if isinstance(value, dict) else f"{place} must be a mapping"
    kinds = {NUMBER: (int, float), WHOLE: int, TEXT: str, FLAG: bool}[schema]
    if not isinstance(value, kinds) or (isinstance(value, bool) and schema is not FLAG):
        return f"{place} must be {schema}, not {type(value).__name__}"
    if isinstance(value, str) and not is_utf8(value):
        return f"{place} holds a lone surrogate, which is not valid UTF-8"
    if isinstance(value, (int, float)) and not abs(value) < LARGEST:
        return f"{place} must be {schema}, but is {'too large' if value == value else 'NaN'}"
    return None


def _item_error(value: Any, schema: Any, at: str) -> str | None:
    """Check one item of a list or mapping; unlike a named value, a mapping among the items must not be null."""
    if value is None and isinstance(schema, dict):
        return f"{at} must be a mapping"
    return schema_error(value, schema, at)


def is_utf8(text: str) -> bool:
    """Return whether a text can be encoded as UTF-8; a JSON escape can write a lone surrogate, which cannot."""
    return text.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in text)


def _mapping_error(value: dict[str, Any], schema: dict[Any, Any], at: str) -> str | None:
    known = {name.removesuffix("!"): (kind, name.endswith("!")) for name, kind in schema.items() if name is not OTHERS}
    for name, (_, needed) in known.items():
        if needed and value.get(name) is None:
            return f"{at or 'it'} lacks {name}"
    for name, item in value.items():
        if not is_utf8(str(name)):  # YAML allows numbers as names
            return f"a name in {at or 'it'} holds a lone surrogate, which is not valid UTF-8"
        place = f"{at}.{name}".lstrip(".")
        others = schema.get(OTHERS, ANY)
        error = schema_error(item, known[name][0], place) if name in known else _item_error(item, others, place)
        if error:
            return error
    return None

"""Checks of a checkpoint: it is complete, and it belongs to these base weights and this adapter."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from litpeft.adapters import Adapter
from litpeft.adapters.bases import Base
from litpeft.errors import UserError


def origin(base_fingerprint: str | None, adapter: Adapter, base: Base | None = None) -> dict[str, Any]:
    """Return the fingerprint of the base weights, the adapter's options and the base's, saved with a checkpoint."""
    return {
        "base": base_fingerprint,
        "adapter": {"class": type(adapter).__name__} | _plain(adapter.settings()),
        "quantisation": None if base is None else _plain(base.settings()),
    }


def check_origin(
    saved: dict[str, Any], base_fingerprint: str | None, adapter: Adapter, model_name: str, base: Base | None = None
) -> None:
    """Check that a checkpoint belongs to these base weights and this adapter.

    Args:
        saved: the result of `origin` when the checkpoint was written.
        base_fingerprint: hash of the base weights that are loaded now.
        adapter: the adapter that is used now.
        model_name: name of the base model, for the error message.
        base: how the frozen weights are held now (`model.base`).

    Raises:
        UserError: the base weights or an adapter option differ; the message names the difference.
    """
    current = origin(base_fingerprint, adapter, base)
    if saved["base"] != current["base"]:
        raise UserError(
            f"model.model_name {model_name}: these are not the base weights that the checkpoint was trained on "
            f"(fingerprint {current['base']}, not {saved['base']}); give the model that it was trained on."
        )
    held, holds = saved.get("quantisation"), current["quantisation"]  # absent in checkpoints of 0.1.0
    if held != holds:
        raise UserError(
            f"model.base is {holds or 'null'}, but the checkpoint was trained with {held or 'null'}; "
            "give the value of the checkpoint."
        )
    before, now = saved["adapter"], current["adapter"]
    for name in [key for key in before | now if before.get(key) != now.get(key)]:
        option = "model.adapter" if name == "class" else f"model.adapter.{name}"
        raise UserError(
            f"{option} is {now.get(name)}, but the checkpoint was trained with {before.get(name)}; "
            "give the value of the checkpoint."
        )


def check_complete(saved: Iterable[str], expected: Iterable[str]) -> None:
    """Check that no trained tensor was removed from a checkpoint, for example by a callback.

    Args:
        saved: names of the tensors in the checkpoint.
        expected: names of the tensors that a resumed run loads.

    Raises:
        RuntimeError: a tensor is missing.
    """
    if missing := sorted(set(expected) - set(saved)):
        raise RuntimeError(
            f"the checkpoint would lack {len(missing)} trained tensors ({missing[0]}, ...); a callback removed them, "
            "and nothing is saved"
        )


def _plain(value: Any) -> Any:
    """Return the value as `torch.load(weights_only=True)` can read it; other objects become their class name."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value if isinstance(value, (int, float, str, bool, type(None))) else type(value).__name__

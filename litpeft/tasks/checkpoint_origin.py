"""What a checkpoint was made with: it fits the same base weights and the same adapter, and no other."""

from __future__ import annotations

from typing import Any

from litpeft.adapters import Adapter
from litpeft.errors import UserError


def origin(base_fingerprint: str | None, adapter: Adapter) -> dict[str, Any]:
    """Return what is saved with a checkpoint to identify the base weights and the adapter that it belongs to."""
    return {"base": base_fingerprint, "adapter": {"class": type(adapter).__name__} | _plain(adapter.settings())}


def check_origin(saved: dict[str, Any], base_fingerprint: str | None, adapter: Adapter, model_name: str) -> None:
    """Check that a checkpoint belongs to these base weights and this adapter.

    Args:
        saved: what `origin` returned when the checkpoint was written.
        base_fingerprint: hash of the base weights that are loaded now.
        adapter: the adapter that is used now.
        model_name: name of the base model, for the error message.

    Raises:
        UserError: the base weights or an adapter option differ; the message names the difference.
    """
    made, now = saved, origin(base_fingerprint, adapter)
    if made["base"] != now["base"]:
        raise UserError(
            f"model.model_name {model_name}: these are not the base weights that the checkpoint was made with "
            f"(fingerprint {now['base']}, and not {made['base']}); give the model that it was trained on."
        )
    before, here = made["adapter"], now["adapter"]
    for name in [key for key in before | here if before.get(key) != here.get(key)]:
        option = "model.adapter" if name == "class" else f"model.adapter.{name}"
        raise UserError(
            f"{option} is {here.get(name)}, but the checkpoint was made with {before.get(name)}; give the same."
        )


def _plain(value: Any) -> Any:
    """As `torch.load` reads it back with `weights_only`; objects of other kinds by their class."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value if isinstance(value, (int, float, str, bool, type(None))) else type(value).__name__

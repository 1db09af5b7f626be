"""What a checkpoint was made with: it fits the same base weights and the same adapter, and no other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from litpeft.errors import UserError

if TYPE_CHECKING:
    from litpeft.tasks.base import FineTuner


def origin(task: FineTuner) -> dict[str, Any]:
    """Kept with a checkpoint."""
    return {"base": task.base, "adapter": {"class": type(task.adapter).__name__} | _plain(task.adapter.settings())}


def check_origin(task: FineTuner, checkpoint: dict[str, Any]) -> None:
    """Whether a checkpoint was made with this base and adapter.

    Raises:
        UserError: it was not; the message says in what it differs.
    """
    made, now = checkpoint["origin"], origin(task)
    if made["base"] != now["base"]:
        raise UserError(
            f"model.model_name {task.model_name}: these are not the base weights that the checkpoint was made with "
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

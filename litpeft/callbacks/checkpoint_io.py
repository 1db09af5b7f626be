"""The checkpoint format on disk: how a checkpoint is written, checked and read."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from litpeft.errors import UserError, first_sentence
from litpeft.runs.atomic_write import SUMS, damage, remove_folder, whole_folder
from litpeft.runs.folder import STEP, checkpoints

TENSORS, LOOP = "trainable.safetensors", "loop.pt"


class FolderCheckpointIO(TorchCheckpointIO):
    """Store a checkpoint as a folder: `trainable.safetensors`, `loop.pt` (everything else) and `SHA256SUMS`.

    The folder is written under a temporary name, flushed and renamed, so a killed process leaves no partial checkpoint.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        rest = dict(checkpoint)
        tensors = {name: tensor.contiguous() for name, tensor in rest.pop("state_dict").items()}
        with whole_folder(Path(path)) as scratch:
            try:
                save_file(tensors, str(scratch / TENSORS), metadata={"format": "pt"})
            except SafetensorError as error:
                raise _as_os_error(error, path) from error
            with open(scratch / LOOP, "wb") as file:  # with a path, torch hides the reason of a write error
                torch.save(rest, file)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Read a checkpoint. No code in it is executed.

        Raises:
            UserError: the checkpoint is damaged; the message names the checkpoint before it.
        """
        path = Path(path)
        if reason := damage(path):
            raise UserError(f"the checkpoint {path} cannot be used: {reason}; {_remedy(path)}.")
        try:
            rest = torch.load(path / LOOP, map_location=map_location or "cpu", weights_only=True)
            return rest | {"state_dict": load_file(path / TENSORS)}
        except Exception as error:  # damaged bytes raise many kinds of errors
            reason = first_sentence(error)
            raise UserError(f"the checkpoint {path} cannot be read: {reason}; {_remedy(path)}.") from error

    def remove_checkpoint(self, path: Any) -> None:
        remove_folder(Path(path))


def _as_os_error(error: SafetensorError, path: Any) -> Exception:
    """Return the operating system error in a message of safetensors: "I/O error: ... (os error 28)"."""
    number = re.search(r"os error (\d+)", str(error))
    return OSError(int(number[1]), os.strerror(int(number[1])), str(path)) if number else error


def _remedy(path: Path) -> str:
    """Return what to do about an unusable checkpoint."""
    if not STEP.fullmatch(path.name):
        return f"a litpeft checkpoint is a folder with {TENSORS}, {LOOP} and {SUMS}"
    known = checkpoints(path.parent.parent)
    before = [other for other in known[: known.index(path)] if not damage(other)] if path in known else []
    if not before:
        return "there is no earlier checkpoint; train again with --overwrite"
    return f"remove that folder to use {before[-1].name}, the checkpoint before it"

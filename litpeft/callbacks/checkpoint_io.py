"""What a checkpoint is on the disk, and what is refused as one."""

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
    """A checkpoint is a folder: `trainable.safetensors`, `loop.pt` (all else), and `SHA256SUMS` of the two.

    It is written under another name, flushed to the disk and renamed: a killed process leaves no half of one.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        rest = dict(checkpoint)
        tensors = {name: tensor.contiguous() for name, tensor in rest.pop("state_dict").items()}
        with whole_folder(Path(path)) as scratch:
            try:
                save_file(tensors, str(scratch / TENSORS), metadata={"format": "pt"})
            except SafetensorError as error:
                raise _of_the_system(error, path) from error
            with open(scratch / LOOP, "wb") as file:  # given a name, torch would not tell why it cannot write
                torch.save(rest, file)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Read it; nothing in it is executed.

        Raises:
            UserError: it is not as it was written; the message names the one before it.
        """
        path = Path(path)
        if reason := damage(path):
            raise UserError(f"the checkpoint {path} cannot be used: {reason}; {_instead(path)}.")
        try:
            rest = torch.load(path / LOOP, map_location=map_location or "cpu", weights_only=True)
            return rest | {"state_dict": load_file(path / TENSORS)}
        except Exception as error:  # what bytes of other origin raise is of many kinds
            reason = first_sentence(error)
            raise UserError(f"the checkpoint {path} cannot be read: {reason}; {_instead(path)}.") from error

    def remove_checkpoint(self, path: Any) -> None:
        remove_folder(Path(path))


def _of_the_system(error: SafetensorError, path: Any) -> Exception:
    """The system's error within one that safetensors raises: "I/O error: ... (os error 28)"."""
    number = re.search(r"os error (\d+)", str(error))
    return OSError(int(number[1]), os.strerror(int(number[1])), str(path)) if number else error


def _instead(path: Path) -> str:
    """What to do about one that cannot be used."""
    if not STEP.fullmatch(path.name):
        return f"a checkpoint of ours is a folder with {TENSORS}, {LOOP} and {SUMS}"
    known = checkpoints(path.parent.parent)
    before = [other for other in known[: known.index(path)] if not damage(other)] if path in known else []
    if not before:
        return "there is no other one before it: train again, with --overwrite"
    return f"remove that folder, and {before[-1].name}, the one before it, takes its place"

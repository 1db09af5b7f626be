"""Save an adapter to a folder, load it onto a base model, and switch it off: methods of every adapter."""

from __future__ import annotations

import inspect
import json
import os
import shutil
import weakref
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from litpeft.adapters.applied import applied_to
from litpeft.adapters.quantised_model import quantisation_name
from litpeft.errors import UserError, writing
from litpeft.runs.atomic_write import whole_folder
from litpeft.runs.safe_read import read_json_file

SETTINGS = "litpeft_adapter.json"  # class and options of the adapter
TENSORS = "litpeft_adapter.safetensors"  # trained tensors by their names in the model
PEFT_CONFIG = "adapter_config.json"
OURS = (SETTINGS, PEFT_CONFIG)  # a folder with one of these files may be replaced


class Saveable:
    """Methods of `Adapter` that a user of Python needs beside training.

    Attributes:
        peft_format_is_exact: whether `read_peft` gives a saved adapter back to the bit.
    """

    peft_format_is_exact = False
    _applied_to: weakref.ref[nn.Module] | None = None  # the model that `apply` was last called with

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_applied_to"}

    def model_of(self, model: nn.Module | None = None) -> nn.Module:
        """Return `model`, by default the one that this adapter was applied to.

        Raises:
            UserError: the model does not have this adapter.
        """
        kind = type(self).__name__
        model = model if model is not None or self._applied_to is None else self._applied_to()
        if model is None:
            raise UserError(f"{kind} is not applied to a model: call apply(model) first, or give the model.")
        found = applied_to(model)
        if found is None or type(found.adapter) is not type(self):
            raise UserError(f"{type(model).__name__} has no adapter {kind}, or it was merged already.")
        return model

    def save(self, folder: str | os.PathLike[str], model: nn.Module | None = None, base_name: str = "") -> Path:
        """Write the trained tensors and the options of the adapter, for `load`; return the folder.

        The folder is in PEFT's format too, where PEFT has the method and computes the same.

        Args:
            folder: folder to write; an adapter that was saved there before is replaced.
            model: the model with the adapter; by default the one that it was applied to.
            base_name: hub id or folder of the base model, for PEFT; by default that of the model's configuration.

        Raises:
            UserError: the folder holds something else, or the model does not have this adapter, or it was frozen.
        """
        model = self.model_of(model)
        trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        if frozen := [name for name in applied_to(model).trained if name not in trained]:
            raise UserError(
                f"{frozen[0]} is frozen, so it would not be saved; set requires_grad of what the adapter trains, or "
                "save outside of the with block of disable()."
            )
        folder = Path(folder).absolute()
        used = folder.exists() and (not folder.is_dir() or any(folder.iterdir()))
        if used and not any((folder / name).is_file() for name in OURS):
            raise UserError(f"{folder} holds other files; give a new folder.")
        base_name = base_name or str(getattr(getattr(model, "config", None), "_name_or_path", "") or "")
        with writing("save", folder), whole_folder(folder, checksums=False) as scratch:
            in_peft_format = self._export(scratch, model, base_name)
            if not (in_peft_format and self.peft_format_is_exact):
                tensors = {name: _whole(tensor) for name, tensor in self.state_dict(model).items()}
                save_file(tensors, str(scratch / TENSORS), {"format": "pt"})
            found = applied_to(model)
            saved = {
                "class": _path(type(self)),
                "options": _options(self),
                "head": list(found.head),
                "new": list(found.new),
                "base": quantisation_name(model),
            }
            (scratch / SETTINGS).write_text(json.dumps(saved, indent=2, default=str) + "\n", encoding="utf-8")
        return folder

    def _export(self, folder: Path, model: nn.Module, base_name: str) -> bool:
        """Write PEFT's files; return False if PEFT has no such adapter, or computes another output."""
        try:
            self.export(folder, model, base_name)
        except UserError:
            for path in folder.iterdir():
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            return False
        return True

    @classmethod
    def load(cls, folder: str | os.PathLike[str], model: nn.Module) -> Any:
        """Apply a saved adapter to a base model, in place, with its trained tensors; return the adapter.

        Args:
            folder: a folder that `save` has written, or a LoRA or DoRA adapter that PEFT has saved.
            model: the base model: the same weights and dtype as in training.

        Raises:
            UserError: the folder cannot be read, or does not fit this model.
        """
        folder = Path(folder)
        if (folder / SETTINGS).is_file():
            return _load(cls, folder, model)
        if (folder / PEFT_CONFIG).is_file():
            return cls.load_peft(folder, model)
        raise UserError(f"{folder} holds no adapter: it has neither {SETTINGS} nor {PEFT_CONFIG}.")

    @classmethod
    def load_peft(cls, folder: Path, model: nn.Module) -> Any:
        """Apply an adapter that PEFT has saved, in place, and return it."""
        raise UserError(f"{folder} was saved by PEFT; load it with LoRA.load or DoRA.load.")

    def read_peft(self, folder: Path, model: nn.Module) -> None:
        """Copy the tensors of a folder in PEFT's format into a model with this adapter."""
        raise NotImplementedError

    @contextmanager
    def disable(self, model: nn.Module | None = None) -> Iterator[nn.Module]:
        """Let the model compute the outputs of the base inside the with block; no gradient reaches the adapter there.

        Modules of the head, and newly initialised parameters, stay as trained: the base has none.

        Args:
            model: the model with the adapter; by default the one that it was applied to.

        Raises:
            UserError: weights of the base itself were trained, and their earlier values are not kept.
        """
        model = self.model_of(model)
        found = applied_to(model)
        head, added = tuple(f"{name}." for name in found.head), self.added(model)
        changed = [
            name
            for name, parameter in model.named_parameters()
            if parameter.requires_grad and not name.startswith(head) and name not in {*found.new, *added}
            if not name.endswith(".new_tokens")
        ]
        if self.trains_base or changed:
            what = f"{type(self).__name__} trains {changed[0] if changed else 'the base'}"
            raise UserError(f"{what}, whose earlier values are not kept; load the base again instead of disable().")
        with self.switched_off(model):
            yield model

    def switched_off(self, model: nn.Module) -> AbstractContextManager[Any]:
        """Return a context manager in which the tensors that this adapter added have no effect."""
        if self.added(model):
            raise UserError(f"{type(self).__name__} cannot be disabled: the class has no method switched_off.")
        return nullcontext()


def _load(cls: type, folder: Path, model: nn.Module) -> Any:
    saved = read_json_file(folder / SETTINGS)
    try:
        path, options, head, new, base = (saved[name] for name in ("class", "options", "head", "new", "base"))
        kind = next((each for each in [cls, *_derived(cls)] if _path(each) == path), None)
        if kind is None:
            raise UserError(
                f"{folder} holds the adapter {path}; call load of that class, or import it and call Adapter.load."
            )
        adapter = kind(**options)
    except (KeyError, TypeError) as error:
        raise UserError(f"{folder / SETTINGS} is damaged: {error}.") from error
    adapter._checkpoint_follows = True  # the tensors come from the folder, not from `init_from`
    if base is not None and not adapter.quantises and (now := quantisation_name(model)) not in (None, base):
        raise UserError(f"{folder} was trained on a base in {base}, and the model is in {now}.")
    adapter.apply(model, head, new)
    if (now := quantisation_name(model)) != base:
        raise UserError(
            f"{folder} was trained on a base in {base or 'its own dtype'}, and the model is "
            f"{f'in {now}' if now else 'not quantised'}; load the model again in the same way."
        )
    if not (folder / TENSORS).is_file():
        adapter.read_peft(folder, model)
        return adapter
    try:
        tensors = load_file(folder / TENSORS)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{folder / TENSORS} cannot be read, it may be damaged: {error}.") from error
    adapter.load_state_dict(model, tensors)
    return adapter


def _options(adapter: Any) -> dict[str, Any]:
    """Return the options of an adapter that its constructors take."""
    taken = {name for kind in type(adapter).__mro__ for name in inspect.signature(kind.__init__).parameters}
    return {name: _plain(value) for name, value in adapter.settings().items() if name in taken}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple, set)) else value


def _path(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _derived(kind: type) -> Iterator[type]:
    for child in kind.__subclasses__():
        yield child
        yield from _derived(child)


def _whole(tensor: Tensor) -> Tensor:
    """Return a copy on the CPU: safetensors refuses tensors that share memory."""
    return torch.clone(tensor.detach().cpu().contiguous())

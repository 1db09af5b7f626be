"""The interface of an adapter (a fine-tuning strategy): it selects or adds the trainable parameters of a model.

To add one: derive from `Adapter` in a new file, implement `adapt`, and import the class in `__init__.py`.
A minimal example that trains only the biases (BitFit, https://arxiv.org/abs/2106.10199):

    from litpeft.adapters import Adapter

    class BitFit(Adapter):
        name = "bitfit"
        trains_base = True  # biases are parameters of the base

        def adapt(self, model):
            for name, parameter in model.named_parameters():
                parameter.requires_grad = name.endswith("bias")

Everything else follows from `requires_grad`: checkpoints, optimizer groups and parameter counts use the trainable
parameters. An adapter works on any `nn.Module` and does not need Lightning.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from litpeft.adapters.applied import call_layers, check_unadapted, forget, modes_kept, remember
from litpeft.adapters.bases import Base
from litpeft.adapters.frozen_statistics import freeze_statistics
from litpeft.adapters.new_tokens import count_new_tokens, merge_new_tokens, train_new_tokens
from litpeft.adapters.quantised_model import adopt_quantised_layers, dequantise_layers, quantised_layers
from litpeft.adapters.saving import Saveable
from litpeft.adapters.trained_in_full import (
    base_dtype,
    find_modules_to_save,
    outermost,
    train_in_full,
    train_without_children,
)
from litpeft.errors import UserError
from litpeft.runs.strategy_names import shown_name


class Adapter(Saveable):
    """Base class of fine-tuning strategies. Sub-classes implement `adapt`, and `added` and `merge` if they add tensors.

    Attributes:
        name: the strategy's name in lists, tables and file names.
        trains: whether anything is trained.
        trains_base: whether parameters of the base are trained. They are then stored in fp32 and the task computes
            with autocast. Otherwise the adapter casts its own fp32 tensors and autocast stays off.
        default_lr: learning rate if no optimizer is given.
        modules_to_save: extra modules to train in full, matched by name suffix.
        dtype: dtype of the tensors that the adapter adds, except DoRA's magnitude; None: fp32.
    """

    name: str
    trains: bool = True
    trains_base: bool = False
    default_lr: float = 3e-4
    modules_to_save: Sequence[str] = ()
    dtype: str | None = None
    _base: Base | None = None  # how the frozen weights are held; None: in the dtype of the model

    @classmethod
    def strategy_name(cls, options: Mapping[str, Any]) -> str:
        """Return the strategy's name for these constructor arguments, for run folders and tables."""
        return cls.name

    def settings(self) -> dict[str, Any]:
        """Return the adapter's options, for run records and checkpoints."""
        return {name: value for name, value in vars(self).items() if not name.startswith("_")}

    def loading(self, device: torch.device) -> dict[str, Any]:
        """Return further arguments of `from_pretrained`, which quantise the weights while they are loaded.

        Args:
            device: the device that the model will be trained on.
        """
        return {} if self._base is None else self._base.loading(device, self.modules_to_save)

    def put_on(self, base: Base) -> None:
        """Hold the frozen weights as `base` says (`model.base`); the name of the base is added to the adapter's name.

        Raises:
            UserError: the adapter trains the base, or quantises it itself.
        """
        kind = type(self).__name__
        if self._base is not None:
            raise UserError(f"model.base {base.name}: {kind} quantises the base itself; give LoRA or DoRA instead.")
        if self.trains_base:
            raise _trains_quantised_base(kind)
        self._base, self.name = base, f"{self.name}-{base.name}"

    @property
    def quantises(self) -> bool:
        """Whether the adapter quantises the base when it is loaded."""
        return self._base is not None

    def disable_quantisation(self, reason: str) -> None:
        """Do not quantise the base; the run record gets the reason."""
        self._base.disable(reason)

    def adapt(self, model: nn.Module) -> None:
        """Replace layers in place, or set `requires_grad`.

        Called by `apply` after all parameters are frozen, except modules trained in full.
        """
        raise NotImplementedError

    def apply(self, model: nn.Module, head: Iterable[str] = (), new: Iterable[str] = ()) -> nn.Module:
        """Prepare a model for training, in place: freeze the base and add the adapter. Return the model.

        Afterwards only the parameters to train have `requires_grad`, in fp32; running statistics of norms are frozen.

        Args:
            model: the base model.
            head: names of the modules after the base, such as a classifier. Every adapter trains them in full, in fp32.
            new: names of the newly initialised parameters inside the base, such as those of a pooler. Every adapter
                trains them; the output of their modules is cast back to the dtype of the base.

        Raises:
            UserError: the model already has an adapter, or the adapter matches no layer of the model.
        """
        check_unadapted(model, type(self).__name__)
        head, new, dtype = tuple(head), tuple(new), base_dtype(model, tuple(head))
        model.requires_grad_(False)
        adopt_quantised_layers(model, dtype)
        if self.trains_base and quantised_layers(model):
            raise _trains_quantised_base(type(self).__name__)
        for name in head:
            train_in_full(model.get_submodule(name), dtype)
        for name in sorted({parameter.rpartition(".")[0] for parameter in new}):
            if not any(f"{name}.".startswith(f"{h}.") for h in head):
                train_without_children(model.get_submodule(name), dtype)
        for name in outermost(find_modules_to_save(self.modules_to_save, model), head):
            train_in_full(model.get_submodule(name), dtype, cast_output=True)
        trained_in_full = list(trainable(model).values()) if self.trains else []
        if self._base is not None:
            self._base.quantise(model)
        base = [parameter for parameter in model.parameters() if not parameter.requires_grad]
        with modes_kept(model):
            self.adapt(model)
        call_layers(model)
        freeze_statistics(model)
        if not self.trains_base and any(p.requires_grad and p.dtype in (torch.bfloat16, torch.float16) for p in base):
            raise UserError(
                f"{type(self).__name__} trains parameters of the base: set `trains_base = True` in the class."
            )
        for parameter in trained_in_full:
            parameter.requires_grad = True
        for parameter in trainable(model).values():
            parameter.data = parameter.data.float()
        if self.dtype == "bf16":
            for name, parameter in self.added(model).items():
                if not name.endswith(".magnitude"):  # rounded, it would change the output before training
                    parameter.data = parameter.data.bfloat16()
        train_new_tokens(model)
        if self.trains and not trainable(model):
            raise UserError(f"model.adapter {type(self).__name__} leaves nothing to train in {type(model).__name__}.")
        remember(model, self, head, new)
        self._applied_to = weakref.ref(model)
        return model

    def check_sharding(self) -> None:
        """Raise a UserError if the adapter's tensors cannot be sharded over processes. The default does nothing."""

    def added(self, model: nn.Module) -> dict[str, nn.Parameter]:
        """Return the parameters that this adapter has added, by name; each must get a gradient in training."""
        return {}

    def param_groups(self, model: nn.Module) -> list[dict[str, Any]]:
        """Return the trainable parameters as parameter groups for an optimizer.

        Biases and norms (1-D tensors) get no weight decay, as in the reference implementations of BERT and GPT-2.
        A group may have `lr_scale`, which `build_optimizer` multiplies with the learning rate (LoRA+).
        """
        tensors = trainable(model).values()
        groups = [
            {"params": [p for p in tensors if p.ndim > 1]},
            {"params": [p for p in tensors if p.ndim <= 1], "weight_decay": 0.0},
        ]
        return [group for group in groups if group["params"]]

    def state_dict(self, model: nn.Module) -> dict[str, Tensor]:
        """Return the trainable tensors by name; a checkpoint stores only these."""
        return {name: parameter.detach() for name, parameter in trainable(model).items()}

    def load_state_dict(self, model: nn.Module, state: dict[str, Tensor]) -> None:
        """Copy `state` into the trainable tensors.

        Raises:
            UserError: a tensor is missing, unexpected or has another shape; in this case nothing is copied.
        """
        parameters = trainable(model)
        wrong = {f"missing {name}" for name in parameters.keys() - state.keys()}
        wrong |= {f"unexpected {name}" for name in state.keys() - parameters.keys()}
        wrong |= {
            f"{name} of shape {tuple(state[name].shape)} where this model has {tuple(parameters[name].shape)}"
            for name in parameters.keys() & state.keys()
            if parameters[name].shape != state[name].shape
        }
        if wrong:
            listed = "; ".join(sorted(wrong)[:3]) + ("; ..." if len(wrong) > 3 else "")
            raise UserError(
                f"the checkpoint does not fit this model and adapter ({len(wrong)} tensors: {listed}); "
                "use the model, adapter and rank that it was trained with."
            )
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(state[name])

    def resume_state(self, model: nn.Module) -> Any:
        """Return what a resumed run needs beside the trainable tensors to continue to the bit; None by default."""

    def load_resume_state(self, model: nn.Module, state: Any) -> None:
        """Restore what `resume_state` returned; None for the checkpoint of an older version."""

    def before_step(self, model: nn.Module) -> None:
        """Add to the gradients before an optimizer step and before clipping. The default does nothing."""

    def after_step(self, model: nn.Module, step: int, total_steps: int | None) -> None:
        """Change the adapter after an optimizer step, while the gradients still exist. The default does nothing.

        Args:
            model: the model with the adapter.
            step: number of optimizer steps so far, this one included.
            total_steps: number of optimizer steps of the whole run; None if the run has no end.
        """

    def merge(self, model: nn.Module) -> None:
        """Merge the added parameters and rows of new tokens into plain layers, in place, and dequantise the base.

        A sub-class that overrides this method calls it at the end.
        """
        dequantise_layers(model)
        merge_new_tokens(model)
        forget(model)

    def export(self, folder: Path, model: nn.Module, base_name: str) -> None:
        """Write the trained tensors in PEFT's format, so that `PeftModel.from_pretrained` gives the same outputs.

        Args:
            folder: an empty folder.
            model: the model with the adapter.
            base_name: hub id or folder of the base model.

        Raises:
            UserError: PEFT has no such adapter, or computes one of the layers differently.
        """
        raise UserError(f"PEFT has no adapter of type {shown_name(self.name)}; give --format merged.")

    def roles(self, model: nn.Module) -> dict[str, list[Tensor]]:
        """Return the model's tensors by role, for memory reports; a tensor in two lists counts for the last one."""
        layers = quantised_layers(model)
        base = [*model.parameters(), *model.buffers(), *(tensor for layer in layers for tensor in layer.held())]
        constants = [tensor for layer in layers for tensor in layer.constants()]
        roles = {"base_weights": base, "adapter_weights": [] if self.trains_base else [*trainable(model).values()]}
        return roles | ({"quantisation_constants": constants} if layers or self.quantises else {})

    def describe(self, model: nn.Module) -> dict[str, Any]:
        """Return parameter counts and bytes for the run record.

        Returns:
            `trainable_params`; `total_params` (with the adapter; tied weights count once); `adapter_bytes` (trainable
            tensors, as in a checkpoint); `model_bytes` (all parameters and buffers as stored in memory); `new_tokens`
            (number of tokens added to the model), if there are any; `quantised`: number of quantised layers, their
            parameters and bytes; `not_quantised_because`: why the base is not quantised.
        """
        parameters, trained = list(model.parameters()), trainable(model).values()
        new_tokens, layers = count_new_tokens(model), quantised_layers(model)
        numbers = sum(layer.numbers for layer in layers)
        held = {id(tensor): tensor for layer in layers for tensor in layer.held()}
        tensors = {id(tensor): tensor for tensor in [*parameters, *model.buffers()]} | held
        counts = {"layers": len(layers), "params": numbers, "bytes": sum(layer.stored_bytes for layer in layers)}
        reason = None if self._base is None else self._base.not_quantised_because
        return {
            **({"new_tokens": new_tokens} if new_tokens else {}),
            "trainable_params": sum(p.numel() for p in trained),
            "total_params": sum(p.numel() for p in parameters) + numbers,
            "adapter_bytes": sum(p.nbytes for p in trained),
            "model_bytes": sum(tensor.nbytes for tensor in tensors.values()),
            **({"quantised": counts} if layers or self.quantises else {}),
            **({"not_quantised_because": reason} if reason else {}),
        }


def _trains_quantised_base(kind: str) -> UserError:
    return UserError(
        f"model.adapter {kind} trains the weights of the base, and quantised weights cannot be trained; "
        "give an adapter such as LoRA, or an unquantised base."
    )


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters with `requires_grad`, by name; tied parameters appear once."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}

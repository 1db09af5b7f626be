"""The contract of an adapter: how a base model is made trainable.

To add one: derive from `Adapter` in a file of its own, implement `adapt`, and import the class in `__init__.py`.
A minimal one that trains nothing but biases (BitFit, https://arxiv.org/abs/2106.10199):

    from litpeft.adapters import Adapter

    class BitFit(Adapter):
        name = "bitfit"
        trains_base = True  # biases are the base's own

        def adapt(self, model):
            for name, parameter in model.named_parameters():
                parameter.requires_grad = name.endswith("bias")

Everything else (what is saved, what the optimizer gets, what is counted) follows from `requires_grad`.
An adapter knows nothing of Lightning: it works on any `nn.Module`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from litpeft.errors import UserError


class Adapter:
    """How a base model is made trainable. Sub-classes implement `adapt`, and `merge` if they add tensors.

    Attributes:
        name: what lists, tables and file names call the strategy.
        trains_base: whether the trainable weights are the base's own. They are then held in fp32 and computed in the
            task's dtype by autocast; otherwise the adapter casts its few fp32 tensors itself and no autocast is needed.
        default_lr: learning rate used where no optimizer is named.
        modules_to_save: ends of names of further modules that train whole.
    """

    name: str
    trains_base: bool = False
    default_lr: float = 3e-4
    modules_to_save: Sequence[str] = ()

    @classmethod
    def named(cls, options: Mapping[str, Any]) -> str:
        """The strategy's name with these options, for folders and tables."""
        return cls.name

    def settings(self) -> dict[str, Any]:
        """What it was made with, for the record and for checkpoints."""
        return {name: value for name, value in vars(self).items() if not name.startswith("_")}

    def loading(self, device: torch.device) -> dict[str, Any]:
        """What `from_pretrained` is to be told, for adapters that change the base while it is read.

        Args:
            device: where the model is going to be trained.
        """
        return {}

    def adapt(self, model: nn.Module) -> None:
        """Replace layers in place and set `requires_grad`; all is frozen here but what is trained whole anyway."""
        raise NotImplementedError

    def apply(self, model: nn.Module, head: Iterable[str] = (), new: Iterable[str] = ()) -> None:
        """Freeze the model, replace layers in place, and leave only what is to be trained with `requires_grad`.

        Every trainable tensor is fp32 afterwards, whatever the dtype of the base.

        Args:
            model: the base model.
            head: names of modules at the model's end that are trained whole whatever the adapter, such as a classifier.
                They compute in fp32.
            new: names of parameters inside the base that no checkpoint holds (a pooler, say), trained likewise; their
                modules' outputs are cast back to the base's dtype.

        Raises:
            UserError: the adapter matches nothing in this model.
        """
        head = tuple(head)
        dtype = next(model.parameters()).dtype
        model.requires_grad_(False)
        for name in head:
            _train_whole(model.get_submodule(name), dtype)
        for name in sorted({parameter.rpartition(".")[0] for parameter in new}):
            if not any(f"{name}.".startswith(f"{h}.") for h in head):
                _train_own(model.get_submodule(name), dtype)
        for name in _outermost(_named_like(self.modules_to_save, model), head):
            _train_whole(model.get_submodule(name), dtype, within=True)
        whole = list(trainable(model).values())
        own = [parameter for parameter in model.parameters() if not parameter.requires_grad]
        self.adapt(model)
        if not self.trains_base and any(p.requires_grad and p.dtype in (torch.bfloat16, torch.float16) for p in own):
            raise UserError(f"{type(self).__name__} trains the base's own tensors: it has to say `trains_base = True`.")
        for parameter in whole:
            parameter.requires_grad = True
        for parameter in trainable(model).values():
            parameter.data = parameter.data.float()
        if not trainable(model):
            raise UserError(f"model.adapter {type(self).__name__} leaves nothing to train in {type(model).__name__}.")

    def added(self, model: nn.Module) -> dict[str, nn.Parameter]:
        """The tensors that this adapter has added, by name: each is there to learn."""
        return {}

    def param_groups(self, model: nn.Module) -> list[dict[str, Any]]:
        """Trainable parameters only, in the form that optimizers take.

        Biases and norms (1-D tensors) get no weight decay, as in the reference implementations of BERT and GPT-2.
        A group may carry `lr_scale`, a factor on the learning rate that the task applies (LoRA+).
        """
        tensors = trainable(model).values()
        groups = [
            {"params": [p for p in tensors if p.ndim > 1]},
            {"params": [p for p in tensors if p.ndim <= 1], "weight_decay": 0.0},
        ]
        return [group for group in groups if group["params"]]

    def state_dict(self, model: nn.Module) -> dict[str, Tensor]:
        """The trainable tensors by name: all that a checkpoint has to hold beside the base."""
        return {name: parameter.detach() for name, parameter in trainable(model).items()}

    def load_state_dict(self, model: nn.Module, state: dict[str, Tensor]) -> None:
        """Copy `state` into the trainable tensors.

        Raises:
            UserError: a tensor is missing, unexpected or of another shape; nothing is copied then.
        """
        own = trainable(model)
        wrong = {f"missing {name}" for name in own.keys() - state.keys()}
        wrong |= {f"unexpected {name}" for name in state.keys() - own.keys()}
        wrong |= {
            f"{name} of shape {tuple(state[name].shape)} where this model has {tuple(own[name].shape)}"
            for name in own.keys() & state.keys()
            if own[name].shape != state[name].shape
        }
        if wrong:
            listed = "; ".join(sorted(wrong)[:3]) + ("; ..." if len(wrong) > 3 else "")
            raise UserError(
                f"the checkpoint does not fit this model and adapter ({len(wrong)} tensors: {listed}); "
                "use the model, adapter and rank that it was trained with."
            )
        with torch.no_grad():
            for name, parameter in own.items():
                parameter.copy_(state[name])

    def merge(self, model: nn.Module) -> None:
        """Fold what was added into plain layers, in place. Nothing to do where nothing was added."""

    def roles(self, model: nn.Module) -> dict[str, list[Tensor]]:
        """The model's tensors by what they are for, `base_weights` or `adapter_weights`; a later entry wins."""
        mine = [] if self.trains_base else list(trainable(model).values())
        return {"base_weights": [*model.parameters(), *model.buffers()], "adapter_weights": mine}

    def describe(self, model: nn.Module) -> dict[str, Any]:
        """Counts and bytes for the record.

        Returns:
            `trainable_params` and `total_params` (the adapter's included, tied weights once), `adapter_bytes` (the
            trainable tensors: what a checkpoint holds) and `model_bytes` (all parameters and buffers as they are held).
        """
        tensors = list(model.parameters())
        kept = trainable(model).values()
        return {
            "trainable_params": sum(p.numel() for p in kept),
            "total_params": sum(p.numel() for p in tensors),
            "adapter_bytes": sum(p.nbytes for p in kept),
            "model_bytes": sum(t.nbytes for t in [*tensors, *model.buffers()]),
        }


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters with `requires_grad`, by name; tied ones once."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


class InDtypeOf(nn.Module):
    """A parametrization: a parameter is trained in fp32, and seen by its module in the base's dtype."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def forward(self, parameter: Tensor) -> Tensor:
        return parameter.to(self.dtype)


def _named_like(ends: Sequence[str], model: nn.Module) -> list[str]:
    """Names of the modules that end so, in whole parts."""
    names = []
    for end in ends:
        found = [name for name, module in model.named_modules() if f".{name}".endswith(f".{end}") and name]
        if not found:
            children = ", ".join(sorted({name.rpartition(".")[2] for name, _ in model.named_modules() if name}))
            raise UserError(f"model.adapter.modules_to_save: {end!r} is no module of this model; it has: {children}.")
        for name in found:
            inside = model.get_submodule(name)  # a list of modules is never called itself
            names += [f"{name}.{i}" for i in range(len(inside))] if isinstance(inside, nn.ModuleList) else [name]
    owners: dict[int, set[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owners.setdefault(id(parameter), set()).add(name)
    for name in names:
        tied = {other for p in model.get_submodule(name).parameters() for other in owners[id(p)]}
        if outside := sorted(other for other in tied if not other.startswith(f"{name}.")):
            raise UserError(
                f"model.adapter.modules_to_save: {name} shares its weight with {outside[0]}; adapt it instead."
            )
    return names


def _outermost(names: Sequence[str], others: Sequence[str]) -> list[str]:
    """The names that lie in none of the others and in no other of their own."""
    return [
        name
        for name in dict.fromkeys(names)
        if not any(f"{name}.".startswith(f"{other}.") for other in [*others, *(set(names) - {name})])
    ]


def _train_whole(module: nn.Module, base_dtype: torch.dtype, within: bool = False) -> None:
    """Train a module in fp32 within a model of another dtype: its inputs are cast on the way in.

    Args:
        module: it.
        base_dtype: dtype of the model.
        within: whether more of the model follows, so that its outputs are cast back.
    """
    module.requires_grad_(True)
    module.float()
    if base_dtype != torch.float32:
        module.register_forward_pre_hook(_cast_inputs, with_kwargs=True)
        if within:
            module.register_forward_hook(partial(_cast_output, base_dtype))


def _train_own(module: nn.Module, base_dtype: torch.dtype) -> None:
    """Train a module's own parameters, not those of modules in it, and give its output back in the base's dtype."""
    for parameter in module.parameters(recurse=False):
        parameter.requires_grad = True
        parameter.data = parameter.data.float()
    if base_dtype != torch.float32:
        if not list(module.children()):
            module.register_forward_pre_hook(_cast_inputs, with_kwargs=True)
        module.register_forward_hook(partial(_cast_output, base_dtype))


def _cast_inputs(module: nn.Module, inputs: tuple, options: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    return tuple(_wide(x) for x in inputs), {name: _wide(x) for name, x in options.items()}


def _wide(x: Any) -> Any:
    if isinstance(x, tuple):
        return tuple(_wide(item) for item in x)
    return x.float() if isinstance(x, Tensor) and x.is_floating_point() else x


def _cast_output(dtype: torch.dtype, module: nn.Module, inputs: tuple, output: Any) -> Any:
    if isinstance(output, tuple):
        return tuple(_cast_output(dtype, module, inputs, item) for item in output)
    return output.to(dtype) if isinstance(output, Tensor) and output.is_floating_point() else output

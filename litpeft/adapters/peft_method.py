"""Every method of PEFT as an adapter, with litpeft's targets, heads, checkpoints, records and exports."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from litpeft.adapters import peft_adalora
from litpeft.adapters.applied import forget
from litpeft.adapters.base import Adapter, trainable
from litpeft.adapters.new_tokens import merge_new_tokens
from litpeft.adapters.not_adapted import not_adapted
from litpeft.adapters.peft_export import changes_base, write_peft_adapter
from litpeft.adapters.peft_injected import (
    KEY,
    Injected,
    freeze_constants,
    hash_of_constants,
    injected_in,
    tensors_of,
    untie,
    without_adapter,
)
from litpeft.adapters.peft_options import (
    PROMPTS,
    build_config,
    check_method,
    check_options,
    find_targets,
    is_feed_forward_output,
    known_methods,
)
from litpeft.adapters.peft_prompts import VirtualTokens, check_model
from litpeft.adapters.quantised_model import dequantise_layers, quantised_layers, to_conv1d
from litpeft.adapters.targets import in_blocks
from litpeft.adapters.trained_in_full import base_dtype, cast_inputs, cast_output_to
from litpeft.errors import UserError, check_choices, first_sentence

CONSTANTS = "peft_constants"  # name in checkpoints of the hash of the tensors that are not trained


class Peft(Adapter):
    """Trains with any method of PEFT: IA3, VERA, LOKR, ADALORA, PREFIX_TUNING and others.

    PEFT replaces layers; targets, heads, fp32 training and checkpoints are as with litpeft's own adapters. LORA gives
    the numbers of litpeft's `LoRA`, and with `use_dora` those of litpeft's `DoRA`, which needs less memory.

    Args:
        method: PEFT's name of the method, in any case, such as `IA3`.
        options: options of the method's configuration class, such as `r`; other names and defaults than litpeft's.
        targets: layers to adapt, as in LoRA: module-name suffixes, presets, `all-linear`, or a regular expression. By
            default query and value; for IA3 also key and the feed-forward output; for LN_TUNING the norms; for
            TRAINABLE_TOKENS the input embedding. Methods with virtual tokens have no targets.
        exclude: layers not to adapt: a list of suffixes and presets, or one regular expression.
        layers: adapt only targets in these blocks, as in LoRA.
        modules_to_save: extra modules to train in full, matched by name suffix; they are saved with the adapter.
        dtype: dtype of the tensors that the method adds, in training and in checkpoints; fp32 by default.
    """

    name = "peft"

    def __init__(
        self,
        method: str,
        options: dict[str, Any] | None = None,
        targets: list[str] | str | None = None,
        exclude: list[str] | str | None = None,
        layers: list[int] | str | None = None,
        modules_to_save: list[str] | None = None,
        dtype: Literal["bf16", "fp32"] | None = None,
    ) -> None:
        check_choices("model.adapter", Peft.__init__, locals())
        self.dtype = None if dtype == "fp32" else dtype
        self.method, self.options = check_method(method), dict(options or {})
        check_options(self.method, self.options)
        self.name = self.strategy_name({"method": method, "options": self.options})
        if (named := self.options.pop("target_modules", None)) is not None:
            if targets is not None:
                raise UserError("give model.adapter.targets or model.adapter.options.target_modules, not both.")
            targets = sorted(named) if isinstance(named, (set, tuple)) else named
        self.targets, self.exclude, self.layers = targets, exclude, layers
        self.modules_to_save = modules_to_save or []
        has_targets = "target_modules" in known_methods()[self.method].__dataclass_fields__
        self._has_targets = has_targets and self.method != "ADAPTION_PROMPT"
        for option, value in {"targets": targets, "exclude": exclude, "layers": layers}.items():
            if value is not None and not self._has_targets:
                raise UserError(f"model.adapter.{option}: {self.method} has no targets; leave it out.")
        config = build_config(self.method, self._filled_options())
        if self.method == "ADALORA":
            peft_adalora.check_ranks(config)
        if self.method == "TRAINABLE_TOKENS" and not self.options.get("token_indices"):
            raise UserError(
                "model.adapter.options.token_indices: give the ids of the tokens to train, such as '[5, 7]'."
            )
        self._checkpoint_follows = False  # True: a checkpoint will be loaded

    @classmethod
    def strategy_name(cls, options: Mapping[str, Any]) -> str:
        """Return the method's name in lower case; `peft-lora` and so on for LORA, because `lora` is litpeft's own."""
        method, inner = str(options.get("method", "peft")).lower(), options.get("options") or {}
        if method != "lora":
            return method
        init = str(inner.get("init_lora_weights", "")).lower()
        kind = "dora" if inner.get("use_dora") else "lora"
        return f"peft-{kind}" if init in ("", "true", "none") else f"{init}-{kind}"

    def apply(self, model: nn.Module, head: Iterable[str] = (), new: Iterable[str] = ()) -> nn.Module:
        if hasattr(model, "peft_config") or injected_in(model):
            raise UserError("model.adapter Peft: the model already has an adapter of PEFT; load the model again.")
        return super().apply(model, head, new)

    def adapt(self, model: nn.Module) -> None:
        from peft import PeftModel
        from peft.tuners.tuners_utils import BaseTunerLayer

        dtype = base_dtype(model, [name.rpartition(".")[0] for name in trainable(model)])
        if dtype != torch.float32:
            why = "in bf16 its rounding could not be exported exactly"
            self._check_base("in bf16", why, "give --model.dtype fp32")
        if quantised_layers(model):
            why = "quantised weights cannot hold the change"
            self._check_base("on a quantised base", why, "leave model.base out")
        left_out, in_full, before = not_adapted(model), list(trainable(model)), {id(t) for _, t in tensors_of(model)}
        config = build_config(self.method, self._filled_options(model))
        tokens = None
        if self.method in PROMPTS:
            check_model(model, self.method)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about options that `build_config` sets, and names that PEFT corrects
                wrapper = PeftModel(model, config)
        except Exception as error:  # PEFT raises errors of many kinds
            if next(model.parameters()).is_meta:
                raise
            raise UserError(
                f"model.adapter.method {self.method}: PEFT cannot adapt {type(model).__name__} "
                f"({first_sentence(error)[:300]}); change model.adapter.options or model.adapter.targets."
            ) from error
        freeze_constants(model)
        if self.method in PROMPTS:
            model.add_module("prompt_encoder", wrapper.prompt_encoder)
            tokens = VirtualTokens(wrapper, self.method, model)
        if self.method == "LN_TUNING" and dtype != torch.float32:
            for layer in [module for module in model.modules() if isinstance(module, BaseTunerLayer)]:
                layer.register_forward_pre_hook(cast_inputs, with_kwargs=True)
                layer.register_forward_hook(partial(cast_output_to, dtype))
        added = {name for name, tensor in tensors_of(model) if id(tensor) not in before}
        injected = Injected(wrapper, added, in_full, left_out, tokens=tokens)
        model.__dict__[KEY] = injected
        if not next(model.parameters()).is_meta:
            injected.constants = hash_of_constants(model, injected, with_base=changes_base(self.options))
        if changes_base(self.options) and self._checkpoint_follows:
            from peft import get_peft_model_state_dict

            state = get_peft_model_state_dict(wrapper, save_embedding_layers=False)
            injected.initial = {name: tensor.detach().clone() for name, tensor in state.items()}

    def check_sharding(self) -> None:
        raise UserError("model.adapter Peft does not run with fsdp2; give --trainer.strategy ddp.")

    def added(self, model: nn.Module) -> dict[str, nn.Parameter]:
        added = injected_in(model).added
        return {name: parameter for name, parameter in trainable(model).items() if name in added}

    def before_step(self, model: nn.Module) -> None:
        if self.method == "ADALORA":
            peft_adalora.add_penalty_gradients(injected_in(model).wrapper.base_model)

    def after_step(self, model: nn.Module, step: int, total_steps: int | None) -> None:
        if self.method == "ADALORA":
            peft_adalora.reallocate(injected_in(model).wrapper.base_model, step, total_steps)

    def state_dict(self, model: nn.Module) -> dict[str, Tensor]:
        """Return the trainable tensors, AdaLoRA's state, and the hash of the tensors that PEFT computes from a seed."""
        injected, state = injected_in(model), super().state_dict(model)
        if self.method == "ADALORA":
            state |= peft_adalora.allocator_state(injected.wrapper.base_model)
        return state if injected.constants is None else state | {CONSTANTS: injected.constants}

    def load_state_dict(self, model: nn.Module, state: dict[str, Tensor]) -> None:
        injected = injected_in(model)
        constants = state.get(CONSTANTS)
        if constants is not None and not torch.equal(constants.cpu(), injected.constants):
            raise UserError(
                f"the constants that PEFT computes for {self.method} from a seed or from the base are not those of the "
                "checkpoint; use the dtype, the package versions and the kind of machine that it was trained with."
            )
        extra = {name: tensor for name, tensor in state.items() if name.startswith(peft_adalora.STATE)}
        own = {name: t for name, t in state.items() if name != CONSTANTS and name not in extra}
        super().load_state_dict(model, own)
        if self.method == "ADALORA":
            peft_adalora.load_allocator_state(injected.wrapper.base_model, extra)

    @torch.no_grad()
    def merge(self, model: nn.Module) -> None:
        """Merge the adapter into plain layers with PEFT's `merge_and_unload`, in place.

        Raises:
            UserError: PEFT cannot merge this method into this model.
        """
        from peft.tuners.tuners_utils import BaseTunerLayer

        if self.method in PROMPTS:
            raise UserError(f"{self.method} adds virtual tokens, which no weight can hold; give --format adapter.")
        wrapper = injected_in(model).wrapper
        conv1d = dequantise_layers(model, as_linear=True)
        adapted = {
            name: layer.get_base_layer() for name, layer in model.named_modules() if isinstance(layer, BaseTunerLayer)
        }
        untie(list(adapted.values()), model)
        try:
            wrapper.merge_and_unload()
        except (NotImplementedError, ValueError, AttributeError, TypeError) as error:
            raise UserError(
                f"PEFT cannot merge {self.method} into {type(model).__name__} ({first_sentence(error)[:200]}); "
                "give --format adapter."
            ) from error
        for name in conv1d:
            plain = name.removesuffix(".base_layer")
            model.set_submodule(plain, to_conv1d(model.get_submodule(plain)))
        for name, base in adapted.items() if self.method == "LN_TUNING" else ():
            model.get_submodule(name).to(base.weight.dtype)  # PEFT leaves the fp32 norms that were trained
        del model.__dict__[KEY]
        merge_new_tokens(model)
        forget(model)

    def switched_off(self, model: nn.Module) -> AbstractContextManager[None]:
        if changes_base(self.options):
            raise UserError(f"{self.name} has changed the base before training; load the base again.")
        return without_adapter(injected_in(model), model)

    def export(self, folder: Path, model: nn.Module, base_name: str) -> None:
        injected = injected_in(model)
        if changes_base(self.options) and not injected.initial:
            raise UserError(f"{self.name}: the tensors before training are not kept, so PEFT cannot load it.")
        write_peft_adapter(folder, model, injected.wrapper, injected.in_full, injected.initial, base_name)

    def roles(self, model: nn.Module) -> dict[str, list[Tensor]]:
        """Return the base class's roles, with all tensors that PEFT has added among the adapter weights."""
        roles, added = super().roles(model), injected_in(model).added
        roles["adapter_weights"] += [tensor for name, tensor in tensors_of(model) if name in added]
        return roles

    def describe(self, model: nn.Module) -> dict[str, Any]:
        """Return the base class's description, `adapted_layers`, `not_adapted`, `virtual_tokens` and `constants_bytes`.

        `adapted_layers`: last part of the layer name -> number of layers. `not_adapted`: see the function of this name.
        `constants_bytes`: bytes of the tensors that PEFT has added and that are not trained.
        """
        injected = injected_in(model)
        layers = Counter(name.rpartition(".")[2] for name in getattr(injected.wrapper, "targeted_module_names", []))
        constants = [t for name, t in tensors_of(model) if name in injected.added and not t.requires_grad]
        config = injected.wrapper.peft_config["default"]
        virtual = {"virtual_tokens": config.num_virtual_tokens} if self.method in PROMPTS else {}
        return (
            super().describe(model)
            | {"adapted_layers": dict(layers), "not_adapted": injected.left_out}
            | virtual
            | {"constants_bytes": sum(t.nbytes for t in constants)}
        )

    def _check_base(self, kind: str, why: str, advice: str) -> None:
        """Refuse what PEFT cannot do on this kind of base; `why` a change of the base could not be kept on it."""
        if changes_base(self.options):
            init = f"model.adapter.options.init_lora_weights {self.options['init_lora_weights']}"
            raise UserError(f"{init} changes the base, and {why}; {advice}.")
        if self.method == "ADAPTION_PROMPT":
            raise UserError(f"model.adapter.method ADAPTION_PROMPT does not run {kind} with PEFT; {advice}.")

    def _filled_options(self, model: nn.Module | None = None) -> dict[str, Any]:
        """Return the options with the defaults that PEFT lacks, and with the targets in this model."""
        options = dict(self.options)
        if self.method == "ADALORA":
            options.setdefault("total_step", peft_adalora.UNKNOWN_STEPS)  # `after_step` sets the number
        if self.method == "SHIRA":
            options.setdefault("random_seed", 0)  # PEFT would draw another mask when the model is built again
        if self.method in PROMPTS:
            options.setdefault("num_virtual_tokens", 20)
        if model is not None and self.method == "ADAPTION_PROMPT":
            options = {"adapter_len": 10, "adapter_layers": model.config.num_hidden_layers} | options
        if model is not None and self._has_targets:
            names = find_targets(model, self.method, self.targets, self.exclude)
            options["target_modules"] = names = names if self.layers is None else in_blocks(names, self.layers)
            if self.method == "IA3":
                ends = options.get("feedforward_modules")
                options["feedforward_modules"] = [
                    name
                    for name in names
                    if (is_feed_forward_output(name) if ends is None else name.endswith(tuple(ends)))
                ]
        return options

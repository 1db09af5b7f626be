"""Methods of PEFT: their names and options, the methods and options that litpeft refuses, and their default targets."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from torch import nn

from litpeft.adapters.experts import StackedLinear4bit
from litpeft.adapters.linear4bit import Linear4bit
from litpeft.adapters.linear8bit import Linear8bit
from litpeft.adapters.packaged_linear import PackagedLinear
from litpeft.adapters.targets import layer_type, match_targets, suffix_regex, text_modules
from litpeft.errors import UserError, did_you_mean, first_sentence

NO_TASKS = "each row needs the number of its task, and the data sets of litpeft have none"
REFUSED = {  # method -> why litpeft does not run it
    "CARTRIDGE": "it starts from the key-value cache of a text, for which litpeft has no option; use PREFIX_TUNING",
    "CPT": "its prompt is a fixed text of examples with a loss weight for each token, for which litpeft has no option; "
    "use PROMPT_TUNING",
    "MULTITASK_PROMPT_TUNING": f"{NO_TASKS}; use PROMPT_TUNING",
    "POLY": f"{NO_TASKS}; use LORA",
    "SHADOW": "PEFT adds the loss of a second network inside the model's forward, where litpeft passes no labels; "
    "use another method",
    "XLORA": "it mixes LoRA adapters that were trained before, and a run starts without any; use LORA",
}
PROMPTS = ("PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING")  # methods that add virtual tokens
OWN_TARGETS = (*PROMPTS, "ADAPTION_PROMPT", "IA3", "LN_TUNING", "TRAINABLE_TOKENS")  # not the targets of LoRA
OURS = {  # options of PEFT that litpeft sets itself -> what to use instead
    "peft_type": "model.adapter.method",
    "exclude_modules": "model.adapter.exclude",
    "layers_to_transform": "model.adapter.layers",
    "layers_pattern": "model.adapter.layers",
    "modules_to_save": "model.adapter.modules_to_save",
    **dict.fromkeys(("task_type", "auto_mapping", "peft_version", "inference_mode"), None),
    **dict.fromkeys(("base_model_name_or_path", "revision", "runtime_config"), None),
    **dict.fromkeys(("token_dim", "num_transformer_submodules", "num_attention_heads", "num_layers"), None),
}
NEEDS_CALLS = {  # option of PEFT -> why litpeft does not support it
    "alora_invocation_tokens": "PEFT needs the positions of these tokens in each forward pass",
    "arrow_config": "it routes between adapters that were trained before",
    "corda_config": "PEFT needs a pass over sample data before training",
    "eva_config": "PEFT needs a pass over sample data before training",
    "generator_seed": "the state of PEFT's generator is in no checkpoint, so the run could not be resumed exactly",
    "kasa_config": "its loss has terms that PEFT's trainer adds",
    "layer_replication": "it changes the layers of the base",
    "loftq_config": "it changes the base by quantising it",
    "lora_ga_config": "PEFT needs the gradients of sample data before training",
    "megatron_config": "litpeft does not train Megatron models",
    "monteclora_config": "its loss has terms that PEFT's trainer adds",
    "prompt_tuning_init_state_dict_path": "litpeft does not read it",
    "use_asa": "PEFT's trainer callback changes the adapter during training",
    "use_qalora": "it needs a base that GPTQ has quantised",
}
INITS = {  # option init_lora_weights -> why litpeft does not support this value
    "eva": "PEFT needs a pass over sample data before training",
    "corda": "PEFT needs a pass over sample data before training",
    "lora_ga": "PEFT needs the gradients of sample data before training",
    "loftq": "it changes the base by quantising it",
    "pissa_niter": "its random factorisation could not be repeated exactly; give pissa",
}
CHANGES_BASE = ("pissa", "olora")  # values of init_lora_weights that subtract the initial update from the base
# layers whose input IA3 scales, not the output: the last layer of a feed-forward block
FEED_FORWARD_OUTPUT = (
    r"\d+\.output\.dense|down_proj|lin2|(mlp|\d+)\.fc2|DenseReluDense\.wo|mlp\.c_proj|dense_4h_to_h|mlp\.Wo|fc_out"
    r"|ffn_output|ffn\.linear_2|ff\.layer_2"
)
NORM = re.compile(r"\w*(Layer|RMS)_?Norm\w*", re.IGNORECASE)  # class names of norms


def import_peft() -> ModuleType:
    """Return the package peft.

    Raises:
        UserError: it is not installed.
    """
    try:
        import peft
    except ImportError as error:
        raise UserError(
            f"model.adapter Peft needs the package peft ({first_sentence(error)}); run: pip install 'litpeft[peft]'."
        ) from error
    return peft


def known_methods() -> dict[str, type]:
    """Return PEFT's methods: name -> class of its options."""
    import_peft()
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    return {kind.value: config for kind, config in PEFT_TYPE_TO_CONFIG_MAPPING.items()}


def check_method(method: str) -> str:
    """Return PEFT's spelling of a method's name, in capitals.

    Raises:
        UserError: PEFT has no such method, or litpeft does not run it.
    """
    name, known = method.upper(), known_methods()
    if name not in known:
        listed = ", ".join(sorted(known.keys() - REFUSED))
        raise UserError(
            f"model.adapter.method: PEFT has no method {method!r}{did_you_mean(method, known)}; it has: {listed}."
        )
    if name in REFUSED:
        raise UserError(f"model.adapter.method {name}: {REFUSED[name]}.")
    return name


def compared_method(strategy: str) -> str | None:
    """Return the method of PEFT that a strategy's name in tables stands for; None if PEFT is absent or has none."""
    name = strategy.upper().replace("-", "_")
    if name in ("LORA", "NONE", "FROZEN") or name.startswith(("Q", "DORA")):  # litpeft's own
        return None
    try:
        known = known_methods()
    except UserError:
        return None
    return next((method for method in (name.removeprefix("PEFT_"), name) if method in known), None)


def check_options(method: str, options: Mapping[str, Any]) -> None:
    """Raise a UserError if an option is unknown to the method's configuration class, or not supported by litpeft."""
    fields = {field.name for field in dataclasses.fields(known_methods()[method])}
    for name, value in options.items():
        option = f"model.adapter.options.{name}"
        if name not in fields:
            guess = did_you_mean(name, fields - OURS.keys() - NEEDS_CALLS.keys())
            raise UserError(f"{option}: {method} has no option {name!r}{guess}.")
        if name in OURS:
            instead = f"; use {OURS[name]}" if OURS[name] else ", and litpeft sets it itself; leave it out"
            raise UserError(f"{option} cannot be given{instead}.")
        if name in NEEDS_CALLS and value:
            raise UserError(f"{option} is not supported, because {NEEDS_CALLS[name]}; leave it out.")
        if name == "bias" and value != "none":
            raise UserError(f"{option} is not supported, because PEFT trains biases in the base's dtype; leave it out.")
    init = str(options.get("init_lora_weights", "")).lower()
    for name, reason in INITS.items():
        if init == name or (init.startswith(name) and name == "pissa_niter"):
            raise UserError(f"model.adapter.options.init_lora_weights {init}: {reason}.")


def build_config(method: str, options: Mapping[str, Any]) -> Any:
    """Return PEFT's configuration object.

    Raises:
        UserError: PEFT refuses a value.
    """
    try:
        return known_methods()[method](**options)
    except (ValueError, TypeError, AttributeError, KeyError, AssertionError) as error:
        raise UserError(
            f"model.adapter.options: PEFT refuses them for {method} ({first_sentence(error)}); correct the option."
        ) from error


def find_targets(
    model: nn.Module, method: str, targets: list[str] | str | None, exclude: list[str] | str | None
) -> list[str]:
    """Return the names of the modules to adapt, in the model's order.

    Args:
        model: the base model.
        method: PEFT's name of the method.
        targets: as in `match_targets`. None: query and value; for IA3 key, value and the last layer of each
            feed-forward block; for LN_TUNING the norms; for TRAINABLE_TOKENS the input embedding.
        exclude: as in `match_targets`.
    """
    from transformers.pytorch_utils import Conv1D

    text, modules = text_modules(model), dict(model.named_modules())
    if targets is None and method == "LN_TUNING":
        norms = [n for n, m in modules.items() if NORM.fullmatch(type(m).__name__) and f"{n}.".startswith(text)]
        if not norms:
            raise UserError(f"model.adapter.targets: {type(model).__name__} has no norms; name the layers to adapt.")
        targets = _any_of(norms)
    elif targets is None and method == "TRAINABLE_TOKENS":
        embedding = model.get_input_embeddings()
        targets = _any_of([name for name, module in modules.items() if module is embedding])
    elif targets is None and method == "IA3":
        output = [n for n in modules if f"{n}.".startswith(text) and is_feed_forward_output(n)]
        wanted = {*match_targets(model, ["key", "value"], _kinds(model)), *output}
        targets = _any_of([name for name in modules if name in wanted])
    elif targets is None:
        targets = ["query", "value"]
    linear = (nn.Linear, Conv1D, Linear4bit, Linear8bit, PackagedLinear)
    return match_targets(model, targets, _kinds(model), linear, exclude)


def is_feed_forward_output(name: str) -> bool:
    """Return whether a module's name is that of the last layer of a feed-forward block."""
    return bool(suffix_regex(FEED_FORWARD_OUTPUT).fullmatch(name))


def _kinds(model: nn.Module) -> tuple[type, ...]:
    """Return all types of modules in the model: PEFT itself says which a method supports."""
    return tuple({layer_type(module) for module in model.modules()} - {StackedLinear4bit})


def _any_of(names: list[str]) -> str:
    return "|".join(re.escape(name) for name in names)

"""Select the layers that an adapter acts on: by name suffix, regular expression, or a preset for all architectures."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from litpeft.adapters.quantised_linear import QuantisedLinear
from litpeft.errors import UserError

# Layers that hold query, key and value in one matrix: GPT-2; Phi-3; ModernBERT; GPT-NeoX, Bloom and Falcon; DeBERTa v1.
ATTENTION = "(SelfAttention|EncDecAttention|attention|attn)"
FUSED = r"c_attn|qkv_proj|Wqkv|query_key_value|self\.in_proj"
# One pattern per preset, matched at the end of a module's dotted name. They cover BERT, RoBERTa, DeBERTa, ALBERT, ViT;
# DistilBERT; MPNet; ModernBERT; Llama, Mistral, Qwen, Gemma, Phi-3 and GLM-4; OPT and BART; GPT-NeoX, Bloom and Falcon;
# GPT-J; T5 (`q k v o wi wo`); GPT-2; DeepSeek (query, and key with value, through a low-rank matrix); Funnel; and the
# feed-forward layers of XLNet, whose attention is no layer.
PRESETS = {
    "query": rf"query|query_proj|q_proj|q_lin|q_head|q_a_proj|q_b_proj|{ATTENTION}\.q|{FUSED}",
    "key": rf"key|key_proj|k_proj|k_lin|k_head|kv_a_proj_with_mqa|kv_b_proj|{ATTENTION}\.k|{FUSED}",
    "value": rf"value|value_proj|v_proj|v_lin|v_head|kv_a_proj_with_mqa|kv_b_proj|{ATTENTION}\.v|{FUSED}",
    "projection": r"attention\.output\.dense|o_proj|out_lin|(SelfAttention|EncDecAttention|attn)\.o|attn\.c_proj"
    r"|attn\.Wo|(self_attention|attention)\.dense|\w*attn\w*\.out_proj|attention\.out_proj|post_proj",
    "mlp": r"intermediate\.dense|\d+\.output\.dense|gate_proj|up_proj|gate_up_proj|down_proj|lin1|lin2|(mlp|\d+)\.fc1"
    r"|(mlp|\d+)\.fc2|DenseReluDense\.w(i|o|i_0|i_1)|c_fc|mlp\.c_proj|dense_h_to_4h|dense_4h_to_h|mlp\.W[io]|fc_in|fc_out"
    r"|ffn|ffn_output|ffn\.linear_[12]|ff\.layer_[12]",
    "head": r"lm_head|score|classifier(\.\w+)*|pre_classifier|classification_head(\.\w+)*",
}

# sub-classes with the same forward (Falcon writes x W^T + b itself), and embeddings whose output is multiplied
SAME_AS_LINEAR = ("FalconLinear", "NonDynamicallyQuantizableLinear")
SCALED_EMBEDDING = "ScaledWordEmbedding"  # end of the class name: Gemma 3 and 4, BART, M2M100, XGLM


def match_targets(
    model: nn.Module,
    targets: Sequence[str] | str,
    kinds: tuple[type, ...],
    linear: tuple[type, ...] | None = None,
    exclude: Sequence[str] | str | None = None,
) -> list[str]:
    """Return the names of the modules that `targets` select, in the model's order, without modules trained in full.

    Args:
        model: the model.
        targets: a list of module-name suffixes (`query` matches `layer.0.query`, not `layer.0.subquery`) and presets
            (`query key value projection mlp head`); or `all-linear`, every linear layer except those of the head; or
            one regular expression that matches full module names.
        kinds: the layer types that the adapter supports.
        linear: the layer types that `all-linear` selects; `kinds` if None.
        exclude: layers to leave out of the selection, in the form of `targets` (without `all-linear`).

    Raises:
        UserError: a target matches no layer, or a layer of a type that the adapter does not support; or `exclude`
            matches no selected layer, or all of them.
    """
    modules = {name: module for name, module in model.named_modules() if name and not _trains(module)}
    text = text_modules(model)
    uncalled = tuple(f"{name}." for name, module in model.named_modules() if isinstance(module, nn.MultiheadAttention))
    modules = {
        name: module
        for name, module in modules.items()
        if f"{name}.".startswith(text) and not name.startswith(uncalled)  # torch reads out_proj's weight directly
    }
    if isinstance(targets, str) and re.fullmatch(r"[\w-]+", targets) and targets not in modules:
        targets = [targets]  # one word is a suffix: as a regular expression it would match no full name
    selected: set[str] = set()
    for target in [targets] if isinstance(targets, str) else targets:
        if target == "all-linear":
            head = suffix_pattern(["head"])
            found = {n for n, m in modules.items() if layer_type(m) in (linear or kinds) and not head.fullmatch(n)}
        else:
            pattern = _pattern(target, isinstance(targets, str), "targets")
            found = {n for n, m in modules.items() if pattern.fullmatch(n) and _holds_weights(m)}
        if not found:
            raise _no_match(target, model, modules, kinds)
        selected |= found
    if not selected:
        raise _no_match(targets, model, modules, kinds)
    for excluded in [exclude] if isinstance(exclude, str) else exclude or ():
        pattern = _pattern(excluded, isinstance(exclude, str) and not re.fullmatch(r"[\w-]+", excluded), "exclude")
        if not any(pattern.fullmatch(name) for name in selected):
            raise UserError(f"model.adapter.exclude {excluded!r} matches none of the selected layers.")
        selected = {name for name in selected if not pattern.fullmatch(name)}
    if not selected:
        raise UserError("model.adapter.exclude leaves no layer of model.adapter.targets; exclude fewer layers.")
    names = [name for name in modules if name in selected]
    for name in names:
        if layer_type(modules[name]) not in kinds:
            known = ", ".join(kind.__name__ for kind in kinds)
            raise UserError(
                f"model.adapter.targets {targets!r} matches {name}, a {type(modules[name]).__name__}, "
                f"but this adapter acts on: {known}."
            )
    return names


def layer_type(module: nn.Module) -> type[nn.Module]:
    """Return the type that decides how a layer is adapted: the layer's class, or its parent for known sub-classes.

    Other sub-classes are not treated like their parent, because they may compute something else.
    """
    name = type(module).__name__
    if isinstance(module, nn.Linear) and name in SAME_AS_LINEAR:
        return nn.Linear
    if isinstance(module, nn.Embedding) and name.endswith(SCALED_EMBEDDING):
        return nn.Embedding
    return type(module)


def text_modules(model: nn.Module) -> tuple[str, ...]:
    """Return name prefixes of the text part of a multimodal model; ("",), which is every module, for other models.

    litpeft trains on text only, so adapters in a vision tower would get no gradient.
    """
    config = getattr(model, "config", None)
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    if text is config:
        return ("",)
    parts = [name for name, module in model.named_modules() if getattr(module, "config", None) is text]
    head = model.get_output_embeddings()
    if not parts:  # a model of the vision part alone
        return ("",)
    return tuple(f"{name}." for name in parts) + tuple(f"{n}." for n, m in model.named_modules() if m is head)


def _pattern(target: str, is_expression: bool, option: str) -> re.Pattern[str]:
    """Compile a regular expression for full module names, or the pattern of a suffix or preset."""
    try:
        return re.compile(target) if is_expression else suffix_pattern([target])
    except re.error as error:
        raise UserError(f"model.adapter.{option} {target!r} is not a regular expression: {error}.") from error


def _no_match(
    target: Sequence[str] | str, model: nn.Module, modules: dict[str, nn.Module], kinds: tuple[type, ...]
) -> UserError:
    leaves = Counter(re.sub(r"^.*?(\d+\.)(?!.*\d+\.)", "", n) for n, m in modules.items() if layer_type(m) in kinds)
    listed = ", ".join(f"{leaf} ({count})" if count > 1 else leaf for leaf, count in leaves.items())
    return UserError(
        f"model.adapter.targets {target!r} matches no layer of {type(model).__name__}; it has: {listed or 'none'}."
    )


def value_for_name(patterns: Mapping[str, Any], name: str, default: Any) -> Any:
    """Return the value of the first pattern that matches the end of this module name; `default` if none does."""
    return next((value for key, value in patterns.items() if suffix_regex(key).fullmatch(name)), default)


def suffix_regex(expression: str) -> re.Pattern[str]:
    """Compile an expression so that it matches full module names whose end, after a dot, matches the expression."""
    return re.compile(rf"(.*\.)?({expression})")


def in_blocks(names: Sequence[str], layers: Sequence[int] | str) -> list[str]:
    """Return the names in blocks with these numbers; `encoder.layer.3.output` is in block 3.

    Args:
        names: dotted module names.
        layers: block numbers, or `first-last` (inclusive), or `first-` for all blocks from the first.

    Raises:
        UserError: `layers` has another form, or a block contains none of the names.
    """
    blocks = {name: int(found[1]) for name in names if (found := re.search(r"\.(\d+)\.", name))}
    existing = set(blocks.values())
    if isinstance(layers, str):
        bounds = re.fullmatch(r"(\d+)-(\d*)", layers)
        if bounds is None:
            raise UserError(f"model.adapter.layers must be a list of numbers or first-last, got {layers!r}.")
        layers = range(int(bounds[1]), int(bounds[2] or max(existing, default=0)) + 1)
    if not layers or not set(layers) <= existing:
        known = f"the targets are in blocks 0 to {max(existing)}" if existing else "no target is in a numbered block"
        raise UserError(f"model.adapter.layers {list(layers)}: {known}.")
    return [name for name, block in blocks.items() if block in layers]


def suffix_pattern(suffixes: Sequence[str]) -> re.Pattern[str]:
    """Compile a pattern for full module names that end in one of these suffixes or presets."""
    ends = "|".join(PRESETS.get(suffix, re.escape(suffix)) for suffix in suffixes)
    return suffix_regex(ends)


def _trains(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters(recurse=False))


def _holds_weights(module: nn.Module) -> bool:
    own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
    return bool(own) or isinstance(module, QuantisedLinear)

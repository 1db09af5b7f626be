"""Which layers of a model an adapter acts on: suffixes, a regular expression, or presets for all architectures."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from litpeft.errors import UserError

# One pattern a preset, searched at the end of a module's dotted name. The spellings of BERT, RoBERTa and ViT;
# DistilBERT; Llama, Mistral and Qwen; T5 (`q k v o wi wo`); GPT-2 has query, key and value in one `c_attn`.
PRESETS = {
    "query": r"query|query_proj|q_proj|q_lin|(SelfAttention|EncDecAttention|attention)\.q|c_attn",
    "key": r"key|key_proj|k_proj|k_lin|(SelfAttention|EncDecAttention|attention)\.k|c_attn",
    "value": r"value|value_proj|v_proj|v_lin|(SelfAttention|EncDecAttention|attention)\.v|c_attn",
    "projection": r"attention\.output\.dense|o_proj|out_lin|(SelfAttention|EncDecAttention)\.o|attn\.c_proj",
    "mlp": r"intermediate\.dense|\d+\.output\.dense|gate_proj|up_proj|down_proj|lin1|lin2|mlp\.fc1|mlp\.fc2"
    r"|DenseReluDense\.w(i|o|i_0|i_1)|c_fc|mlp\.c_proj",
    "head": r"lm_head|score|classifier(\.\w+)*|pre_classifier|classification_head(\.\w+)*",
}


def match_targets(
    model: nn.Module, targets: Sequence[str] | str, kinds: tuple[type, ...], linear: tuple[type, ...] | None = None
) -> list[str]:
    """Names of the modules that `targets` mean, in the model's order; those that train whole already are left out.

    Args:
        model: the model.
        targets: a list of module-name suffixes (whole parts: `query` matches `layer.0.query`, not `layer.0.subquery`)
            and presets (`query key value projection mlp head`); or `all-linear`, every linear layer except those of the
            head; or one string, a regular expression that matches the whole name.
        kinds: the layer types that the adapter can act on.
        linear: those of them that `all-linear` means; all where it is None.

    Raises:
        UserError: nothing matches, or a match is a layer that the adapter cannot act on.
    """
    modules = {name: module for name, module in model.named_modules() if name and not _trains(module)}
    if isinstance(targets, str) and re.fullmatch(r"[\w-]+", targets) and targets not in modules:
        targets = [targets]  # one word, that as an expression over whole names could mean nothing
    chosen: set[str] = set()
    for target in [targets] if isinstance(targets, str) else targets:
        if target == "all-linear":
            head = suffix_pattern(["head"])
            found = {n for n, m in modules.items() if type(m) in (linear or kinds) and not head.fullmatch(n)}
        else:
            try:
                pattern = re.compile(target) if isinstance(targets, str) else suffix_pattern([target])
            except re.error as error:
                raise UserError(f"model.adapter.targets {targets!r} is not a regular expression: {error}.") from error
            found = {n for n, m in modules.items() if pattern.fullmatch(n) and _holds_weights(m)}
        if not found:
            raise _matches_nothing(target, model, modules, kinds)
        chosen |= found
    if not chosen:
        raise _matches_nothing(targets, model, modules, kinds)
    names = [name for name in modules if name in chosen]
    for name in names:
        if type(modules[name]) not in kinds:  # a sub-class computes something else
            known = ", ".join(kind.__name__ for kind in kinds)
            raise UserError(
                f"model.adapter.targets {targets!r} matches {name}, a {type(modules[name]).__name__}, "
                f"but this adapter acts on: {known}."
            )
    return names


def _matches_nothing(
    target: Sequence[str] | str, model: nn.Module, modules: dict[str, nn.Module], kinds: tuple[type, ...]
) -> UserError:
    leaves = Counter(re.sub(r"^.*?(\d+\.)(?!.*\d+\.)", "", n) for n, m in modules.items() if type(m) in kinds)
    listed = ", ".join(f"{leaf} ({count})" if count > 1 else leaf for leaf, count in leaves.items())
    return UserError(
        f"model.adapter.targets {target!r} matches no layer of {type(model).__name__}; it has: {listed or 'none'}."
    )


def by_pattern(patterns: Mapping[str, Any], name: str, default: Any) -> Any:
    """The first value whose key, a regular expression, matches the end of this name in whole parts; else `default`."""
    return next((value for key, value in patterns.items() if ending_in(key).fullmatch(name)), default)


def ending_in(expression: str) -> re.Pattern[str]:
    """What matches a whole name if its end, in whole parts, matches this expression."""
    return re.compile(rf"(.*\.)?({expression})")


def in_layers(names: Sequence[str], layers: Sequence[int] | str) -> list[str]:
    """Of these names, those in blocks with the given numbers: `encoder.layer.3.output` is in block 3.

    Args:
        names: dotted names of modules.
        layers: numbers, or `first-last`; without the last, up to the end.

    Raises:
        UserError: the layers cannot be read, or one of them holds none of the names.
    """
    blocks = {name: int(found[1]) for name in names if (found := re.search(r"\.(\d+)\.", name))}
    there = set(blocks.values())
    if isinstance(layers, str):
        bounds = re.fullmatch(r"(\d+)-(\d*)", layers)
        if bounds is None:
            raise UserError(f"model.adapter.layers must be a list of numbers or first-last, got {layers!r}.")
        layers = range(int(bounds[1]), int(bounds[2] or max(there, default=0)) + 1)
    if not layers or not set(layers) <= there:
        known = f"the targets are in blocks 0 to {max(there)}" if there else "no target is in a numbered block"
        raise UserError(f"model.adapter.layers {list(layers)}: {known}.")
    return [name for name, block in blocks.items() if block in layers]


def suffix_pattern(suffixes: Sequence[str]) -> re.Pattern[str]:
    """What matches a module's whole name if it ends in one of these suffixes or presets."""
    ends = "|".join(PRESETS.get(suffix, re.escape(suffix)) for suffix in suffixes)
    return ending_in(ends)


def _trains(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters(recurse=False))


def _holds_weights(module: nn.Module) -> bool:
    return any(True for _ in module.parameters(recurse=False)) or any(True for _ in module.buffers(recurse=False))

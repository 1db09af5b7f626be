"""Which layers of a model an adapter acts on: suffixes, a regular expression, or presets for all architectures."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from torch import nn

from litpeft.errors import UserError

# One pattern a preset, searched at the end of a module's dotted name. The spellings of BERT, RoBERTa and ViT;
# DistilBERT; Llama, Mistral and Qwen; T5 (`q k v o wi wo`); GPT-2 has query, key and value in one `c_attn`.
PRESETS = {
    "query": r"query|q_proj|q_lin|(SelfAttention|EncDecAttention|attention)\.q|c_attn",
    "key": r"key|k_proj|k_lin|(SelfAttention|EncDecAttention|attention)\.k|c_attn",
    "value": r"value|v_proj|v_lin|(SelfAttention|EncDecAttention|attention)\.v|c_attn",
    "projection": r"attention\.output\.dense|o_proj|out_lin|(SelfAttention|EncDecAttention)\.o|attn\.c_proj",
    "mlp": r"intermediate\.dense|\d+\.output\.dense|gate_proj|up_proj|down_proj|lin1|lin2|mlp\.fc1|mlp\.fc2"
    r"|DenseReluDense\.w(i|o|i_0|i_1)|c_fc|mlp\.c_proj",
    "head": r"lm_head|score|classifier(\.\w+)*|pre_classifier|classification_head(\.\w+)*",
}


def match_targets(model: nn.Module, targets: Sequence[str] | str, kinds: tuple[type, ...]) -> list[str]:
    """Names of the modules that `targets` mean, in the model's order; those that train whole already are left out.

    Args:
        model: the model.
        targets: a list of module-name suffixes (whole parts: `query` matches `layer.0.query`, not `layer.0.subquery`)
            and presets (`query key value projection mlp head`); or `all-linear`, every layer of the kinds given except
            those of the head; or one string, a regular expression that matches the whole name.
        kinds: the layer types that the adapter can act on.

    Raises:
        UserError: nothing matches, or a match is a layer that the adapter cannot act on.
    """
    modules = {name: module for name, module in model.named_modules() if name and not _trains(module)}
    if targets == "all-linear" or list(targets) == ["all-linear"]:
        head = _pattern(["head"])
        names = [n for n, m in modules.items() if type(m) in kinds and not head.fullmatch(n)]
    else:
        try:
            pattern = re.compile(targets) if isinstance(targets, str) else _pattern(targets)
        except re.error as error:
            raise UserError(f"model.adapter.targets {targets!r} is not a regular expression: {error}.") from error
        names = [n for n, m in modules.items() if pattern.fullmatch(n) and list(m.parameters(recurse=False))]
    if not names:
        leaves = Counter(re.sub(r"^.*?(\d+\.)(?!.*\d+\.)", "", n) for n, m in modules.items() if type(m) in kinds)
        listed = ", ".join(f"{leaf} ({count})" if count > 1 else leaf for leaf, count in leaves.items())
        raise UserError(
            f"model.adapter.targets {targets!r} matches no layer of {type(model).__name__}; it has: {listed or 'none'}."
        )
    for name in names:
        if type(modules[name]) not in kinds:  # a sub-class computes something else
            known = ", ".join(kind.__name__ for kind in kinds)
            raise UserError(
                f"model.adapter.targets {targets!r} matches {name}, a {type(modules[name]).__name__}, "
                f"but this adapter acts on: {known}."
            )
    return names


def _trains(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters(recurse=False))


def _pattern(suffixes: Sequence[str]) -> re.Pattern[str]:
    ends = "|".join(PRESETS.get(suffix, re.escape(suffix)) for suffix in suffixes)
    return re.compile(rf"(.*\.)?({ends})")

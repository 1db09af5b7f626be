"""Virtual tokens of PEFT's prompt methods, as hooks on the model, so that tasks see the model and its tokens only.

PROMPT_TUNING and P_TUNING put trained vectors before the embeddings of each row, and the hidden states of these
positions are cut off before the head. PREFIX_TUNING puts trained keys and values before those of each layer, as if the
model had read the virtual tokens before. So logits, labels and token counts are those of the row's own tokens.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from litpeft.errors import UserError


def check_model(model: nn.Module, method: str) -> None:
    """Raise a UserError if labels, masks or positions would be wrong with virtual tokens in this model."""
    kind, option = type(model).__name__, f"model.adapter.method {method}"
    if getattr(model.config, "is_encoder_decoder", False):
        raise UserError(f"{option}: litpeft has no virtual tokens for encoder-decoder models such as {kind}; use LORA.")
    classifier = kind.endswith("ForSequenceClassification")
    if classifier and method != "PREFIX_TUNING" and isinstance(getattr(model, "score", None), nn.Module):
        raise UserError(
            f"{option}: {kind} finds the end of a row by its token ids, which virtual tokens do not have; "
            "use PREFIX_TUNING."
        )
    if method == "PREFIX_TUNING" and _reads_cache(model) is None:
        raise UserError(f"{option}: {kind} takes no keys and values of earlier tokens; use PROMPT_TUNING.")


class VirtualTokens:
    """Adds the virtual tokens to the model's inputs in each forward pass.

    Args:
        wrapper: PEFT's model around `model`, which computes the trained vectors.
        method: PEFT's name of the method.
        model: the base model; gets hooks.
    """

    def __init__(self, wrapper: nn.Module, method: str, model: nn.Module) -> None:
        self.wrapper, self.prefix, self.enabled = wrapper, method == "PREFIX_TUNING", True
        self.count = wrapper.peft_config["default"].num_virtual_tokens
        self.width: int | None = None  # positions with the virtual tokens, while the model runs with them
        reader = _reads_cache(model) if self.prefix else model
        reader.register_forward_pre_hook(self.before, with_kwargs=True)
        reader.register_forward_hook(self.after)
        head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
        if not self.prefix and head is not None:
            head.register_forward_pre_hook(self.cut)

    def before(self, model: nn.Module, inputs: tuple, options: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        """Return the arguments of the model's forward with the virtual tokens."""
        if not self.enabled:
            return inputs, options
        options = dict(options)
        if self.prefix and getattr(model, "is_gradient_checkpointing", False) and model.training:
            raise UserError(  # transformers would leave out the keys and values
                "model.adapter.method PREFIX_TUNING does not work with model.gradient_checkpointing; leave that out."
            )
        if inputs:
            options["input_ids"], inputs = inputs[0], inputs[1:]
        if inputs or options.get("input_ids") is None:
            raise UserError(
                "model.adapter.method: a model with virtual tokens takes input_ids by name and no embeddings."
            )
        ids, mask, positions = (options.get(name) for name in ("input_ids", "attention_mask", "position_ids"))
        whole = (
            mask is None or mask.dim() != 2
        )  # packed rows have no mask, or the offsets of their examples in its place
        if whole and positions is not None and bool((positions.diff() < 0).any()):
            raise UserError(
                "model.adapter.method: virtual tokens stand before a row, not before each packed example; "
                "leave out data.packing."
            )
        cache = options.get("past_key_values")
        read = 0 if cache is None else cache.get_seq_length()
        self._check_length(model, ids.shape[1] + max(read, self.count))
        if mask is not None:
            if mask.dim() != 2:
                raise UserError("model.adapter.method: a model with virtual tokens takes a mask (rows, tokens) only.")
            options["attention_mask"] = torch.cat([mask.new_ones(len(mask), self.count), mask], dim=1)
        first = read == 0
        if positions is not None:
            options["position_ids"] = positions + self.count
        if first and self.prefix:
            self._fill(options, len(ids))
        elif first:
            words = model.get_input_embeddings()(ids)
            vectors = self.wrapper.get_prompt(len(ids)).to(words.dtype)
            options["inputs_embeds"], options["input_ids"] = torch.cat([vectors, words], dim=1), None
            if positions is not None:
                own = torch.arange(self.count, device=ids.device).expand(len(positions), -1)
                options["position_ids"] = torch.cat([own, options["position_ids"]], dim=1)
        self.width = self.count + ids.shape[1] if first and not self.prefix else None
        return inputs, options

    def after(self, model: nn.Module, inputs: tuple, output: Any) -> None:
        """End the forward pass: from here on, the head may be called with other hidden states."""
        self.width = None

    def cut(self, head: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Return the head's inputs without the positions of the virtual tokens, (B, T, width)."""
        if self.width is not None and inputs[0].dim() == 3 and inputs[0].shape[1] == self.width:
            return (inputs[0][:, self.count :], *inputs[1:])
        return inputs

    def _fill(self, options: dict[str, Any], rows: int) -> None:
        """Put the trained keys and values into the cache; `generate` goes on with its own cache object."""
        trained, cache = self.wrapper.get_prompt(rows), options.get("past_key_values")
        if cache is None:
            options["past_key_values"] = trained
            return
        for number, layer in enumerate(trained.layers):
            cache.update(layer.keys, layer.values, number)

    def _check_length(self, model: nn.Module, length: int) -> None:
        most = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        if most is not None and length > most:
            raise UserError(
                f"model.adapter.options.num_virtual_tokens {self.count} and a row of {length - self.count} tokens are "
                f"more than the {most} positions of {type(model).__name__}; give a smaller data.max_length."
            )


def _reads_cache(model: nn.Module) -> nn.Module | None:
    """Return the module whose forward takes the keys and values of earlier tokens: the model, or the base inside it."""
    inner = getattr(model, getattr(model, "base_model_prefix", None) or "", None)
    for module in (model, inner):
        if isinstance(module, nn.Module) and "past_key_values" in inspect.signature(module.forward).parameters:
            return module
    return None

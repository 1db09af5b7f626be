"""Rows of the embeddings for tokens that a tokenizer has and the pretrained model lacks; only these rows are trained.

The embedding's matrix stays frozen. Its layer gets a parameter `new_tokens` (new rows, dim) in fp32, which is used
instead of the last rows of the matrix. So neither the matrix nor its gradient or optimizer state is in fp32.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from litpeft.adapters.layers import AdaptedLayer, AdaptedQuantisedLinear
from litpeft.adapters.quantised_linear import QuantisedLinear
from litpeft.errors import UserError

OPTION = "model.resize_embeddings"
PEFT_NAME = "token_adapter.trainable_tokens_delta"  # PEFT's name of `new_tokens`


def add_new_tokens(model: nn.Module, tokens: int) -> None:
    """Add rows to the input and output embedding of a transformers model, in place, until each has `tokens` rows.

    Does nothing if there are enough rows. New rows start at the mean of the old rows (Hewitt 2021,
    https://nlp.stanford.edu/~johnhew/vocab-expansion.html), rounded to bf16: the same for every adapter and dtype.

    Raises:
        UserError: the output embedding is quantised, or transformers cannot add rows.
    """
    first = embedding_rows(model)
    if first is None:
        raise UserError(f"{OPTION}: {type(model).__name__} has no embedding with a row per token; leave it out.")
    if tokens <= first:
        return
    if isinstance(model.get_output_embeddings(), QuantisedLinear):
        raise _quantised_head()
    try:
        model.resize_token_embeddings(tokens, mean_resizing=False)
    except (NotImplementedError, AttributeError) as error:
        raise UserError(f"{OPTION}: transformers cannot add rows to {type(model).__name__}; leave it out.") from error
    with torch.no_grad():
        for layer in {id(layer.weight): layer for layer in _embeddings(model).values()}.values():
            layer.weight[first:] = _mean_row(layer.weight[:first])
    model.first_new_token = first


def embedding_rows(model: nn.Module) -> int | None:
    """Return the number of rows of the input embedding; None for a model without one, as CANINE hashes characters."""
    try:
        return getattr(model.get_input_embeddings(), "num_embeddings", None)
    except NotImplementedError:
        return None


def train_new_tokens(model: nn.Module) -> None:
    """Train the rows that `add_new_tokens` added, unless the whole embedding is trained; no effect without such rows.

    Raises:
        UserError: an embedding has an adapter or is quantised, or computes more than a lookup and a product.
    """
    first = getattr(model, "first_new_token", None)
    if first is None:
        return
    if isinstance(model.get_output_embeddings(), (QuantisedLinear, AdaptedQuantisedLinear)):
        raise _quantised_head()
    made: dict[int, nn.Parameter] = {}  # id of a weight -> its new rows: tied layers share them
    for name, layer in _embeddings(model).items():
        if isinstance(layer, AdaptedLayer):
            raise UserError(
                f"{OPTION} trains the new rows of {name}, which cannot have an adapter too; "
                "leave it out of model.adapter.targets, or put it into model.adapter.modules_to_save."
            )
        if layer.weight.requires_grad:
            continue
        if not (type(layer) in (nn.Embedding, nn.Linear) or hasattr(layer, "embed_scale")):
            raise UserError(f"{OPTION}: the rows of {name}, a {type(layer).__name__}, cannot be trained; leave it out.")
        rows = made.setdefault(id(layer.weight), nn.Parameter(layer.weight[first:].detach().float().clone()))
        layer.register_parameter("new_tokens", rows)
        hook = _look_up_new_tokens if isinstance(layer, nn.Embedding) else _logits_of_new_tokens
        layer.register_forward_hook(hook, with_kwargs=True)


@torch.no_grad()
def merge_new_tokens(model: nn.Module) -> None:
    """Copy the trained rows into the matrices of the embeddings, in place, and remove the parameters."""
    for layer in _layers_with_new_tokens(model).values():
        layer.weight[-len(layer.new_tokens) :] = layer.new_tokens
        layer.new_tokens = None


def new_token_indices(model: nn.Module) -> dict[str, list[int]]:
    """Return the token ids whose rows are trained, by layer name: PEFT's `trainable_token_indices`.

    A layer that shares the rows of another layer is left out, because PEFT ties it too.
    """
    names = [name.rpartition(".")[0] for name, _ in model.named_parameters() if name.endswith(".new_tokens")]
    first = getattr(model, "first_new_token", 0)
    layers = {name: model.get_submodule(name) for name in names}
    return {name: list(range(first, first + len(layer.new_tokens))) for name, layer in layers.items()}


def same_tokens(indices: dict[str, list[int]] | list[int], model: nn.Module) -> bool:
    """Return whether PEFT's `trainable_token_indices` are the new tokens of this model: names are name suffixes."""
    ours = new_token_indices(model)
    theirs = dict.fromkeys(list(ours)[:1], indices) if isinstance(indices, list) else indices
    found = {name: list(ids) for end, ids in theirs.items() for name in ours if f".{name}".endswith(f".{end}")}
    return bool(ours) and found == ours


def count_new_tokens(model: nn.Module) -> int:
    """Return the number of tokens that were added to the model."""
    first = getattr(model, "first_new_token", None)
    return 0 if first is None else len(model.get_input_embeddings().weight) - first


def _embeddings(model: nn.Module) -> dict[str, nn.Module]:
    """Return the input embedding, the output embedding, and the layers tied to one of them, by name."""
    ends = [model.get_input_embeddings(), model.get_output_embeddings()]
    weights = {id(layer.weight) for layer in ends if getattr(layer, "weight", None) is not None}
    return {name: layer for name, layer in model.named_modules() if id(getattr(layer, "weight", None)) in weights}


def _layers_with_new_tokens(model: nn.Module) -> dict[str, nn.Module]:
    return {name: layer for name, layer in model.named_modules() if layer._parameters.get("new_tokens") is not None}


def _mean_row(matrix: Tensor) -> Tensor:
    """Return the mean of the rows after rounding to bf16, (dim); without a copy of the whole matrix."""
    total = sum(rows.bfloat16().double().sum(0) for rows in matrix.split(4096))
    return (total / len(matrix)).bfloat16()


def _look_up_new_tokens(layer: nn.Module, inputs: tuple, options: dict[str, Any], output: Tensor) -> Tensor | None:
    """Replace the embeddings of new tokens in the output of an embedding, (..., dim)."""
    if layer.new_tokens is None:
        return None
    ids = inputs[0] if inputs else options["input"]
    place = ids - (len(layer.weight) - len(layer.new_tokens))  # negative: an old token
    rows = F.embedding(place.clamp(min=0), layer.new_tokens).to(output.dtype)
    scale = getattr(layer, "embed_scale", None)  # a number in BART, a tensor in Gemma, which is rounded
    if scale is not None:
        rows = rows * (scale.to(rows.dtype) if isinstance(scale, Tensor) else scale)
    return torch.where((place >= 0)[..., None], rows, output)


def _logits_of_new_tokens(layer: nn.Linear, inputs: tuple, options: dict[str, Any], output: Tensor) -> Tensor | None:
    """Replace the logits of new tokens in the output of a linear layer, (..., vocabulary), in place."""
    if layer.new_tokens is None:
        return None
    hidden = inputs[0] if inputs else options["input"]
    first = output.shape[-1] - len(layer.new_tokens)
    bias = None if layer.bias is None else layer.bias[first:]
    output[..., first:] = F.linear(hidden, layer.new_tokens.to(output.dtype), bias)
    return output


def _quantised_head() -> UserError:
    return UserError(f"{OPTION}: the output embedding is quantised; leave head in model.adapter.skip.")

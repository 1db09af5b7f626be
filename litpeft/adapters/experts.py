"""Experts of a mixture (Mixtral, Qwen3-MoE, gpt-oss): many linear layers whose weights are stacked in one parameter.

transformers stores the weights of E experts as one parameter of shape (E, out, in), or (E, in, out) in gpt-oss. To
adapt or quantise them like other layers, `separate_experts` turns each of these parameters into a module of its name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from litpeft.adapters.functional import frozen_linear
from litpeft.adapters.linear4bit import Linear4bit
from litpeft.ops.row_chunks import equal_shares
from litpeft.ops.without_values import has_values

PARAMETERS = ("gate_up_proj", "up_proj", "down_proj")  # names that transformers gives to stacked weights
Compute = Callable[[Tensor, int], Tensor]  # (rows of an expert (N, in), number of the expert) -> (N, out)


class StackedLinear(nn.Module):
    """The frozen linear layers of all experts, without their biases.

    Args:
        weight: (E, out, in), or (E, in, out) if `transposed`.
        transposed: whether each matrix is stored as (in, out).
    """

    def __init__(self, weight: nn.Parameter, transposed: bool) -> None:
        super().__init__()
        self.weight, self.transposed = weight, transposed
        self.experts = len(weight)
        self.out_features, self.in_features = reversed(weight.shape[1:]) if transposed else weight.shape[1:]

    def by_expert(self, bias: Tensor | None) -> Compute:
        """Return the function that computes one expert's layer; `bias` is (E, out) or None."""
        matrices = self.weight.mT if self.transposed else self.weight
        return lambda x, expert: F.linear(x, matrices[expert], None if bias is None else bias[expert])

    def extra_repr(self) -> str:
        return f"experts={self.experts}, in={self.in_features}, out={self.out_features}"


class StackedLinear4bit(Linear4bit):
    """The linear layers of all experts with quantised (4-bit) weights; each expert is quantised on its own.

    The tensors are those of `Linear4bit`, stacked along dimension 0: an expert is dequantised when it has rows.
    """

    def __init__(self, weight: Tensor, transposed: bool, **options: Any) -> None:
        """Quantise a weight of shape (E, out, in), or (E, in, out) if `transposed`; options as in `Linear4bit`."""
        nn.Module.__init__(self)
        layers = [Linear4bit(matrix.T if transposed else matrix, None, **options) for matrix in weight.detach()]
        self.experts, self.transposed, self.bias = len(layers), transposed, None
        for name in ("in_features", "out_features", "quant_type", "dtype", "compute_dtype", "double_quant", "_table"):
            setattr(self, name, getattr(layers[0], name))
        for name in layers[0]._buffers:
            self.register_buffer(name, torch.stack([getattr(layer, name) for layer in layers]))

    @property
    def numbers(self) -> int:
        return self.experts * super().numbers

    def stored_of(self, expert: int) -> tuple[Tensor, ...]:
        """Return the tensors of one expert's weight, the arguments of `to_matrix`."""
        nested = (self.nested_absmax[expert], self.offset[expert], self._table) if self.double_quant else ()
        return (self.codes[expert], self.absmax[expert], *nested)

    @property
    def weight(self) -> Tensor:
        """The dequantised weights (E, out, in), computed at each access."""
        return torch.stack([self.to_matrix(*self.stored_of(i), dtype=self.dtype) for i in range(self.experts)])

    def by_expert(self, bias: Tensor | None) -> Compute:
        def compute(x: Tensor, expert: int) -> Tensor:
            wide = x.to(self.compute_dtype or x.dtype)
            out = frozen_linear(wide, self.stored_of(expert), self.to_matrix, None if bias is None else bias[expert])
            return out.to(x.dtype)

        return compute

    def plain(self, matrix: Tensor | None = None) -> StackedLinear:
        """Return an unquantised layer with the weights `matrix` (E, out, in), by default the dequantised weights."""
        matrix = self.weight if matrix is None else matrix
        stored = matrix.mT.contiguous() if self.transposed else matrix
        return StackedLinear(nn.Parameter(stored, requires_grad=False), self.transposed)


def expert_weights(model: nn.Module) -> Iterator[tuple[str, nn.Module, list[str]]]:
    """Iterate over the modules that hold stacked expert weights: name, module, names of the stacked parameters.

    They are the classes to which transformers applies `use_experts_implementation`; other mixtures have layouts of
    their own.
    """
    for name, module in model.named_modules():
        if hasattr(module, "_is_expert_parallel") and hasattr(module, "is_transposed"):
            leaves = [leaf for leaf in module._parameters if leaf in PARAMETERS and module._parameters[leaf].ndim == 3]
            if "down_proj" in leaves and len(leaves) == 2:
                yield name, module, leaves


def separate_experts(model: nn.Module) -> None:
    """Replace stacked expert weights by `StackedLinear` modules of the same names, in place."""
    for _, module, leaves in list(expert_weights(model)):
        for leaf in leaves:
            weight = module._parameters.pop(leaf)
            module.add_module(leaf, StackedLinear(weight, module.is_transposed))
        module.forward = MethodType(experts_forward, module)


def restore_experts(model: nn.Module) -> None:
    """Undo `separate_experts` for modules whose experts are all plain: neither adapted nor quantised."""
    for module in model.modules():
        stacked = {leaf: child for leaf, child in module.named_children() if leaf in PARAMETERS}
        if stacked and all(type(child) is StackedLinear for child in stacked.values()):
            for leaf, child in stacked.items():
                delattr(module, leaf)
                module.register_parameter(leaf, child.weight)
            vars(module).pop("forward", None)


def experts_forward(module: nn.Module, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """Compute the experts of a mixture, one after the other, each on the rows that are routed to it.

    Args:
        module: the experts, after `separate_experts`.
        hidden_states: (N, dim).
        top_k_index: (N, k), the experts of each row.
        top_k_weights: (N, k), the factors of their outputs.

    Returns:
        (N, dim), the weighted sum of k outputs for each row.
    """
    rows, k = top_k_index.shape
    order = top_k_index.flatten().argsort(stable=True)  # pairs of (row, expert), sorted by expert
    first, bias = ("gate_up_proj", "gate_up_proj_bias") if module.has_gate else ("up_proj", "up_proj_bias")
    up = getattr(module, first).by_expert(getattr(module, bias) if module.has_bias else None)
    down = module.down_proj.by_expert(module.down_proj_bias if module.has_bias else None)
    outputs = []
    for expert, x in enumerate(hidden_states[order // k].split(_rows_by_expert(top_k_index, module.num_experts))):
        if expert == module.num_experts:  # rows that their router sends to no expert
            outputs.append(torch.zeros_like(x))
        elif len(x):
            inner = up(x, expert)
            outputs.append(down(module._apply_gate(inner) if module.has_gate else module.act_fn(inner), expert))
    out = torch.cat(outputs)
    if module.has_post_expert_norm:
        out = module.post_expert_norm(out)
    out = out * top_k_weights.flatten()[order, None]
    back = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
    return out[back].view(rows, k, -1).sum(1).to(hidden_states.dtype)


def _rows_by_expert(top_k_index: Tensor, experts: int) -> list[int]:
    """Return the number of rows of each expert, and of rows without an expert; of meta tensors, equal shares."""
    pairs = top_k_index.numel()
    if not has_values(top_k_index):
        return equal_shares(pairs, experts)
    return torch.bincount(top_k_index.flatten(), minlength=experts + 1).tolist()

"""Frozen layers with a low-rank adapter beside, one class for each kind of layer; `ADAPTED` says which for which.

To add a kind: derive from `AdaptedLayer`, say how to read the weight as a matrix and how to compute, enter it in `ADAPTED`.

An adapted layer takes over weight and bias of the one that it replaces, under the same names, and adds `lora_A`, `lora_B`
and, for DoRA, `magnitude`, all fp32 and cast when used. It equals the one that it replaces until it is trained.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.optimizer import register_optimizer_step_post_hook
from transformers.pytorch_utils import Conv1D

from litpeft.adapters.functional import Open, adapted_linear, low_rank_norm, with_gain
from litpeft.adapters.linear4bit import Linear4bit
from litpeft.errors import UserError

_optimizer_steps = 0


@register_optimizer_step_post_hook
def _count_step(*_: object) -> None:
    """Fused optimizers and bitsandbytes' change parameters without raising their version, so steps are counted."""
    global _optimizer_steps
    _optimizer_steps += 1


@dataclass(frozen=True)
class LowRank:
    """What one layer's adapter is made with: rank r, scaling s, dropout, how A is drawn, whether DoRA's magnitude."""

    rank: int
    scaling: float
    dropout: float = 0.0
    init: str = "kaiming"
    magnitude: bool = False


class AdaptedLayer(nn.Module):
    """What all kinds share. Seen as a matrix, the weight is W (out, in), A is (r, in) and B (out, r), in g groups."""

    groups = 1

    def __init__(self, base: nn.Module, options: LowRank) -> None:
        super().__init__()
        self.take_over(base)
        self.rank, self.scaling, self.dropout = options.rank, options.scaling, options.dropout
        like = {"dtype": torch.float32, "device": next(self.frozen()).device}
        shape_A, shape_B = self.shapes()
        self.lora_A = nn.Parameter(torch.empty(shape_A, **like))
        self.lora_B = nn.Parameter(torch.empty(shape_B, **like))
        self.draw(options.init)
        self.magnitude = None
        if options.magnitude:
            opened = self.matrix()
            with torch.no_grad():
                self.register_buffer("squares", row_squares(opened), persistent=False)
                self.magnitude = nn.Parameter(self.norm(opened))

    def take_over(self, base: nn.Module) -> None:
        """Take weight, bias and whatever else the computation needs."""
        self.weight, self.bias = base.weight, base.bias

    def frozen(self) -> Iterator[Tensor]:
        """The frozen weight's tensors."""
        return iter((self.weight,))

    def shapes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Of A and of B."""
        return (self.rank, self.in_features), (self.out_features, self.rank)

    def draw(self, init: str) -> None:
        """A at random and B zero, so that nothing is added yet.

        `kaiming`: uniform in 1/sqrt(in), what nn.Linear draws, as in the authors' code (microsoft/LoRA, loralib/layers.py).
        `gaussian`: normal with a standard deviation of 1/r.
        """
        if init == "kaiming":
            nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))
        else:
            nn.init.normal_(self.lora_A, std=1 / self.rank)
        nn.init.zeros_(self.lora_B)

    def matrix(self) -> Tensor:
        """W (out, in), a view where the weight is held as it is."""
        return self.weight

    def plain(self, matrix: Tensor) -> nn.Module:
        """A layer of the kind that was replaced, with this weight given as a matrix (out, in)."""
        raise NotImplementedError

    def norm_is_due(self) -> bool:
        """Whether A or B may have changed since the norm was worked out."""
        return torch.compiler.is_compiling() or getattr(self, "_norm_at", None) != self._now()

    def _now(self) -> tuple[object, ...]:
        return _optimizer_steps, self.lora_A._version, self.lora_B._version, self.lora_A.device

    def norm(self, opened: Tensor | None = None) -> Tensor:
        """‖W + s BA‖ by row (out), worked out once an optimizer step however often it is asked for.

        Args:
            opened: W where the caller has it open.
        """
        if not self.norm_is_due():
            return self._norm
        # in validation too a tensor of the common kind, since training goes on with it
        with torch.inference_mode(False), torch.no_grad():
            w, A, B = self.grouped(self.matrix() if opened is None else opened)
            norm = low_rank_norm(self.squares, w, A, B, self.scaling)
        if not torch.compiler.is_compiling():
            self._norm, self._norm_at = norm, self._now()
        return norm

    def grouped(self, matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """W (g, out/g, in), A (g, r/g, in) and B (g, out/g, r/g)."""
        w, A, B = matrix, self.lora_A.flatten(1), self.lora_B.flatten(1)
        return tuple(tensor.unflatten(0, (self.groups, -1)) for tensor in (w, A, B))

    @torch.no_grad()
    def folded(self, matrix: Tensor | None = None) -> Tensor:
        """What the layer multiplies with, (out, in): W + s BA, times m/‖W + s BA‖ with DoRA.

        Args:
            matrix: W where another base is to be folded into; the layer's own where it is None.

        Raises:
            UserError: it holds numbers that are not finite.
        """
        matrix = self.matrix() if matrix is None else matrix
        w, A, B = self.grouped(matrix)
        wide = torch.promote_types(w.dtype, torch.float32)
        whole = (w.to(wide) + self.scaling * (B.to(wide) @ A.to(wide))).flatten(0, 1)  # summed wide, rounded once
        if self.magnitude is not None:
            whole = whole * (self.magnitude / whole.norm(dim=1).clamp_min(torch.finfo(wide).tiny ** 0.5))[:, None]
        if not whole.isfinite().all():
            raise UserError("the adapter holds numbers that are not finite: the run diverged, nothing can be merged.")
        return whole.to(matrix.dtype)

    def merged(self) -> nn.Module:
        """A plain layer with the adapter folded in: summed in fp32, rounded once to the weight's dtype."""
        return self.plain(self.folded())

    def extra_repr(self) -> str:
        kind = ", magnitude" if self.magnitude is not None else ""
        return f"in={self.in_features}, out={self.out_features}, rank={self.rank}, scaling={self.scaling:g}{kind}"


class AdaptedLinear(AdaptedLayer):
    """nn.Linear with an adapter."""

    def take_over(self, base: nn.Linear) -> None:
        super().take_over(base)
        self.in_features, self.out_features = base.in_features, base.out_features

    @property
    def held(self) -> tuple[Tensor, ...]:
        """The frozen weight as it is held."""
        return (self.weight,)

    @property
    def open(self) -> Open:
        """From `held` to W (out, in)."""
        return _cast

    def forward(self, x: Tensor) -> Tensor:  # (..., in) -> (..., out)
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        with torch.autocast(x.device.type, enabled=False):
            return self.compute(x)

    def compute(self, x: Tensor) -> Tensor:
        """The product in the dtype of x."""
        norm = opened = None
        if self.magnitude is not None:
            if self.norm_is_due():  # for the norm and for the product alike: a 4-bit weight is dequantised once
                opened = self.open(*self.held, dtype=x.dtype)
            norm = self.norm(opened)
        dropout = self.dropout if self.training else 0.0
        parts = self.lora_A, self.lora_B, self.scaling, dropout, self.magnitude, norm, opened
        return adapted_linear(x, self.held, self.open, self.bias, *parts)

    def plain(self, matrix: Tensor) -> nn.Module:
        layer = nn.Linear(self.in_features, self.out_features, bias=self.bias is not None, device="meta")
        layer.weight, layer.bias = nn.Parameter(matrix, requires_grad=False), self.bias
        return layer


class AdaptedConv1D(AdaptedLinear):
    """transformers' Conv1D (GPT-2): a linear layer whose weight is (in, out)."""

    def take_over(self, base: Conv1D) -> None:
        AdaptedLayer.take_over(self, base)
        self.in_features, self.out_features = base.nx, base.nf

    def matrix(self) -> Tensor:
        return self.weight.T

    @property
    def open(self) -> Open:
        return _cast_transposed

    def plain(self, matrix: Tensor) -> Conv1D:
        with torch.device("meta"):
            layer = Conv1D(self.out_features, self.in_features)
        layer.weight, layer.bias = nn.Parameter(matrix.T.contiguous(), requires_grad=False), self.bias
        return layer


class AdaptedLinear4bit(AdaptedLinear):
    """A four-bit layer with an adapter. It is merged into a plain nn.Linear with the dequantised weight."""

    def take_over(self, base: Linear4bit) -> None:
        self.bias, base.bias = base.bias, None
        self.base = base  # its buffers go with it to other devices
        self.in_features, self.out_features = base.in_features, base.out_features

    def frozen(self) -> Iterator[Tensor]:
        return self.base.buffers()

    def matrix(self) -> Tensor:
        return self.base.weight

    weight = property(matrix)

    @property
    def held(self) -> tuple[Tensor, ...]:
        return self.base.held

    @property
    def open(self) -> Open:
        return self.base.open

    def compute(self, x: Tensor) -> Tensor:
        return super().compute(x.to(self.base.compute_dtype or x.dtype)).to(x.dtype)


class AdaptedEmbedding(AdaptedLayer):
    """nn.Embedding with an adapter: E[i] + s B A[:, i]. As a matrix it is Eᵀ (dim, vocabulary): a linear layer on one-hot rows.

    A starts at zero and B is drawn, as its authors do it; its dropout is none, there being nothing to drop of an index.
    No function of our own: the lookup keeps indices only, and the product is added in place.
    """

    def take_over(self, base: nn.Embedding) -> None:
        if base.max_norm is not None or base.scale_grad_by_freq or base.sparse:
            raise UserError("an embedding with max_norm, scale_grad_by_freq or sparse gradients gets no adapter.")
        self.weight, self.bias, self.padding_idx = base.weight, None, base.padding_idx
        self.num_embeddings, self.embedding_dim = base.num_embeddings, base.embedding_dim
        self.in_features, self.out_features = base.num_embeddings, base.embedding_dim

    def draw(self, init: str) -> None:
        nn.init.zeros_(self.lora_A)
        nn.init.normal_(self.lora_B)

    def matrix(self) -> Tensor:
        return self.weight.T

    def forward(self, ids: Tensor) -> Tensor:  # (...) -> (..., dim)
        out = F.embedding(ids, self.weight).view(-1, self.out_features)
        low = F.embedding(ids.reshape(-1), self.lora_A.T, self.padding_idx).to(out.dtype)  # (N, r)
        out = out.addmm_(low, (self.scaling * self.lora_B).to(out.dtype).T)
        if self.magnitude is not None:
            out = with_gain(out, self.magnitude, self.norm())
        return out.view(*ids.shape, self.out_features)

    def plain(self, matrix: Tensor) -> nn.Embedding:
        layer = nn.Embedding(self.num_embeddings, self.embedding_dim, self.padding_idx, device="meta")
        layer.weight = nn.Parameter(matrix.T.contiguous(), requires_grad=False)
        return layer


class AdaptedConv2d(AdaptedLayer):
    """nn.Conv2d with an adapter: A is a convolution like it (r/g channels out of each group's), B one of 1 x 1.

    As a matrix, each group's weight is (out/g, in/g * height * width), so that any grouping can be merged. No function
    of our own: the frozen convolution keeps its input only, which A's needs as well.
    """

    def take_over(self, base: nn.Conv2d) -> None:
        super().take_over(base)
        for name in ("stride", "padding", "dilation", "groups", "padding_mode", "kernel_size", "in_channels", "out_channels"):
            setattr(self, name, getattr(base, name))
        self.in_features, self.out_features = base.in_channels, base.out_channels
        self._around = base._reversed_padding_repeated_twice

    def shapes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        if self.rank % self.groups:
            raise UserError(
                f"model.adapter.rank {self.rank} must be a multiple of the {self.groups} groups of a convolution."
            )
        return (self.rank, *self.weight.shape[1:]), (self.out_channels, self.rank // self.groups, 1, 1)

    def matrix(self) -> Tensor:
        return self.weight.flatten(1)

    def forward(self, x: Tensor) -> Tensor:  # (N, in, H, W) -> (N, out, H', W')
        padding = self.padding
        if self.padding_mode != "zeros":
            x, padding = F.pad(x, self._around, self.padding_mode), 0
        how = {"stride": self.stride, "padding": padding, "dilation": self.dilation, "groups": self.groups}
        dropped = F.dropout(x, self.dropout, self.training)
        low = F.conv2d(dropped, self.lora_A.to(x.dtype), **how)  # (N, r, H', W')
        bias = None if self.bias is None else self.bias.to(x.dtype)
        out = F.conv2d(x, self.weight.to(x.dtype), None if self.magnitude is not None else bias, **how)
        out = out + F.conv2d(low, (self.scaling * self.lora_B).to(low.dtype), groups=self.groups)
        if self.magnitude is None:
            return out
        out = with_gain(out, self.magnitude, self.norm(), dim=1)
        return out if bias is None else out + bias[:, None, None]

    def plain(self, matrix: Tensor) -> nn.Conv2d:
        how = (self.kernel_size, self.stride, self.padding, self.dilation, self.groups, self.bias is not None)
        layer = nn.Conv2d(self.in_channels, self.out_channels, *how, self.padding_mode, device="meta")
        layer.weight = nn.Parameter(matrix.view(self.weight.shape), requires_grad=False)
        layer.bias = self.bias
        return layer


ADAPTED: dict[type[nn.Module], type[AdaptedLayer]] = {  # layer type -> adapted layer: the place to add a kind of layer
    nn.Linear: AdaptedLinear,
    Conv1D: AdaptedConv1D,
    Linear4bit: AdaptedLinear4bit,
    nn.Embedding: AdaptedEmbedding,
    nn.Conv2d: AdaptedConv2d,
}
LINEAR = (nn.Linear, Conv1D, Linear4bit)  # what `all-linear` means


def adapted_layers(model: nn.Module) -> dict[str, AdaptedLayer]:
    """The layers that an adapter has replaced, by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, AdaptedLayer)}


def _cast(weight: Tensor, dtype: torch.dtype) -> Tensor:
    return weight.to(dtype)


def _cast_transposed(weight: Tensor, dtype: torch.dtype) -> Tensor:
    return weight.T.to(dtype)


def row_squares(matrix: Tensor) -> Tensor:
    """‖W‖² by row, a few rows at a time: no fp32 copy of a bf16 weight is made."""
    wide = torch.promote_types(matrix.dtype, torch.float32)
    return torch.cat([rows.to(wide).square().sum(1) for rows in matrix.split(256)])

"""Base class of the adapted layers: A, B, DoRA's magnitude and norm, and merging."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim.optimizer import register_optimizer_step_post_hook

from litpeft.adapters.functional import low_rank_norm
from litpeft.errors import UserError

_optimizer_steps = 0


@register_optimizer_step_post_hook
def _count_step(*_: object) -> None:
    """Count optimizer steps, since fused and bitsandbytes optimizers do not raise a parameter's `_version`."""
    global _optimizer_steps
    _optimizer_steps += 1


@dataclass(frozen=True)
class LowRank:
    """Options of one adapted layer: rank r, scaling s, dropout, initialisation of A, and whether DoRA is used."""

    rank: int
    scaling: float
    dropout: float = 0.0
    init: str = "kaiming"
    magnitude: bool = False


class AdaptedLayer(nn.Module):
    """Base class. As matrices, the weight is W (out, in), A is (r, in), B is (out, r); convolutions have g groups."""

    groups = 1

    def __init__(self, base: nn.Module, options: LowRank) -> None:
        super().__init__()
        self.take_over(base)
        self.rank, self.scaling, self.dropout = options.rank, options.scaling, options.dropout
        shape_A, shape_B = self.shapes()
        device = next(self.frozen()).device
        # initialised on the CPU, so that initial values are the same for every device and for quantised bases
        first = "meta" if device.type == "meta" else "cpu"
        self.lora_A = nn.Parameter(torch.empty(shape_A, dtype=torch.float32, device=first))
        self.lora_B = nn.Parameter(torch.empty(shape_B, dtype=torch.float32, device=first))
        self.initialise(options.init)
        self.lora_A, self.lora_B = (nn.Parameter(p.detach().to(device)) for p in (self.lora_A, self.lora_B))
        self.magnitude = None
        if options.magnitude:
            with torch.no_grad():
                self.register_buffer("squares", self.squared_norms(), persistent=False)
                self.magnitude = nn.Parameter(self.norm())
            self.register_load_state_dict_post_hook(_update_squares)

    def take_over(self, base: nn.Module) -> None:
        """Take the weight, the bias and the attributes that `forward` needs from the replaced layer."""
        self.weight, self.bias = base.weight, base.bias

    def frozen(self) -> Iterator[Tensor]:
        """Iterate over the tensors of the frozen weight."""
        return iter((self.weight,))

    def shapes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return the shapes of A and B."""
        return (self.rank, self.in_features), (self.out_features, self.rank)

    def initialise(self, init: str) -> None:
        """Initialise A at random and B with zeros, so that the update BA starts at zero.

        `kaiming`: uniform with bound 1/sqrt(in), as in nn.Linear and in the LoRA authors' loralib/layers.py.
        `gaussian`: normal with standard deviation 1/r.
        """
        if init == "kaiming":
            nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))
        else:
            nn.init.normal_(self.lora_A, std=1 / self.rank)
        nn.init.zeros_(self.lora_B)

    def matrix(self) -> Tensor:
        """Return W (out, in): a view, or the dequantised weight."""
        return self.weight

    def plain(self, matrix: Tensor) -> nn.Module:
        """Return a layer of the replaced type with this weight (out, in)."""
        raise NotImplementedError

    def norm_is_stale(self) -> bool:
        """Return whether A or B may have changed since the norm was computed."""
        return torch.compiler.is_compiling() or getattr(self, "_norm_key", None) != self._cache_key()

    def _cache_key(self) -> tuple[object, ...]:
        A, B = self.lora_A, self.lora_B
        # with the mode, because weight averaging swaps weights for validation without raising `_version`
        key = _optimizer_steps, self.training, id(A), A._version, id(B), B._version
        return *key, A.device, self.squares.dtype

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> AdaptedLayer:
        """Move or cast the layer, then recompute the norms of W from the new weight."""
        super()._apply(fn, recurse)
        _update_squares(self)
        return self

    def norm(self, matrix: Tensor | None = None) -> Tensor:
        """Return the row norms ‖W + s BA‖ (out), cached until the next optimizer step or validation; `matrix` is W."""
        if not self.norm_is_stale():
            return self._norm
        # no inference tensor, even in validation: training may use the cached norm
        with torch.inference_mode(False), torch.no_grad():
            norm = self.compute_norm(matrix)
        if not torch.compiler.is_compiling():
            self._norm, self._norm_key = norm, self._cache_key()
        return norm

    def compute_norm(self, matrix: Tensor | None = None) -> Tensor:
        """Return the row norms ‖W + s BA‖ (out); `matrix` is W."""
        w, A, B = self.grouped(self.matrix() if matrix is None else matrix)
        return low_rank_norm(self.squares, w, A, B, self.scaling)

    def squared_norms(self) -> Tensor:
        """Return the squared row norms ‖W‖² (out)."""
        return row_squares(self.matrix())

    def norm_tensors(self) -> list[Tensor]:
        """Return DoRA's cached tensors for memory reports: ‖W‖² by row and the norm; none for LoRA."""
        return [] if self.magnitude is None else [self.squares, self._norm]

    def grouped(self, matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return W (g, out/g, in), A (g, r/g, in) and B (g, out/g, r/g)."""
        w, A, B = matrix, self.lora_A.flatten(1), self.lora_B.flatten(1)
        return tuple(tensor.unflatten(0, (self.groups, -1)) for tensor in (w, A, B))

    @torch.no_grad()
    def merged_matrix(self, matrix: Tensor | None = None) -> Tensor:
        """Return the merged weight (out, in): W + s BA, with DoRA multiplied by m/‖W + s BA‖.

        Args:
            matrix: W of another base to merge into; by default this layer's W.
        """
        matrix = self.matrix() if matrix is None else matrix
        w, A, B = self.grouped(matrix)
        wide = torch.promote_types(w.dtype, torch.float32)
        merged = (w.to(wide) + self.scaling * (B.to(wide) @ A.to(wide))).flatten(0, 1)  # summed in fp32, rounded once
        if self.magnitude is not None:
            merged = merged * (self.magnitude / merged.norm(dim=1).clamp_min(torch.finfo(wide).tiny ** 0.5))[:, None]
        if not merged.isfinite().all():
            raise UserError("the adapter has NaN or infinite values: the run diverged and cannot be merged.")
        return merged.to(matrix.dtype)

    def merged(self) -> nn.Module:
        """Return a plain layer with the adapter merged: summed in fp32, rounded once to the weight's dtype."""
        return self.plain(self.merged_matrix())

    def extra_repr(self) -> str:
        kind = ", magnitude" if self.magnitude is not None else ""
        return f"in={self.in_features}, out={self.out_features}, rank={self.rank}, scaling={self.scaling:g}{kind}"


@torch.no_grad()
def _update_squares(layer: AdaptedLayer, _: object = None) -> None:
    if layer.magnitude is not None and not isinstance(next(layer.frozen()), DTensor):  # moving a shard changes no value
        layer.squares = layer.squared_norms()


def row_squares(matrix: Tensor) -> Tensor:
    """Return ‖W‖² by row, a few rows at a time to avoid an fp32 copy of a bf16 weight."""
    wide = torch.promote_types(matrix.dtype, torch.float32)
    return torch.cat([rows.to(wide).square().sum(1) for rows in matrix.split(256)])

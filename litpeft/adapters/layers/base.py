"""Base class of the adapted layers: A, B, DoRA's magnitude and norm, and merging."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim.optimizer import register_optimizer_step_post_hook

from litpeft.adapters.functional import Prepared
from litpeft.adapters.gain import low_rank_norm
from litpeft.adapters.layers.group import LayerGroup
from litpeft.errors import UserError

_optimizer_steps = 0


@register_optimizer_step_post_hook
def _count_step(*_: object) -> None:
    """Count optimizer steps, since fused and bitsandbytes optimizers do not raise a parameter's `_version`."""
    global _optimizer_steps
    _optimizer_steps += 1


def optimizer_steps() -> int:
    """Return the number of optimizer steps that this process has made."""
    return _optimizer_steps


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
    shared_input = None  # layers that are called with the same tensor
    prepares = False  # whether A and B are cast, and the gain is computed, once per optimizer step

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
        self._prepared: Prepared | None = None
        self.layer_group = LayerGroup()  # of its own, until `LayerGroup.join` makes one group of a model's layers
        self.layer_group.add(self)
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
        `gaussian`: normal with standard deviation 1/r, as in PEFT. `normal`: with variance 1/r.
        """
        if init == "kaiming":
            nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))
        else:
            nn.init.normal_(self.lora_A, std=1 / self.rank if init == "gaussian" else self.rank**-0.5)
        nn.init.zeros_(self.lora_B)

    def __getstate__(self) -> dict[str, Any]:
        """Return the state for copies and pickles, without what belongs to the parameters of this layer only."""
        return vars(self) | {"_prepared": None, "_norm_key": None, "shared_input": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.layer_group.add(self)  # the layers of a copied model form a group of their own

    def matrix(self) -> Tensor:
        """Return W (out, in): a view, or the dequantised weight."""
        return self.weight

    def plain(self, matrix: Tensor) -> nn.Module:
        """Return a layer of the replaced type with this weight (out, in)."""
        raise NotImplementedError

    def _values_key(self, *names: str) -> tuple[object, ...]:
        """Return a key that changes with the values of these parameters."""
        key: list[object] = [_optimizer_steps]
        for name in names:
            if (p := self._parameters.get(name)) is not None:
                key += [id(p), p._version, p.untyped_storage()._cdata]  # the storage: `p.data = ...` keeps the version
        return tuple(key)

    def norm_is_stale(self) -> bool:
        """Return whether A or B may have changed since the norm was computed."""
        return torch.compiler.is_compiling() or getattr(self, "_norm_key", None) != self._cache_key()

    def _cache_key(self) -> tuple[object, ...]:
        # with the mode, because weight averaging swaps weights for validation without raising `_version`
        return self.training, self.lora_A.device, self.squares.dtype, *self._values_key("lora_A", "lora_B")

    def prepared(self, dtype: torch.dtype) -> Prepared | None:
        """Return what is computed once per optimizer step; None if this call has to compute it.

        Only for calls that a backward pass follows, in training: weights that are set by hand without raising
        `_version` (`p.data.copy_(...)`, as some averaging methods do) are then read by the next call.

        Args:
            dtype: compute dtype.
        """
        if not (self.training and torch.is_grad_enabled()) or torch.compiler.is_compiling():
            return None
        if self.magnitude is None and dtype == self.lora_A.dtype:
            return None
        if not self.is_prepared(dtype):
            self.layer_group.prepare(self, dtype)
            if not self.is_prepared(dtype):  # sharded parameters
                return None
        return self._prepared

    def is_prepared(self, dtype: torch.dtype) -> bool:
        """Return whether casts and gain are those of the present values of A, B and m."""
        known = self._prepared
        return known is not None and not known.used and known.key == self._prepared_key(dtype)

    def _prepared_key(self, dtype: torch.dtype) -> tuple[object, ...]:
        return dtype, *self._values_key("lora_A", "lora_B", "magnitude")

    def allocate(self, dtype: torch.dtype) -> Prepared:
        """Return the object for casts and gain in this compute dtype, with the tensors of the last step if they fit.

        Its key is that of the present values, which the caller copies into the tensors.
        """
        A, B, m = self.lora_A, self.lora_B, self.magnitude
        known = self._prepared
        if known is None or not known.fits(A, dtype):
            cast = dtype != A.dtype
            made = [torch.empty_like(p, dtype=dtype) if cast else None for p in (A, B)]
            known = self._prepared = Prepared(*made)
            if m is not None and self.norm_group() is not None:  # else each call computes norm and gain
                known.gain = torch.empty_like(self.squares, dtype=torch.promote_types(m.dtype, self.squares.dtype))
        known.key, known.used = self._prepared_key(dtype), False
        return known

    def norm_group(self) -> tuple[object, ...] | None:
        """Return a key, equal for layers whose norms one operation can compute; None for a layer alone."""
        return None

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> AdaptedLayer:
        """Move or cast the layer, then recompute the norms of W from the new weight."""
        super()._apply(fn, recurse)
        self._prepared = None
        _update_squares(self)
        return self

    def norm(self, matrix: Tensor | None = None) -> Tensor:
        """Return the row norms ‖W + s BA‖ (out), cached until the next optimizer step or validation; `matrix` is W."""
        if not self.norm_is_stale():
            return self._norm
        # no inference tensor, even in validation: training may use the cached norm
        with torch.inference_mode(False), torch.no_grad():
            if not torch.compiler.is_compiling() and self.norm_group() is not None:
                self.layer_group.update_norms()
                if not self.norm_is_stale():
                    return self._norm
            norm = self.compute_norm(matrix)
        if not torch.compiler.is_compiling():
            self.keep_norm(norm)
        return norm

    def keep_norm(self, norm: Tensor) -> None:
        """Cache the row norms (out) of the present values of A and B."""
        self._norm, self._norm_key = norm, self._cache_key()

    def gain(self, matrix: Tensor | None = None) -> Tensor:
        """Return DoRA's gain m / ‖W + s BA‖ (out), a constant for autograd; `matrix` is W."""
        return self.magnitude.detach() / self.norm(matrix)

    def compute_norm(self, matrix: Tensor | None = None) -> Tensor:
        """Return the row norms ‖W + s BA‖ (out); `matrix` is W."""
        w, A, B = self.grouped(self.matrix() if matrix is None else matrix)
        return low_rank_norm(self.squares, w, A, B, self.scaling)

    def squared_norms(self) -> Tensor:
        """Return the squared row norms ‖W‖² (out)."""
        return row_squares(self.matrix())

    def frozen_dtype(self) -> torch.dtype:
        """Return the dtype of W, for a quantised weight the dtype that W is dequantised to for products."""
        return self.weight.dtype

    def cached_tensors(self, make: bool = True) -> list[Tensor]:
        """Return what is computed once per step, for memory reports: casts of A and B; DoRA's gain, norm and ‖W‖².

        Args:
            make: make casts and gain now, in the dtype of W, if the layer has not been called yet.
        """
        if make and self.prepares and self._prepared is None:
            self.layer_group.prepare(self, self.frozen_dtype())
        known = self._prepared or Prepared(None, None)
        norms = [] if self.magnitude is None else [self.squares, self._norm]
        return [tensor for tensor in (known.A, known.B, known.gain, *norms) if tensor is not None]

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

"""What the adapted layers of all kinds share: A, B, the magnitude, its norm, and how they are folded in."""

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
        shape_A, shape_B = self.shapes()
        # drawn on the host, so that the first values are the same for every device and for quantised bases
        self.lora_A = nn.Parameter(torch.empty(shape_A, dtype=torch.float32, device="cpu"))
        self.lora_B = nn.Parameter(torch.empty(shape_B, dtype=torch.float32, device="cpu"))
        self.draw(options.init)
        device = next(self.frozen()).device
        self.lora_A, self.lora_B = (nn.Parameter(p.detach().to(device)) for p in (self.lora_A, self.lora_B))
        self.magnitude = None
        if options.magnitude:
            opened = self.matrix()
            with torch.no_grad():
                self.register_buffer("squares", row_squares(opened), persistent=False)
                self.magnitude = nn.Parameter(self.norm(opened))
            self.register_load_state_dict_post_hook(_measure_again)

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

        `kaiming`: uniform in 1/sqrt(in), what nn.Linear draws, as in the authors' loralib/layers.py.
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
        A, B = self.lora_A, self.lora_B
        # training or not, as averages of weights are put in for validation with no trace in a version
        key = _optimizer_steps, self.training, id(A), A._version, id(B), B._version
        return *key, A.device, self.squares.dtype

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> AdaptedLayer:
        """As every module; the norm of W is that of the weight as it is then."""
        super()._apply(fn, recurse)
        _measure_again(self)
        return self

    def norm(self, opened: Tensor | None = None) -> Tensor:
        """‖W + s BA‖ by row (out), worked out once an optimizer step, and once more for validation.

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

    def norms(self) -> list[Tensor]:
        """What is kept to work out DoRA's norm: ‖W‖² by row, and the norm itself from its first use on."""
        return [] if self.magnitude is None else [self.squares, self._norm]

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


@torch.no_grad()
def _measure_again(layer: AdaptedLayer, _: object = None) -> None:
    if layer.magnitude is not None and not isinstance(layer.matrix(), DTensor):  # a share does not change by moving
        layer.squares = row_squares(layer.matrix())


def row_squares(matrix: Tensor) -> Tensor:
    """‖W‖² by row, a few rows at a time: no fp32 copy of a bf16 weight is made."""
    wide = torch.promote_types(matrix.dtype, torch.float32)
    return torch.cat([rows.to(wide).square().sum(1) for rows in matrix.split(256)])

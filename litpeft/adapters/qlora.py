"""QLoRA: LoRA or DoRA on a quantised (4-bit) base (Dettmers et al. 2023, https://arxiv.org/abs/2305.14314)."""

from __future__ import annotations

from typing import Any, Literal

from litpeft.adapters.bases import FourBit
from litpeft.adapters.dora import DoRA
from litpeft.adapters.lora import LoRA
from litpeft.errors import check_choices


class Quantised:
    """Mixin that puts an adapter on a four-bit base; put it before the adapter class among the base classes.

    It is shorthand for the adapter with `model.base`; see `Base` for what is quantised. Experts of a mixture are too.

    Args:
        quant_type: `nf4` (codes at the quantiles of a normal distribution) or `fp4` (4-bit floating-point numbers).
        double_quant: whether the quantisation constants are quantised too: 4.13 bits per number instead of 4.5.
        compute_dtype: dtype of products with dequantised weights; the model's dtype by default.
        skip: layers not to quantise: module-name suffixes and presets, as in `targets`.
        on_unavailable: if bitsandbytes cannot quantise here: stop with an `error`, or train on the unquantised base
            (`full_precision`) and say so in the run record.
        options: rank, alpha and the other options of the adapter.
    """

    def __init__(
        self,
        quant_type: Literal["nf4", "fp4"] = "nf4",
        double_quant: bool = True,
        compute_dtype: Literal["bf16", "fp32"] | None = None,
        skip: list[str] = ["head"],  # noqa: B006
        on_unavailable: Literal["error", "full_precision"] = "error",
        **options: Any,
    ) -> None:
        check_choices("model.adapter", Quantised.__init__, locals())
        super().__init__(**options)
        self.quant_type, self.double_quant, self.compute_dtype = quant_type, double_quant, compute_dtype
        self.skip, self.on_unavailable = skip, on_unavailable
        self.name = self.strategy_name({"quant_type": quant_type})
        self._base = FourBit(quant_type, double_quant, compute_dtype, skip, on_unavailable, "model.adapter")

    @classmethod
    def strategy_name(cls, options: dict[str, Any]) -> str:
        return f"{cls.name}-{options.get('quant_type', 'nf4')}"


class QLoRA(Quantised, LoRA):
    """LoRA on a quantised (4-bit) base; options as in `Quantised` and `LoRA`."""

    name = "qlora"


class QDoRA(Quantised, DoRA):
    """DoRA on a quantised (4-bit) base; options as in `Quantised` and `LoRA`."""

    name = "qdora"

"""How frozen weights are held (`model.base`): four bits, eight bits, or any quantisation of transformers.

To add one: derive from `Base` and implement `quantised`, which returns the quantised layer of a weight.
"""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers.utils.quantization_config import QuantizationConfigMixin

from litpeft.adapters.experts import StackedLinear, StackedLinear4bit, restore_experts, separate_experts
from litpeft.adapters.linear4bit import Linear4bit, quantisation_failure
from litpeft.adapters.linear8bit import THRESHOLD, Linear8bit
from litpeft.adapters.packaged_linear import PackagedLinear
from litpeft.adapters.quantised_linear import QuantisedLinear, matrix_of
from litpeft.adapters.quantised_loading import QuantisingConfig, quantisable_layers
from litpeft.adapters.quantised_model import quantised_layers
from litpeft.adapters.targets import PRESETS, suffix_pattern
from litpeft.errors import UserError, check_choices, first_sentence

HEADS = ("lm_head", "score", "classifier", "pre_classifier", "classification_head")  # names in transformers
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32, None: None}


class Base:
    """A kind of quantised base. Sub-classes set `name` and implement `quantised`.

    Linear and Conv1D layers are quantised one by one while the model is loaded, or when the adapter is applied if the
    model is loaded already. Embeddings, norms, biases, tied weights and modules trained in full are not quantised.

    Args:
        skip: layers not to quantise: module-name suffixes and presets, as in `targets`; a name of a module with layers
            stands for all of them.
        option: option that sets `skip`, for errors.
    """

    name: str

    def __init__(self, skip: Sequence[str] = ("head",), option: str = "model.base") -> None:
        self.skip, self._option = list(skip), option
        self.not_quantised_because: str | None = None  # None: the base is quantised

    def settings(self) -> dict[str, Any]:
        """Return the name and the options, for checkpoints."""
        kept = {key: value for key, value in vars(self).items() if not key.startswith("_")}
        return {"name": self.name} | {key: kept[key] for key in kept if key != "not_quantised_because"}

    def quantised(self, weight: Tensor, transposed: bool) -> QuantisedLinear:
        """Return the quantised layer, without a bias, of a weight.

        Args:
            weight: (out, in).
            transposed: whether the layer replaces a Conv1D.
        """
        raise NotImplementedError

    def quantised_experts(self, weight: Tensor, transposed: bool) -> QuantisedLinear:
        """Return the quantised layers of the experts of a mixture.

        Args:
            weight: (E, out, in), or (E, in, out) if `transposed`.
            transposed: whether each matrix is stored as (in, out).
        """
        raise UserError(
            f"model.base {self.name} cannot hold the experts of a mixture; give nf4 or fp4, or name them in skip."
        )

    def can_quantise(self, device: torch.device) -> bool:
        """Return whether to quantise on this device; False only if the user allows an unquantised base."""
        return self.not_quantised_because is None

    def disable(self, reason: str) -> None:
        """Do not quantise; the run record gets the reason."""
        self.not_quantised_because = reason

    def loading(self, device: torch.device, modules_to_save: Sequence[str]) -> dict[str, Any]:
        """Return further arguments of `from_pretrained`.

        Args:
            device: the device that the model will be trained on.
            modules_to_save: name suffixes of modules trained in full: no layer inside them is quantised.
        """
        if not self.can_quantise(device):
            return {}
        config = QuantisingConfig(base=self, skip=self.skip, modules_to_save=modules_to_save, device=device)
        return {"quantization_config": config}

    def quantise(self, model: nn.Module) -> None:
        """Quantise the frozen layers of a loaded model that are not quantised yet, in place.

        Raises:
            UserError: a name in `skip` is no module of the model, or no layer can be quantised.
        """
        if not self.can_quantise(next(model.parameters()).device):
            return
        names = [name for name, _ in model.named_modules()]
        for end in self.skip:
            if end not in PRESETS and not any(map(suffix_pattern([end]).fullmatch, names)):
                raise UserError(f"{self._option}.skip: {end!r} is no module of {type(model).__name__}.")
        separate_experts(model)
        self.quantise_named(model, quantisable_layers(model, self.skip))
        restore_experts(model)
        if not quantised_layers(model):
            raise UserError(
                f"{self._option}: {type(model).__name__} has no layer to quantise outside skip {self.skip}."
            )

    def quantise_named(self, model: nn.Module, names: Sequence[str]) -> None:
        """Quantise the layers with these names in place, except those that are trained."""
        for name in names:
            layer = model.get_submodule(name)
            if layer.weight.requires_grad:
                continue
            if isinstance(layer, StackedLinear):
                model.set_submodule(name, self.quantised_experts(layer.weight, layer.transposed))
            else:
                new = self.quantised(*matrix_of(layer))
                new.bias = layer.bias
                model.set_submodule(name, new)


class FourBit(Base):
    """Weights in four bits, with the kernels of bitsandbytes (QLoRA, https://arxiv.org/abs/2305.14314).

    Args:
        quant_type: `nf4` (codes at the quantiles of a normal distribution) or `fp4` (4-bit floating-point numbers).
        double_quant: whether the quantisation constants are quantised too: 4.13 bits per number instead of 4.5.
        compute_dtype: dtype of products with dequantised weights; the model's dtype by default.
        skip: layers not to quantise: module-name suffixes and presets, as in `targets`.
        on_unavailable: if bitsandbytes cannot quantise here: stop with an `error`, or train on the unquantised base
            (`full_precision`) and say so in the run record.
        option: option that sets these, for errors.
    """

    def __init__(
        self,
        quant_type: Literal["nf4", "fp4"] = "nf4",
        double_quant: bool = True,
        compute_dtype: Literal["bf16", "fp32"] | None = None,
        skip: Sequence[str] = ("head",),
        on_unavailable: Literal["error", "full_precision"] = "error",
        option: str = "model.base",
    ) -> None:
        check_choices(option, FourBit.__init__, locals())
        super().__init__(skip, option)
        self.name = self.quant_type = quant_type
        self.double_quant, self.compute_dtype, self.on_unavailable = double_quant, compute_dtype, on_unavailable

    def quantised(self, weight: Tensor, transposed: bool) -> Linear4bit:
        return Linear4bit(weight, None, transposed=transposed, **self._options)

    def quantised_experts(self, weight: Tensor, transposed: bool) -> StackedLinear4bit:
        return StackedLinear4bit(weight, transposed, **self._options)

    def can_quantise(self, device: torch.device) -> bool:
        if self.not_quantised_because is None and (reason := quantisation_failure(device)):
            if self.on_unavailable == "error":
                raise UserError(
                    f"bitsandbytes cannot quantise on {device.type} here: {reason}; to train on the unquantised base, "
                    f"give --{self._option}.on_unavailable full_precision."
                )
            self.disable(reason)
        return self.not_quantised_because is None

    @property
    def _options(self) -> dict[str, Any]:
        dtype = DTYPES[self.compute_dtype]
        return {"quant_type": self.quant_type, "double_quant": self.double_quant, "compute_dtype": dtype}


class EightBit(Base):
    """Weights in eight bits and products of whole numbers: LLM.int8() (https://arxiv.org/abs/2208.07339).

    Args:
        threshold: columns of a layer's input with a number of at least this size are not quantised.
        skip: layers not to quantise: module-name suffixes and presets, as in `targets`.
    """

    name = "int8"

    def __init__(self, threshold: float = THRESHOLD, skip: Sequence[str] = ("head",)) -> None:
        super().__init__(skip)
        self.threshold = threshold

    def quantised(self, weight: Tensor, transposed: bool) -> Linear8bit:
        return Linear8bit(weight, None, self.threshold, transposed)


class Hqq(Base):
    """Weights that the package hqq has quantised: half-quadratic quantisation (https://mobiusml.github.io/hqq_blog/).

    Args:
        nbits: bits per number: 8, 4, 3, 2 or 1.
        group_size: numbers that share a scale and a zero point.
        axis: dimension along which the groups lie.
        skip: layers not to quantise: module-name suffixes and presets, as in `targets`.
    """

    name = "hqq"

    def __init__(
        self, nbits: int = 4, group_size: int | None = 64, axis: int = 1, skip: Sequence[str] = ("head",)
    ) -> None:
        super().__init__(skip)
        self.nbits, self.group_size, self.axis = nbits, group_size, axis
        needs("hqq", "hqq")

    def can_quantise(self, device: torch.device) -> bool:
        if device.type == "meta":
            raise cannot_estimate(f"model.base {self.name}")
        return super().can_quantise(device)

    def quantised(self, weight: Tensor, transposed: bool) -> PackagedLinear:
        from hqq.core.quantize import BaseQuantizeConfig, HQQLinear

        config = BaseQuantizeConfig(nbits=self.nbits, group_size=self.group_size, axis=self.axis)
        try:
            layer = HQQLinear.from_weights(
                weight.detach().contiguous(), None, config, compute_dtype=weight.dtype, device=str(weight.device)
            )
        except (AssertionError, RuntimeError, ValueError) as error:
            raise UserError(
                f"model.base hqq cannot quantise a weight of shape {tuple(weight.shape)} ({first_sentence(error)}); "
                "give another group_size, or name the layer in skip."
            ) from error
        layer.in_features, layer.out_features = weight.shape[1], weight.shape[0]
        return PackagedLinear(layer, weight.dtype, None, transposed)


class OfTransformers(Base):
    """Weights that transformers quantises while it loads the model, as a configuration of transformers says.

    Args:
        config: a quantisation configuration of transformers, such as `TorchAoConfig` or `QuantoConfig`.
    """

    def __init__(self, config: QuantizationConfigMixin) -> None:
        super().__init__(())
        self._config = config
        method = getattr(config.quant_method, "value", config.quant_method)
        self.name = str(method)

    def settings(self) -> dict[str, Any]:
        return {"name": self.name, "config": repr(self._config)}

    def loading(self, device: torch.device, modules_to_save: Sequence[str]) -> dict[str, Any]:
        if device.type == "meta":
            raise cannot_estimate(f"model.base {self.name}")
        if not self.can_quantise(device):
            return {}
        config = copy.deepcopy(self._config)
        if hasattr(config, "modules_to_not_convert"):  # or packages would quantise a head that is trained
            config.modules_to_not_convert = [*(config.modules_to_not_convert or ()), *HEADS, *modules_to_save]
        return {"quantization_config": config}

    def quantise(self, model: nn.Module) -> None:
        if self.not_quantised_because is None and not quantised_layers(model):
            raise UserError(f"model.base {self.name}: transformers quantises a model when it loads it; load it again.")


def needs(package: str, install: str) -> None:
    """Raise a UserError if a package is not installed.

    Args:
        package: name of the module.
        install: name for pip.
    """
    top, _, inner = package.partition(".")
    if importlib.util.find_spec(top) is None or (inner and importlib.util.find_spec(package) is None):
        raise UserError(f"model.base needs the package {install}, which is not installed; run: pip install {install}.")


def cannot_estimate(option: str) -> UserError:
    """Return the error of an estimate on a base whose layers another package makes; `option` names the base."""
    return UserError(
        f"{option} cannot be estimated, because its quantisation package quantises real weights only; "
        "run `litpeft fit` with --trainer.max_steps 3 and read the peaks in its record, or give nf4, fp4 or int8."
    )

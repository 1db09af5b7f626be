"""Read `model.base`: a name, a class path with options, or an object."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers.utils.quantization_config import BitsAndBytesConfig, HqqConfig, QuantizationConfigMixin

from litpeft.adapters.base import Adapter
from litpeft.adapters.bases import Base, EightBit, FourBit, Hqq, OfTransformers, needs
from litpeft.adapters.quantised_model import cannot_dequantise
from litpeft.errors import UserError, did_you_mean, first_sentence

NAMES = ("nf4", "fp4", "int8")
PACKAGES = {  # configuration of transformers -> (module, name for pip)
    "HqqConfig": ("hqq", "hqq"),
    "TorchAoConfig": ("torchao", "torchao"),
    "QuantoConfig": ("optimum.quanto", "optimum-quanto"),
    "GPTQConfig": ("gptqmodel", "gptqmodel"),
    "AwqConfig": ("gptqmodel", "gptqmodel"),
    "AqlmConfig": ("aqlm", "aqlm"),
    "EetqConfig": ("eetq", "eetq"),
    "CompressedTensorsConfig": ("compressed_tensors", "compressed-tensors"),
}

DEQUANTISED = ("HqqConfig", "TorchAoConfig", "QuantoConfig")  # those whose layers litpeft can dequantise


def read_base(value: Any) -> Base | None:
    """Return the base that `model.base` names; None for null.

    Args:
        value: nf4, fp4 or int8; a class path of a `Base` or of a quantisation configuration of transformers, as text
            or as a mapping with `class_path` and `init_args`; or an object of these classes.

    Raises:
        UserError: there is no such base, an option is wrong, or a package is missing.
    """
    if value is None or isinstance(value, Base):
        return value
    if isinstance(value, str) and value in NAMES:
        return EightBit() if value == "int8" else FourBit(value)
    if isinstance(value, str) and "." not in value:
        raise UserError(
            f"model.base: there is no base {value!r}{did_you_mean(value, NAMES)}; give nf4, fp4, int8, or the class "
            "path of a quantisation configuration such as transformers.QuantoConfig."
        )
    value = _as_dict(value)
    if isinstance(value, (str, Mapping)):
        value = _created({"class_path": value} if isinstance(value, str) else value)
    if isinstance(value, Base):
        return value
    if not isinstance(value, QuantizationConfigMixin):
        raise UserError(
            f"model.base: {type(value).__name__} is no quantisation configuration of transformers; give nf4, fp4, int8 "
            "or a class such as transformers.QuantoConfig."
        )
    return _of_transformers(value)


def put_on_base(adapter: Adapter, value: Any) -> Base | None:
    """Let an adapter hold the frozen weights as `model.base` says, and return the base; None for null."""
    base = read_base(value)
    if base is not None:
        adapter.put_on(base)
    return base


def base_name(value: Any) -> str | None:
    """Return the name of the base that `model.base` names, for run folders and tables."""
    base = read_base(value)
    return None if base is None else base.name


def base_on_disk(quantisation: Any) -> Base | None:
    """Return the base of weight files that bitsandbytes has quantised; None for other packages.

    Args:
        quantisation: `quantization_config` of the model's config.json.
    """
    config = dict(quantisation) if isinstance(quantisation, Mapping) else quantisation.to_dict()
    if config.get("quant_method") != "bitsandbytes":
        return None
    return _bitsandbytes(BitsAndBytesConfig.from_dict(config))


def unquantised_shapes(
    tensors: Mapping[str, Tensor], shapes: Mapping[str, torch.Size]
) -> tuple[dict[str, Tensor], list[str]]:
    """Return the tensors of files of bitsandbytes as if they were not quantised, and the names of quantised layers.

    Args:
        tensors: meta tensors by their names in the files.
        shapes: shapes of the model's parameters, by name.
    """
    plain, layers = {}, []
    for name, tensor in tensors.items():
        stem, _, leaf = name.rpartition(".")
        if leaf in ("SCB", "weight_format") or ".weight." in name:  # constants
            continue
        if f"{name}.absmax" in tensors or (leaf == "weight" and f"{stem}.SCB" in tensors):
            # files of a base model lack the first part of the names, and those of a model with a head may have it
            key = next(
                (key for key in shapes if f".{key}".endswith(f".{name}") or f".{name}".endswith(f".{key}")), None
            )
            if key is None:
                continue
            tensor = torch.empty(shapes[key], device="meta")
            layers.append(key.removesuffix(".weight"))
        plain[name] = tensor
    return plain, layers


def _of_transformers(config: QuantizationConfigMixin) -> Base:
    if isinstance(config, BitsAndBytesConfig):
        return _bitsandbytes(config)
    if isinstance(config, HqqConfig):  # transformers 5.23 itself does not quantise with HQQ
        weights = config.quant_config.get("weight_quant_params")
        if weights is None:
            raise UserError("model.base transformers.HqqConfig: dynamic_config is not supported; leave it out.")
        skip = ("head",) if config.skip_modules == ["lm_head"] else config.skip_modules  # the default
        return Hqq(weights["nbits"], weights["group_size"], weights["axis"], skip)
    kind = type(config).__name__
    if kind in PACKAGES:
        needs(*PACKAGES[kind])
        if kind not in DEQUANTISED:
            raise cannot_dequantise(PACKAGES[kind][1])
    return OfTransformers(config)


def _bitsandbytes(config: BitsAndBytesConfig) -> Base:
    skip = ("head",) if config.llm_int8_skip_modules is None else config.llm_int8_skip_modules
    if config.load_in_8bit:
        return EightBit(config.llm_int8_threshold, skip)
    return FourBit(config.bnb_4bit_quant_type, config.bnb_4bit_use_double_quant, None, skip)


def _as_dict(value: Any) -> Any:
    """Return jsonargparse's namespaces as dictionaries; any other value unchanged."""
    if hasattr(value, "as_dict"):
        value = value.as_dict()
    return {key: _as_dict(item) for key, item in value.items()} if isinstance(value, Mapping) else value


def _created(value: Mapping[str, Any]) -> Any:
    """Return the object that a mapping with `class_path` and `init_args` describes, with objects inside of it."""
    path = value.get("class_path")
    if not isinstance(path, str):
        raise UserError("model.base must be a name, or have a class_path; give --model.base.class_path too.")
    options = dict(value.get("init_args") or {})
    for key, item in value.items():  # --model.base.init_args.nbits or --model.base.nbits of the command line
        if key not in ("class_path", "init_args"):
            options[key.removeprefix("init_args.")] = item
    module, _, name = path.rpartition(".")
    try:
        kind = getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        package = str(error.name or module).partition(".")[0]
        raise UserError(
            f"model.base {path} needs the package {package}, which is not installed; run: pip install {package}."
        ) from error
    except (AttributeError, ImportError, ValueError) as error:
        raise UserError(f"model.base: there is no class {path} ({first_sentence(error)}).") from error
    options = {
        key: _created(item) if isinstance(item, Mapping) and "class_path" in item else item
        for key, item in options.items()
    }
    known = inspect.signature(kind).parameters  # configurations of transformers ignore options that they do not know
    if unknown := [option for option in options if option not in known]:
        raise UserError(f"model.base: {name} has no option {unknown[0]!r}{did_you_mean(unknown[0], known)}.")
    if name in PACKAGES:
        needs(*PACKAGES[name])
    try:
        return kind(**options)
    except ImportError as error:
        raise UserError(f"model.base {path} needs another package: {first_sentence(error)}.") from error
    except (TypeError, ValueError, AssertionError) as error:
        raise UserError(f"model.base {path}: {first_sentence(error)}.") from error

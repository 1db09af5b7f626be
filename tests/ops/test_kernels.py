"""Liger's kernels: what is replaced, in which models, and when they are refused. Their results: tests/gpu."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import MethodType, ModuleType
from typing import Any

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM
from transformers.models.llama import modeling_llama
from transformers.models.mixtral import modeling_mixtral

from litpeft.adapters import LoRA
from litpeft.errors import UserError
from litpeft.ops import kernels
from litpeft.ops.kernels import use_kernels, warn_of_other_kernels

CUDA, CPU = torch.device("cuda"), torch.device("cpu")
SIZES: dict[str, Any] = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
SIZES |= {"num_attention_heads": 2, "num_key_value_heads": 1}


def llama() -> nn.Module:
    model = LlamaForCausalLM(LlamaConfig(**SIZES))
    return LoRA(rank=2, targets="all-linear").apply(model)


def rope(q: Any, k: Any, *_: Any) -> Any:
    return q, k


class Norm(nn.Module):
    """Stands for Liger's norm."""


def liger_to_llama(
    rope: bool = True,
    cross_entropy: bool = False,
    fused_linear_cross_entropy: bool = True,
    rms_norm: bool = True,
    swiglu: bool = True,
    model: nn.Module | None = None,
) -> None:
    """Replace what Liger's function of this signature replaces."""
    assert not cross_entropy
    assert not fused_linear_cross_entropy
    modeling_llama.apply_rotary_pos_emb = globals()["rope"]
    modeling_llama.LlamaRMSNorm = Norm
    if getattr(model, "fails", False):
        raise ValueError("Unsupported model type")
    for layer in model.model.layers:
        layer.input_layernorm.forward = MethodType(lambda self, x: x, layer.input_layernorm)


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Put a package with Liger's interface in place of Liger."""
    names = ("liger_kernel", "liger_kernel.transformers", "liger_kernel.transformers.monkey_patch")
    modules = {name: ModuleType(name) for name in names}
    modules[names[2]].MODEL_TYPE_TO_APPLY_LIGER_FN = {"llama": liger_to_llama}
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(kernels, "version", lambda _: "0.8.5")
    yield
    use_kernels(nn.Identity(), "none", CPU)


@pytest.mark.parametrize("choice", ["auto", "liger"])
def test_kernels_stay_with_the_model_they_are_applied_to(choice: str, stub: None) -> None:
    rotary, norm = modeling_llama.apply_rotary_pos_emb, modeling_llama.LlamaRMSNorm
    model = llama()
    assert use_kernels(model, choice, CUDA) == "liger 0.8.5: rms_norm, rope, swiglu"
    assert "forward" in vars(model.model.layers[0].input_layernorm)
    assert modeling_llama.apply_rotary_pos_emb is rope
    assert modeling_llama.LlamaRMSNorm is norm  # a model that is built later has transformers' layers
    assert use_kernels(llama(), "none", CUDA) == "none"
    assert modeling_llama.apply_rotary_pos_emb is rotary


def test_auto_leaves_out_cpus_compiled_blocks_and_unknown_architectures(
    stub: None, capsys: pytest.CaptureFixture
) -> None:
    assert use_kernels(llama(), "auto", CPU) == "none"
    assert use_kernels(llama(), "auto", CUDA, compiled=True) == "none"
    assert use_kernels(BertModel(BertConfig(**SIZES)), "auto", CUDA) == "none"
    assert not capsys.readouterr().err
    rotary, model = modeling_llama.apply_rotary_pos_emb, llama()
    model.fails = True
    assert use_kernels(model, "auto", CUDA) == "none"
    assert "Liger cannot be applied to LlamaForCausalLM (Unsupported model type)" in capsys.readouterr().err
    assert use_kernels(model, "none", CUDA) == "none"
    assert modeling_llama.apply_rotary_pos_emb is rotary


def test_liger_is_refused_in_a_sentence_where_it_cannot_be_used(stub: None, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="model.kernels liger runs on GPUs, and this run is on cpu; give auto or none"):
        use_kernels(llama(), "liger", CPU)
    with pytest.raises(UserError, match="model.kernels liger and model.compile_blocks fuse the same operations"):
        use_kernels(llama(), "liger", CUDA, compiled=True)
    with pytest.raises(UserError, match="Liger has no kernels for bert; give auto or none"):
        use_kernels(BertModel(BertConfig(**SIZES)), "liger", CUDA)
    model = llama()
    model.fails = True
    with pytest.raises(UserError, match="cannot be applied to LlamaForCausalLM"):
        use_kernels(model, "liger", CUDA)
    monkeypatch.setitem(sys.modules, "liger_kernel.transformers.monkey_patch", None)
    assert use_kernels(llama(), "auto", CUDA) == "none"
    with pytest.raises(UserError, match=r"install it with `pip install 'litpeft\[gpu\]'`"):
        use_kernels(llama(), "liger", CUDA)


def test_liger_itself_replaces_norms_and_mlps_but_no_loss_and_no_experts() -> None:
    pytest.importorskip("liger_kernel.transformers.monkey_patch", exc_type=ImportError)
    model = llama()
    forward = model.forward
    used = use_kernels(model, "liger", CUDA)
    assert used.partition(": ")[2] == "rms_norm, rope, swiglu"
    assert model.forward == forward  # the fused loss would replace it
    layer = model.model.layers[0]
    for module in (layer.input_layernorm, layer.post_attention_layernorm, layer.mlp, model.model.norm):
        assert "liger" in module.forward.__func__.__module__
    assert "liger" in modeling_llama.apply_rotary_pos_emb.__module__
    mixtral = MixtralForCausalLM(MixtralConfig(**SIZES, num_local_experts=2))
    experts = modeling_mixtral.MixtralExperts
    assert use_kernels(mixtral, "liger", CUDA).partition(": ")[2] == "rms_norm, rope"
    assert "forward" not in vars(mixtral.model.layers[0].mlp.experts)
    assert modeling_mixtral.MixtralExperts is experts
    assert "liger" not in modeling_llama.apply_rotary_pos_emb.__module__
    use_kernels(mixtral, "none", CPU)


def test_a_resumed_run_says_when_it_continues_with_other_kernels(capsys: pytest.CaptureFixture) -> None:
    warn_of_other_kernels(None, "none")  # a checkpoint of an older version
    warn_of_other_kernels("native: attention", "native: attention")
    assert not capsys.readouterr().err
    warn_of_other_kernels("native: attention", "none")
    said = capsys.readouterr().err
    assert "was trained with the kernels 'native: attention' and continues with 'none'" in said

"""Bases (`model.base`): every verb on nf4, fp4 and int8, PEFT's methods on them, and packages that quantise."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BitsAndBytesConfig,
    FineGrainedFP8Config,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaForCausalLM,
    QuantoConfig,
)
from transformers.pytorch_utils import Conv1D

from litpeft.adapters import DoRA, Frozen, Full, LoRA, Peft, QLoRA
from litpeft.adapters.base import trainable
from litpeft.adapters.base_options import read_base
from litpeft.adapters.bases import Base, EightBit, FourBit, OfTransformers
from litpeft.adapters.linear4bit import Linear4bit
from litpeft.adapters.linear8bit import Linear8bit
from litpeft.adapters.packaged_linear import PackagedLinear, quantises_inputs
from litpeft.adapters.quantised_linear import QuantisedLinear
from litpeft.adapters.quantised_model import quantised_layers, to_conv1d
from litpeft.cli.finished_run import trained_task
from litpeft.commands.estimate import Plan
from litpeft.commands.export_check import logits
from litpeft.errors import UserError
from litpeft.runs.folder import newest_checkpoint
from litpeft.runs.record import read_record
from tests.adapters.peft_cases import METHODS, NOT_EXPORTED, NOT_HERE, NOT_MERGED, Case, inputs, run
from tests.adapters.test_peft_registry import check_estimate, check_resume
from tests.watching import watching

CPU = torch.device("cpu")
STEPS = ["--trainer.max_steps", "4", "--model.optimizer", "torch.optim.AdamW", "--model.optimizer.lr", "1e-2"]
# methods whose constants PEFT computes from the weights of the base
FROM_BASE = ("ADAMSS", "DELORA", "FROD", "OSF", "PSOFT", "SUPERTUNING", "TINYLORA")
REFUSED = {
    "ADAPTION_PROMPT": "does not run on a quantised base",
    "GLORA": "GLoRA does not support this layer type",
}


def fit(arguments: list[str], folder: Path, *more: str, stop: int | None = None) -> str:
    with watching(stop_step=stop):
        watch = ["--trainer.callbacks+", "tests.watching.Watch"]
        return run(*arguments, *STEPS, *watch, "--run_dir", str(folder), *more)[1]


def tensors(folder: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return load_file(next(newest_checkpoint(folder).glob("*.safetensors")))


def loaded(base: Base | None, model: str, adapter: Any, kind: Any = AutoModelForCausalLM) -> nn.Module:
    """Return a model with an adapter on a base, loaded as by a run."""
    if base is not None:
        adapter.put_on(base)
    return adapter.apply(kind.from_pretrained(model, dtype=torch.float32, **adapter.loading(CPU)).eval())


@pytest.mark.parametrize(
    ("adapter", "base"),
    [
        ("LoRA", "int8"),
        *(
            pytest.param(adapter, base, marks=pytest.mark.whole)
            for adapter, base in (("DoRA", "int8"), ("Frozen", "int8"), ("LoRA", "nf4"))
        ),
    ],
)
def test_a_run_on_a_quantised_base_works_with_every_verb(
    adapter: str, base: str, tmp_path: Path, fit_arguments: list[str]
) -> None:
    arguments = [*fit_arguments, "--model.adapter", adapter, "--model.base", base]
    assert fit(arguments, tmp_path / "run") == ""
    record, name = read_record(tmp_path / "run"), f"{adapter.lower()}-{base}"
    assert (record["adapter"], record["base"], record["status"]) == (name, base, "ok")
    quantised = record["adapter_summary"]["quantised"]
    assert (quantised["layers"], quantised["params"]) == (13, 2 * (4 * 32 * 32 + 2 * 32 * 64) + 32 * 32)
    rows = 2 * (4 * 32 + 64 + 32) + 32  # output units, each with an fp32 constant
    assert base == "nf4" or quantised["bytes"] == quantised["params"] + 4 * rows
    # resumed to the bit
    assert fit(arguments, tmp_path / "resumed", stop=2) == ""
    assert fit(arguments, tmp_path / "resumed", "--resume") == ""
    whole, resumed = tensors(tmp_path / "run"), tensors(tmp_path / "resumed")
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(tensor, resumed[key]) for key, tensor in whole.items())
    # estimated
    plan = Plan(["--device", "cpu", *arguments[1:], *STEPS])
    found = plan.trace(plan.task.adapter)
    for key in ("trainable_params", "total_params", "adapter_bytes", "model_bytes"):
        assert found.counts[key] == record[key], key
    measured, traced = record["memory_phases"]["first_step"], found.phases["first_step"].tensors
    assert traced.bytes == pytest.approx(measured["peak_tensor_bytes"], rel=0.02)
    for key in ("base_weights", "quantisation_constants", "adapter_weights"):
        assert traced.split[key] == measured["tensor_bytes"][key], key
    # exported
    out, error = run("export", str(tmp_path / "run"), str(tmp_path / "merged"), "--format", "merged")
    assert "its logits differ" in out, error
    merged = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged")
    assert not quantised_layers(merged)
    if adapter != "Frozen":
        out, error = run("export", str(tmp_path / "run"), str(tmp_path / "adapter"), "--format", "adapter")
        assert "PEFT's logits differ by at most" in out, error
        if base == "int8":  # on CPUs, bitsandbytes 0.50 cannot evaluate 4-bit layers as small as these
            check_peft_on_the_same_base(tmp_path, fit_arguments[fit_arguments.index("--model.model_name") + 1])
    assert fit([*arguments[:-1], "fp4"], tmp_path / "run", "--resume").startswith("litpeft: error: --resume: model.")


def check_peft_on_the_same_base(folder: Path, model: str) -> None:
    """Load the exported adapter with PEFT on the base that bitsandbytes quantises, and compare the logits."""
    import peft

    config = BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=["classifier"])
    plain = AutoModelForSequenceClassification.from_pretrained(
        model, num_labels=2, quantization_config=config, dtype=torch.float32
    )
    theirs = peft.PeftModel.from_pretrained(plain, str(folder / "adapter")).eval()
    ours = trained_task(folder / "run").backbone
    assert len(quantised_layers(ours)) == 13
    expected, found = logits(theirs, inputs()), logits(ours, inputs())
    assert torch.allclose(found, expected, rtol=0, atol=1e-2 * float(expected.abs().max()) + 1e-4)


def test_a_method_of_peft_works_on_int8(tmp_path: Path, tiny_model: str, tiny_llama: str) -> None:
    check_method("IA3", "int8", tmp_path, tiny_model, tiny_llama)


@pytest.mark.whole
@pytest.mark.parametrize("base", ["nf4", "int8"])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_of_peft_works_on_quantised_bases(
    method: str, base: str, tmp_path: Path, tiny_model: str, tiny_llama: str
) -> None:
    check_method(method, base, tmp_path, tiny_model, tiny_llama)


def check_method(method: str, base: str, folder: Path, tiny_model: str, tiny_llama: str) -> None:
    kind = "llama" if (method, "bert") in NOT_HERE | NOT_EXPORTED else "bert"
    this = Case(method, kind, tiny_model if kind == "bert" else tiny_llama, folder)
    this.arguments += ["--model.base", base]
    error = this.fit("run")
    if method in REFUSED:
        assert REFUSED[method] in error
        return
    assert not error
    assert this.record()["base"] == base
    output, error = this.export("adapter")
    if method in FROM_BASE and error:
        assert "from the unquantised base; give --format merged" in error
    else:
        assert "PEFT's logits differ by at most" in output, error
    output, error = this.export("merged")
    refused = (method, kind) in NOT_MERGED or (method, "any") in NOT_MERGED
    assert "give --format adapter" in error if refused else "its logits differ" in output, error
    check_estimate(this)
    check_resume(this)


def test_qlora_is_shorthand_for_lora_on_nf4(tmp_path: Path, fit_arguments: list[str]) -> None:
    assert fit([*fit_arguments, "--model.adapter", "QLoRA"], tmp_path / "short") == ""
    assert fit([*fit_arguments, "--model.adapter", "LoRA", "--model.base", "nf4"], tmp_path / "long") == ""
    short, long = tensors(tmp_path / "short"), tensors(tmp_path / "long")
    assert all(torch.equal(tensor, long[name]) for name, tensor in short.items())
    records = [read_record(tmp_path / name) for name in ("short", "long")]
    assert [record["adapter"] for record in records] == ["qlora-nf4", "lora-nf4"]
    for field in ("base", "model_bytes", "total_params", "train_loss", "val_loss", "peak_tensor_bytes"):
        assert records[0][field] == records[1][field], field


def write_bert_of_width_64(folder: Path, like: str) -> str:
    """Write a one-layer BERT whose 4-bit layers are large enough for bitsandbytes' kernels for CPUs."""
    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(like, hidden_size=64, intermediate_size=128, num_hidden_layers=1)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("bits", [4, pytest.param(8, marks=pytest.mark.whole)])
def test_a_model_that_bitsandbytes_has_quantised_on_disk_trains(
    bits: int, tmp_path: Path, tiny_model: str, fit_arguments: list[str]
) -> None:
    wide = write_bert_of_width_64(tmp_path / "wide", tiny_model)
    options = {"bnb_4bit_quant_type": "nf4"} if bits == 4 else {}
    config = BitsAndBytesConfig(**{f"load_in_{bits}bit": True}, llm_int8_skip_modules=["classifier"], **options)
    model = AutoModelForSequenceClassification.from_pretrained(
        wide, quantization_config=config, dtype=torch.float32, num_labels=2
    )
    model.save_pretrained(tmp_path / "disk")
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(tmp_path / "disk")
    arguments = [*fit_arguments, "--model.model_name", str(tmp_path / "disk"), "--model.adapter", "LoRA"]
    assert fit(arguments, tmp_path / "run") == ""
    record = read_record(tmp_path / "run")
    assert record["base"] == ("nf4" if bits == 4 else "int8")
    assert record["adapter_summary"]["quantised"]["layers"] == 7
    plan = Plan(["--device", "cpu", *arguments[1:], *STEPS])
    found = plan.trace(plan.task.adapter)
    for key in ("trainable_params", "total_params", "adapter_bytes", "model_bytes"):
        assert found.counts[key] == record[key], key
    for form in ("adapter", "merged"):
        out, error = run("export", str(tmp_path / "run"), str(tmp_path / form), "--format", form)
        assert "logits differ" in out, error
    merged = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert "quantization_config" not in merged
    for more, reason in (
        (["--model.base", "int8"], "its weights are quantised already; leave model.base out"),
        (["--model.adapter", "Full"], "Full trains the weights of the base, and quantised weights cannot be trained"),
    ):
        assert reason in fit([*arguments, *more], tmp_path / "other")


# --- packages


def package(base: str) -> Any:
    """Return the configuration for a package, or skip the test if the package is not installed."""
    if base == "hqq":
        pytest.importorskip("hqq", reason="the package hqq is not installed")
        return {"class_path": "transformers.HqqConfig", "init_args": {"nbits": 4, "group_size": 32}}
    if base == "quanto":
        pytest.importorskip("optimum.quanto", reason="the package optimum-quanto is not installed")
        return {"class_path": "transformers.QuantoConfig", "init_args": {"weights": "int8"}}
    pytest.importorskip("torchao", reason="the package torchao is not installed")
    inner = {"class_path": "torchao.quantization.Int8WeightOnlyConfig"}
    return {"class_path": "transformers.TorchAoConfig", "init_args": {"quant_type": inner}}


def test_a_linear_layer_as_conv1d_computes_the_same_and_is_frozen() -> None:
    layer, x = nn.Linear(5, 3), torch.randn(2, 5)
    found = to_conv1d(layer)
    assert type(found) is Conv1D
    torch.testing.assert_close(found(x), layer(x))
    assert not found.weight.requires_grad


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (SimpleNamespace(weight=SimpleNamespace(act_quant_kwargs=None)), False),  # torchao, weights only
        (SimpleNamespace(weight=SimpleNamespace(act_quant_kwargs={"float8": 1})), True),
        (SimpleNamespace(weight=1, activation_qtype=None), False),  # quanto, weights only
        (SimpleNamespace(weight=1, activation_qtype="qint8"), True),
        (nn.Linear(2, 2), False),
        (SimpleNamespace(), False),
    ],
)
def test_a_layer_whose_package_quantises_its_input_is_known(layer: Any, expected: bool) -> None:
    assert quantises_inputs(layer) is expected


@pytest.mark.parametrize("adapter", [LoRA, DoRA, "IA3"])
@pytest.mark.parametrize("base", ["hqq", "quanto", "torchao"])
def test_a_base_of_another_package_carries_gradients_and_merges(base: str, adapter: Any, tiny_llama: str) -> None:
    """The oracle is the model with the package's dequantised weights in plain layers."""
    config = package(base)

    def made() -> Any:
        return Peft("IA3") if adapter == "IA3" else adapter(targets=["query", "value"])

    ours, adapter_of_ours = None, made()
    ours = loaded(read_base(config), tiny_llama, adapter_of_ours)
    layers = quantised_layers(ours)
    assert len(layers) == 2 * 7
    assert all(type(layer) is PackagedLinear for layer in layers)
    plain = LlamaForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32).eval()
    weights = [layer.weight for layer in layers]
    originals = [m for n, m in plain.named_modules() if type(m) is nn.Linear and "lm_head" not in n]
    for layer, weight in zip(originals, weights, strict=True):
        original = layer.weight.detach()
        assert float((original - weight).abs().max()) < 0.1 * float(original.abs().max())
        layer.weight.data = weight
    theirs = made().apply(plain)
    torch.manual_seed(1)
    with torch.no_grad():
        for mine, other in zip(trainable(ours).values(), trainable(theirs).values(), strict=True):
            mine.add_(0.1 * torch.randn_like(mine))
            other.copy_(mine)
    gradients = []
    for model in (ours, theirs):
        out = model(**inputs().tensors).logits
        out.square().sum().backward()
        gradients.append({name: p.grad for name, p in trainable(model).items()})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        expected = gradients[1][name]
        assert torch.allclose(gradient, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max())), name
    counts = adapter_of_ours.describe(ours)
    assert counts["quantised"]["params"] == sum(weight.numel() for weight in weights)
    constants = sum(t.nbytes for t in adapter_of_ours.roles(ours)["quantisation_constants"])
    bits = 4 if base == "hqq" else 8
    assert counts["quantised"]["bytes"] == counts["quantised"]["params"] * bits // 8 + constants
    before = logits(ours, inputs())
    adapter_of_ours.merge(ours)
    assert not quantised_layers(ours)
    assert torch.allclose(logits(ours, inputs()), before, rtol=0, atol=1e-5 * float(before.abs().max()))


@pytest.mark.parametrize("base", ["hqq", "quanto", "torchao"])
def test_a_run_on_a_base_of_another_package(base: str, tmp_path: Path, fit_arguments: list[str]) -> None:
    arguments = [*fit_arguments, "--model.adapter", "LoRA", "--model.base", json.dumps(package(base))]
    assert fit(arguments, tmp_path / "run") == ""
    record = read_record(tmp_path / "run")
    assert (record["adapter"], record["base"]) == (f"lora-{base}", base)
    assert fit(arguments, tmp_path / "resumed", stop=2) == ""
    assert fit(arguments, tmp_path / "resumed", "--resume") == ""
    whole, resumed = tensors(tmp_path / "run"), tensors(tmp_path / "resumed")
    assert all(torch.equal(tensor, resumed[key]) for key, tensor in whole.items())
    for form in ("adapter", "merged"):
        out, error = run("export", str(tmp_path / "run"), str(tmp_path / form), "--format", form)
        assert "logits differ" in out, error
    assert "cannot be estimated" in run("estimate", "--device", "cpu", *arguments[1:], *STEPS)[1]


# --- options


def test_names_class_paths_and_objects_name_a_base() -> None:
    assert read_base(None) is None
    assert isinstance(read_base("int8"), EightBit)
    assert [read_base(name).name for name in ("nf4", "fp4")] == ["nf4", "fp4"]
    single = read_base({"class_path": "litpeft.adapters.bases.FourBit", "init_args": {"double_quant": False}})
    assert isinstance(single, FourBit)
    assert not single.double_quant
    of_theirs = read_base(BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="fp4"))
    assert (of_theirs.name, of_theirs.double_quant) == ("fp4", False)
    eight = read_base({"class_path": "transformers.BitsAndBytesConfig", "init_args": {"load_in_8bit": True}})
    assert eight.settings() == {"name": "int8", "skip": ["head"], "threshold": 6.0}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("nf5", "there is no base 'nf5' (did you mean nf4?)"),
        ("transformers.QuantoConfi", "there is no class transformers.QuantoConfi"),
        ("transformers.BertConfig", "BertConfig is no quantisation configuration"),
        ({"nbits": 4}, "give --model.base.class_path too"),
        ("no_such_package.Config", "needs the package no_such_package, which is not installed"),
        (
            {"class_path": "litpeft.adapters.bases.FourBit", "init_args": {"dubble_quant": 1}},
            "FourBit has no option 'dubble_quant' (did you mean double_quant?)",
        ),
    ],
)
def test_a_mistake_in_the_base_is_one_sentence(value: Any, message: str) -> None:
    with pytest.raises(UserError) as error:
        read_base(value)
    assert message in str(error.value)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="needs the package optimum-quanto, which is not installed; run: pip install"):
        read_base("transformers.QuantoConfig")
    with pytest.raises(UserError, match="needs the package hqq, which is not installed; run: pip install hqq"):
        read_base("transformers.HqqConfig")


def test_transformers_quantises_as_configured_except_what_is_trained() -> None:
    """Without the package: that is needed only where a model is loaded."""
    config = QuantoConfig(weights="int8", modules_to_not_convert=["layers.0"])
    base = OfTransformers(config)
    given = base.loading(CPU, ("mlp", "my_head"))["quantization_config"]
    assert (given.weights, given.quant_method) == ("int8", config.quant_method)
    assert {"layers.0", "mlp", "my_head", "lm_head", "classifier", "score"} <= set(given.modules_to_not_convert)
    assert config.modules_to_not_convert == ["layers.0"]  # the user's object
    plain = OfTransformers(QuantoConfig(weights="int8")).loading(CPU, ())["quantization_config"]
    assert "lm_head" in plain.modules_to_not_convert
    other = FineGrainedFP8Config()  # as a configuration that cannot leave out a layer
    del other.modules_to_not_convert
    assert not hasattr(OfTransformers(other).loading(CPU, ("mlp",))["quantization_config"], "modules_to_not_convert")
    with pytest.raises(UserError, match="^model.base quanto cannot be estimated, because its quantisation package"):
        base.loading(torch.device("meta"), ())


def test_a_model_that_was_loaded_before_its_base_was_known_is_refused(tiny_llama: str) -> None:
    base = OfTransformers(QuantoConfig(weights="int8"))
    model = AutoModelForCausalLM.from_pretrained(tiny_llama).requires_grad_(False)
    with pytest.raises(UserError, match="model.base quanto: transformers quantises a model when it loads it; load it"):
        base.quantise(model)
    base.disable("there is no kernel for this device")
    assert base.loading(CPU, ()) == {}
    base.quantise(model)
    assert not quantised_layers(model)
    EightBit().quantise(model)
    OfTransformers(QuantoConfig(weights="int8")).quantise(model)  # has quantised layers


def test_layers_that_cannot_be_dequantised_are_refused(monkeypatch: pytest.MonkeyPatch, tiny_llama: str) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    with pytest.raises(UserError, match="litpeft cannot dequantise the layers of gptqmodel"):
        read_base({"class_path": "transformers.GPTQConfig", "init_args": {"bits": 4}})
    model = LlamaForCausalLM.from_pretrained(tiny_llama)
    model.hf_quantizer = SimpleNamespace(quantization_config=SimpleNamespace(quant_method="aqlm"))
    with pytest.raises(UserError, match="litpeft cannot dequantise the layers of aqlm"):
        LoRA().apply(model)


@pytest.mark.parametrize(
    ("adapter", "message"),
    [
        (Full(), "quantised weights cannot be trained"),
        (QLoRA(), "QLoRA quantises the base itself; give LoRA"),
    ],
)
def test_adapters_that_cannot_be_put_on_a_base_are_refused(adapter: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        adapter.put_on(FourBit())


def test_what_changes_the_base_is_refused_on_a_quantised_base(tiny_llama: str) -> None:
    with pytest.raises(UserError, match="init_lora_weights pissa changes the base, and quantised weights cannot hold"):
        loaded(EightBit(), tiny_llama, Peft("LORA", {"init_lora_weights": "pissa"}))


def test_frozen_trains_the_head_on_every_base(tiny_model: str) -> None:
    for base, kind in (("nf4", Linear4bit), ("fp4", Linear4bit), ("int8", Linear8bit)):
        adapter = Frozen()
        adapter.put_on(read_base(base))
        model = AutoModelForSequenceClassification.from_pretrained(tiny_model, **adapter.loading(CPU))
        adapter.apply(model, head=["classifier"])
        model(**inputs().tensors).logits.square().sum().backward()
        assert trainable(model).keys() == {"classifier.weight", "classifier.bias"}
        assert {type(layer) for layer in quantised_layers(model)} == {kind}


def test_experts_are_refused_by_int8() -> None:
    from tests.adapters.test_experts import small

    adapter = LoRA(targets=["query"])
    adapter.put_on(EightBit())
    with pytest.raises(UserError, match="model.base int8 cannot hold the experts of a mixture; give nf4 or fp4"):
        adapter.apply(small("mixtral", torch.float32))


@pytest.mark.parametrize("base", ["nf4", "int8"])
@pytest.mark.parametrize(
    "adapter", [LoRA(targets=["c_attn"]), Peft("IA3"), Peft("OFT", {"oft_block_size": 8, "r": 0}, targets=["c_attn"])]
)
def test_a_merge_into_quantised_gpt2_gives_conv1d_layers(adapter: Any, base: str) -> None:
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=32, n_layer=2, n_head=4, n_positions=16)).eval()
    adapter._base = None
    adapter.put_on(read_base(base))
    adapter.apply(model)
    assert len(quantised_layers(model)) == 2 * 4
    with torch.no_grad():
        for parameter in trainable(model).values():
            parameter.add_(0.05 * torch.randn_like(parameter))
    before = logits(model, inputs())
    adapter.merge(model)
    assert {type(block.attn.c_attn) for block in model.transformer.h} == {Conv1D}
    assert {type(block.mlp.c_proj) for block in model.transformer.h} == {Conv1D}
    largest = float(before.abs().max())
    tolerance = 0.02 if base == "int8" else 1e-5  # int8 quantises inputs, the merged model does not
    assert torch.allclose(logits(model, inputs()), before, rtol=0, atol=tolerance * largest)


@pytest.mark.parametrize("base", ["nf4", "int8"])
def test_lora_of_peft_gives_the_numbers_of_our_lora_on_a_quantised_base(base: str, tiny_llama: str) -> None:
    ours = loaded(read_base(base), tiny_llama, LoRA(rank=4, alpha=8))
    theirs = loaded(read_base(base), tiny_llama, Peft("LORA", {"r": 4, "lora_alpha": 8}))
    gradients = []
    with torch.no_grad():
        for (name, mine), (other_name, other) in zip(trainable(ours).items(), trainable(theirs).items(), strict=True):
            assert other_name == name.replace("lora_A", "lora_A.default.weight").replace("_B", "_B.default.weight")
            other.copy_(mine.normal_(std=0.1))
    for model in (ours, theirs):
        out = model(**inputs().tensors).logits
        out.square().sum().backward()
        gradients.append([out, *(p.grad for p in trainable(model).values())])
    for mine, other in zip(*gradients, strict=True):
        tolerance = 1e-5 if base == "nf4" else 1e-2  # a rounding of the last bit can move a quantised input by one code
        assert torch.allclose(mine, other, rtol=0, atol=tolerance * float(other.detach().abs().max()))


@pytest.mark.parametrize("base", ["nf4", "int8"])
def test_no_tensor_of_a_loaded_model_keeps_the_whole_file_in_memory(base: str, tiny_llama: str) -> None:
    """A view of the memory-mapped file would."""
    model = AutoModelForCausalLM.from_pretrained(tiny_llama, **read_base(base).loading(CPU, ()))
    held = [*model.parameters(), *model.buffers()]
    assert [tensor.shape for tensor in held if tensor.untyped_storage().nbytes() > tensor.nbytes] == []
    assert len(quantised_layers(model)) == 2 * 7
    assert not hasattr(model, "hf_quantizer")
    assert not hasattr(model.config, "quantization_config")


def test_a_tensor_that_was_saved_with_a_larger_one_does_not_keep_that_in_memory(
    tiny_llama: str, tmp_path: Path
) -> None:
    """Files of torch.save store a view with all of what it is a view of."""
    plain = LlamaForCausalLM.from_pretrained(tiny_llama)
    plain.config.save_pretrained(tmp_path)
    state = plain.state_dict()
    norm = state["model.norm.weight"]
    state["model.norm.weight"] = torch.cat([norm, torch.ones(1000)])[: len(norm)]
    torch.save(state, tmp_path / "pytorch_model.bin")
    model = AutoModelForCausalLM.from_pretrained(tmp_path, **EightBit().loading(CPU, ()))
    assert all(p.untyped_storage().nbytes() == p.nbytes for p in model.parameters())
    assert torch.equal(model.model.norm.weight, norm)
    assert len(quantised_layers(model)) == 2 * 7


def test_modules_trained_in_full_are_loaded_unquantised(tiny_llama: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(
        tiny_llama, **read_base("int8").loading(CPU, ("mlp", "0.self_attn.q_proj"))
    )
    quantised = {name.partition("layers.")[2] for name, layer in model.named_modules() if isinstance(layer, Linear8bit)}
    attention = {f"{block}.self_attn.{leaf}_proj" for block in (0, 1) for leaf in "qkvo"}
    assert quantised == attention - {"0.self_attn.q_proj"}


def test_a_weight_of_another_shape_is_named(tiny_llama: str) -> None:
    config = AutoConfig.from_pretrained(tiny_llama)
    config.intermediate_size += 16
    with pytest.raises(
        ValueError, match=r"layers\.0\.mlp\.\w+\.weight has the shape \(.*\) in the file, but \(.*\) in the model"
    ):
        AutoModelForCausalLM.from_pretrained(tiny_llama, config=config, **read_base("int8").loading(CPU, ()))


def test_a_single_weight_of_another_shape_is_named(tiny_llama: str, tmp_path: Path) -> None:
    model = LlamaForCausalLM.from_pretrained(tiny_llama)
    old = model.model.layers[1].self_attn.o_proj
    model.model.layers[1].self_attn.o_proj = nn.Linear(old.in_features, old.out_features + 2, bias=False)
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"layers\.1\.self_attn\.o_proj\.weight has the shape"):
        AutoModelForCausalLM.from_pretrained(tmp_path, **EightBit().loading(CPU, ()))


@pytest.mark.parametrize("loading", [True, False])
@pytest.mark.parametrize("skip", ["layers.1", "model.layers.1", "1.mlp", "layers"])
def test_a_name_of_a_module_leaves_out_all_layers_in_it(skip: str, loading: bool, tiny_llama: str) -> None:
    base = EightBit(skip=[skip])
    model = AutoModelForCausalLM.from_pretrained(tiny_llama, **(base.loading(CPU, ()) if loading else {}))
    base.quantise(model.requires_grad_(False))
    left = {name for name, each in model.named_modules() if type(each) is nn.Linear}
    found = {name for name, each in model.named_modules() if isinstance(each, QuantisedLinear)}
    assert found == {name for name in found | left if f".{skip}." not in f".{name}"}
    assert found
    assert left


@pytest.mark.parametrize("trained", ["model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"])
def test_a_layer_that_is_trained_is_not_quantised_and_all_others_are(trained: str, tiny_llama: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_llama).requires_grad_(False)
    model.get_submodule(trained).weight.requires_grad = True
    linear = {name for name, each in model.named_modules() if type(each) is nn.Linear}
    EightBit().quantise(model)
    quantised = {name for name, each in model.named_modules() if isinstance(each, QuantisedLinear)}
    assert quantised == linear - {trained, "lm_head"}


ALL = ["query", "key", "value", "projection", "mlp", "head"]


@pytest.mark.parametrize(
    ("skip", "sentence"),
    [
        (["no_such"], "model.base.skip: 'no_such' is no module of LlamaForCausalLM."),
        (ALL, f"model.base: LlamaForCausalLM has no layer to quantise outside skip {ALL}."),
        (ALL[1:], None), (["head"], None), ([], None), (["query", "0.mlp.up_proj"], None),
    ],
)  # fmt: skip
def test_what_is_left_out_must_exist_and_leave_something(
    skip: list[str], sentence: str | None, tiny_llama: str
) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_llama).requires_grad_(False)
    base = FourBit(skip=skip)
    if sentence is None:
        base.quantise(model)
        assert quantised_layers(model)
        return
    with pytest.raises(UserError) as error:
        base.quantise(model)
    assert str(error.value) == sentence

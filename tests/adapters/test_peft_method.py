"""Peft against litpeft's own LoRA and DoRA, PEFT's training loop and plain transformers; and its mistakes in one sentence."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import peft
import pytest
import torch
from lightning import Callback, LightningModule, Trainer
from torch.nn import functional as F
from transformers import (
    AutoModelForCausalLM,
)

from litpeft.adapters import Peft
from litpeft.adapters.base import trainable
from litpeft.cli.finished_run import trained_task
from litpeft.commands.estimate import Plan
from litpeft.commands.export_check import logits
from litpeft.errors import UserError
from litpeft.profiling.memory.tracker import MemoryTracker
from litpeft.runs.record import read_record
from tests.adapters.peft_cases import Case, inputs, run
from tests.watching import Watch

SGD = ["--model.optimizer", "torch.optim.SGD", "--model.optimizer.lr", "0.5"]


class SameStart(Callback):
    """Sets the A of each layer to numbers that depend on the layer's name only, and the seed of the dropout masks."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        torch.manual_seed(0)
        with torch.no_grad():
            for name, parameter in trainable(pl_module.backbone).items():
                if "lora_A" in name:
                    generator = torch.Generator().manual_seed(sum(name.partition("lora_A")[0].encode()))
                    parameter.normal_(generator=generator, std=0.2)
                if "classifier" in name:
                    parameter.fill_(0.1)


def ours(name: str) -> str:
    """Return litpeft's name of a tensor that PEFT's LORA trains."""
    return name.replace("lora_magnitude_vector.default.weight", "magnitude").replace(".default.weight", "")


@pytest.mark.parametrize("dora", [False, True], ids=["LoRA", "DoRA"])
@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_lora_of_peft_gives_the_numbers_of_our_lora(
    kind: str, dora: bool, tmp_path: Path, tiny_model: str, tiny_llama: str
) -> None:
    model = {"bert": tiny_model, "llama": tiny_llama}[kind]
    options = {"r": 4, "lora_alpha": 8, "use_dora": dora}
    theirs = Case("LORA", kind, model, tmp_path, options=options)
    start = ["--trainer.callbacks+", f"{__name__}.SameStart", *SGD]
    assert not theirs.fit("peft", *start)
    peft_steps = [{ours(name): tensor for name, tensor in step.items()} for step in Watch.steps]
    place = theirs.arguments.index("--model.adapter")
    end = theirs.arguments.index("--model.optimizer")
    theirs.arguments[place:end] = ["--model.adapter", "DoRA" if dora else "LoRA", "--model.adapter.rank", "4"]
    assert not theirs.fit("ours", *start)
    assert len(peft_steps) == len(Watch.steps) == 4
    for step, expected in zip(peft_steps, Watch.steps, strict=True):  # with SGD, equal weights are equal gradients
        assert step.keys() == expected.keys()
        for name, tensor in expected.items():
            assert torch.allclose(step[name], tensor, rtol=0, atol=2e-6), name
    one, other = read_record(tmp_path / "peft"), read_record(tmp_path / "ours")
    assert one["train_loss"] == pytest.approx(other["train_loss"], rel=1e-6)
    for count in ("trainable_params", "total_params", "adapter_bytes"):
        assert one[count] == other[count]
    norms = 4 * 32 * 4 if dora else 0  # litpeft's DoRA stores the norms of the rows of W
    assert other["model_bytes"] - one["model_bytes"] == norms
    assert one["adapter"] == ("peft-dora" if dora else "peft-lora")
    assert one["adapter_summary"]["adapted_layers"] == other["adapter_summary"]["adapted_layers"]


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_initialisations_that_change_the_base_resume_and_export_exactly(
    init: str, tmp_path: Path, tiny_llama: str
) -> None:
    this = Case("LORA", "llama", tiny_llama, tmp_path, options={"init_lora_weights": init, "r": 4})
    assert not this.fit("run")
    assert this.record()["adapter"] == f"{init}-lora"
    assert not this.fit("resumed", stop=2)
    assert not this.fit("resumed", "--resume")
    whole, resumed = this.weights(), this.weights("resumed")
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in whole.items())
    output, error = this.export("adapter")  # for the original base: PEFT must not change it again
    assert "PEFT's logits differ by at most" in output, error
    trained = trained_task(tmp_path / "run").backbone
    changed = trained.model.layers[0].self_attn.q_proj.base_layer.weight
    assert not torch.equal(changed, this.plain().model.layers[0].self_attn.q_proj.weight)
    found, expected = logits(trained, inputs()), logits(this.loaded(), inputs())
    assert torch.allclose(found, expected, rtol=0, atol=1e-5)
    assert not torch.allclose(found, logits(this.plain(), inputs()), rtol=0, atol=1e-3)
    assert "its logits differ" in this.export("merged")[0]
    in_bf16 = Case("LORA", "llama", tiny_llama, tmp_path / "bf16", "bf16", {"init_lora_weights": init, "r": 4})
    assert "in bf16 its rounding could not be exported exactly; give --model.dtype fp32." in in_bf16.fit("run")


def test_another_base_change_than_that_of_the_checkpoint_is_refused(tiny_llama: str) -> None:
    models = [AutoModelForCausalLM.from_pretrained(tiny_llama) for _ in range(2)]
    with torch.no_grad():
        models[1].model.layers[0].self_attn.q_proj.weight[0, 0] += 1
    adapter = Peft("LORA", {"init_lora_weights": "pissa", "r": 4})
    first, second = (adapter.apply(model) for model in models)
    with pytest.raises(UserError, match="the constants that PEFT computes for LORA from a seed or from the base"):
        adapter.load_state_dict(second, adapter.state_dict(first))


def test_adalora_follows_pefts_training_loop(tiny_llama: str) -> None:
    """PEFT adds the penalty to the loss in forward; its documentation calls update_and_allocate after each step."""
    options = {"init_r": 6, "target_r": 2, "tinit": 1, "tfinal": 1, "deltaT": 1, "target_modules": ["q_proj", "v_proj"]}
    mine, plain = (AutoModelForCausalLM.from_pretrained(tiny_llama) for _ in range(2))
    adapter = Peft("ADALORA", options)
    adapter.apply(mine)
    config = peft.AdaLoraConfig(**options, total_step=6, task_type="CAUSAL_LM")
    theirs = peft.get_peft_model(plain, config)
    reference = dict(theirs.base_model.model.named_parameters())
    with torch.no_grad():
        for name, parameter in trainable(mine).items():
            reference[name].copy_(parameter)
    optimizers = [torch.optim.SGD([p for p in m.parameters() if p.requires_grad], 0.5) for m in (mine, theirs)]
    ids = torch.tensor([[2, 5, 9, 15, 7, 3], [2, 8, 20, 6, 7, 3]])
    for step in range(1, 7):
        for optimizer in optimizers:
            optimizer.zero_grad()
        F.cross_entropy(mine(input_ids=ids).logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).backward()
        adapter.before_step(mine)
        optimizers[0].step()
        adapter.after_step(mine, step, 6)
        theirs(input_ids=ids, labels=ids).loss.backward()
        optimizers[1].step()
        theirs.base_model.update_and_allocate(step)
        for name, parameter in trainable(mine).items():
            assert torch.allclose(parameter, reference[name], rtol=0, atol=1e-6), (step, name)
    ranks = sum(int((p != 0).sum()) for name, p in trainable(mine).items() if "lora_E" in name)
    assert ranks == 2 * 4  # target_r for each of four layers


def test_adalora_goes_on_after_a_resume_as_if_it_had_not_stopped(tiny_llama: str) -> None:
    options = {"init_r": 6, "target_r": 2, "tinit": 1, "tfinal": 2, "deltaT": 1, "target_modules": ["q_proj"]}
    ids = torch.tensor([[2, 5, 9, 15, 7, 3], [2, 8, 20, 6, 7, 3]])

    def step(adapter: Peft, model: torch.nn.Module, number: int) -> None:
        F.cross_entropy(model(input_ids=ids).logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).backward()
        adapter.before_step(model)
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.5)
        optimizer.step()
        adapter.after_step(model, number, 8)
        optimizer.zero_grad()

    (first, whole), (second, resumed) = (
        (adapter, adapter.apply(AutoModelForCausalLM.from_pretrained(tiny_llama)))
        for adapter in (Peft("ADALORA", dict(options)), Peft("ADALORA", dict(options)))
    )
    for number in range(1, 9):
        step(first, whole, number)
        if number > 4:
            step(second, resumed, number)
        if number == 4:
            saved = {name: tensor.clone() for name, tensor in first.state_dict(whole).items()}
            second.load_state_dict(resumed, saved)
        if number >= 4:
            states = first.state_dict(whole), second.state_dict(resumed)
            assert states[0].keys() == states[1].keys()
            for name, tensor in states[0].items():
                assert torch.equal(tensor, states[1][name]), (number, name)
    assert any("rank_pattern" in name for name in saved)
    assert any(not torch.equal(tensor, saved[name]) for name, tensor in states[0].items() if "lora_E" in name)


def test_a_step_that_fp16_has_skipped_says_nothing_about_the_ranks_of_adalora(tiny_llama: str) -> None:
    """Its gradients are infinite or NaN, and an average that takes one of them up never forgets it."""
    options = {"init_r": 6, "target_r": 2, "tinit": 1, "tfinal": 2, "deltaT": 1, "target_modules": ["q_proj"]}
    model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float16)
    adapter, draw = Peft("ADALORA", options), torch.Generator().manual_seed(0)
    adapter.apply(model)

    def step(number: int, factor: float) -> dict[str, torch.Tensor]:
        for parameter in trainable(model).values():
            parameter.grad = factor * torch.rand(parameter.shape, generator=draw)
        adapter.after_step(model, number, 8)
        return {name: t.clone() for name, t in adapter.state_dict(model).items() if "exp_avg" in name}

    assert all((tensor == 0).all() for tensor in step(1, torch.inf).values())
    before = step(2, 1.0)
    assert any((tensor > 0).any() for tensor in before.values())
    for number, factor in ((3, torch.inf), (4, torch.nan)):
        after = step(number, factor)
        assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    assert any(not torch.equal(tensor, before[name]) for name, tensor in step(5, 1.0).items())


def test_adalora_asks_for_numbers_that_leave_steps_and_ranks(tmp_path: Path, tiny_llama: str) -> None:
    this = Case("ADALORA", "llama", tiny_llama, tmp_path, options={"init_r": 6, "target_r": 2, "tinit": 3, "tfinal": 1})
    assert "tinit 3 and tfinal 1 leave no step of the run's 4 for reallocation" in this.fit("run")
    with pytest.raises(UserError, match="target_r 8 must be smaller than init_r 8"):
        Peft("ADALORA", {"init_r": 8})


def test_after_step_is_called_once_per_optimizer_step(
    tmp_path: Path, tiny_model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    monkeypatch.setattr(Peft, "after_step", lambda self, model, step, total: calls.append((step, total)))
    this = Case("IA3", "bert", tiny_model, tmp_path)
    assert not this.fit("run", "--trainer.accumulate_grad_batches", "2")
    assert calls == [(1, 4), (2, 4), (3, 4), (4, 4)]


MISTAKES = {
    "unknown method": ({"method": "LOHAA"}, r"PEFT has no method 'LOHAA' \(did you mean LOHA\?\); it has: ADALORA"),
    "unknown option": (
        {"method": "VERA", "options": {"rr": 1}},
        r"options.rr: VERA has no option 'rr' \(did you mean r\?\)",
    ),
    "our option": ({"method": "IA3", "options": {"modules_to_save": ["x"]}}, "use model.adapter.modules_to_save"),
    "set by litpeft": ({"method": "IA3", "options": {"inference_mode": True}}, "litpeft sets it itself; leave it out"),
    "two targets": (
        {"method": "IA3", "targets": ["key"], "options": {"target_modules": ["value"]}},
        "give model.adapter.targets or model.adapter.options.target_modules, not both",
    ),
    "no targets": ({"method": "PREFIX_TUNING", "targets": ["key"]}, "PREFIX_TUNING has no targets; leave it out"),
    "no tokens": ({"method": "TRAINABLE_TOKENS"}, "give the ids of the tokens to train"),
    "eva": ({"method": "LORA", "options": {"init_lora_weights": "eva"}}, "eva: PEFT needs a pass over sample data"),
    "corda": (
        {"method": "LORA", "options": {"init_lora_weights": "corda"}},
        "corda: PEFT needs a pass over sample data",
    ),
    "loftq": ({"method": "LORA", "options": {"init_lora_weights": "loftq"}}, "it changes the base by quantising it"),
    "lora_ga": ({"method": "LORA", "options": {"init_lora_weights": "lora_ga"}}, "the gradients of sample data"),
    "pissa": ({"method": "LORA", "options": {"init_lora_weights": "pissa_niter_4"}}, "give pissa"),
    "bias": ({"method": "LORA", "options": {"bias": "all"}}, "PEFT trains biases in the base's dtype; leave it out"),
    "alora": ({"method": "LORA", "options": {"alora_invocation_tokens": [1]}}, "positions of these tokens"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_gives_one_sentence(mistake: str) -> None:
    options, message = MISTAKES[mistake]
    with pytest.raises(UserError, match=message) as error:
        Peft(**options)
    assert str(error.value).endswith(".")


def test_what_peft_refuses_is_one_sentence(tmp_path: Path, tiny_llama: str) -> None:
    this = Case("C3A", "llama", tiny_llama, tmp_path, options={"block_size": 7})
    error = this.fit("run")
    assert "model.adapter.method C3A: PEFT cannot adapt LlamaForCausalLM (" in error
    assert error.endswith("change model.adapter.options or model.adapter.targets.")


def test_without_the_package_the_error_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UserError, match=r"needs the package peft .*; run: pip install 'litpeft\[peft\]'"):
        Peft("IA3")


def test_sharding_is_refused() -> None:
    with pytest.raises(UserError, match="does not run with fsdp2; give --trainer.strategy ddp"):
        Peft("IA3").check_sharding()


@pytest.mark.parametrize("method", ["PROMPT_TUNING", "SHIRA", "VERA"])
def test_gradient_checkpointing_gives_the_same_weights(method: str, tmp_path: Path, tiny_llama: str) -> None:
    this, steps = Case(method, "llama", tiny_llama, tmp_path), []
    for kind in ("none", "non_reentrant", "reentrant"):
        assert not this.fit(kind, *SGD, "--model.gradient_checkpointing", kind)
        steps.append(Watch.steps)
    for other in steps[1:]:
        for name, tensor in steps[0][-1].items():
            assert torch.allclose(other[-1][name], tensor, rtol=0, atol=1e-6), name


def test_targets_presets_and_defaults(tiny_llama: str) -> None:
    def layers(method: str, **options: object) -> list[str]:
        model = AutoModelForCausalLM.from_pretrained(tiny_llama)
        Peft(method, **options).apply(model)
        kinds = [n for n, m in model.named_modules() if hasattr(m, "base_layer") and n.startswith("model.layers.0.")]
        return [name.removeprefix("model.layers.0.") for name in kinds]

    assert layers("IA3") == ["self_attn.k_proj", "self_attn.v_proj", "mlp.down_proj"]
    assert layers("LN_TUNING") == ["input_layernorm", "post_attention_layernorm"]
    assert layers("VERA") == ["self_attn.q_proj", "self_attn.v_proj"]
    assert layers("LOKR", targets=["value", "projection"]) == ["self_attn.v_proj", "self_attn.o_proj"]
    assert layers("LOKR", targets="all-linear", exclude=["mlp", "key"]) == [f"self_attn.{x}_proj" for x in "qvo"]
    assert layers("LOKR", layers=[1]) == []
    model = AutoModelForCausalLM.from_pretrained(tiny_llama)
    Peft("IA3").apply(model)
    feed_forward = {name: m.is_feedforward for name, m in model.named_modules() if hasattr(m, "is_feedforward")}
    assert {name.rpartition(".")[2] for name, yes in feed_forward.items() if yes} == {"down_proj"}


def test_an_adapted_tied_embedding_is_merged_into_one_of_the_two_layers(tmp_path: Path, byte_llama: str) -> None:
    this = Case("LORA", "llama", byte_llama, tmp_path, options={"r": 4})
    this.arguments += ["--model.adapter.targets", "[embed_tokens]", "--data.max_length", "256"]
    assert not this.fit("run")
    output, error = this.export("merged")
    assert "its logits differ" in output, error
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert not torch.equal(merged.lm_head.weight, merged.model.embed_tokens.weight)


def test_run_folders_are_named_by_the_method(tmp_path: Path, tiny_model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    this = Case("LOKR", "bert", tiny_model, tmp_path)
    monkeypatch.chdir(tmp_path)
    assert run("fit", *this.arguments, "--trainer.enable_progress_bar", "false")[1] == ""
    assert [path.name.partition(",")[0] for path in (tmp_path / "runs" / "sst2").iterdir()] == ["lokr"]


def test_a_layer_that_peft_may_drop_is_counted_by_the_estimate(tmp_path: Path, tiny_model: str) -> None:
    """LOHA draws a number to drop layers, by default with rate 0; the batches have padding."""
    this = Case("LOHA", "bert", tiny_model, tmp_path)
    assert not this.fit("run")
    arguments = [*this.arguments, "--device", "cpu"]
    plan = Plan(arguments)
    peak = plan.trace(plan.task.adapter).phases["first_step"].tensors
    record = this.record()["memory_phases"]["first_step"]
    assert peak.bytes == pytest.approx(record["peak_tensor_bytes"], rel=0.01)
    assert peak.split["activations"] == pytest.approx(record["tensor_bytes"]["activations"], rel=0.01)


def test_estimate_compares_methods_by_name(tmp_path: Path, tiny_model: str) -> None:
    this = Case("IA3", "bert", tiny_model, tmp_path)
    names = "lora,peft-lora,ia3,p_tuning"
    output, error = run("estimate", *this.arguments, "--device", "cpu", "--format", "json", "--compare", names)
    assert not error
    found = {row["adapter"]: row["trainable_params"] for row in json.loads(output)["strategies"]}
    assert list(found) == names.split(",")
    assert found["lora"] == found["peft-lora"] > found["ia3"]


def test_the_tracker_follows_the_parts_of_sparse_tensors() -> None:
    tracker = MemoryTracker(torch.device("cpu"))
    with tracker:
        indices, values = torch.tensor([[0, 1, 2], [1, 0, 2]]), torch.ones(3)
        sparse = torch.sparse_coo_tensor(indices, values, (3, 3))
        dense = sparse.to_dense()
    held = 6 * 8 + 3 * 4 + 9 * 4
    assert held <= tracker.peak().bytes < held + 200
    assert dense.sum() == 3
    tracker.label([sparse], "adapter_weights")
    assert tracker.peak().split["adapter_weights"] == 6 * 8 + 3 * 4

"""Every method in PEFT's registry: trained, resumed, exported, merged and estimated by litpeft, or refused by name.

A method that a new version of PEFT adds is in these tests, and fails them until it works or is in `REFUSED`.
"""

from __future__ import annotations

import re
from pathlib import Path

import peft
import pytest
import torch
from torch import Tensor, nn

from litpeft.adapters.peft_method import CONSTANTS
from litpeft.adapters.peft_options import REFUSED
from litpeft.cli.finished_run import trained_task
from litpeft.commands.estimate import Plan
from litpeft.commands.export_check import logits
from tests.adapters.peft_cases import METHODS, NOT_EXPORTED, NOT_HERE, NOT_MERGED, Case, inputs, run
from tests.sampling import quick
from tests.watching import Watch

PREFIXES = re.compile(r"^base_model\.(model\.)?")
KINDS = ("bert", "llama")
NAMED = {  # in litpeft's code
    *("ADALORA", "ADAPTION_PROMPT", "IA3", "LN_TUNING", "LORA", "PREFIX_TUNING", "PROMPT_TUNING", "P_TUNING", "SHIRA"),
    "TRAINABLE_TOKENS",
}
SAMPLE = [method for place, method in enumerate(METHODS) if method in NAMED or place % 3 == 0]


def case(method: str, kind: str, tiny_model: str, tiny_llama: str, folder: Path, dtype: str = "fp32") -> Case:
    return Case(method, kind, {"bert": tiny_model, "llama": tiny_llama}[kind], folder, dtype)


@pytest.mark.parametrize("method", quick(METHODS, SAMPLE))
def test_each_method_trains_and_peft_loads_its_export(
    method: str, tmp_path: Path, tiny_model: str, tiny_llama: str
) -> None:
    kinds = [kind for kind in KINDS if (method, kind) not in NOT_HERE | NOT_EXPORTED]
    check_fit_and_export(case(method, kinds[METHODS.index(method) % len(kinds)], tiny_model, tiny_llama, tmp_path))


@pytest.mark.whole
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", METHODS)
def test_everything_else_works_with_each_method(
    method: str, kind: str, tmp_path: Path, tiny_model: str, tiny_llama: str
) -> None:
    this = case(method, kind, tiny_model, tiny_llama, tmp_path)
    if reason := NOT_HERE.get((method, kind)):
        assert reason in this.fit("run")
        return
    if reason := NOT_EXPORTED.get((method, kind)):
        assert not this.fit("run")
        assert reason in this.export("adapter")[1]
    else:
        check_fit_and_export(this)
    check_resume(this)
    output, error = this.export("merged")
    reason = NOT_MERGED.get((method, kind), NOT_MERGED.get((method, "any")))
    assert (reason in error and "give --format adapter" in error) if reason else "its logits differ" in output
    check_estimate(this)
    rows = str(next(tmp_path.glob("rows.*")))
    at_run = ["--run_dir", str(tmp_path / "run"), "--trainer.enable_progress_bar", "false"]
    assert run("test", *at_run, "--data.test_file", rows)[1] == ""
    assert this.record()["test_loss" if kind == "llama" else "test_accuracy"] is not None
    assert run("predict", *at_run, "--data.predict_file", rows)[1] == ""
    if method != "ADAPTION_PROMPT":
        check_bf16(case(method, kind, tiny_model, tiny_llama, tmp_path / "bf16", "bf16"), this)


@pytest.mark.parametrize("method", ["ADALORA", "PVERA", "SHIRA", "UNILORA"])
def test_methods_with_state_or_random_numbers_resume_exactly(
    method: str, tmp_path: Path, tiny_model: str, tiny_llama: str
) -> None:
    this = case(method, "bert", tiny_model, tiny_llama, tmp_path)
    assert not this.fit("run")
    check_resume(this)


@pytest.mark.parametrize("method", sorted(REFUSED))
def test_other_methods_are_refused_by_name(method: str, tmp_path: Path, tiny_model: str, tiny_llama: str) -> None:
    error = case(method, "llama", tiny_model, tiny_llama, tmp_path).fit("run")
    assert error == f"litpeft: error: model.adapter.method {method}: {REFUSED[method]}."


def test_every_method_of_the_registry_is_run_or_refused() -> None:
    known = {kind.value for kind in peft.PEFT_TYPE_TO_CONFIG_MAPPING}
    assert known >= REFUSED.keys()
    assert known == {*METHODS, *REFUSED}


def test_the_table_of_methods_names_every_method() -> None:
    text = (Path(__file__).parents[2] / "docs" / "methods.md").read_text()
    assert set(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)) == set(METHODS)
    assert set(re.findall(r"^- `(\w+)`: ", text, re.MULTILINE)) == set(REFUSED)
    assert "DIFFERS" not in text


def check_fit_and_export(this: Case) -> None:
    """Train four steps and export; PEFT's model of the export has the same tensors, logits and gradients."""
    assert not this.fit("run")
    record, first, last = this.record(), Watch.steps[0], Watch.steps[-1]
    name = "peft-lora" if this.method == "LORA" else this.method.lower()
    assert (record["adapter"], record["steps"]) == (name, 4)
    assert any(not torch.equal(first[name], last[name]) for name in first if is_added(name))
    trained = {name: t for name, t in this.weights().items() if name != CONSTANTS and not name.startswith("adalora.")}
    assert trained.keys() == last.keys()
    assert record["trainable_params"] == sum(tensor.numel() for tensor in trained.values())
    assert record["adapter_bytes"] == sum(tensor.nbytes for tensor in trained.values())
    output, error = this.export("adapter")
    assert "PEFT's logits differ by at most" in output, error
    ours, theirs = trained_task(this.folder / "run").backbone, this.loaded().eval()
    found, expected = logits(ours, inputs()), logits(theirs, inputs())
    assert torch.allclose(found, expected, rtol=0, atol=2e-6 * float(expected.abs().max()))
    theirs = this.in_training(trained).eval()
    counted = sum(p.numel() for p in theirs.parameters() if p.requires_grad)
    assert record["trainable_params"] == counted
    mine, gradients = gradients_of(ours), gradients_of(theirs)
    assert mine.keys() == gradients.keys() == trained.keys()
    largest = max(float(gradient.abs().max()) for gradient in gradients.values())
    for name, gradient in gradients.items():
        assert torch.allclose(mine[name], gradient, rtol=1e-4, atol=1e-5 * largest), name


def is_added(name: str) -> bool:
    return not name.startswith("classifier")


def gradients_of(model: nn.Module) -> dict[str, Tensor]:
    """Return the gradients of a sum of squared logits by litpeft's names of the parameters."""
    model.zero_grad()
    out = model(**inputs().tensors).logits
    out[:, -6:].square().sum().backward()  # PEFT returns the logits of virtual tokens too
    names = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    return {PREFIXES.sub("", name).replace(".modules_to_save.default", ""): grad for name, grad in names.items()}


def check_resume(this: Case) -> None:
    """Compare a run interrupted after two steps and resumed with the uninterrupted run, bit by bit."""
    assert not this.fit("resumed", stop=2)
    assert this.record("resumed")["steps"] == 2
    assert not this.fit("resumed", "--resume")
    whole, resumed = this.weights(), this.weights("resumed")
    assert whole.keys() == resumed.keys()
    for name, tensor in whole.items():
        assert torch.equal(tensor, resumed[name]), f"{name} differs after resuming"


def check_estimate(this: Case) -> None:
    """Compare the counts with those of the run exactly and the peak of the first step within 2 %, unless refused."""
    arguments, record = [*this.arguments, "--device", "cpu"], this.record()
    error = run("estimate", *arguments)[1]
    if error:
        assert f"with {record['adapter']} cannot be estimated" in error
        return
    plan = Plan(arguments)
    found = plan.trace(plan.task.adapter)
    for name in ("trainable_params", "total_params", "adapter_bytes", "model_bytes"):
        assert found.counts[name] == record[name], name
    ratio = found.phases["first_step"].tensors.bytes / record["memory_phases"]["first_step"]["peak_tensor_bytes"]
    assert 0.98 <= ratio <= 1.02


def check_bf16(this: Case, in_fp32: Case) -> None:
    """Train in bf16: the same tensors are trained, in fp32, and the exported adapter passes its check."""
    assert not this.fit("run")
    ours, reference = this.weights(), in_fp32.weights()
    assert {n: (t.shape, t.dtype) for n, t in ours.items()} == {n: (t.shape, t.dtype) for n, t in reference.items()}
    if (this.method, this.kind) not in NOT_EXPORTED:
        assert "PEFT's logits differ by at most" in this.export("adapter")[0]

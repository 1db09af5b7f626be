"""`litpeft combine` against PEFT and dense sums, and several runs on one base in `litpeft evaluate`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from litpeft.adapters.layers import adapted_layers
from litpeft.cli.finished_run import trained_task
from litpeft.commands.export_check import logits
from litpeft.runs.record import read_record
from litpeft.tasks import FineTuner
from tests.adapters.peft_cases import Case, inputs, run


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, tiny_llama: str) -> Path:
    """Return a folder with two LoRA runs, one with QLoRA and one with DoRA, and with their arguments."""
    folder = tmp_path_factory.mktemp("runs")
    case = Case("LORA", "llama", tiny_llama, folder)
    start = case.arguments[: case.arguments.index("--model.adapter")]
    end = ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false", "--trainer.max_steps", "6"]
    end += ["--model.optimizer", "torch.optim.AdamW", "--model.optimizer.lr", "3e-2"]
    for name, more in {
        "a": ["--model.adapter", "LoRA", "--model.adapter.rank", "4"],
        "b": ["--model.adapter", "LoRA", "--model.adapter.rank", "4", "--seed_everything", "7"],
        "dora": ["--model.adapter", "DoRA", "--model.adapter.rank", "4"],
        "key": ["--model.adapter", "LoRA", "--model.adapter.rank", "4", "--model.adapter.targets", "[key]"],
    }.items():
        assert run("fit", *start, *more, *end, "--run_dir", str(folder / name))[1] == ""
    return folder


def combine(runs: Path, out: Path, *more: str) -> tuple[str, str]:
    return run("combine", str(runs / "a"), str(runs / "b"), str(out), *more)


def of_peft(runs: Path, folder: Path, base: str, how: str) -> Tensor:
    """Return the logits that PEFT computes with its own combination of the exported adapters."""
    for name in ("a", "b"):
        if not (folder / name).exists():
            assert run("export", str(runs / name), str(folder / name), "--format", "adapter")[1] == ""
    model = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder / "a", adapter_name="a")
    model.load_adapter(folder / "b", adapter_name="b")
    torch.manual_seed(0)
    density = 0.5 if "ties" in how else None
    model.add_weighted_adapter(["a", "b"], [0.7, 0.3], "c", how, density=density)
    model.set_adapter("c")
    return logits(model, inputs())


@pytest.mark.parametrize(
    "how", ["ties", *(pytest.param(how, marks=pytest.mark.whole) for how in ("linear", "cat", "svd", "dare_ties"))]
)
def test_a_combined_adapter_computes_what_peft_computes(how: str, runs: Path, tmp_path: Path, tiny_llama: str) -> None:
    out, error = combine(runs, tmp_path / "out", "--weights", "0.7,0.3", "--how", how)
    assert f"{how} of 2 adapters, rank {8 if how == 'cat' else 4}; PEFT's logits differ by at most" in out, error
    expected = of_peft(runs, tmp_path, tiny_llama, how)
    close = {"rtol": 0, "atol": 1e-5 * float(expected.abs().max())}
    assert torch.allclose(logits(trained_task(tmp_path / "out").backbone, inputs()), expected, **close)
    plain = AutoModelForCausalLM.from_pretrained(tiny_llama)
    loaded = peft.PeftModel.from_pretrained(plain, tmp_path / "out")
    assert torch.allclose(logits(loaded, inputs()), expected, **close)


def test_cat_is_the_weighted_sum_of_the_updates_and_the_folder_is_a_run(
    runs: Path, tmp_path: Path, tiny_llama: str
) -> None:
    out = tmp_path / "out"
    assert combine(runs, out, "--weights", "0.7,0.3")[1] == ""
    layers = [adapted_layers(trained_task(folder).backbone) for folder in (runs / "a", runs / "b", out)]
    for name, layer in layers[2].items():
        a, b, combined = ((each.scaling * each.lora_B.double() @ each.lora_A.double()) for each in (
            layers[0][name], layers[1][name], layer))  # fmt: skip
        assert torch.allclose(combined, 0.7 * a + 0.3 * b, rtol=1e-5, atol=1e-7)
    record = read_record(out)
    assert (record["status"], record["adapter"], record["adapter_options"]["rank"]) == ("ok", "lora", 8)
    assert record["adapter_summary"]["combined"]["weights"] == [0.7, 0.3]
    assert record["val_loss"] is None
    rows = str(next(runs.glob("rows.*")))
    quiet = ["--run_dir", str(out), "--trainer.enable_progress_bar", "false"]
    assert run("predict", *quiet, "--data.predict_file", rows)[1] == ""
    assert run("test", *quiet, "--data.test_file", rows)[1] == ""
    assert read_record(out)["test_loss"] > 0
    text = ["--text_file", str(Path(__file__).resolve())]
    assert run("evaluate", str(out), "--tasks", "perplexity", "--accelerator", "cpu", *text)[1] == ""
    assert "its logits differ" in run("export", str(out), str(tmp_path / "merged"), "--format", "merged")[0]
    config = json.loads((out / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(Path(tiny_llama).resolve())
    # start another run from the combined adapter
    case = Case("LORA", "llama", tiny_llama, tmp_path)
    start = case.arguments[: case.arguments.index("--model.adapter")]
    options = ["--model.adapter", "LoRA", "--model.adapter.rank", "8", "--model.adapter.alpha", "8"]
    options += ["--model.adapter.init_from", str(out), "--trainer.max_steps", "1", "--trainer.accelerator", "cpu"]
    options += ["--model.optimizer", "torch.optim.SGD", "--model.optimizer.lr", "0"]
    assert run("fit", *start, *options, "--run_dir", str(tmp_path / "next"))[1] == ""
    tensors = [load_file(next(folder.glob("checkpoints/*/*.safetensors"))) for folder in (out, tmp_path / "next")]
    assert all(torch.equal(tensor, tensors[1][name]) for name, tensor in tensors[0].items())


@pytest.mark.parametrize(
    ("others", "options", "message"),
    [
        (["dora"], [], "is a dora run; PEFT combines LoRA and QLoRA adapters"),
        (["key"], [], "has model.adapter.targets ['key'], but"),
        (["b"], ["--weights", "1"], "--weights has 1 numbers for 2 runs"),
        (["b"], ["--weights", "a,b"], "--weights must be numbers such as 0.7,0.3"),
        (["b"], ["--weights", "nan,1"], "--weights must be finite numbers, got nan, 1.0"),
        (["b"], ["--weights", "1,-inf"], "--weights must be finite numbers, got 1.0, -inf"),
        (["b"], ["--density", "0.5"], "--density applies to --how ties and dare_ties"),
        (["b"], ["--how", "ties", "--density", "2"], "--density must be above 0 and at most 1"),
        ([], [], "give at least two runs and the folder OUT"),
    ],
)
def test_mistakes_are_one_sentence(
    others: list[str], options: list[str], message: str, runs: Path, tmp_path: Path
) -> None:
    folders = [str(runs / name) for name in ["a", *others]]
    assert message in run("combine", *folders, str(tmp_path / "out"), *options)[1]
    assert not (tmp_path / "out").exists()


def test_several_runs_are_evaluated_on_one_base_with_the_scores_of_single_ones(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built, build = [], FineTuner.build
    monkeypatch.setattr(FineTuner, "build", lambda task, *a, **o: built.append(task) or build(task, *a, **o))
    options = ["--tasks", "perplexity", "--accelerator", "cpu", "--text_file", str(Path(__file__).resolve())]
    together, alone = (tmp_path / name for name in ("together", "alone"))
    for folder in (together, alone):
        for name in ("a", "b", "dora"):
            shutil.copytree(runs / name, folder / name)
    assert run("evaluate", *(str(together / name) for name in ("a", "b", "dora")), *options)[1] == ""
    assert len(built) == 2  # a and b share one base
    for name in ("a", "b", "dora"):
        assert run("evaluate", str(alone / name), *options)[1] == ""
        scores = [read_record(folder / name)["benchmarks"][-1]["results"] for folder in (together, alone)]
        assert scores[0] == scores[1]
    assert read_record(alone / "a")["benchmarks"] != read_record(alone / "b")["benchmarks"]


def test_several_runs_predict_on_one_base_what_single_ones_predict(
    tmp_path: Path, fit_arguments: list[str], sentences: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    adapters = {"a": ["LoRA"], "b": ["LoRA", "--seed_everything", "3"], "dora": ["DoRA"]}
    for name, adapter in adapters.items():
        options = ["--model.adapter", *adapter, "--trainer.max_steps", "6"]
        assert run(*fit_arguments, *options, "--run_dir", str(tmp_path / name))[1] == ""
    built, build = [], FineTuner.build
    monkeypatch.setattr(FineTuner, "build", lambda task, *a, **o: built.append(task) or build(task, *a, **o))
    quiet = ["--data.predict_file", sentences["val"], "--trainer.enable_progress_bar", "false"]
    quiet += ["--trainer.accelerator", "cpu"]
    assert run("predict", *(str(tmp_path / name) for name in adapters), *quiet)[1] == ""
    assert len(built) == 2  # a and b share one base
    together = {name: (tmp_path / name / "predictions.jsonl").read_text() for name in adapters}
    assert len(set(together.values())) == 3
    for name in adapters:
        assert run("predict", "--run_dir", str(tmp_path / name), *quiet)[1] == ""
        assert (tmp_path / name / "predictions.jsonl").read_text() == together[name]
    error = run("predict", str(tmp_path / "a"), str(tmp_path / "b"), *quiet, "--predictions.file", "x")[1]
    assert "--predictions.file is for one run; leave it out" in error

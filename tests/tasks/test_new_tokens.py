"""Tokens that the tokenizer has and the model lacks: their rows train, and PEFT and transformers load them."""

from __future__ import annotations

import json
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, LlamaConfig

from litpeft.__main__ import main
from litpeft.cli.finished_run import trained_task
from litpeft.commands.estimate import Plan
from litpeft.runs.folder import newest_checkpoint
from litpeft.runs.record import read_record
from tests.conftest import write_tiny_llama

OLD, NEW = 25, 28  # rows of the embeddings, tokens of the tokenizer
ADAPTERS = {
    "lora": ["LoRA", "--model.adapter.targets", "all-linear"],
    "dora": ["DoRA", "--model.adapter.targets", "all-linear"],
    "qlora": ["QLoRA", "--model.adapter.targets", "all-linear"],
    "frozen": ["Frozen"],
    "full": ["Full"],
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, tiny_model: str) -> dict[str, str]:
    """Return folders of a tied and an untied Llama, of a tokenizer with new tokens, and a file of rows with them."""
    folder = tmp_path_factory.mktemp("new-tokens")
    tokenizer = AutoTokenizer.from_pretrained(tiny_model, eos_token="[SEP]")
    tokenizer.add_tokens(["<sad>", "<glad>", "<odd>"])
    tokenizer.save_pretrained(folder / "tokenizer")
    untied = write_tiny_llama(folder / "untied", tiny_model)
    config = LlamaConfig.from_pretrained(untied, tie_word_embeddings=True)
    torch.manual_seed(1)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder / "tied")
    words = ["good", "bad", "fine", "dull"]
    rows = [
        {"instruction": f"the <odd> film {w}", "input": "", "output": f"<glad> {w} <sad>"} for w in words for _ in "12"
    ]
    (folder / "rows.json").write_text(json.dumps(rows))
    lines = [f"the {('<sad>', '<glad>')[i % 2]} film {i}\t{i % 2}" for i in range(16)]
    (folder / "rows.tsv").write_text("sentence\tlabel\n" + "\n".join(lines) + "\n")
    names = {"tokenizer": "tokenizer", "tied": "tied", "rows": "rows.json", "table": "rows.tsv"}
    return {"untied": untied, "bert": tiny_model} | {name: str(folder / path) for name, path in names.items()}


def options(files: dict[str, str], model: str, adapter: str, *more: str) -> list[str]:
    """Return options of `litpeft fit`."""
    if model == "bert":
        task = ["--model", "SequenceClassification", "--data", "SST2"]
        table = ["--data.train_file", files["table"], "--data.val_file", files["table"]]
    else:
        task = ["--model", "CausalLM", "--data", "Alpaca"]
        table = ["--data.train_file", files["rows"], "--data.val_file", files["rows"]]
    return [
        *(*task, "--model.model_name", files[model], "--model.dtype", "fp32", "--model.resize_embeddings", "true"),
        *(*table, "--data.tokenizer", files["tokenizer"], "--data.batch_size", "4", "--data.max_length", "96"),
        *("--model.adapter", *ADAPTERS[adapter], "--model.optimizer", "torch.optim.AdamW"),
        *("--model.optimizer.lr", "1e-2", "--trainer.accelerator", "cpu"),
        *("--trainer.enable_progress_bar", "false", "--trainer.max_steps", "3", *more),
    ]


def ids() -> torch.Tensor:
    """Return token ids in which every new token appears."""
    drawn = torch.randint(5, NEW, (4, 12), generator=torch.Generator().manual_seed(0))
    drawn[:, 2:5] = torch.arange(OLD, NEW)
    return drawn


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.inference_mode():
        return model.eval()(input_ids=ids(), attention_mask=torch.ones_like(ids())).logits.float()


@pytest.mark.parametrize(("model", "adapter"), [("tied", "lora"), ("untied", "dora"), ("bert", "lora")])
def test_peft_and_transformers_load_the_trained_rows(
    files: dict[str, str], model: str, adapter: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    assert main(["fit", *options(files, model, adapter), "--run_dir", str(run)]) == 0
    assert read_record(run)["adapter_summary"]["new_tokens"] == NEW - OLD
    saved = load_file(newest_checkpoint(run) / "trainable.safetensors")
    new_rows = {name: tensor for name, tensor in saved.items() if name.endswith("new_tokens")}
    assert len(new_rows) == (2 if model == "untied" else 1)
    assert all(tensor.shape == (NEW - OLD, 32) for tensor in new_rows.values())
    assert all(len(tensor.unique(dim=0)) > 1 for tensor in new_rows.values())  # trained: they start equal
    ours = logits(trained_task(run).backbone)

    for kind in ("adapter", "merged"):
        assert main(["export", str(run), str(tmp_path / kind), "--format", kind]) == 0
    auto = AutoModelForSequenceClassification if model == "bert" else AutoModelForCausalLM
    base = auto.from_pretrained(files[model], dtype=torch.float32)
    old_rows = base.get_input_embeddings().weight.clone()
    base.resize_token_embeddings(len(AutoTokenizer.from_pretrained(tmp_path / "adapter")))
    torch.testing.assert_close(
        logits(peft.PeftModel.from_pretrained(base, tmp_path / "adapter")), ours, rtol=1e-4, atol=1e-5
    )
    merged = auto.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(logits(merged), ours, rtol=1e-4, atol=1e-5)
    rows = merged.get_input_embeddings().weight
    assert torch.equal(rows[:OLD], old_rows)
    assert any(torch.equal(rows[OLD:], tensor) for tensor in new_rows.values())
    assert AutoTokenizer.from_pretrained(tmp_path / "merged").convert_tokens_to_ids("<odd>") == NEW - 1

    monkeypatch.chdir(tmp_path)
    plan = Plan([*options(files, model, adapter), "--device", "cpu"])
    counts, record = plan.trace(plan.task.adapter).counts, read_record(run)
    for field in ("trainable_params", "total_params", "adapter_bytes", "model_bytes"):
        assert counts[field] == record[field]


def built(files: dict[str, str], model: str, adapter: str, folder: Path, *more: str) -> torch.nn.Module:
    """Return the model as it is before the first step."""
    never = ["--model.optimizer.lr", "0", "--trainer.max_steps", "1", "--run_dir", str(folder)]
    assert main(["fit", *options(files, model, adapter, *more), *never]) == 0
    return trained_task(folder).backbone


def test_new_rows_start_equal_for_every_adapter_and_dtype(files: dict[str, str], tmp_path: Path) -> None:
    mean = load_file(Path(files["tied"]) / "model.safetensors")["model.embed_tokens.weight"].bfloat16().double().mean(0)
    starts = []
    for name, more in (("full", []), ("lora", []), ("lora", ["--model.dtype", "bf16"]), ("qlora", []), ("frozen", [])):
        layer = built(files, "tied", name, tmp_path / f"run{len(starts)}", *more).get_input_embeddings()
        starts.append(layer.weight[OLD:] if name == "full" else layer.new_tokens)
    assert all(torch.equal(start, starts[0]) for start in starts)
    torch.testing.assert_close(starts[0][0].double(), mean, rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize("model", ["tied", "untied"])
def test_the_gradient_of_the_new_rows_is_that_of_a_model_trained_in_full(
    files: dict[str, str], model: str, tmp_path: Path
) -> None:
    ours = built(files, model, "frozen", tmp_path / "run")
    theirs = AutoModelForCausalLM.from_pretrained(files[model], dtype=torch.float32)
    theirs.resize_token_embeddings(NEW, mean_resizing=False)
    embeddings = {"input": theirs.get_input_embeddings(), "output": theirs.get_output_embeddings()}
    with torch.no_grad():
        for name, layer in embeddings.items():
            layer.weight[OLD:] = getattr(ours, f"get_{name}_embeddings")().new_tokens
    for each in (ours, theirs):
        each.eval()(input_ids=ids(), labels=ids()).loss.backward()
    for name, layer in embeddings.items():
        trained = getattr(ours, f"get_{name}_embeddings")()
        torch.testing.assert_close(trained.new_tokens.grad, layer.weight.grad[OLD:], rtol=1e-4, atol=1e-6)
        assert trained.weight.grad is None
    assert {name for name, p in ours.named_parameters() if p.requires_grad} == (
        {"model.embed_tokens.new_tokens"} | ({"lm_head.new_tokens"} if model == "untied" else set())
    )


def test_a_resumed_run_ends_with_the_same_rows(files: dict[str, str], tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    once = options(files, "tied", "lora")
    assert main(["fit", *once, "--run_dir", str(whole)]) == 0
    assert main(["fit", *once, "--trainer.max_steps", "1", "--run_dir", str(cut)]) == 0
    assert main(["fit", *once, "--run_dir", str(cut), "--resume"]) == 0
    ends = [load_file(newest_checkpoint(run) / "trainable.safetensors") for run in (whole, cut)]
    assert ends[0].keys() == ends[1].keys()
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_a_run_can_start_from_an_exported_adapter_with_new_tokens(
    files: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    once = options(files, "untied", "lora")
    assert main(["fit", *once, "--run_dir", str(tmp_path / "first")]) == 0
    assert main(["export", str(tmp_path / "first"), str(tmp_path / "adapter"), "--format", "adapter"]) == 0
    start = ["--model.adapter.init_from", str(tmp_path / "adapter"), "--model.optimizer.lr", "0"]
    assert main(["fit", *once, *start, "--run_dir", str(tmp_path / "next")]) == 0
    ends = [load_file(newest_checkpoint(tmp_path / run) / "trainable.safetensors") for run in ("first", "next")]
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    config["trainable_token_indices"]["lm_head"] = [1, 2, 3]
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    assert main(["fit", *once, *start, "--run_dir", str(tmp_path / "other")]) == 2
    assert "it trains the rows of other tokens (trainable_token_indices)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("adapter", "more", "sentence"),
    [
        (
            "lora",
            ["--model.resize_embeddings", "false"],
            "or --model.resize_embeddings true to add rows and train them.",
        ),
        ("lora", ["--model.adapter.targets", "[embed_tokens,q_proj]"], "cannot have an adapter too; leave it out of"),
        (
            "qlora",
            ["--model.adapter.skip", "[]"],
            "the output embedding is quantised; leave head in model.adapter.skip.",
        ),
    ],
)
def test_what_cannot_be_exact_is_refused_in_one_sentence(
    files: dict[str, str],
    adapter: str,
    more: list[str],
    sentence: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for verb in (["fit", "--run_dir", str(tmp_path / "run")], ["estimate", "--device", "cpu"]):
        assert main([verb[0], *options(files, "untied", adapter), *more, *verb[1:]]) == 2
        assert sentence in capsys.readouterr().err
